"""Arithmetic on records and numbers alone: no torch, no clock, no device."""

from batchscope.fit.devices import plan_devices
from batchscope.fit.intervals import holm, mean_interval, paired_p_value, ratio_interval
from batchscope.fit.limits import find_limits, replan
from batchscope.fit.tradeoff import fit_tradeoff
from batchscope.fit.valley import valley_bottom

__all__ = [
    "find_limits",
    "fit_tradeoff",
    "holm",
    "mean_interval",
    "paired_p_value",
    "plan_devices",
    "ratio_interval",
    "replan",
    "valley_bottom",
]
