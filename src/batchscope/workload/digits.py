"""scikit-learn's handwritten digits, on a small perceptron: ships with the dependency, trains in a second."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from batchscope.workload import optimizers
from batchscope.workload.scores import accuracy
from batchscope.workload.workload import Workload

TRAINING_EXAMPLES, VALIDATION_EXAMPLES = 1_437, 360


class DigitsMLP(nn.Module):
    """A perceptron, 64-128-10 with ReLU: 9,610 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(64, 128)
        self.output = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits N×10 of pixels N×64, scaled to [0, 1]."""
        out: Tensor = self.output(F.relu(self.hidden(x)))
        return out


def digits() -> Workload:
    """Handwritten digits, 8×8 pixels in 10 classes: 1,437 to train on and 360 to validate, SGD with momentum.

    The data are the test part of the UCI set "Optical Recognition of Handwritten Digits" as scikit-learn ships it,
    pixels divided by 16, in one fixed split stratified by class. The learning rate is the best of a factor-2 grid at
    batch size 64 and 20 epochs, by mean validation loss over 5 seeds.

    Returns:
        The workload, with accuracy as its score.

    Examples:
        >>> workload = digits()
        >>> workload.training_examples, workload.validation_examples
        (1437, 360)
    """
    train, validation = _data()
    return Workload(
        model=DigitsMLP,
        train=train,
        validation=validation,
        loss=F.cross_entropy,
        score=accuracy,
        optimizer=optimizers.sgd_momentum,
        learning_rate=0.2,
        batch_size=64,
        name="digits",
    )


def _data() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, classes = load_digits(return_X_y=True)
    parts = train_test_split(
        pixels.astype("float32") / 16, classes, test_size=VALIDATION_EXAMPLES, random_state=0, stratify=classes
    )
    x, vx, y, vy = (torch.from_numpy(part) for part in parts)
    return (x, y.long()), (vx, vy.long())
