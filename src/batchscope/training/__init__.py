"""The one training step and loop, and what they stand on: data feeding, evaluation, checkpoints."""

from batchscope.training.batch_size_scheduler import BatchSizeScheduler
from batchscope.training.ghost_norm import ghost_batch_norm
from batchscope.training.loop import Prepared, Run
from batchscope.training.train import train

__all__ = ["BatchSizeScheduler", "Prepared", "Run", "ghost_batch_norm", "train"]
