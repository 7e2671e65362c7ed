"""batchscope: which batch size, how many iterations, which learning rate, at what cost: measured on your own case.

The public surface, grouped. Names are imported when they are first used, so that ``import batchscope`` and the
command's ``--help`` cost next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # The answer, and acting on it
    # Errors
    from batchscope.errors import (
        ArgumentError,
        BatchscopeError,
        DataError,
        MissingPackageError,
        PlanError,
        RecordError,
        RunError,
        StorageError,
        WorkloadError,
    )

    # Arithmetic on what was measured before
    from batchscope.fit import fit_tradeoff, plan_devices, replan

    # The folklore, tested
    from batchscope.folklore import claims

    # Single measurements, the probe of them all, and what goes into a person's own loop
    from batchscope.measure import (
        GradientNoise,
        all_reduce_law,
        branched_runs,
        find_max_batch_size,
        gradient_noise,
        hessian_eigenvalues,
        hessian_trace,
        landscape,
        probe,
        range_test,
        sharpness,
        spectral_density,
        step_times,
    )

    # Records
    from batchscope.records import (
        Advice,
        AllReduceLaw,
        BranchedRuns,
        Claims,
        Comparison,
        DevicePlan,
        HessianEigenvalues,
        HessianTrace,
        Interval,
        Landscape,
        MemoryUse,
        NoiseMeasurement,
        Phase,
        Plan,
        Probe,
        RangeTest,
        Record,
        Schedule,
        Sharpness,
        SpectralDensity,
        StepTimes,
        Sweep,
        TradeoffLaw,
        TrainResult,
        load,
    )

    # For people who keep their own loop
    from batchscope.schedule import rescale
    from batchscope.search import advise, train_from_nothing

    # The question, the exhaustive answer, and training
    from batchscope.study import compare, sweep, train

    # For people who keep their own loop
    from batchscope.training import BatchSizeScheduler, ghost_batch_norm

    # What is trained
    from batchscope.workload import Workload, load_workload

_HOMES = {
    # The answer, and acting on it
    "advise": "batchscope.search",
    "train_from_nothing": "batchscope.search",
    # What is trained
    "Workload": "batchscope.workload",
    "load_workload": "batchscope.workload",
    # The question, and the exhaustive answer
    "compare": "batchscope.study",
    "sweep": "batchscope.study",
    # What this machine and these gradients say
    "probe": "batchscope.measure",
    "replan": "batchscope.fit",
    "plan_devices": "batchscope.fit",
    # The law between batch size and examples to a target
    "fit_tradeoff": "batchscope.fit",
    # Training
    "train": "batchscope.study",
    # The folklore, tested
    "claims": "batchscope.folklore",
    # Single measurements
    "all_reduce_law": "batchscope.measure",
    "branched_runs": "batchscope.measure",
    "gradient_noise": "batchscope.measure",
    "hessian_eigenvalues": "batchscope.measure",
    "hessian_trace": "batchscope.measure",
    "landscape": "batchscope.measure",
    "range_test": "batchscope.measure",
    "sharpness": "batchscope.measure",
    "spectral_density": "batchscope.measure",
    "step_times": "batchscope.measure",
    # For people who keep their own loop
    "BatchSizeScheduler": "batchscope.training",
    "GradientNoise": "batchscope.measure",
    "find_max_batch_size": "batchscope.measure",
    "ghost_batch_norm": "batchscope.training",
    "rescale": "batchscope.schedule",
    # Records
    "Advice": "batchscope.records",
    "AllReduceLaw": "batchscope.records",
    "BranchedRuns": "batchscope.records",
    "Claims": "batchscope.records",
    "Comparison": "batchscope.records",
    "DevicePlan": "batchscope.records",
    "HessianEigenvalues": "batchscope.records",
    "HessianTrace": "batchscope.records",
    "Interval": "batchscope.records",
    "Landscape": "batchscope.records",
    "MemoryUse": "batchscope.records",
    "NoiseMeasurement": "batchscope.records",
    "Phase": "batchscope.records",
    "Plan": "batchscope.records",
    "Probe": "batchscope.records",
    "RangeTest": "batchscope.records",
    "Record": "batchscope.records",
    "Schedule": "batchscope.records",
    "Sharpness": "batchscope.records",
    "SpectralDensity": "batchscope.records",
    "StepTimes": "batchscope.records",
    "Sweep": "batchscope.records",
    "TradeoffLaw": "batchscope.records",
    "TrainResult": "batchscope.records",
    "load": "batchscope.records",
    # Errors
    "ArgumentError": "batchscope.errors",
    "BatchscopeError": "batchscope.errors",
    "DataError": "batchscope.errors",
    "MissingPackageError": "batchscope.errors",
    "PlanError": "batchscope.errors",
    "RecordError": "batchscope.errors",
    "RunError": "batchscope.errors",
    "StorageError": "batchscope.errors",
    "WorkloadError": "batchscope.errors",
}

__all__ = [
    "Advice",
    "AllReduceLaw",
    "ArgumentError",
    "BatchSizeScheduler",
    "BatchscopeError",
    "BranchedRuns",
    "Claims",
    "Comparison",
    "DataError",
    "DevicePlan",
    "GradientNoise",
    "HessianEigenvalues",
    "HessianTrace",
    "Interval",
    "Landscape",
    "MemoryUse",
    "MissingPackageError",
    "NoiseMeasurement",
    "Phase",
    "Plan",
    "PlanError",
    "Probe",
    "RangeTest",
    "Record",
    "RecordError",
    "RunError",
    "Schedule",
    "Sharpness",
    "SpectralDensity",
    "StepTimes",
    "StorageError",
    "Sweep",
    "TradeoffLaw",
    "TrainResult",
    "Workload",
    "WorkloadError",
    "advise",
    "all_reduce_law",
    "branched_runs",
    "claims",
    "compare",
    "find_max_batch_size",
    "fit_tradeoff",
    "ghost_batch_norm",
    "gradient_noise",
    "hessian_eigenvalues",
    "hessian_trace",
    "landscape",
    "load",
    "load_workload",
    "plan_devices",
    "probe",
    "range_test",
    "replan",
    "rescale",
    "sharpness",
    "spectral_density",
    "step_times",
    "sweep",
    "train",
    "train_from_nothing",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'batchscope' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
