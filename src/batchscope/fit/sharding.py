"""Memory of a device where the training state is divided among several (ZeRO: Rajbhandari et al. 2020)."""

from __future__ import annotations

from dataclasses import replace

from batchscope.fit.memory import largest_that_fits, predicted_bytes
from batchscope.records import Interval, MemoryLaw, MemoryUse, ShardedMemory

STAGES = (0, 1, 2, 3)


def sharded_law(use: MemoryUse, *, devices: int, stage: int, gradient_bytes: int) -> MemoryLaw | None:
    """The memory law of each of several devices among which the training state is divided.

    Of what does not depend on the micro-batch, (1 − 1/N) goes of the optimiser's state from stage 1 on, of the
    gradients from stage 2 on, and of the weights at stage 3. Activations stay. What stage 3 gathers of a layer's
    weights while it needs them is not counted.

    Args:
        use: Measured on one device.
        devices: N.
        stage: 0 to 3.
        gradient_bytes: Bytes of all gradients.

    Returns:
        The law; None where none was fitted.

    """
    if use.law is None:
        return None
    saved = saved_bytes(
        devices=devices,
        stage=stage,
        optimizer_bytes=use.optimizer_bytes,
        gradient_bytes=gradient_bytes,
        parameter_bytes=use.parameter_bytes,
    )
    state = max(0.0, (use.law.state_bytes.value or 0.0) - saved)
    floor = max(0.0, use.law.floor_bytes - saved)
    return replace(use.law, state_bytes=Interval(state, None, None), floor_bytes=floor)


def saved_bytes(
    *, devices: int, stage: int, optimizer_bytes: float, gradient_bytes: float, parameter_bytes: float
) -> float:
    """Bytes that each of several devices holds less of the training state.

    Args:
        devices: Among which it is divided.
        stage: 0 to 3.
        optimizer_bytes: The optimiser's state.
        gradient_bytes: All gradients.
        parameter_bytes: The weights.

    Examples:
        >>> saved_bytes(devices=4, stage=1, optimizer_bytes=800, gradient_bytes=400, parameter_bytes=400)
        600.0
        >>> saved_bytes(devices=4, stage=3, optimizer_bytes=800, gradient_bytes=400, parameter_bytes=400)
        1200.0
    """
    parts = (0.0, optimizer_bytes, gradient_bytes, parameter_bytes)
    return (1 - 1 / devices) * sum(parts[: stage + 1])


def sharded_memory(use: MemoryUse, micro_batch_size: int, *, devices: int, gradient_bytes: int) -> ShardedMemory | None:
    """Peak memory of a device at every stage; None where no law was fitted.

    Args:
        use: Measured on one device.
        micro_batch_size: Examples that pass through the model at once.
        devices: Among which the state is divided.
        gradient_bytes: Bytes of all gradients.
    """
    laws = [sharded_law(use, devices=devices, stage=stage, gradient_bytes=gradient_bytes) for stage in STAGES]
    peaks = [round(predicted_bytes(law, micro_batch_size)) for law in laws if law is not None]
    return ShardedMemory(*peaks) if peaks else None


def largest_micro_batch(use: MemoryUse, *, devices: int, stage: int, gradient_bytes: int) -> int | None:
    """The largest micro-batch that fits on each device; 0 where none does, None where nothing is known to bound it.

    Args:
        use: Measured on one device, with its limit.
        devices: Among which the state is divided.
        stage: 0 to 3.
        gradient_bytes: Bytes of all gradients.
    """
    law = sharded_law(use, devices=devices, stage=stage, gradient_bytes=gradient_bytes)
    if law is None or use.limit_bytes is None:
        return None
    return largest_that_fits(law, use.limit_bytes, margin=use.margin)
