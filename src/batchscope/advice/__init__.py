"""Advice: what to use, from a race of settings on the person's own workload; and training with it from nothing."""

from batchscope.advice.advise import advise
from batchscope.advice.auto import train_from_nothing

__all__ = ["advise", "train_from_nothing"]
