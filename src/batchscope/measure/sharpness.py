"""Keskar's sharpness: how far the training loss can rise in a small box about the weights.

φ = 100·(max f(x + Az) − f(x))/(1 + f(x)) over |z_i| ≤ ε(|(A⁺x)_i| + 1), with A the identity or a matrix of random
directions, and the maximum looked for by a few iterations of L-BFGS-B (Keskar et al. 2016, arXiv 1609.04836, equations
2.2 and 2.3). In all of weight space, φ says more of the scale of the weights than of the minimum: a network of ReLUs
computes the same with one layer's weights doubled and the next one's halved, and has another φ (Dinh et al. 2017, arXiv
1703.04933). The box of filters moves each weight by a share of its own filter's size, as the directions of Li et al.
(2017, arXiv 1712.09913) do, which such rescaling cannot change.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from batchscope.errors import ArgumentError, WorkloadError
from batchscope.fit.intervals import mean_interval
from batchscope.measure.arguments import checked_whole
from batchscope.measure.curvature_operators import curvature_examples
from batchscope.measure.flat import filters
from batchscope.measure.loss_surface import LossSurface
from batchscope.measure.subspace import Subspace
from batchscope.progress import Reporter, reporter
from batchscope.provenance import provenance
from batchscope.records import Interval
from batchscope.records.sharpness import Sharpness, SharpnessBox, SharpnessRun
from batchscope.seeding import derive
from batchscope.training.train import checked_seed, chosen_device
from batchscope.workload.workload import Workload

Floats = NDArray[np.float64]

# A search begins this share of the box away from its centre, in a random direction: at a minimum the gradient says
# nothing of where to go.
AWAY = 0.05


def sharpness(
    workload: Workload,
    state: Mapping[str, Any] | None = None,
    epsilon: float = 1e-3,
    subspace: int | None = None,
    *,
    box: SharpnessBox = "keskar",
    iterations: int = 10,
    repeats: int | None = None,
    examples: int | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool | Reporter = False,
) -> Sharpness:
    """Keskar's sharpness φ at given weights, in per cent.

    Coordinates are counted in half-sides of the box and the loss in units of its mean slope there, so that the first
    step of L-BFGS-B already goes as far as the box does. The search begins a twentieth of the box away from the centre,
    and finds a lower bound of the largest loss, as any search does.

    Args:
        workload: What is trained.
        state: A state dict; None: fresh weights under the seed.
        epsilon: ε, the size of the box; the paper has 1e-3 and 5e-4.
        subspace: Directions of a random subspace, the paper's being 100; None: all of weight space.
        box: "keskar", or "filters" for the form that rescaling of layers leaves alone; the latter in all of weight
            space.
        iterations: Of L-BFGS-B, at most; the paper has 10.
        repeats: Subspaces to take the mean over, or starting points to take the largest of; None: 5, or 2.
        examples: Training examples of the loss, drawn without replacement; None: 4,096, or all where there are fewer.
        seed: Draws the examples, fresh weights, directions and starting points.
        device: "cpu", "cuda" …; None: CUDA where there is one.
        progress: True shows progress on stderr; or a function called with every step.

    Returns:
        φ, with every search behind it, and over subspaces with an interval.

    Raises:
        ArgumentError: A number that makes no sense.
        WorkloadError: Weights that do not fit the model, or a loss there that is not finite.

    Examples:
        >>> import batchscope as bs
        >>> round(sharpness(bs.load_workload("quadratic"), epsilon=0.1).value) > 0
        True
    """
    began = time.perf_counter()
    seed, chosen = checked_seed(seed), chosen_device(device)
    if not (isinstance(epsilon, (int, float)) and 0 < epsilon < math.inf):
        raise ArgumentError("epsilon must be a positive number", got=epsilon)
    if box not in ("keskar", "filters"):
        raise ArgumentError("box must be keskar or filters", got=box)
    if subspace is not None and box != "keskar":
        raise ArgumentError(
            "the box of filters lies in all of weight space", got=f"subspace={subspace}", mend="leave subspace out"
        )
    repeats = (2 if subspace is None else 5) if repeats is None else checked_whole("repeats", repeats)
    iterations = checked_whole("iterations", iterations)
    indices = curvature_examples(workload, examples, seed)
    surface = LossSurface(workload, state, indices, seed=seed, device=chosen)
    if subspace is not None and not 1 <= checked_whole("subspace", subspace) <= surface.dimensions:
        raise ArgumentError(f"a subspace has at most the model's {surface.dimensions:,} dimensions", got=subspace)
    centre = surface.value(surface.start)
    if not math.isfinite(centre):
        raise WorkloadError("the training loss must be finite", got=centre, mend="measure at weights that train")
    runs: list[SharpnessRun] = []
    with reporter(progress, "sharpness") as report:
        for repeat in range(repeats):
            report.update(label=f"search {repeat + 1}", done=repeat, total=repeats)
            place = Box.about(surface, epsilon, subspace, box, seed=derive(seed, "sharpness", repeat))
            runs.append(_search(surface, centre, place, iterations))
    values = [run.value for run in runs]
    return Sharpness(
        workload=workload.title,
        box=box,
        epsilon=float(epsilon),
        subspace=subspace,
        iterations=iterations,
        parameters=surface.dimensions,
        examples=len(indices),
        loss=centre,
        value=max(values) if subspace is None else float(np.mean(values)),
        over_runs=Interval(max(values), None, None) if subspace is None else mean_interval(values),
        runs=tuple(runs),
        seconds=time.perf_counter() - began,
        provenance=provenance(workload, device=chosen, seed=seed),
    )


@dataclass(frozen=True)
class Box:
    """Where the largest loss is looked for, in coordinates that reach from −1 to 1.

    Attributes:
        sides: Half of each side; 0 where nothing moves.
        out: From coordinates to a step in weight space.
        back: From a gradient in weight space to one in coordinates.
        seed: Of the starting point.
    """

    sides: Floats
    out: Callable[[Floats], Floats]
    back: Callable[[Floats], Floats]
    seed: int

    @classmethod
    def about(cls, surface: LossSurface, epsilon: float, subspace: int | None, kind: SharpnessBox, *, seed: int) -> Box:
        """The box about the weights that a surface begins with.

        Args:
            surface: The loss.
            epsilon: ε.
            subspace: Dimensions of a random subspace; None: all of weight space.
            kind: What its sides are in proportion to.
            seed: Of the subspace and the starting point.
        """
        if subspace is None:
            sides = epsilon * (filter_sizes(surface) if kind == "filters" else np.abs(surface.start) + 1.0)
            return cls(sides, lambda u: sides * u, lambda g: sides * g, seed)
        space = Subspace(surface.dimensions, subspace, seed=seed)
        sides = epsilon * (np.abs(space.coordinates(surface.start)) + 1.0)
        return cls(sides, lambda u: space @ (sides * u), lambda g: sides * space.transposed(g), seed)


def _search(surface: LossSurface, centre: float, box: Box, iterations: int) -> SharpnessRun:
    """Look for the largest loss in one box, from one starting point."""
    from scipy.optimize import Bounds, minimize

    before, sides = surface.evaluations, box.sides
    generator = np.random.default_rng(box.seed)
    start = generator.uniform(-AWAY, AWAY, len(sides))
    highest, place = centre, np.zeros(len(sides))

    def risen(u: Floats) -> tuple[float, Floats]:
        nonlocal highest, place
        value, gradient = surface.value_and_gradient(surface.start + box.out(u))
        if value > highest:
            highest, place = value, u.copy()
        return value, box.back(gradient)

    _, slope = risen(start)
    unit = float(np.abs(slope).mean())
    if unit > 0 and math.isfinite(unit):

        def falling(u: Floats) -> tuple[float, Floats]:
            value, gradient = risen(u)
            return -value / unit, -gradient / unit

        bounds = Bounds(np.full(len(sides), -1.0), np.ones(len(sides)))
        minimize(falling, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": iterations})
    moved = sides > 0
    return SharpnessRun(
        loss=highest,
        value=100 * (highest - centre) / (1 + centre),
        evaluations=surface.evaluations - before,
        at_bounds=float((np.abs(place[moved]) > 1 - 1e-9).mean()) if moved.any() else 0.0,
    )


def filter_sizes(surface: LossSurface) -> Floats:
    """The root mean square of each weight's filter, a row of its tensor; 0 for vectors, as biases and norms are.

    Args:
        surface: Its starting weights are taken.
    """
    found = np.zeros_like(surface.start)
    for own, rows in filters(surface.start, surface.shapes):
        found[own] = np.repeat(np.sqrt(np.square(rows).mean(1)), rows.shape[1])
    return found
