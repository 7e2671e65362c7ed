"""The mean training loss as a function of a model's flat weights, on a fixed sample of examples, in evaluation mode."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from batchscope.measure.arguments import loaded
from batchscope.measure.flat import batches_read_once, flattened, put
from batchscope.seeding import derive, isolated
from batchscope.training.modes import evaluating
from batchscope.workload.batches import to_device
from batchscope.workload.workload import Batch, Workload

Floats = NDArray[np.float64]

BATCH_SIZE = 512


class LossSurface:
    """f(x), the mean loss over some training examples at the weights x, and its gradient.

    The model is its own: the person's is not touched. Dropout is off and batch norm uses its running statistics; what a
    model draws in evaluation mode all the same is drawn alike at every call. Numbers are in the model's precision, sums
    and vectors in float64.

    Args:
        workload: Whose loss.
        state: Where x begins, a state dict; None: fresh weights under the seed.
        indices: Training examples.
        seed: Of fresh weights, and of whatever is drawn.
        device: Where to compute.

    Attributes:
        start: The weights that the state has, in float64.
        shapes: Shape of each trained parameter, in the order of the flat weights.
        evaluations: Calls so far.

    Raises:
        WorkloadError: Weights that do not fit the model.
    """

    def __init__(
        self,
        workload: Workload,
        state: Mapping[str, Any] | None,
        indices: Sequence[int],
        *,
        seed: int,
        device: torch.device,
    ) -> None:
        self.workload, self.device, self.seed = workload, device, derive(seed, "loss surface")
        with isolated(derive(seed, "weights"), device):
            self.model = loaded(workload.model(), state).to(device)
        self._trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        read = batches_read_once(workload, indices, BATCH_SIZE, seed=seed, device=device)
        self._batches = [(count / len(indices), to_device(batch, device)) for count, batch in read]
        self.shapes = [tuple(parameter.shape) for parameter in self._trained]
        self.start = flattened(self._trained, self._trained)
        self.evaluations = 0

    @property
    def dimensions(self) -> int:
        """Trained parameters."""
        return len(self.start)

    def value(self, weights: Floats) -> float:
        """F at some weights; not a number, or infinite, where it is so.

        Args:
            weights: All trained parameters, flat.
        """
        with torch.no_grad(), self._at(weights):
            return sum(share * float(self._loss(batch)) for share, batch in self._batches)

    def value_and_gradient(self, weights: Floats) -> tuple[float, Floats]:
        """F and its gradient.

        Args:
            weights: All trained parameters, flat.
        """
        value, gradient = 0.0, np.zeros_like(self.start)
        with torch.enable_grad(), self._at(weights):
            for share, batch in self._batches:
                loss = self._loss(batch)
                parts = torch.autograd.grad(loss, self._trained, allow_unused=True)
                value += share * float(loss.detach())
                gradient += share * flattened(parts, self._trained)
        return value, gradient

    @contextlib.contextmanager
    def _at(self, weights: Floats) -> Iterator[None]:
        self.evaluations += 1
        put(weights, self._trained)
        with evaluating(self.model), isolated(self.seed, self.device):
            yield

    def _loss(self, batch: Batch) -> Tensor:
        output, target = self.workload.output_and_target(self.model, batch)
        return self.workload.loss(output, target)
