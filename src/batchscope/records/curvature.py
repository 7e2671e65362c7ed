"""What the curvature of the training loss is at a point: its largest eigenvalues, trace and spectral density."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from batchscope.records.base import Record
from batchscope.records.interval import Interval
from batchscope.records.provenance import Provenance

CurvatureMatrix = Literal["hessian", "gauss-newton"]


@dataclass(frozen=True)
class HessianEigenvalues(Record):
    """The largest eigenvalues of the Hessian, or of the Gauss–Newton matrix, of the mean training loss.

    The model is in evaluation mode: dropout is off, batch norm uses its running statistics.

    Attributes:
        workload: The workload's name.
        matrix: Of which matrix.
        parameters: Its dimension.
        examples: Training examples that the loss is the mean over.
        values: Eigenvalues, descending; the largest by value, and not by size.
        residuals: ‖Hv − λv‖ of each unit vector: an eigenvalue of the matrix lies within this of λ.
        converged: Whether each met the tolerance.
        told_apart: Whether each eigenvalue lies further from the next one listed than residuals and rounding reach.
        learning_rate: The workload's own.
        stable_learning_rate: Rate from which on gradient descent with this optimiser is unstable on a quadratic of the
            largest eigenvalue: 2/λ, and 2(1 + m)/λ with momentum m; None where the optimiser scales its steps by
            itself, or where no eigenvalue is above 0.
        products: Products with the matrix that it took.
        seconds: What the measurement took.
        provenance: Software, machine and seed.
        vectors: Unit vectors, a column for each value, over the trained parameters in their order; in memory only.
    """

    kind: ClassVar[str] = "hessian eigenvalues"

    workload: str
    matrix: CurvatureMatrix
    parameters: int
    examples: int
    values: tuple[float, ...]
    residuals: tuple[float, ...]
    converged: tuple[bool, ...]
    told_apart: tuple[bool, ...]
    learning_rate: float
    stable_learning_rate: float | None
    products: int
    seconds: float
    provenance: Provenance
    vectors: Any = field(default=None, metadata={"json": False}, repr=False, compare=False)


@dataclass(frozen=True)
class HessianTrace(Record):
    """The trace of the Hessian, or of the Gauss–Newton matrix, of the mean training loss.

    Attributes:
        workload: The workload's name.
        matrix: Of which matrix.
        parameters: Its dimension.
        examples: Training examples that the loss is the mean over.
        trace: The sum of all eigenvalues.
        mean_eigenvalue: That over their number.
        samples: Random vectors behind it.
        projected_out: Eigenvectors whose part was taken from their eigenvalues, and not from random vectors.
        products: Products with the matrix that it took.
        seconds: What the measurement took.
        provenance: Software, machine and seed.
    """

    kind: ClassVar[str] = "hessian trace"

    workload: str
    matrix: CurvatureMatrix
    parameters: int
    examples: int
    trace: Interval
    mean_eigenvalue: Interval
    samples: int
    projected_out: int
    products: int
    seconds: float
    provenance: Provenance


@dataclass(frozen=True)
class SpectralDensity(Record):
    """How the eigenvalues of the Hessian, or of the Gauss–Newton matrix, are spread.

    Attributes:
        workload: The workload's name.
        matrix: Of which matrix.
        parameters: Its dimension.
        examples: Training examples that the loss is the mean over.
        eigenvalues: Places, ascending, as far as the spectrum reaches.
        density: Share of the eigenvalues per unit there, smoothed by ``width``; its integral is 1.
        width: Standard deviation of the Gaussians that it is smoothed by.
        nodes: Ritz values of all runs, ascending: the quadrature behind the density.
        weights: Share of the eigenvalues that each stands for; their sum is 1.
        share_negative: Share of the eigenvalues below zero by more than rounding.
        runs: Random vectors behind it.
        steps: Lanczos steps of each.
        products: Products with the matrix that it took.
        seconds: What the measurement took.
        provenance: Software, machine and seed.
    """

    kind: ClassVar[str] = "spectral density"

    workload: str
    matrix: CurvatureMatrix
    parameters: int
    examples: int
    eigenvalues: tuple[float, ...]
    density: tuple[float, ...]
    width: float
    nodes: tuple[float, ...]
    weights: tuple[float, ...]
    share_negative: Interval
    runs: int
    steps: int
    products: int
    seconds: float
    provenance: Provenance
