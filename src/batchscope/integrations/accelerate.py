"""accelerate: the noise scale in a training loop, and a Workload from the arguments of ``accelerator.prepare``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from batchscope.integrations.frameworks import framework
from batchscope.integrations.loaders import copies_of, source_of, workload_of
from batchscope.integrations.optimizers import OptimizerLike, unwrapped
from batchscope.measure import GradientNoise
from batchscope.seeding import current_device, isolated
from batchscope.workload import Workload

if TYPE_CHECKING:
    from accelerate import Accelerator
else:
    Accelerator = framework("accelerate", "follow an Accelerator").Accelerator


def gradient_noise_of(
    accelerator: Accelerator, model: nn.Module, optimizer: Any, *, overhead: float = 0.03, every: int | None = None
) -> GradientNoise:
    """Measure the gradient noise scale in a loop with ``accelerator.backward``.

    ::

        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        noise = gradient_noise_of(accelerator, model, optimizer)
        for x, y in loader:
            with accelerator.accumulate(model):
                accelerator.backward(loss_of(model(x), y))
                optimizer.step()
                optimizer.zero_grad()
        print(noise)

    The result is a :class:`batchscope.GradientNoise` of accelerate's inner optimiser, with its gradient scaler.
    Accumulation and ``DistributedDataParallel`` are supported as described there. In mixed precision, compute the loss
    outside the model, from what the model returns.

    Args:
        accelerator: The accelerator.
        model: The model from ``prepare``.
        optimizer: The optimiser from ``prepare``.
        overhead: Largest share of the training time for measurements.
        every: Updates between two measurements, whatever they cost; None: as often as ``overhead`` permits.

    Returns:
        The monitor, with ``.noise_scale`` and ``.measurement()``.
    """
    return GradientNoise(model, unwrapped(optimizer), overhead=overhead, every=every, scaler=accelerator.scaler)


def workload_from_accelerate(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Any,
    train_loader: Any,
    validation_loader: Any,
    *,
    loss: Callable[[Any, Any], Tensor],
    score: Callable[[Any, Any], float | Tensor] | None = None,
    forward: Callable[[nn.Module, Any], tuple[Any, Any]] | None = None,
    batch_size: int | None = None,
    max_grad_norm: float | None = None,
    name: str | None = None,
) -> Workload:
    """Make a Workload from the arguments or the results of ``accelerator.prepare``.

    Every run begins with a copy of the model as it is now. The present batch size is that of the loader over all ranks,
    times ``gradient_accumulation_steps``.

    Args:
        accelerator: The accelerator.
        model: The model.
        optimizer: Its optimiser.
        train_loader: DataLoader of training examples.
        validation_loader: DataLoader of validation examples.
        loss: ``loss(output, target)``, the mean over a batch.
        score: ``score(output, target)``, higher is better; None: minus the loss.
        forward: ``forward(model, batch)`` returns ``(output, target)``; None: ``(model(x), y)``.
        batch_size: The present batch size; None: as above.
        max_grad_norm: Argument of ``accelerator.clip_grad_norm_``; None: no clipping.
        name: Name for tables and reports; None: the model's class.

    Returns:
        The workload.

    Raises:
        WorkloadError: Unsupported, for example an iterable dataset.
    """
    train = source_of(train_loader, "the training data")
    validation = source_of(validation_loader, "the validation data")
    inner = accelerator.unwrap_model(model)
    like = OptimizerLike(optimizer, inner, max_grad_norm=max_grad_norm)
    with isolated(0, current_device()):
        fresh = copies_of(inner)
    over_all_ranks = getattr(train_loader, "total_batch_size", None)
    ranks = 1 if hasattr(train_loader, "total_batch_size") else accelerator.num_processes
    return workload_of(
        dataclasses.replace(train, batch_size=over_all_ranks or train.batch_size),
        validation,
        like,
        inner,
        batch_size=batch_size,
        times=ranks * accelerator.gradient_accumulation_steps,
        name=name,
        model=fresh,
        loss=loss,
        score=score,
        forward=forward,
    )
