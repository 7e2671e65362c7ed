"""Every sample record of the tests, plain and awkward, by group and name."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.report import sample_advice, sample_probes, sample_records, sample_sweeps
from tests.report.sample_probes import CPU, HOSTILE, cnn, mlp

from batchscope.records import (
    DevicePlan,
    HessianEigenvalues,
    HessianTrace,
    Interval,
    Landscape,
    LandscapePoint,
    PathPoint,
    Plan,
    Record,
    Sharpness,
    SharpnessRun,
    SpectralDensity,
    load,
)

OUTCOMES = ("finished", "diverged", "out of memory", "interrupted", "stopped early", "reached")
CLAIMS = Path(__file__).parents[2] / "benchmarks" / "results" / "claims-digits.json"
NETWORK = (12e9, 20e-6)


def plans() -> dict[str, DevicePlan]:
    """Ratios alone, times with money, one number alone, and text that would break a careless page."""
    from batchscope.fit import plan_devices

    many = (1, 8, 64)
    relative = plan_devices(mlp(), many, network=NETWORK)
    whole: dict[str, Any] = {"target_examples": 2e6, "price_per_hour": 2.5, "power_watts": 300.0}
    return {
        "relative": relative,
        "whole": plan_devices(cnn(), many, network=NETWORK, algorithm="fastest", zero_stage=3, **whole),
        "timed": plan_devices(cnn(), many, network=NETWORK, target_examples=2e6),
        "one": plan_devices(mlp(), (8,), network=NETWORK),
        "without memory": plan_devices(replace(mlp(), memory=None), many, network=NETWORK),
        "too many": plan_devices(mlp(), (1, 4096), network=NETWORK),
        "hostile": replace(
            relative, workload=replace(relative.workload, name=HOSTILE), conclusion=HOSTILE, warnings=(HOSTILE,)
        ),
    }


REST: dict[str, Any] = {
    "workload": "digits",
    "parameters": 9_930,
    "training_examples": 360,
    "validation_examples": 360,
    "seconds": 2.5,
    "provenance": CPU,
}


def bowl(along: float, across: float) -> LandscapePoint:
    loss = 0.1 + along**2 + 3 * across**2
    return LandscapePoint(along, across, loss, 1 - loss / 10, 1.2 * loss, 0.9 - loss / 10)


LINE = Landscape(
    shape="line",
    labels=("small", HOSTILE),
    length=(3.5, 0.0),
    points=tuple(bowl(k / 4 - 1, 0.0) for k in range(13)),
    path=(PathPoint(0.0, 0.0, 0.0), PathPoint(1.0, 0.0, 0.0)),
    explained=(),
    statistics_from=360,
    **REST,
)
PLACES = [k / 4 - 1 for k in range(9)]
PLANE = Landscape(
    shape="plane",
    labels=("weights",),
    length=(3.5, 3.5),
    points=tuple(bowl(x, y) for y in PLACES for x in PLACES),
    path=(PathPoint(0.0, 0.0, 0.0),),
    explained=(),
    statistics_from=0,
    **REST,
)
PATH = replace(
    PLANE,
    shape="path",
    labels=("1", "2", "3"),
    path=(PathPoint(0.9, 0.5, 0.2), PathPoint(0.4, -0.1, 0.3), PathPoint(0.0, 0.0, 0.0)),
    explained=(0.7, 0.2),
)
LANDSCAPES: dict[str, Record] = {
    "line": LINE,
    "direction": replace(LINE, shape="direction", labels=("w",)),
    "plane": PLANE,
    "path": PATH,
}
ON: dict[str, Any] = {"workload": "digits", "seconds": 2.5, "provenance": CPU}
WHERE: dict[str, Any] = {"parameters": 9_930, "examples": 1_437, **ON}
EIGENVALUES = HessianEigenvalues(
    matrix="hessian",
    values=(31.4, 12.0, 12.0),
    residuals=(1e-5, 2e-5, 1e-5),
    converged=(True, True, False),
    told_apart=(True, False, True),
    learning_rate=0.05,
    stable_learning_rate=0.121,
    products=57,
    **WHERE,
)
TRACE = HessianTrace(
    matrix="gauss-newton",
    trace=Interval(120.0, 100.0, 140.0),
    mean_eigenvalue=Interval(0.012, 0.01, 0.014),
    samples=30,
    projected_out=5,
    products=30,
    **WHERE,
)
DENSITY = SpectralDensity(
    matrix="hessian",
    eigenvalues=tuple(x / 10 for x in range(-20, 300)),
    density=tuple(math.exp(-((x / 10) ** 2)) for x in range(-20, 300)),
    width=0.3,
    nodes=(-1.5, 0.0, 29.0),
    weights=(0.1, 0.8, 0.1),
    share_negative=Interval(0.1, 0.05, 0.15),
    runs=4,
    steps=60,
    products=240,
    **WHERE,
)
SHARPNESS = Sharpness(
    box="keskar",
    epsilon=1e-3,
    subspace=100,
    iterations=10,
    loss=0.21,
    value=12.5,
    over_runs=Interval(12.5, 11.0, 14.0),
    runs=(SharpnessRun(0.36, 12.4, 23, 0.97), SharpnessRun(0.365, 12.6, 20, 0.91)),
    **WHERE,
)


def comparisons() -> dict[str, Record]:
    """Comparisons, and runs that ended in every way."""
    runs = {f"run {outcome}": sample_records.train_result(outcome=outcome) for outcome in OUTCOMES}
    plain = {"plain": sample_records.comparison(), "no search": sample_records.comparison(search=False)}
    return {**plain, **runs, **sample_records.awkward()}


def curvatures() -> dict[str, Record]:
    """Curvature and sharpness, landscapes, and kinds without more than one sample."""
    found: tuple[Record, ...] = (EIGENVALUES, TRACE, DENSITY, SHARPNESS)
    hostile = {record.kind: replace(record, workload=HOSTILE) for record in found}  # type: ignore[type-var]
    others = {"plan": Plan(batch_size=64, learning_rate=0.1, iterations=10), "claims": load(CLAIMS)}
    return {**LANDSCAPES, **hostile, **others}


GROUPS: dict[str, Callable[[], dict[str, Record]]] = {
    "comparisons": comparisons,
    "probes": sample_probes.every,
    "sweeps": lambda: sample_sweeps.every(sample_probes),
    "advice": lambda: sample_advice.every(sample_records, HOSTILE),
    "devices": lambda: {f"devices {name}": plan for name, plan in plans().items()},
    "curvature": curvatures,
}


@functools.cache
def group(name: str) -> dict[str, Record]:
    """The records of one group, made once."""
    return GROUPS[name]()
