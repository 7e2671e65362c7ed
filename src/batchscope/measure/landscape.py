"""The loss and the score along lines and planes through weight space.

The line between two solutions (Goodfellow et al. 2015, arXiv 1412.6544; Keskar et al. 2016, arXiv 1609.04836, figure
3); random directions whose every filter is as long as the weights' own, so that the scale of weights, which batch norm
and ReLUs leave free, says nothing (Li et al. 2017, arXiv 1712.09913); the path of a run on the principal directions of
its states. Batch norm's running statistics are taken anew at every place. The person's model is not touched.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from batchscope.errors import ArgumentError
from batchscope.measure.arguments import checked_whole, loaded
from batchscope.measure.flat import filters, flattened, put
from batchscope.progress import Reporter, reporter
from batchscope.provenance import provenance
from batchscope.records.landscape import Landscape, LandscapeKind, LandscapePoint, PathPoint
from batchscope.seeding import derive, isolated
from batchscope.training.evaluation import EvaluationData, evaluate
from batchscope.training.modes import evaluating
from batchscope.training.train import checked_seed, chosen_device
from batchscope.workload.workload import Workload

Floats = NDArray[np.float64]
State = Mapping[str, Any]

EXAMPLES = 2048
# Where nothing is said: as in Keskar's figure along a line, and about the weights themselves in other directions.
REACHES: dict[LandscapeKind, tuple[float, float]] = {
    "line": (-1.0, 2.0),
    "direction": (-1.0, 1.0),
    "plane": (-1.0, 1.0),
}
POINTS: dict[LandscapeKind, int] = {"line": 25, "direction": 25, "plane": 15, "path": 15}
# A plane reaches this share of a path's extent beyond it.
AROUND = 0.25


def landscape(
    workload: Workload,
    states: State | Sequence[State],
    *,
    shape: LandscapeKind | None = None,
    points: int | None = None,
    reach: tuple[float, float] | None = None,
    labels: Sequence[str] | None = None,
    examples: int = EXAMPLES,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool | Reporter = False,
) -> Landscape:
    """Evaluate loss and score along a line, a random direction, a random plane, or the plane of a run's path.

    Args:
        workload: What is trained.
        states: State dicts: two for a line, one for directions, a run's in their order for a path.
        shape: "line", "direction", "plane" or "path"; None: by the number of states, "plane" for one, "line" for two
            and "path" for more.
        points: Places along each coordinate; None: 25 on a line or along a direction, 15 in a plane.
        reach: First and last coordinate; None: −1 to 2 on a line, −1 to 1 otherwise. Of a path always all of it.
        labels: What to call the states; None: their numbers.
        examples: Most training and most validation examples to evaluate at every place.
        seed: Draws the examples and the directions.
        device: "cpu", "cuda" …; None: CUDA where there is one.
        progress: True shows progress on stderr; or a function called with every place.

    Returns:
        Loss and score on both sets at every place, and where the states lie.

    Raises:
        ArgumentError: Too few states for the shape, or a number that makes no sense.
        WorkloadError: A state that does not fit the model.

    Examples:
        >>> import batchscope as bs
        >>> workload = bs.load_workload("quadratic")
        >>> one, other = (workload.model().state_dict() for _ in range(2))
        >>> found = landscape(workload, [one, other], points=7)
        >>> [round(point.along, 1) for point in found.points]
        [-1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0]
    """
    began = time.perf_counter()
    seed, chosen = checked_seed(seed), chosen_device(device)
    given: list[State] = [states] if isinstance(states, Mapping) else list(states)
    shape = _checked_shape(shape, len(given))
    count = checked_whole("points", POINTS[shape] if points is None else points, least=2)
    if reach is not None and not (len(reach) == 2 and all(map(math.isfinite, reach)) and reach[0] < reach[1]):
        raise ArgumentError("reach must be two finite numbers, the smaller one first", got=reach)
    checked_whole("examples", examples)
    names = tuple(labels) if labels is not None else tuple(str(k + 1) for k in range(len(given)))
    if len(names) != len(given):
        raise ArgumentError("labels must be as many as states", got=f"{len(names)} for {len(given)}")
    place = _Place(workload, given, examples, seed=seed, device=chosen)
    weights = [place.weights_of(state) for state in given]
    frame = _frame(shape, weights, place, derive(seed, "directions"))
    first, second = frame.ranges(count, reach or REACHES.get(shape))
    found = []
    with reporter(progress, "landscape") as report:
        for down, across in enumerate(second):
            for right, along in enumerate(first):
                done = down * len(first) + right
                report.update(label="", done=done, total=len(first) * len(second))
                values = place.evaluated(frame.at(along, across))
                found.append(LandscapePoint(float(along), float(across), *values))
    return Landscape(
        workload=workload.title,
        shape=shape,
        labels=names,
        parameters=len(weights[0]),
        length=(float(np.linalg.norm(frame.along)), float(np.linalg.norm(frame.across))),
        points=tuple(found),
        path=tuple(frame.seen(own) for own in weights),
        explained=frame.explained,
        training_examples=len(place.training.indices),
        validation_examples=len(place.validation.indices),
        statistics_from=place.statistics_from,
        seconds=time.perf_counter() - began,
        provenance=provenance(workload, device=chosen, seed=seed),
    )


def _checked_shape(shape: LandscapeKind | None, states: int) -> LandscapeKind:
    if shape is None:
        shape = "plane" if states == 1 else "line" if states == 2 else "path"
    needs: dict[LandscapeKind, tuple[int, float]] = {
        "line": (2, 2),
        "direction": (1, 1),
        "plane": (1, 1),
        "path": (3, math.inf),
    }
    if shape not in needs:
        raise ArgumentError(f"shape must be one of {', '.join(needs)}", got=shape)
    least, most = needs[shape]
    if not least <= states <= most:
        wanted = {"line": "two states", "path": "three states or more"}.get(shape, "one state")
        raise ArgumentError(f"a {shape} needs {wanted}", got=states)
    return shape


class _Place:
    """A model of its own that is put to weights, and evaluated there."""

    def __init__(
        self, workload: Workload, states: Sequence[State], examples: int, *, seed: int, device: torch.device
    ) -> None:
        self.workload, self.seed = workload, seed
        with isolated(derive(seed, "weights"), device):
            self.model = workload.model()
        for state in reversed(states):  # the first one's buffers stay
            loaded(self.model, state)
        self.model.to(device)
        self._parameters = dict(self.model.named_parameters())
        self.training = EvaluationData(workload, "training", device, seed=seed, most=examples)
        self.validation = EvaluationData(workload, "validation", device, seed=seed, most=examples)
        self.statistics_from = len(self.training.indices) if tracking_norms(self.model) else 0
        self.shapes = [tuple(parameter.shape) for parameter in self._parameters.values()]

    def weights_of(self, state: State) -> Floats:
        """All parameters of a state, flat."""
        return flattened([state[name] for name in self._parameters], list(self._parameters.values()))

    def evaluated(self, weights: Floats) -> tuple[float, float, float, float]:
        """Loss and score on training and on validation examples."""
        put(weights, list(self._parameters.values()))
        take_statistics(self.model, self.training, seed=derive(self.seed, "statistics"))
        return (*evaluate(self.model, self.training), *evaluate(self.model, self.validation))


class _Frame:
    """An origin with one direction or two."""

    def __init__(
        self,
        origin: Floats,
        along: Floats,
        across: Floats,
        *,
        explained: tuple[float, ...] = (),
        extent: tuple[tuple[float, float], ...] = (),
    ) -> None:
        self.origin, self.along, self.across = origin, along, across
        self.explained, self.extent = explained, extent

    def at(self, along: float, across: float) -> Floats:
        return np.asarray(self.origin + along * self.along + across * self.across)

    def ranges(self, count: int, reach: tuple[float, float] | None) -> tuple[Floats, Floats]:
        """The coordinates at which to evaluate."""
        if self.extent:
            return tuple(np.linspace(*ends, count) for ends in self.extent)  # type: ignore[return-value]
        low, high = reach or (-1.0, 1.0)
        first = np.linspace(low, high, count)
        return first, first if np.any(self.across) else np.zeros(1)

    def seen(self, weights: Floats) -> PathPoint:
        """Coordinates of the nearest place, and how far off that is."""
        basis = np.stack([d for d in (self.along, self.across) if np.any(d)], axis=1) if np.any(self.along) else None
        offset = weights - self.origin
        if basis is None:
            return PathPoint(0.0, 0.0, float(np.linalg.norm(offset)))
        coordinates, *_ = np.linalg.lstsq(basis, offset, rcond=None)
        off = float(np.linalg.norm(offset - basis @ coordinates))
        return PathPoint(float(coordinates[0]), float(coordinates[1]) if len(coordinates) > 1 else 0.0, off)


def _frame(shape: LandscapeKind, weights: Sequence[Floats], place: _Place, seed: int) -> _Frame:
    origin, nothing = weights[0], np.zeros_like(weights[0])
    if shape == "line":
        return _Frame(origin, weights[1] - origin, nothing)
    if shape == "path":
        return _principal(weights)
    generator = np.random.default_rng(seed)
    first = filter_normalised(generator.standard_normal(len(origin)), origin, place.shapes)
    if shape == "direction":
        return _Frame(origin, first, nothing)
    return _Frame(origin, first, filter_normalised(generator.standard_normal(len(origin)), origin, place.shapes))


def filter_normalised(direction: Floats, weights: Floats, shapes: Sequence[tuple[int, ...]]) -> Floats:
    """A direction whose every filter, a row of a tensor, is as long as the weights' own; vectors, as biases, are zero.

    Args:
        direction: Any direction.
        weights: Whose filters.
        shapes: Of the tensors that lie flat in both.

    Examples:
        >>> filter_normalised(np.array([3.0, 4.0, 1.0]), np.array([0.0, 2.0, 7.0]), [(1, 2), (1,)]).round(6).tolist()
        [1.2, 1.6, 0.0]
    """
    found = np.zeros_like(direction)
    pairs = zip(filters(direction, shapes), filters(weights, shapes), strict=True)
    for (own, rows), (_, wanted) in pairs:
        norms, lengths = (np.linalg.norm(part, axis=1) for part in (rows, wanted))
        found[own] = (rows * (lengths / np.where(norms > 0, norms, 1.0))[:, None]).reshape(-1)
    return found


def _principal(weights: Sequence[Floats]) -> _Frame:
    """The last state, and the two directions that hold most of the others' squared distances from it."""
    origin = weights[-1]
    offsets = np.stack([own - origin for own in weights[:-1]])
    _, scales, directions = np.linalg.svd(offsets, full_matrices=False)
    squares = scales**2
    total = float(squares.sum())
    if not total > 0 or len(scales) < 2:
        raise ArgumentError("a path needs states that differ", got="the same weights", mend="give states further apart")
    along, across = directions[0], directions[1]
    coordinates = offsets @ np.stack([along, across], axis=1)
    extent = []
    for column in np.vstack([coordinates, np.zeros(2)]).T:
        room = AROUND * float(np.ptp(column)) or 1.0
        extent.append((float(column.min()) - room, float(column.max()) + room))
    return _Frame(
        origin,
        along,
        across,
        explained=(float(squares[0] / total), float(squares[1] / total)),
        extent=tuple(extent),
    )


def tracking_norms(model: nn.Module) -> list[_BatchNorm]:
    """The batch norms of a model that keep running statistics.

    Args:
        model: Any model.
    """
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


def take_statistics(model: nn.Module, data: EvaluationData, *, seed: int) -> int:
    """Replace running statistics by those of the given examples at the model's present weights.

    Between two networks that were trained, the statistics of either are wrong, and interpolated ones too (Jordan et al.
    2022, arXiv 2211.08403). Batch norms alone are in training mode for it, and average over the batches; all else, as
    dropout, is in evaluation mode.

    Args:
        model: Changed in place, in its running statistics alone.
        data: The examples.
        seed: Of whatever the model draws.

    Returns:
        Examples that they were taken from; 0 where the model has no such statistics.
    """
    norms = tracking_norms(model)
    if not norms:
        return 0
    momenta = [norm.momentum for norm in norms]
    with evaluating(model), torch.no_grad(), isolated(seed, data.device):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over batches, each counting alike
            norm.training = True
        for count, batch in data.batches():
            if count > 1:
                data.workload.output_and_target(model, batch)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    return len(data.indices)
