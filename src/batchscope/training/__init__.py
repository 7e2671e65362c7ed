"""The one training step and loop, and what they stand on: data feeding, evaluation, checkpoints."""

from batchscope.training.loop import Prepared, Run
from batchscope.training.train import train

__all__ = ["Prepared", "Run", "train"]
