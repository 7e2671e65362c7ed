"""Reproductions of papers about batch size, at a size that this machine can run."""

from batchscope.folklore.papers.study import PAPERS, paper

__all__ = ["PAPERS", "paper"]
