"""Gradient noise at one point: tr Σ, ‖G‖², their ratio, and how a batch's error falls with its size."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from batchscope.errors import ArgumentError, WorkloadError
from batchscope.fit.noise import GradientMoments, NoiseEstimate, estimate_noise, moments_from_parts, paired_rows
from batchscope.measure.arguments import drawn_examples
from batchscope.measure.per_example import GradientRows
from batchscope.measure.preconditioner import preconditioner
from batchscope.measure.state import loaded
from batchscope.progress import Reporter, reporter
from batchscope.provenance import provenance
from batchscope.records.noise import GradientError, NoiseMeasurement
from batchscope.seeding import derive, isolated
from batchscope.training.train import checked_seed, chosen_device
from batchscope.workload.workload import Workload

LEAST_ROWS = 16
# Where all rows fit into this they are kept; where not, as many as fit of those that pairs are taken among.
KEPT_BYTES = 128 << 20
# Numbers in double precision at a time: a part of a row's chunk that a cache holds.
_DOUBLES = 1 << 18
# Columns of the kept rows at a time.
_COLUMNS = 1 << 14


def gradient_noise(
    workload: Workload,
    state: Mapping[str, Any] | None = None,
    *,
    examples: int = 1024,
    preconditioner: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool | Reporter = False,
) -> NoiseMeasurement:
    """Measure the gradient noise scale at given weights.

    tr Σ and ‖G‖² are estimated without bias from single examples' gradients and divided afterwards; see
    :mod:`batchscope.fit.noise` for the formulas and the interval. The model is in training mode, dropout included,
    since that is the noise that training sees. Batch norm ties the examples of a batch together; there the gradients of
    micro-batches stand in. G and Σ are those of the distribution that the training examples come from.

    The step θ − εPg is plain gradient descent in the coordinates P^(−½)θ, where the gradient is P^½g: its simple noise
    scale there (McCandlish et al. 2018, arXiv 1812.06162, section 2.2) is tr(P^½ΣP^½)/‖P^½G‖² = tr(PΣ)/(GᵀPG).

    Args:
        workload: What is trained.
        state: A state dict; None: fresh weights under the seed.
        examples: Training examples to use, drawn without replacement; all of them where there are fewer.
        preconditioner: A factor for every coordinate of the gradient by parameter name, such as 1/(√v̂ + ε) of Adam
            (:func:`preconditioner_of` reads it from an optimiser), for the preconditioned noise scale
            tr(PΣ)/(GᵀPG), P the diagonal matrix of the factors; None: only the plain one.
        seed: Draws the examples, fresh weights and dropout.
        device: "cpu", "cuda" …; None: CUDA where there is one.
        progress: True shows progress on stderr; or a function that is told of every step.

    Returns:
        The measurement. A noise scale that the examples do not determine is unresolved, with its lower end and the
        number of examples that would do.

    Raises:
        ArgumentError: Too few examples.
        WorkloadError: Weights that do not fit the model, or gradients that are not finite.

    Examples:
        >>> import batchscope as bs
        >>> noise = bs.gradient_noise(bs.load_workload("digits"), examples=256)
        >>> noise.noise_scale.resolved, noise.source
        (True, 'per-example gradients')
    """
    began = time.perf_counter()
    seed = checked_seed(seed)
    if not isinstance(examples, int) or isinstance(examples, bool) or examples < LEAST_ROWS:
        raise ArgumentError(f"examples must be a whole number of at least {LEAST_ROWS}", got=examples)
    chosen = chosen_device(device)
    indices = drawn_examples(workload, examples, derive(seed, "noise examples"))
    with isolated(derive(seed, "weights"), chosen):
        model = loaded(workload.model(), state).to(chosen)
    rows = GradientRows(workload, model)
    if rows.group_size > 1:  # of few examples there are as many micro-batches as are needed, and smaller ones
        rows.group_size = max(2, min(rows.group_size, len(indices) // LEAST_ROWS))
    if len(indices) // rows.group_size < LEAST_ROWS:
        raise ArgumentError(
            f"the noise scale needs at least {LEAST_ROWS} gradients",
            got=f"{len(indices)} examples in {rows.source} of {rows.group_size}",
            mend=f"give examples={LEAST_ROWS * rows.group_size} or more, if the training set has as many",
        )
    scales = [None] if preconditioner is None else [None, _flat(preconditioner, model).to(chosen)]
    with reporter(progress, "measuring gradient noise") as report:
        tallies = _tallied(
            rows,
            indices,
            scales,
            # Every pass draws the same dropout, so that two of them are over the same gradients.
            random=lambda: isolated(derive(seed, "noise"), chosen),
            tell=lambda done: report.update(label="", done=done, total=len(indices)),
        )
    measured, plain = tallies[0], estimate_noise(tallies[0].moments())
    preconditioned = None if preconditioner is None else estimate_noise(tallies[1].moments()).noise_scale
    return NoiseMeasurement(
        workload=workload.title,
        examples=measured.groups * rows.group_size,
        group_size=rows.group_size,
        source=rows.source,
        note=rows.note,
        parameters=rows.parameters,
        trace_covariance=plain.trace_covariance,
        gradient_norm_squared=plain.gradient_norm_squared,
        noise_scale=plain.noise_scale,
        preconditioned_noise_scale=preconditioned,
        examples_needed=plain.examples_needed,
        gradient_error=measured.errors(plain),
        seconds=time.perf_counter() - began,
        provenance=provenance(workload, device=chosen, seed=seed),
    )


def preconditioner_of(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor] | None:
    """What an optimiser multiplies each coordinate of the gradient by, for :func:`gradient_noise`.

    For Adam, AdamW, NAdam and RAdam 1/(√v̂ + ε), v̂ the mean square of the gradient, corrected for its start at zero
    (Kingma and Ba 2015, arXiv 1412.6980); for RMSprop 1/(√v + ε); for Adagrad 1/(√Σg² + ε).

    Args:
        optimizer: The model's optimiser, after at least one step.
        model: The model.

    Returns:
        A factor for every coordinate that is trained, by parameter name: 0 for parameters that the optimiser does not
        hold or has had no gradient for. None for an optimiser that scales all coordinates alike, such as SGD, and
        before the first step.

    Examples:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> adam = torch.optim.Adam(model.parameters())
        >>> preconditioner_of(adam, model) is None
        True
        >>> model.weight.grad = torch.tensor([[1.0, 10.0]])
        >>> adam.step()
        >>> preconditioner_of(adam, model)
        {'weight': tensor([[1.0000, 0.1000]])}
    """
    groups = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    factors = {
        name: preconditioner(optimizer, parameter, groups[id(parameter)]) if id(parameter) in groups else None
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    if all(factor is None for factor in factors.values()):
        return None
    parameters = dict(model.named_parameters())
    return {name: torch.zeros_like(parameters[name]) if f is None else f.detach() for name, f in factors.items()}


def _tallied(
    rows: GradientRows,
    indices: list[int],
    scales: Sequence[Tensor | None],
    *,
    random: Callable[[], AbstractContextManager[None]],
    tell: Callable[[int], None],
) -> list[_Tally]:
    """What is needed from the gradients under each scale: one pass over them, and their products with the mean."""
    fitting = KEPT_BYTES // (4 * rows.parameters * len(scales))
    count = len(indices) // rows.group_size
    keep_all = count <= fitting
    kept = count if keep_all else min(max(fitting, LEAST_ROWS), paired_rows(count))
    tallies = [_Tally(rows, scale, kept) for scale in scales]
    with random():
        for chunk in rows.chunks(indices):
            for tally in tallies:
                tally.add(chunk)
            tell(tallies[0].groups * rows.group_size)
    for tally in tallies:
        if keep_all:
            tally.project_kept()
            continue
        with random():
            for along in rows.along(indices, tally.direction()):
                tally.project(along)
    return tallies


class _Tally:
    """Sums over gradients, each coordinate scaled, and the first of them kept."""

    def __init__(self, rows: GradientRows, scale: Tensor | None, most_kept: int) -> None:
        self.group_size = rows.group_size
        self.groups = 0
        self._scale = scale
        self._most_kept = most_kept
        self._total = torch.zeros(rows.parameters, dtype=torch.float64, device=rows.device)
        self._kept = torch.empty(0)
        self._projections: list[Tensor] = []
        # Of single rows, of means of two, four, … rows that follow each other: their ‖·‖², and a row without a partner.
        self._squares: list[list[Tensor]] = []
        self._alone: list[Tensor | None] = []

    def add(self, chunk: Tensor) -> None:
        """Take in some gradients, rows×parameters."""
        rows = chunk if self._scale is None else chunk * self._scale
        for part in _in_doubles(rows):
            self._total += part.sum(0)
        if not torch.isfinite(self._total).all():
            raise WorkloadError("gradients must be finite", got="one that is not", mend="measure at weights that train")
        if self.groups == 0:
            self._kept = rows.new_empty(self._most_kept, rows.shape[1])
        room = self._kept[self.groups : self.groups + len(rows)]
        room.copy_(rows[: len(room)])
        self.groups += len(rows)
        level = 0
        while len(rows):
            if level == len(self._squares):
                self._squares.append([])
                self._alone.append(None)
            self._squares[level] += [torch.linalg.vector_norm(part, dim=1).square() for part in _in_doubles(rows)]
            before = self._alone[level]
            if before is not None:
                rows = torch.cat([before, rows])
            even = len(rows) // 2 * 2
            self._alone[level] = rows[even:].clone() if even < len(rows) else None
            rows = (rows[0:even:2] + rows[1:even:2]) / 2
            level += 1

    def direction(self) -> Tensor:
        """The vector whose products with unscaled gradients are those of scaled gradients with their mean."""
        mean = self._mean()
        return mean if self._scale is None else mean * self._scale

    def project(self, along: Tensor) -> None:
        """Take in the same gradients' products with :meth:`direction`, in the same order."""
        self._projections.append(along.double())

    def project_kept(self) -> None:
        """The same, where all of them were kept."""
        mean = self._mean()
        self._projections += [part @ mean for part in _in_doubles(self._kept)]

    def _mean(self) -> Tensor:
        return self._total / self.groups

    def _projected(self) -> Tensor:
        # Their mean is ‖ḡ‖², which is known to more digits than single precision leaves them.
        projections = torch.cat(self._projections)
        return projections + (self._mean().square().sum() - projections.mean())

    def moments(self) -> GradientMoments:
        """The moments, pairs of gradients taken among the first rows (the examples are in random order)."""
        mean, projections = self._mean(), self._projected()
        square = float(mean @ mean)
        deviations = (torch.cat(self._squares[0]) - 2 * projections + square).clamp_min(0.0)
        first = self._kept[: paired_rows(self.groups)]
        gram = torch.zeros(len(first), len(first), dtype=torch.float64, device=first.device)
        centres = torch.split(mean.to(first.dtype), _COLUMNS)
        for columns, centre in zip(torch.split(first, _COLUMNS, dim=1), centres, strict=True):
            centred = columns - centre
            gram += centred @ centred.T
        return moments_from_parts(
            groups=self.groups,
            group_size=self.group_size,
            mean_norm_squared=square,
            deviations=_array(deviations),
            gram=_array(gram),
            along_mean=_array((projections - square) / max(math.sqrt(square), 1e-300)),
        )

    def errors(self, estimate: NoiseEstimate) -> tuple[GradientError, ...]:
        """Root mean square error of batches of 1, 2, 4 … groups, each against the mean of all."""
        projections, square = self._projected(), float(self._mean().square().sum())
        found = []
        for level, squares in enumerate(self._squares):
            means, size = torch.cat(squares), 1 << level
            if len(means) < 4:
                break
            along = projections[: size * len(means)].view(-1, size).mean(1)
            # A batch and the mean that holds it share B of m examples: E‖g_B − g_m‖² = tr Σ·(1/B − 1/m).
            error = float((means - 2 * along + square).mean().clamp_min(0.0)) / (1 - size / self.groups)
            batch_size = size * self.group_size
            predicted = math.sqrt((estimate.trace_covariance.value or 0.0) / batch_size)
            found.append(GradientError(batch_size, len(means), math.sqrt(error), predicted))
        return tuple(found)


def _in_doubles(rows: Tensor) -> Iterator[Tensor]:
    """The rows in double precision, a few at a time."""
    for part in torch.split(rows, max(1, _DOUBLES // rows.shape[1])):
        yield part.double()


def _array(tensor: Tensor) -> NDArray[np.float64]:
    array: NDArray[np.float64] = tensor.cpu().numpy()
    return array


def _flat(preconditioner: Mapping[str, Tensor], model: nn.Module) -> Tensor:
    """The square root of the preconditioner, as one vector in the order of the gradient."""
    parts = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        factor = preconditioner.get(name)
        if factor is None or factor.shape != parameter.shape or bool((factor < 0).any()):
            raise ArgumentError(
                "preconditioner must hold a factor of at least 0 for every coordinate that is trained",
                got=f"{name}: {'nothing' if factor is None else f'shape {tuple(factor.shape)}'}",
            )
        parts.append(factor.detach().sqrt().flatten())
    return torch.cat(parts)
