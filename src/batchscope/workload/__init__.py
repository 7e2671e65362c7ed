"""What is trained: the Workload, the built-in ones on real data, and loading a person's own."""

from batchscope.workload.loading import load_workload
from batchscope.workload.packing import PackedSequences, attention_within, tokens_filled
from batchscope.workload.workload import Workload

__all__ = ["PackedSequences", "Workload", "attention_within", "load_workload", "tokens_filled"]
