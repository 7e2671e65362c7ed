"""Learning rate and batch size over time, as data, and the rules that tie the two together."""

from batchscope.schedule.following import aim, decide
from batchscope.schedule.growth import exponential_growth, linear_growth, measured
from batchscope.schedule.megatron import to_megatron
from batchscope.schedule.milestones import constant, seesaw, smith, stepped
from batchscope.schedule.noise import equal_noise_batch_size, sgd_noise_scale
from batchscope.schedule.scaling import beta_of_half_life, half_life, learning_rate_exponent, rescale, set_rate
from batchscope.schedule.settings import OptimizerSettings
from batchscope.schedule.shape import rate_factor, varies
from batchscope.schedule.short_form import parse_schedule

__all__ = [
    "OptimizerSettings",
    "aim",
    "beta_of_half_life",
    "constant",
    "decide",
    "equal_noise_batch_size",
    "exponential_growth",
    "half_life",
    "learning_rate_exponent",
    "linear_growth",
    "measured",
    "parse_schedule",
    "rate_factor",
    "rescale",
    "seesaw",
    "set_rate",
    "sgd_noise_scale",
    "smith",
    "stepped",
    "to_megatron",
    "varies",
]
