"""Grids of runs: planned, run, kept, resumed and summarised."""

from batchscope.study.compare import compare
from batchscope.study.sweep import sweep

__all__ = ["compare", "sweep"]
