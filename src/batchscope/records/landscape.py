"""The loss and the score along lines and planes through weight space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from batchscope.records.base import Record
from batchscope.records.provenance import Provenance

LandscapeKind = Literal["line", "direction", "plane", "path"]


@dataclass(frozen=True)
class LandscapePoint:
    """What was found at one place.

    Attributes:
        along: First coordinate.
        across: Second coordinate; 0 on a line.
        training_loss: Mean loss on training examples.
        training_score: Score on them.
        validation_loss: Mean loss on validation examples.
        validation_score: Score on them.
    """

    along: float
    across: float
    training_loss: float
    training_score: float
    validation_loss: float
    validation_score: float


@dataclass(frozen=True)
class PathPoint:
    """Where a state of a run lies, projected.

    Attributes:
        along: First coordinate.
        across: Second coordinate.
        distance: What the projection leaves out: distance of the weights from the plane.
    """

    along: float
    across: float
    distance: float


@dataclass(frozen=True)
class Landscape(Record):
    """The loss and the score about given weights.

    Attributes:
        workload: The workload's name.
        shape: "line": between two states, at 0 and 1; "direction": along a random one from a state; "plane": over two
            of them; "path": over the two principal directions of a run's states, the last one at the origin.
        labels: What the states are called.
        parameters: Dimension of weight space.
        length: Distance that a step of 1 along the first coordinate takes, and along the second.
        points: Every place, row by row, the first coordinate running fastest.
        path: Where the states lie; along a line or a direction at whole numbers.
        explained: Of the squared distances of a run's states from its last one, the share that each principal
            direction holds; empty otherwise.
        training_examples: Training examples that were evaluated.
        validation_examples: Validation examples.
        statistics_from: Training examples that batch norm's running statistics were taken from anew at every place; 0
            where the model has none.
        seconds: What the measurement took.
        provenance: Software, machine and seed.
    """

    kind: ClassVar[str] = "landscape"

    workload: str
    shape: LandscapeKind
    labels: tuple[str, ...]
    parameters: int
    length: tuple[float, float]
    points: tuple[LandscapePoint, ...]
    path: tuple[PathPoint, ...]
    explained: tuple[float, ...]
    training_examples: int
    validation_examples: int
    statistics_from: int
    seconds: float
    provenance: Provenance
