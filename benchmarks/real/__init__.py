"""Seven networks of the make and size of public examples, for benchmarks of the advice."""

from real import conv, gpt, gru, lstm, resnet, table, vae
from real.task import RealTask

TASKS: dict[str, RealTask] = {
    task.name: task for task in (conv.TASK, lstm.TASK, gpt.TASK, resnet.TASK, vae.TASK, table.TASK, gru.TASK)
}

__all__ = ["TASKS", "RealTask"]
