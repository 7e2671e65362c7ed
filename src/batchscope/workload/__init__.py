"""What is trained: the Workload, the built-in ones on real data, and loading a person's own."""

from batchscope.workload.loading import load_workload
from batchscope.workload.workload import Workload

__all__ = ["Workload", "load_workload"]
