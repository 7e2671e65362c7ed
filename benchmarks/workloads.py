"""The five workloads that the advice is judged on, with the score that each is to reach, said once for all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from batchscope.workload import Workload, load_workload, optimizers

ROWS, TRAINING_ROWS = 48_000, 40_000


@dataclass(frozen=True)
class Task:
    """A workload and the score to reach, with how finely its ground truth is worked out.

    Attributes:
        name: For tables and files.
        make: Makes the workload.
        target: Validation score to reach: one that a good constant setting reaches with room to spare.
        batch_sizes: Of the ground truth, before the neighbours of the best.
        seeds: Of the ground truth, at each batch size.
        evaluate_every: Examples between two evaluations, of the ground truth and of what is trained beside it.
        budget_examples: Where a trial of the ground truth is given up.
    """

    name: str
    make: Callable[[], Workload]
    target: float
    batch_sizes: tuple[int, ...]
    seeds: int
    evaluate_every: int
    budget_examples: int


class RegressionMLP(nn.Module):
    """A perceptron, 10-64-64-1 with ReLU: 4,929 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Predictions N×1 of features N×10."""
        out: Tensor = self.layers(x)
        return out


def explained_variance(output: Tensor, target: Tensor) -> Tensor:
    """R², one minus the squared error over that of the mean.

    Examples:
        >>> explained_variance(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0])).item()
        0.5
    """
    return 1 - (output - target).square().sum() / (target - target.mean()).square().sum()


def regression() -> Workload:
    """Friedman's first function with noise (Friedman 1991, Annals of Statistics 19), on a perceptron with Adam.

    40,000 rows to train on and 8,000 to validate, drawn from a seed by scikit-learn, all columns standardised. Noise of
    standard deviation ½ bounds R² at 0.99.
    """
    from sklearn.datasets import make_friedman1

    x, y = make_friedman1(n_samples=ROWS, n_features=10, noise=0.5, random_state=0)
    x, y = (torch.from_numpy(part.reshape(ROWS, -1)).float() for part in (x, y))
    x, y = ((part - part[:TRAINING_ROWS].mean(0)) / part[:TRAINING_ROWS].std(0) for part in (x, y))
    return Workload(
        model=RegressionMLP,
        train=(x[:TRAINING_ROWS], y[:TRAINING_ROWS]),
        validation=(x[TRAINING_ROWS:], y[TRAINING_ROWS:]),
        loss=F.mse_loss,
        score=explained_variance,
        optimizer=optimizers.adam,
        learning_rate=1e-3,
        batch_size=64,
        name="regression",
    )


def digits() -> Workload:
    return load_workload("digits")


def fashion_mlp() -> Workload:
    return load_workload("fashion-mlp")


def fashion() -> Workload:
    return load_workload("fashion")


def text() -> Workload:
    return load_workload("text")


POWERS_OF_FOUR = (8, 32, 128, 512, 2048)

# Smallest first. Text and the convolutional network have two seeds, since a trial of theirs takes a minute, and neither
# a batch of 2,048 nor, of text, one of 512, which needs 230,000 examples where 8 needs 14,000: so far above their
# critical batch sizes the table would cost more than all the rest of it.
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("digits", digits, 0.95, (8, 32, 128, 512, 1024), 24, 240, 120_000),
        Task("regression", regression, 0.985, (*POWERS_OF_FOUR, 4096), 12, 2_500, 4_000_000),
        Task("fashion-mlp", fashion_mlp, 0.87, (*POWERS_OF_FOUR, 4096), 3, 3_000, 1_200_000),
        Task("fashion", fashion, 0.88, POWERS_OF_FOUR[:-1], 2, 5_000, 1_200_000),
        Task("text", text, 0.5, POWERS_OF_FOUR[:-2], 2, 1_000, 600_000),
    )
}
