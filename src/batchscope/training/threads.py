"""How many threads a run computes with: one, where the work of an update is too small to share.

Two threads that meet after every small operation wait for each other more than they compute; on a machine whose cores
are shared with other programs each meeting can cost a scheduler's time slice, and a run of seconds takes minutes.
The rule goes by counted work and not by a measured time, so that the same plan always computes in the same order and
gives the same bits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from batchscope.seeding import current_device, isolated
from batchscope.workload.batches import take, to_device
from batchscope.workload.workload import Workload

# Forward and backward of an update. Measured on two quiet cores: a perceptron of 58 thousand a example is 1.4 times as
# fast on one thread at 7 million, and 0.8 times at 29 million.
SMALL_UPDATE_FLOPS = 12e6
SAMPLE = 2


def flops_per_example(workload: Workload) -> float | None:
    """Floating-point operations of forward and backward for one example, counted by torch; None where it can't.

    Backward is taken as twice forward. Only matrix products, convolutions and attention are counted.

    Args:
        workload: What is trained.

    Returns:
        The count.
    """
    from torch.utils.flop_counter import FlopCounterMode

    try:
        with isolated(0, current_device()), torch.no_grad(), FlopCounterMode(display=False) as counter:
            model = workload.model().eval()
            count = min(SAMPLE, workload.training_examples)
            batch = take(workload.train, range(count), workload.collate)
            workload.output_and_target(model, to_device(batch, next(model.parameters()).device))
    except Exception:
        return None  # a model that the counter does not get along with is trained all the same
    return 3.0 * float(counter.get_total_flops()) / count


@contextlib.contextmanager
def compute_threads(flops: float | None, device: torch.device) -> Iterator[None]:
    """Compute with one thread inside the block, if an update of that many operations is too small to share.

    Args:
        flops: Work of one update; None where it is not known.
        device: Where it is done; only the CPU's threads are concerned.

    Yields:
        Nothing; the number of threads is as before afterwards.
    """
    before = torch.get_num_threads()
    small = device.type == "cpu" and flops is not None and flops < SMALL_UPDATE_FLOPS
    if small:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if small:
            torch.set_num_threads(before)
