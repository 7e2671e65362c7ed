"""Learning rate and batch size over time, as data, and the rules that tie the two together."""

from batchscope.schedule.measured import aim, decide
from batchscope.schedule.scaling import learning_rate_exponent, rescale, set_rate
from batchscope.schedule.settings import OptimizerSettings
from batchscope.schedule.shape import rate_factor, varies

__all__ = [
    "OptimizerSettings",
    "aim",
    "decide",
    "learning_rate_exponent",
    "rate_factor",
    "rescale",
    "set_rate",
    "varies",
]
