"""Learning rate and batch size over time, as data, and the rules that tie the two together."""

from batchscope.schedule.scaling import learning_rate_exponent, rescale, set_rate
from batchscope.schedule.shape import rate_factor

__all__ = ["learning_rate_exponent", "rate_factor", "rescale", "set_rate"]
