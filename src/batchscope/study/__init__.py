"""Grids of runs: planned, run, kept, resumed and summarised."""

from batchscope.study.compare import compare

__all__ = ["compare"]
