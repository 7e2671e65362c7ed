"""Grids of runs: planned, run, kept, resumed and summarised."""

from batchscope.study.compare import compare
from batchscope.study.sweep import sweep
from batchscope.study.watched_training import train

__all__ = ["compare", "sweep", "train"]
