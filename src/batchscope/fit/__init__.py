"""Arithmetic on records and numbers alone: no torch, no clock, no device."""

from batchscope.fit.intervals import holm, mean_interval, paired_p_value, ratio_interval
from batchscope.fit.valley import valley_bottom

__all__ = ["holm", "mean_interval", "paired_p_value", "ratio_interval", "valley_bottom"]
