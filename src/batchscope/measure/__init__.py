"""Measurements of a model state: each takes weights and returns a record."""

from batchscope.measure.noise import gradient_noise
from batchscope.measure.step_time import step_times

__all__ = ["gradient_noise", "step_times"]
