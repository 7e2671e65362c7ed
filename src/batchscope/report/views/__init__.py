"""The view of each record: a title, an answer, and sections of cards, tables and charts; a file per record.

To show a new kind of record, write a function that makes its :class:`batchscope.report.view.View` and register it here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from batchscope.records import (
    Advice,
    BranchedRuns,
    Claims,
    Comparison,
    DevicePlan,
    Diagnosis,
    HessianEigenvalues,
    HessianTrace,
    Landscape,
    MemoryUse,
    MonitoredNoise,
    NoiseMeasurement,
    PaperStudy,
    Probe,
    RangeTest,
    Record,
    Sharpness,
    SpectralDensity,
    StepTimes,
    Sweep,
    TradeoffLaw,
    TrainResult,
    encode,
)
from batchscope.report.view import Section, View
from batchscope.report.views import advice, claims, comparison, curvature, devices, diagnosis, probe, sweep, training


@functools.singledispatch
def view(record: Record) -> View:
    """What is shown of a record, whoever draws it.

    Args:
        record: Any record; kinds without a view of their own are listed field by field.

    Returns:
        Its view.
    """
    facts = tuple((name, str(value)) for name, value in encode(record).items() if value is not None)
    fields = Section("Fields", facts=((record.kind.capitalize(), facts),), on="both")
    return View(name="batchscope", title=record.kind.capitalize(), answer="", sections=(fields,))


_VIEWS: dict[type[Record], Callable[[Any], View]] = {
    Advice: advice.view,
    BranchedRuns: probe.branches_view,
    Claims: claims.view,
    Comparison: comparison.view,
    DevicePlan: devices.view,
    Diagnosis: diagnosis.view,
    HessianEigenvalues: curvature.eigenvalues_view,
    HessianTrace: curvature.trace_view,
    Landscape: curvature.landscape_view,
    MemoryUse: probe.memory_view,
    MonitoredNoise: probe.monitor_view,
    NoiseMeasurement: probe.noise_view,
    PaperStudy: claims.paper_view,
    Probe: probe.view,
    RangeTest: probe.range_view,
    Sharpness: curvature.sharpness_view,
    SpectralDensity: curvature.density_view,
    StepTimes: probe.step_times_view,
    Sweep: sweep.view,
    TradeoffLaw: sweep.law_view,
    TrainResult: training.view,
}
for _kind, _make in _VIEWS.items():
    view.register(_kind, _make)
