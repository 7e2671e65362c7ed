"""Searching: candidates trained as a policy says, for the setting that reaches a goal in the least time."""

from batchscope.search.advise import advise
from batchscope.search.auto import train_from_nothing

__all__ = ["advise", "train_from_nothing"]
