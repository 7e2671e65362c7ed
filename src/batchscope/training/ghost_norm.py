"""Ghost batch norm: statistics of a few examples at a time, however large the batch (Hoffer et al. 2017)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from batchscope.errors import ArgumentError, WorkloadError
from batchscope.workload.workload import Workload


class _Ghost(nn.modules.batchnorm._BatchNorm):
    """What the three kinds have in common.

    Attributes:
        ghost_size: Examples that are normalised together in training.
    """

    ghost_size: int

    def forward(self, input: Tensor) -> Tensor:
        """Normalise; in training part by part, the running statistics following each."""
        if not self.training or len(input) < 2 * self.ghost_size:
            return super().forward(input)
        # A rest that is smaller than a part goes with the last one.
        count = len(input) // self.ghost_size
        sizes = [self.ghost_size] * (count - 1) + [len(input) - self.ghost_size * (count - 1)]
        normalise = super().forward
        return torch.cat([normalise(part) for part in torch.split(input, sizes)])


class GhostBatchNorm1d(_Ghost, nn.BatchNorm1d):
    """Over N×C or N×C×L."""


class GhostBatchNorm2d(_Ghost, nn.BatchNorm2d):
    """Over N×C×H×W."""


class GhostBatchNorm3d(_Ghost, nn.BatchNorm3d):
    """Over N×C×D×H×W."""


_KINDS: dict[type[nn.Module], type[_Ghost]] = {
    nn.BatchNorm1d: GhostBatchNorm1d,
    nn.BatchNorm2d: GhostBatchNorm2d,
    nn.BatchNorm3d: GhostBatchNorm3d,
}


@dataclasses.dataclass(frozen=True)
class _WithGhosts:
    """Makes the model, its batch norms replaced."""

    model: Callable[[], nn.Module]
    ghost_size: int

    def __call__(self) -> nn.Module:
        model = self.model()
        for module in model.modules():
            if type(module) in _KINDS:
                # The layer is the same object, of a class that normalises part by part: its name, its weights and
                # whatever refers to it stay.
                made: Any = module
                made.__class__ = _KINDS[type(module)]
                made.ghost_size = self.ghost_size
        return model


def ghost_batch_norm(workload: Workload, size: int) -> Workload:
    """The workload with batch norms that see so many examples at once in training.

    Statistics of few examples are noisy, which is part of what small batches do; with this a large batch has them too.
    State dicts are those of the model as it was. Evaluation is the same: by the running statistics.

    Args:
        workload: One whose model has batch norms.
        size: Examples normalised together, at least 2; a batch smaller than twice that is normalised as a whole.

    Returns:
        The same workload but for its model.

    Raises:
        ArgumentError: A size that makes no sense.
        WorkloadError: The model has no batch norm.

    Examples:
        >>> import torch, batchscope as bs
        >>> x = torch.randn(64, 3)
        >>> mine = bs.Workload(
        ...     model=lambda: nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1)),
        ...     train=(x, x[:, :1]),
        ...     validation=(x, x[:, :1]),
        ...     loss=nn.functional.mse_loss,
        ...     optimizer=lambda params, lr: torch.optim.SGD(params, lr=lr),
        ...     learning_rate=0.1,
        ...     batch_size=32,
        ... )
        >>> type(ghost_batch_norm(mine, 8).model()[0]).__name__
        'GhostBatchNorm1d'
    """
    if not isinstance(size, int) or isinstance(size, bool) or size < 2:
        raise ArgumentError("ghost batches have at least 2 examples", got=size)
    with torch.random.fork_rng(devices=[]):
        if not any(type(module) in _KINDS for module in workload.model().modules()):
            raise WorkloadError(
                "ghost batch norm needs a model with batch norm", got="none", mend="leave ghost batch norm out"
            )
    return dataclasses.replace(workload, model=_WithGhosts(workload.model, size))
