"""accelerate: the noise scale in a loop of one's own, and a Workload from what ``accelerator.prepare`` was given."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from batchscope.integrations.frameworks import framework
from batchscope.integrations.loaders import reference_batch_size, source_of
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
    """Measure the gradient noise scale in a loop with ``accelerator.backward``, by one line before it.

    ::

        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        noise = gradient_noise_of(accelerator, model, optimizer)
        for x, y in loader:
            with accelerator.accumulate(model):
                accelerator.backward(loss_of(model(x), y))
                optimizer.step()
                optimizer.zero_grad()
        print(noise)

    It looks through accelerate's optimiser and is told of its gradient scaler; the rest is
    :class:`batchscope.GradientNoise`, with accumulation and ``DistributedDataParallel`` as described there. In mixed
    precision the loss must be computed from what the model returns, outside of it.

    Args:
        accelerator: The accelerator.
        model: What ``prepare`` returned.
        optimizer: What ``prepare`` returned.
        overhead: The largest share of the time that measuring may take.
        every: Measure each so many updates whatever it costs; None: as often as ``overhead`` permits.

    Returns:
        The monitor: ``.noise_scale`` with its interval, ``.measurement()`` as a record.
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
    """Make a Workload of a loop of one's own, from what ``accelerator.prepare`` was given, or of what it returned.

    Every run begins with a copy of the model as it is now. Examples are those of the loaders' Datasets, in batches of
    every size. The batch size of today is the loader's over all ranks, times ``gradient_accumulation_steps``.

    Args:
        accelerator: The accelerator, whose wrappers are looked through.
        model: The model.
        optimizer: Its optimiser.
        train_loader: A DataLoader of training examples.
        validation_loader: One of validation examples.
        loss: ``loss(output, target)``, the mean over a batch.
        score: ``score(output, target)``, higher is better; None: minus the loss.
        forward: ``forward(model, batch)`` returns ``(output, target)``; None: ``(model(x), y)``.
        batch_size: What is used today; None: as above.
        max_grad_norm: What ``accelerator.clip_grad_norm_`` is given; None: gradients are not clipped.
        name: A name for tables and pages; None: the model's class.

    Returns:
        The workload.

    Raises:
        WorkloadError: What cannot be trained here, an iterable dataset say.
    """
    train = source_of(train_loader, "the training data")
    validation = source_of(validation_loader, "the validation data")
    inner = accelerator.unwrap_model(model)
    like = OptimizerLike(optimizer, inner, max_grad_norm=max_grad_norm)
    with isolated(0, current_device()):
        kept = copy.deepcopy(inner).cpu()
    kept.zero_grad(set_to_none=True)
    size = getattr(train_loader, "total_batch_size", None) or train.batch_size
    prepared = hasattr(train_loader, "total_batch_size")
    ranks = 1 if prepared else accelerator.num_processes
    return Workload(
        model=lambda: copy.deepcopy(kept).train(),
        train=train.dataset,
        validation=validation.dataset,
        loss=loss,
        score=score,
        optimizer=like,
        learning_rate=like.learning_rate,
        batch_size=reference_batch_size(
            batch_size,
            size,
            len(train.dataset),  # type: ignore[arg-type]
            times=ranks * accelerator.gradient_accumulation_steps,
        ),
        forward=forward,
        collate=train.collate,
        name=name or type(inner).__name__,
    )
