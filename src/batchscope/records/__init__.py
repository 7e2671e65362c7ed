"""Result types, frozen, with units in their names and a versioned JSON form: the narrow waist of the package."""

from batchscope.records.advice import (
    Advice,
    ForecastPoint,
    FrontierRow,
    Goal,
    GoalKind,
    PresentSetting,
    RaceCandidate,
    RacePoint,
    Spending,
)
from batchscope.records.base import Record, decode, encode, load, write_atomically
from batchscope.records.branches import Branch, BranchedRuns
from batchscope.records.claims import Claims, Finding, Picture, Series, TestedClaim, Verdict
from batchscope.records.communication import AllReduceLaw, AllReducePoint
from batchscope.records.comparison import (
    Comparison,
    ComparisonRow,
    Difference,
    RateHandling,
    RateSearch,
    RateTrial,
    WorkloadSummary,
)
from batchscope.records.curvature import CurvatureMatrix, HessianEigenvalues, HessianTrace, SpectralDensity
from batchscope.records.devices import AllReduceAlgorithm, DevicePlan, DeviceRow, ShardedMemory
from batchscope.records.diagnosis import Check, DataHere, DeviceHere, Diagnosis, PackageHere
from batchscope.records.interval import Interval
from batchscope.records.landscape import Landscape, LandscapeKind, LandscapePoint, PathPoint
from batchscope.records.learning_rate import RangePoint, RangeTest
from batchscope.records.memory import LimitSource, MemoryLaw, MemoryMeter, MemoryPoint, MemoryUse
from batchscope.records.noise import GradientError, MonitoredNoise, NoiseMeasurement, NoiseSource
from batchscope.records.paper import PaperRow, PaperStudy
from batchscope.records.plan import Order, Plan, Shape
from batchscope.records.power import PowerPoint, PowerSource, PowerUse
from batchscope.records.probe import Limits, NoisePoint, Probe, Replanned
from batchscope.records.provenance import Provenance
from batchscope.records.schedule import Coupling, MeasuredGrowth, Phase, Schedule
from batchscope.records.sharpness import Sharpness, SharpnessBox, SharpnessRun
from batchscope.records.step_time import Reading, StepTimeLaw, StepTimePoint, StepTimes
from batchscope.records.sweep import (
    Edge,
    Engine,
    RateForm,
    RateLaw,
    RatePoint,
    Sweep,
    SweepBest,
    SweepTrial,
    TimePoint,
    TimeToTarget,
    TrialOutcome,
)
from batchscope.records.tradeoff import TradeoffLaw, TradeoffPoint
from batchscope.records.training import CurvePoint, Outcome, TrainResult

__all__ = [
    "Advice",
    "AllReduceAlgorithm",
    "AllReduceLaw",
    "AllReducePoint",
    "Branch",
    "BranchedRuns",
    "Check",
    "Claims",
    "Comparison",
    "ComparisonRow",
    "Coupling",
    "CurvatureMatrix",
    "CurvePoint",
    "DataHere",
    "DeviceHere",
    "DevicePlan",
    "DeviceRow",
    "Diagnosis",
    "Difference",
    "Edge",
    "Engine",
    "Finding",
    "ForecastPoint",
    "FrontierRow",
    "Goal",
    "GoalKind",
    "GradientError",
    "HessianEigenvalues",
    "HessianTrace",
    "Interval",
    "Landscape",
    "LandscapeKind",
    "LandscapePoint",
    "LimitSource",
    "Limits",
    "MeasuredGrowth",
    "MemoryLaw",
    "MemoryMeter",
    "MemoryPoint",
    "MemoryUse",
    "MonitoredNoise",
    "NoiseMeasurement",
    "NoisePoint",
    "NoiseSource",
    "Order",
    "Outcome",
    "PackageHere",
    "PaperRow",
    "PaperStudy",
    "PathPoint",
    "Phase",
    "Picture",
    "Plan",
    "PowerPoint",
    "PowerSource",
    "PowerUse",
    "PresentSetting",
    "Probe",
    "Provenance",
    "RaceCandidate",
    "RacePoint",
    "RangePoint",
    "RangeTest",
    "RateForm",
    "RateHandling",
    "RateLaw",
    "RatePoint",
    "RateSearch",
    "RateTrial",
    "Reading",
    "Record",
    "Replanned",
    "Schedule",
    "Series",
    "Shape",
    "ShardedMemory",
    "Sharpness",
    "SharpnessBox",
    "SharpnessRun",
    "SpectralDensity",
    "Spending",
    "StepTimeLaw",
    "StepTimePoint",
    "StepTimes",
    "Sweep",
    "SweepBest",
    "SweepTrial",
    "TestedClaim",
    "TimePoint",
    "TimeToTarget",
    "TradeoffLaw",
    "TradeoffPoint",
    "TrainResult",
    "TrialOutcome",
    "Verdict",
    "WorkloadSummary",
    "decode",
    "encode",
    "load",
    "write_atomically",
]
