"""Measurements of a model state: each takes weights and returns a record."""

from batchscope.measure.noise import gradient_noise

__all__ = ["gradient_noise"]
