"""Measurements of a model state: each takes weights and returns a record."""

from batchscope.measure.branches import branched_runs
from batchscope.measure.communication import all_reduce_law
from batchscope.measure.curvature import hessian_eigenvalues
from batchscope.measure.landscape import landscape
from batchscope.measure.max_batch_size import find_max_batch_size
from batchscope.measure.monitor import GradientNoise
from batchscope.measure.noise import gradient_noise
from batchscope.measure.probe import probe
from batchscope.measure.range_test import range_test
from batchscope.measure.sharpness import sharpness
from batchscope.measure.spectrum import hessian_trace, spectral_density
from batchscope.measure.step_time import step_times

__all__ = [
    "GradientNoise",
    "all_reduce_law",
    "branched_runs",
    "find_max_batch_size",
    "gradient_noise",
    "hessian_eigenvalues",
    "hessian_trace",
    "landscape",
    "probe",
    "range_test",
    "sharpness",
    "spectral_density",
    "step_times",
]
