"""A variational autoencoder with Adam; the loss is summed over pixels and divided by the number of examples.

Layers, loss, optimiser, batch size and rate are those of PyTorch's VAE example (github.com/pytorch/examples, vae).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from batchscope.workload import Workload
from batchscope.workload.optimizers import adam
from real.images import image_tensors
from real.task import RealTask


class VAE(nn.Module):
    """784-400-20-400-784: 652,824 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(784, 400)
        self.mean = nn.Linear(400, 20)
        self.log_variance = nn.Linear(400, 20)
        self.decoder1 = nn.Linear(20, 400)
        self.decoder2 = nn.Linear(400, 784)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of the pixels N×784, and the code's means and log variances N×20."""
        h = F.relu(self.encoder(x))
        mean, log_variance = self.mean(h), self.log_variance(h)
        code = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        return self.decoder2(F.relu(self.decoder1(code))), mean, log_variance


def negative_bound(output: tuple[Tensor, Tensor, Tensor], target: Tensor) -> Tensor:
    """Minus the evidence lower bound, in nats an example (Kingma and Welling 2014, appendix B)."""
    logits, mean, log_variance = output
    reconstruction = F.binary_cross_entropy_with_logits(logits, target, reduction="sum")
    divergence = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum()
    return (reconstruction + divergence) / len(target)


def make() -> Workload:
    """Fashion-MNIST's pixels, from 0 to 1, which are input and target alike."""
    train, validation = (x.flatten(1) for x, _ in image_tensors())
    return Workload(
        model=VAE,
        train=(train, train),
        validation=(validation, validation),
        loss=negative_bound,
        optimizer=adam,
        learning_rate=1e-3,
        batch_size=128,
        name="vae",
    )


TASK = RealTask(
    name="vae",
    make=make,
    target=-245.0,
    batch_size=128,
    learning_rate=1e-3,
    batch_sizes=(8, 16, 32, 64, 128, 256, 512, 1024),
    expected_examples=300_000,
    expected_seconds=30.0,
)
