"""A noisy quadratic, where gradient, noise, curvature and the expected loss of SGD are known in closed form.

The loss of one example x is ½(θ − x)ᵀH(θ − x), with H diagonal and the examples of mean 0 and covariance C, diagonal
too. With C = noise² H⁻¹ the gradient noise is Σ = noise² H: the noisy quadratic model of Zhang et al. 2019, "Which
Algorithmic Choices Matter at Which Batch Sizes?" (arXiv:1907.04164). The training examples are moved and scaled so
that their own mean and covariance (divided by their number) are exactly 0 and C: every formula below holds for the
training set itself, not only for the distribution that it came from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from batchscope.errors import WorkloadError
from batchscope.seeding import derive
from batchscope.workload import optimizers
from batchscope.workload.workload import Workload

DIMENSIONS, EXAMPLES, VALIDATION_EXAMPLES = 32, 4_096, 1_024


@dataclass(frozen=True)
class QuadraticLaw:
    """What is known of a quadratic workload; calling it makes a model of fresh weights.

    Attributes:
        curvature: The diagonal of H, descending.
        spread: The diagonal of C.
        start: Standard deviation of the fresh weights.
        dtype: Of the parameters.
    """

    curvature: tuple[float, ...]
    spread: tuple[float, ...]
    start: float
    dtype: torch.dtype

    def __call__(self) -> QuadraticModel:
        """A model whose weights are drawn from torch's global generator."""
        return QuadraticModel(self)


class QuadraticModel(nn.Module):
    """One vector of parameters θ; its output, √H θ, is the same for every example."""

    root: Tensor

    def __init__(self, law: QuadraticLaw) -> None:
        super().__init__()
        self.theta = nn.Parameter(law.start * torch.randn(len(law.curvature), dtype=law.dtype))
        root = torch.tensor(law.curvature, dtype=law.dtype).sqrt()
        self.register_buffer("root", root, persistent=False)  # a constant, no part of the state

    def forward(self, x: Tensor) -> Tensor:
        """√H θ for each of the examples N×d, whose values play no part."""
        return (self.root * self.theta).expand(len(x), -1)


def half_squared_distance(output: Tensor, target: Tensor) -> Tensor:
    """½‖output − target‖², the mean over the batch.

    Args:
        output: √H θ, N×d.
        target: √H x, N×d.

    Returns:
        A scalar.
    """
    return 0.5 * (output - target).square().sum(-1).mean()


def quadratic(
    dimensions: int = DIMENSIONS,
    examples: int = EXAMPLES,
    noise: float = 2.0,
    *,
    condition: float = 100.0,
    start: float = 1.0,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Workload:
    """A quadratic with gradient noise, where the truth is known: what the estimators are tested against.

    H has ``dimensions`` eigenvalues from 1 down to 1/``condition``, evenly spaced in their logarithm, and
    C = noise² H⁻¹. The reference, plain SGD of batch size 32 at learning rate 0.1, is within 1.1 times the lowest
    expected excess loss that any constant rate gives it after 4 epochs, by :func:`expected_loss`.

    Args:
        dimensions: Number of parameters.
        examples: Number of training examples, more than ``dimensions``; a quarter as many validate.
        noise: Σ = noise² H.
        condition: Largest over smallest eigenvalue of H, at least 1.
        start: Standard deviation of the fresh weights.
        dtype: Of the parameters and the examples.
        seed: Of the examples.

    Returns:
        The workload; it has no score (so that minus the loss is its score).

    Raises:
        WorkloadError: An argument makes no sense.

    Examples:
        >>> workload = quadratic(dimensions=3, examples=100, noise=1.0, condition=100)
        >>> [round(value, 3) for value in eigenvalues(workload).tolist()]
        [1.0, 0.1, 0.01]
        >>> round(true_covariance_trace(workload), 3)
        1.11
    """
    if dimensions < 1 or examples < max(4, dimensions + 2):
        raise WorkloadError(
            "quadratic needs at least 1 dimension, and 2 more examples than dimensions (and 4)",
            got=f"dimensions={dimensions}, examples={examples}",
            mend="give more examples",
        )
    if not (noise >= 0 and condition >= 1 and start >= 0 and math.isfinite(noise + condition + start)):
        raise WorkloadError(
            "noise and start must be at least 0, and condition at least 1, all finite",
            got=f"noise={noise}, start={start}, condition={condition}",
        )
    curvature = torch.logspace(0, -math.log10(condition), dimensions, dtype=torch.float64)
    spread = noise**2 / curvature
    law = QuadraticLaw(tuple(curvature.tolist()), tuple(spread.tolist()), start, dtype)
    generator = torch.Generator().manual_seed(derive(seed, "quadratic"))
    # Validation examples come from the distribution, so that a loss on them differs from the training loss by chance.
    train = _whitened(torch.randn(examples, dimensions, dtype=torch.float64, generator=generator)) * spread.sqrt()
    held = torch.randn(examples // 4, dimensions, dtype=torch.float64, generator=generator) * spread.sqrt()
    root = curvature.sqrt()
    return Workload(
        model=law,
        train=(train.to(dtype), (root * train).to(dtype)),
        validation=(held.to(dtype), (root * held).to(dtype)),
        loss=half_squared_distance,
        optimizer=optimizers.sgd,
        learning_rate=0.1,
        batch_size=min(32, examples),
        name="quadratic",
    )


def law_of(workload: Workload) -> QuadraticLaw:
    """What is known of a quadratic workload.

    Args:
        workload: One that :func:`quadratic` made.

    Returns:
        Its curvature and spread.

    Raises:
        WorkloadError: It is another workload.
    """
    if not isinstance(workload.model, QuadraticLaw):
        raise WorkloadError("the truth is known of quadratic() alone", got=workload.title)
    return workload.model


def eigenvalues(workload: Workload) -> Tensor:
    """The eigenvalues of the Hessian, descending: the diagonal of H.

    Args:
        workload: One that :func:`quadratic` made.

    Returns:
        float64, d.
    """
    return torch.tensor(law_of(workload).curvature, dtype=torch.float64)


def true_gradient(workload: Workload, theta: Tensor) -> Tensor:
    """The gradient of the training loss, G = Hθ.

    Args:
        workload: One that :func:`quadratic` made.
        theta: Parameters, d.

    Returns:
        float64, d.
    """
    return eigenvalues(workload) * theta.detach().cpu().double()


def true_loss(workload: Workload, theta: Tensor) -> float:
    """The training loss, ½θᵀHθ + ½tr(HC).

    Args:
        workload: One that :func:`quadratic` made.
        theta: Parameters, d.

    Returns:
        The loss; its second part no θ can lower.
    """
    h, position = eigenvalues(workload), theta.detach().cpu().double()
    return float(0.5 * (h * position.square()).sum()) + lowest_loss(workload)


def lowest_loss(workload: Workload) -> float:
    """The training loss at its minimum, ½tr(HC).

    Args:
        workload: One that :func:`quadratic` made.

    Returns:
        The loss.
    """
    law = law_of(workload)
    return 0.5 * math.fsum(h * c for h, c in zip(law.curvature, law.spread, strict=True))


def true_covariance(workload: Workload) -> Tensor:
    """The diagonal of Σ = HCH, the covariance of the training examples' gradients, at every θ.

    Args:
        workload: One that :func:`quadratic` made.

    Returns:
        float64, d. It is the covariance of a gradient drawn from the training set, divided by the number of examples
        N; the unbiased estimate from all of them is N/(N − 1) times as large.
    """
    law = law_of(workload)
    return eigenvalues(workload).square() * torch.tensor(law.spread, dtype=torch.float64)


def true_covariance_trace(workload: Workload) -> float:
    """The trace of Σ, tr(HCH).

    Args:
        workload: One that :func:`quadratic` made.

    Returns:
        The trace.
    """
    return float(true_covariance(workload).sum())


def simple_noise_scale(workload: Workload, theta: Tensor) -> float:
    """B_simple = tr Σ / |G|² (McCandlish et al. 2018, arXiv:1812.06162, equation 2.9), in examples.

    Args:
        workload: One that :func:`quadratic` made.
        theta: Parameters, d.

    Returns:
        The noise scale at θ.
    """
    return true_covariance_trace(workload) / float(true_gradient(workload, theta).square().sum())


def noise_scale(workload: Workload, theta: Tensor) -> float:
    """B_noise = tr(HΣ) / GᵀHG (McCandlish et al. 2018, equation 2.8), in examples.

    Args:
        workload: One that :func:`quadratic` made.
        theta: Parameters, d.

    Returns:
        The noise scale at θ.
    """
    h, gradient = eigenvalues(workload), true_gradient(workload, theta)
    return float((h * true_covariance(workload)).sum() / (h * gradient.square()).sum())


def expected_loss(
    workload: Workload, theta: Tensor, *, learning_rate: float, batch_size: int, iterations: int
) -> float:
    """The expected training loss after plain SGD from θ, its batches drawn with replacement.

    One step of rate ε at batch size B takes the mean square of each coordinate from m to
    (1 − εh)² m + ε² h² c / B (Zhang et al. 2019, section 3); the geometric sum of it is

        m_t = a^t m_0 + ε² h² c / B · (1 − a^t) / (1 − a),   a = (1 − εh)²,

    and the loss is ½tr(HC) + ½ Σ h m_t. Batches drawn without replacement have less noise: by (N − B)/(N − 1) for one
    batch of N examples, and by more over a whole epoch.

    Args:
        workload: One that :func:`quadratic` made.
        theta: Parameters to start from, d.
        learning_rate: ε.
        batch_size: B.
        iterations: Number of steps t.

    Returns:
        The expected loss; infinite or huge where ε is above 2 over the largest curvature.

    Examples:
        >>> workload = quadratic(noise=0.0, condition=1.0)
        >>> round(expected_loss(workload, torch.ones(32), learning_rate=0.5, batch_size=8, iterations=1), 6)
        4.0
    """
    h = eigenvalues(workload)
    decay = (1 - learning_rate * h).square()
    left = decay.pow(iterations)
    # (1 − a^t)/(1 − a) is t where a = 1, that is where the rate is 0 or at the very edge of stability.
    steps = torch.where(decay == 1, torch.full_like(h, iterations), (1 - left) / (1 - decay))
    noise = learning_rate**2 * true_covariance(workload) / batch_size
    square = left * theta.detach().cpu().double().square() + noise * steps
    return float(0.5 * (h * square).sum()) + lowest_loss(workload)


def _whitened(x: Tensor) -> Tensor:
    """Rows of mean 0 and covariance 1 exactly, each still close to what it was."""
    x = x - x.mean(0)
    values, vectors = torch.linalg.eigh(x.T @ x / len(x))
    whitener: Tensor = (vectors * values.rsqrt()) @ vectors.T
    return x @ whitener
