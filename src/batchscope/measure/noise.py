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
from batchscope.measure.arguments import drawn_examples, loaded
from batchscope.measure.per_example import GradientRows
from batchscope.progress import Reporter, reporter
from batchscope.provenance import provenance
from batchscope.records.noise import GradientError, NoiseMeasurement
from batchscope.seeding import derive, isolated
from batchscope.training.train import checked_seed, chosen_device
from batchscope.workload.workload import Workload

LEAST_ROWS = 16
# Of whole gradients, and of folded ones.
KEPT_BYTES = 128 << 20
# Numbers in double precision at a time: what a cache holds.
_DOUBLES = 1 << 20


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
            (:func:`batchscope.measure.optimizer_state.preconditioner_of` reads it from an optimiser), for the
            preconditioned noise scale tr(PΣ)/(GᵀPG), P the diagonal matrix of the factors; None: only the plain one.
        seed: Draws the examples, fresh weights and dropout.
        device: "cpu", "cuda" …; None: CUDA where there is one.
        progress: True shows progress on stderr; or a function called with every step.

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
    factors = [None] if preconditioner is None else [None, _flat(preconditioner, model).to(chosen)]
    with reporter(progress, "measuring gradient noise") as report:
        statistics = _Statistics(
            rows,
            indices,
            factors,
            # Every pass draws the same dropout, so that all of them are over the same gradients.
            random=lambda: isolated(derive(seed, "noise"), chosen),
            on_rows=lambda done: report.update(label="", done=done, total=len(indices)),
        )
        estimates = [estimate_noise(moments) for moments in statistics.moments()]
    plain = estimates[0]
    return NoiseMeasurement(
        workload=workload.title,
        examples=statistics.count * rows.group_size,
        group_size=rows.group_size,
        source=rows.source,
        note=rows.note,
        parameters=rows.parameters,
        trace_covariance=plain.trace_covariance,
        gradient_norm_squared=plain.gradient_norm_squared,
        noise_scale=plain.noise_scale,
        preconditioned_noise_scale=None if preconditioner is None else estimates[1].noise_scale,
        examples_needed=plain.examples_needed,
        gradient_error=statistics.errors(plain),
        seconds=time.perf_counter() - began,
        provenance=provenance(workload, device=chosen, seed=seed),
    )


class _Statistics:
    """Moments of gradients, each coordinate's square times its factor, in memory that hardly grows with the model.

    Besides the gradients of one chunk, it holds a sum as long as a gradient, signs of a byte each, and ``KEPT_BYTES``
    twice: as many of the first gradients as fit, one at least, and all gradients, folded where they are too long.

    A gradient is folded to m numbers by adding up, with random signs, its coordinates that are equal modulo m. That
    keeps squared distances on average, with a relative standard deviation of at most √(2/m) where no coordinate stands
    out (Charikar, Chen and Farach-Colton 2002, "Finding frequent items in data streams"); only the error of batches is
    taken from folded gradients.
    """

    def __init__(
        self,
        rows: GradientRows,
        indices: list[int],
        factors: Sequence[Tensor | None],
        *,
        random: Callable[[], AbstractContextManager[None]],
        on_rows: Callable[[int], None],
    ) -> None:
        self.count = len(indices) // rows.group_size
        self._rows, self._indices, self._factors, self._random = rows, indices, factors, random
        length = rows.parameters
        # An odd length, so that the shapes of weights, often powers of two, do not fall into step with it.
        folded = (KEPT_BYTES // (4 * self.count)) | 1
        self._signs: Tensor | None = None
        if length > folded:
            generator = torch.Generator().manual_seed(derive(0, "signs of folded gradients"))
            self._signs = (2 * torch.randint(2, (length,), generator=generator, dtype=torch.int8) - 1).to(rows.device)
        fitting = max(1, KEPT_BYTES // (4 * length))
        self._paired = min(paired_rows(self.count), max(LEAST_ROWS, fitting))
        self._kept = self._first = torch.empty(0)
        self._mean = torch.zeros(length, dtype=torch.float64, device=rows.device)
        squares: list[list[Tensor]] = [[] for _ in factors]
        done = 0
        with random():
            for chunk in rows.chunks(indices):
                if done == 0:
                    self._kept = chunk.new_empty(self.count, min(length, folded))
                    whole = self._signs is None
                    self._first = (self._kept if whole else chunk.new_empty(fitting, length))[: self._paired]
                self._kept[done : done + len(chunk)] = self._folded(chunk)
                if self._signs is not None and done < len(self._first):
                    self._first[done : done + len(chunk)] = chunk[: len(self._first) - done]
                for found, square in zip(squares, self._added(chunk), strict=True):
                    found.append(square)
                done += len(chunk)
                on_rows(done * rows.group_size)
        self._mean /= self.count
        self._squares = [torch.cat(found) for found in squares]

    def moments(self) -> list[GradientMoments]:
        """The moments under each factor; pairs are taken among the first rows, since examples are in random order."""
        found = []
        for factor, squares, gram in zip(self._factors, self._squares, self._grams(), strict=True):
            direction = self._mean if factor is None else self._mean * factor
            square = float(direction @ self._mean)
            if self._signs is None:
                products = [part @ direction for part in _in_doubles(self._kept)]
            else:
                with self._random():
                    products = [part.double() for part in self._rows.along(self._indices, direction)]
            projections = torch.cat(products)
            # Their mean is ‖ḡ‖², which is known to more digits than single precision leaves them.
            projections += square - projections.mean()
            found.append(
                moments_from_parts(
                    groups=self.count,
                    group_size=self._rows.group_size,
                    mean_norm_squared=square,
                    deviations=_array((squares - 2 * projections + square).clamp_min(0.0)),
                    gram=_array(gram),
                    along_mean=_array((projections - square) / max(math.sqrt(square), 1e-300)),
                )
            )
        return found

    def errors(self, estimate: NoiseEstimate) -> tuple[GradientError, ...]:
        """Root mean square error of batches of 1, 2, 4 … groups, each against the mean of all."""
        sums: list[Tensor] = [torch.zeros((), dtype=torch.float64, device=self._kept.device)] * (
            (self.count // 4).bit_length()
        )
        for columns in _columns(self._kept):
            means = self._kept[:, columns].double()
            means -= means.mean(0)
            for level in range(len(sums)):
                sums[level] = sums[level] + means.square().sum()
                even = len(means) // 2 * 2
                means = (means[0:even:2] + means[1:even:2]) / 2
        found = []
        for level, total in enumerate(sums):
            size, batches = 1 << level, self.count >> level
            # A batch and the mean that holds it share B of m examples: E‖g_B − g_m‖² = tr Σ·(1/B − 1/m).
            error = float(total) / batches / (1 - size / self.count)
            batch_size = size * self._rows.group_size
            predicted = math.sqrt((estimate.trace_covariance.value or 0.0) / batch_size)
            found.append(GradientError(batch_size, batches, math.sqrt(error), predicted))
        return tuple(found)

    def _folded(self, chunk: Tensor) -> Tensor:
        if self._signs is None:
            return chunk
        width = self._kept.shape[1]
        folded = chunk.new_zeros(len(chunk), width)
        for part, signs in zip(torch.split(chunk, width, dim=1), torch.split(self._signs, width), strict=True):
            folded[:, : len(signs)] += part * signs
        return folded

    def _added(self, chunk: Tensor) -> list[Tensor]:
        """Add some gradients to the sum; the squared norm of each under each factor."""
        squares = [torch.zeros(len(chunk), dtype=torch.float64, device=chunk.device) for _ in self._factors]
        for columns in _columns(chunk):
            part = chunk[:, columns].double()
            self._mean[columns] += part.sum(0)
            square = part.square_()
            for k, factor in enumerate(self._factors):
                squares[k] += square.sum(1) if factor is None else square @ factor[columns].double()
        if not torch.isfinite(squares[0]).all():
            raise WorkloadError("gradients must be finite", got="one that is not", mend="measure at weights that train")
        return squares

    def _grams(self) -> Tensor:
        """Products of the first centred gradients with one another under each factor, a block of rows at a time.

        Where the first gradients are too many to be held, each block is held in turn while all are computed again.
        """
        held, paired = self._first, self._paired
        if len(held) == paired:
            return self._products(held, held)
        grams = self._mean.new_zeros(len(self._factors), paired, paired)
        for start in range(0, paired, len(held)):
            done = 0
            with self._random():
                for chunk in self._rows.chunks(self._indices):
                    rows = chunk[: paired - done]
                    block = held[max(0, done - start) : max(0, done + len(rows) - start)]
                    block.copy_(rows[max(0, start - done) :][: len(block)])
                    done += len(rows)
                    if done > start:
                        block = held[: done - start]
                        grams[:, start : start + len(block), done - len(rows) : done] = self._products(block, rows)
                    if done == paired:
                        break
        return grams.triu() + grams.triu(1).mT

    def _products(self, rows: Tensor, others: Tensor) -> Tensor:
        products = self._mean.new_zeros(len(self._factors), len(rows), len(others))
        for columns in _columns(rows):
            centre = self._mean[columns].to(rows.dtype)
            right = others[:, columns] - centre
            left = right if others is rows else rows[:, columns] - centre
            for k, factor in enumerate(self._factors):
                products[k] += (left if factor is None else left * factor[columns]) @ right.T
        return products


def _columns(rows: Tensor) -> Iterator[slice]:
    """Columns of a matrix, so many at a time that a cache holds them in double precision."""
    width = max(64, _DOUBLES // len(rows))
    for start in range(0, rows.shape[1], width):
        yield slice(start, start + width)


def _in_doubles(rows: Tensor) -> Iterator[Tensor]:
    """The rows in double precision, a few at a time."""
    for part in torch.split(rows, max(1, _DOUBLES // rows.shape[1])):
        yield part.double()


def _array(tensor: Tensor) -> NDArray[np.float64]:
    array: NDArray[np.float64] = tensor.cpu().numpy()
    return array


def _flat(preconditioner: Mapping[str, Tensor], model: nn.Module) -> Tensor:
    """The preconditioner as one vector, in the order of the gradient."""
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
        parts.append(factor.detach().flatten())
    return torch.cat(parts)
