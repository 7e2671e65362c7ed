"""Which batch sizes fit into memory, before any of them is trained.

What an update holds for each example is estimated from the tensors that autograd saves for the backward pass of a few
examples. Only where that comes near the limit, or where a limit was asked for, is memory measured.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from batchscope.errors import ArgumentError, BatchscopeError
from batchscope.measure.memory import memory_use
from batchscope.measure.memory_meter import available_memory
from batchscope.records import MemoryUse
from batchscope.seeding import isolated
from batchscope.workload.batches import take, to_device
from batchscope.workload.workload import Workload

# Examples of the two passes whose difference is what one holds.
FEW, MORE = 2, 6
# An update peaks at up to this many times what is saved; memory is measured where the estimate exceeds a third of what
# there is.
PEAK_OVER_SAVED, NEAR = 2.0, 1 / 3
# Weights, gradients, two moments and the average.
COPIES = 5
# What measuring may take, in seconds.
SECONDS = 1.0


def saved_bytes_per_example(workload: Workload, device: torch.device) -> float | None:
    """Bytes that autograd saves for one more example of a batch; None where that cannot be found out.

    Args:
        workload: What is trained; a model of its own is made, and the random state put back.
        device: Where.

    Examples:
        >>> from batchscope.workload.digits import digits
        >>> saved_bytes_per_example(digits(), torch.device("cpu")) > 64 * 4
        True
    """
    found = []
    try:
        with isolated(0, device):
            model = workload.model().to(device).train()
            for count in (FEW, MORE):
                indices = list(range(min(count, workload.training_examples)))
                batch = to_device(take(workload.train, indices, workload.collate), device)
                saved: dict[int, int] = {}

                def keep(tensor: torch.Tensor, saved: dict[int, int] = saved) -> torch.Tensor:
                    storage = tensor.untyped_storage()
                    saved[storage.data_ptr()] = storage.nbytes()
                    return tensor

                with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                    output, target = workload.output_and_target(model, batch)
                    loss = workload.loss(output, target)
                found.append((len(indices), sum(saved.values())))
                del loss, output
    except (RuntimeError, ValueError, TypeError, BatchscopeError):
        return None
    (few, less), (more, most) = found
    return max(0.0, (most - less) / (more - few)) if more > few else None


def find_memory(
    workload: Workload, sizes: Sequence[int], limit_bytes: int | None, *, device: torch.device, seed: int
) -> tuple[MemoryUse | None, str | None]:
    """Measure memory where a batch size may not fit.

    Args:
        workload: What is trained.
        sizes: Batch sizes that may be advised.
        limit_bytes: Memory that training may take; None: what is free.
        device: Where.
        seed: Of what is measured.

    Returns:
        The measurement, None where everything fits by far; and a warning, None where there is nothing to say.

    Raises:
        ArgumentError: A limit that not even one example fits into.
        BatchscopeError: Memory cannot be measured, and there is a limit.
    """
    if limit_bytes is None:
        each = saved_bytes_per_example(workload, device)
        with isolated(0, device):
            weights = sum(p.numel() * p.element_size() for p in workload.model().parameters())
        free = available_memory(device)[0]
        needed = None if each is None else PEAK_OVER_SAVED * each * max(sizes) + COPIES * weights
        if needed is not None and (free is None or needed < NEAR * free):
            return None, None
    try:
        found = memory_use(workload, limit_bytes=limit_bytes, seconds=SECONDS, seed=seed, device=str(device))
    except BatchscopeError as error:
        if limit_bytes is not None:
            raise
        return None, f"Memory could not be measured: {error}"
    return found, None


def largest_micro_batch(memory: MemoryUse | None, workload: Workload) -> int | None:
    """The largest power of two that fits at once; None where everything does.

    Args:
        memory: What was measured; None: nothing comes near the limit.
        workload: What is trained.

    Raises:
        ArgumentError: Not even one example fits.
    """
    largest = None if memory is None else memory.largest_predicted
    if memory is None or largest is None or memory.holds_all or largest >= workload.training_examples:
        return None
    if largest < 1:
        raise ArgumentError(
            "the memory must hold one example at least",
            got=f"{memory.limit_bytes:,} bytes" if memory.limit_bytes else "none",
            mend="give more memory, or a smaller model",
        )
    return 1 << (largest.bit_length() - 1)
