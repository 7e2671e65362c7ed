"""Result types, frozen, with units in their names and a versioned JSON form: the narrow waist of the package."""

from batchscope.records.base import Record, decode, encode, load, write_atomically
from batchscope.records.comparison import (
    Comparison,
    ComparisonRow,
    Difference,
    RateHandling,
    RateSearch,
    RateTrial,
    WorkloadSummary,
)
from batchscope.records.interval import Interval
from batchscope.records.noise import GradientError, NoiseMeasurement, NoiseSource
from batchscope.records.plan import Order, Plan, Shape
from batchscope.records.provenance import Provenance
from batchscope.records.training import CurvePoint, Outcome, TrainResult

__all__ = [
    "Comparison",
    "ComparisonRow",
    "CurvePoint",
    "Difference",
    "GradientError",
    "Interval",
    "NoiseMeasurement",
    "NoiseSource",
    "Order",
    "Outcome",
    "Plan",
    "Provenance",
    "RateHandling",
    "RateSearch",
    "RateTrial",
    "Record",
    "Shape",
    "TrainResult",
    "WorkloadSummary",
    "decode",
    "encode",
    "load",
    "write_atomically",
]
