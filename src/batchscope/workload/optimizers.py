"""Optimisers of the built-in workloads, as functions that pickle by name."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


def sgd(parameters: Iterable[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    """Plain stochastic gradient descent."""
    return torch.optim.SGD(parameters, lr=learning_rate)


def sgd_momentum(parameters: Iterable[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    """Stochastic gradient descent with momentum 0.9."""
    return torch.optim.SGD(parameters, lr=learning_rate, momentum=0.9)


def sgd_momentum_decay(parameters: Iterable[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    """Stochastic gradient descent with momentum 0.9 and weight decay 1e-4 (He et al. 2016, section 4.2)."""
    return torch.optim.SGD(parameters, lr=learning_rate, momentum=0.9, weight_decay=1e-4)


def adam(parameters: Iterable[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    """Adam with torch's defaults."""
    return torch.optim.Adam(parameters, lr=learning_rate)


def adamw(parameters: Iterable[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    """AdamW with torch's defaults (weight decay 0.01)."""
    return torch.optim.AdamW(parameters, lr=learning_rate)
