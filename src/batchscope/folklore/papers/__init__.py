"""Papers about batch size, each as an experiment that this machine can run, beside what they report."""

from batchscope.folklore.papers.study import PAPERS, paper

__all__ = ["PAPERS", "paper"]
