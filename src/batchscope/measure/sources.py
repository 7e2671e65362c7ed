"""Gradient noise at one point from groups of examples: micro-batches, the ranks of a process group, or replicas.

Each source gives rows of the same matrix, the mean gradient of b examples a row, and one estimator takes it from there
(:mod:`batchscope.fit.noise`): tr Σ/b is the rows' variance. They must agree, with each other and with the gradients of
single examples, within their intervals; what differs is what they cost, and what they work with.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from batchscope.errors import ArgumentError, RunError, WorkloadError
from batchscope.fit.noise import estimate_noise, moments_of
from batchscope.measure.arguments import checked_whole, drawn_examples
from batchscope.measure.hooks import hook
from batchscope.measure.noise import LEAST_ROWS
from batchscope.measure.state import loaded
from batchscope.provenance import provenance
from batchscope.records.noise import NoiseMeasurement
from batchscope.seeding import derive, isolated
from batchscope.training.train import checked_seed, chosen_device
from batchscope.workload.batches import take, to_device
from batchscope.workload.workload import Batch, Workload

GroupSource = Literal["accumulated micro-batches", "data-parallel ranks", "replicas"]
REPLICAS = 8


def gradient_noise_in_groups(
    workload: Workload,
    state: Mapping[str, Any] | None = None,
    *,
    source: GroupSource = "replicas",
    examples: int = 1024,
    group_size: int = 16,
    replicas: int = REPLICAS,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> NoiseMeasurement:
    """Measure the gradient noise scale at given weights from the gradients of groups of examples.

    "accumulated micro-batches": backward passes that accumulate, as in one long update. "replicas": copies of the model
    at the same weights, each fed its own group, in one batched pass (``torch.func.stack_module_state``). "data-parallel
    ranks": called by every rank of the default process group, each of which takes its share of the groups; all return
    the same. The model is in training mode, and batch norm sees a group by itself.

    Args:
        workload: What is trained.
        state: A state dict; None: fresh weights under the seed.
        source: Where the groups' gradients come from.
        examples: Training examples to use, drawn without replacement; a rest that fills no group is left out.
        group_size: Examples in each group.
        replicas: Copies of the model in one pass.
        seed: Draws the examples, fresh weights and dropout.
        device: "cpu", "cuda" …; None: CUDA where there is one.

    Returns:
        The measurement, as :func:`batchscope.gradient_noise` returns it, without errors of batches.

    Raises:
        ArgumentError: Too few groups, or sizes that make no sense.
        WorkloadError: Weights that do not fit the model, or gradients that are not finite.
        RunError: Ranks are asked for outside of a process group.

    Examples:
        >>> import batchscope as bs
        >>> noise = gradient_noise_in_groups(bs.load_workload("digits"), examples=512)
        >>> noise.noise_scale.resolved, noise.group_size
        (True, 16)
    """
    began = time.perf_counter()
    seed = checked_seed(seed)
    for name, value in (("group_size", group_size), ("replicas", replicas)):
        checked_whole(name, value)
    if source == "data-parallel ranks" and not dist.is_initialized():
        raise RunError("ranks must be in a process group", got="none here", mend="start them with torchrun")
    chosen = chosen_device(device)
    groups = _groups(workload, examples, group_size, seed)
    with isolated(derive(seed, "weights"), chosen):
        model = loaded(workload.model(), state).to(chosen)

    def batch(group: list[int]) -> Batch:
        return to_device(take(workload.train, group, workload.collate), chosen)

    with isolated(derive(seed, "noise"), chosen):
        if source == "replicas":
            found = _of_replicas(workload, model, groups, batch, replicas)
        elif source == "data-parallel ranks":
            found = _of_ranks(workload, model, groups, batch)
        else:
            found = _of_micro_batches(workload, model, groups, batch)
        rows = torch.cat([row.cpu().double() for row in found])
    if not torch.isfinite(rows).all():
        raise WorkloadError("gradients must be finite", got="one that is not", mend="measure at weights that train")
    moments = moments_of(rows.numpy(), group_size)
    estimate = estimate_noise(moments)
    return NoiseMeasurement(
        workload=workload.title,
        examples=len(groups) * group_size,
        group_size=group_size,
        source=source,
        note=None,
        parameters=rows.shape[1],
        trace_covariance=estimate.trace_covariance,
        gradient_norm_squared=estimate.gradient_norm_squared,
        noise_scale=estimate.noise_scale,
        preconditioned_noise_scale=None,
        examples_needed=estimate.examples_needed,
        gradient_error=(),
        seconds=time.perf_counter() - began,
        provenance=provenance(workload, device=chosen, seed=seed),
    )


def _groups(workload: Workload, examples: int, size: int, seed: int) -> list[list[int]]:
    indices = drawn_examples(workload, examples, derive(seed, "noise examples"))
    groups = [indices[i : i + size] for i in range(0, len(indices) - size + 1, size)]
    if len(groups) < LEAST_ROWS:
        raise ArgumentError(
            f"the noise scale needs at least {LEAST_ROWS} groups",
            got=f"{len(groups)} groups of {size} in {len(indices)} examples",
            mend="give more examples or smaller groups",
        )
    return groups


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _of_micro_batches(
    workload: Workload, model: nn.Module, groups: list[list[int]], batch: Callable[[list[int]], Batch]
) -> Iterator[Tensor]:
    """One row for each backward pass, by hooks that see a gradient before it is added to those of the others."""
    trained = _trained(model)
    arrived: dict[int, Tensor] = {}

    def keep(place: int, gradient: Tensor) -> None:
        arrived[place] = gradient.detach().flatten()

    handles = [hook(parameter, lambda g, i=i: keep(i, g)) for i, parameter in enumerate(trained)]  # type: ignore[misc]
    try:
        for group in groups:
            arrived.clear()
            output, target = workload.output_and_target(model, batch(group))
            workload.loss(output, target).backward()  # type: ignore[no-untyped-call]
            parts = [arrived.get(i, torch.zeros_like(p).flatten()) for i, p in enumerate(trained)]
            yield torch.cat(parts).unsqueeze(0)
    finally:
        for handle in handles:
            handle.remove()


def _of_ranks(
    workload: Workload, model: nn.Module, groups: list[list[int]], batch: Callable[[list[int]], Batch]
) -> Iterator[Tensor]:
    """Every rank's row in turn: each takes as many groups, and the rest that does not go round is left out."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    mine = groups[rank : len(groups) // ranks * ranks : ranks]
    for row in _of_micro_batches(workload, model, mine, batch):
        rows = [torch.empty_like(row) for _ in range(ranks)]
        dist.all_gather(rows, row)
        yield torch.cat(rows)


def _of_replicas(
    workload: Workload, model: nn.Module, groups: list[list[int]], batch: Callable[[list[int]], Batch], replicas: int
) -> Iterator[Tensor]:
    """As many rows at a time as there are replicas."""
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    for start in range(0, len(groups), replicas):
        part = groups[start : start + replicas]
        parameters, buffers = torch.func.stack_module_state([model] * len(part))
        frozen = {name: value for name, value in parameters.items() if name not in names}
        batches = torch.utils._pytree.tree_map(lambda *leaves: torch.stack(leaves), *[batch(group) for group in part])

        def loss(trained: dict[str, Tensor], others: dict[str, Tensor], batch: Batch) -> Tensor:
            run = _Functional(model, {**trained, **others})
            output, target = workload.output_and_target(run, batch)
            return workload.loss(output, target)

        gradient = torch.func.vmap(torch.func.grad(loss), randomness="different")
        with sdpa_kernel(SDPBackend.MATH):
            rows = gradient({name: parameters[name] for name in names}, {**frozen, **buffers}, batches)
        yield torch.cat([rows[name].flatten(1) for name in names], dim=1).detach()


class _Functional(nn.Module):
    """A model under other weights, wherever it is called."""

    def __init__(self, model: nn.Module, state: dict[str, Tensor]) -> None:
        super().__init__()
        self._model = [model]  # in a list, so that its parameters are not this module's
        self._state = state

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model returns."""
        return torch.func.functional_call(self._model[0], self._state, args, kwargs)
