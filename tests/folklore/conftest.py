"""A workload on which every claim can be tested within seconds."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

import batchscope as bs
from batchscope import Workload


def _network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))


@pytest.fixture(scope="session")
def few_digits() -> Workload:
    """A third of the digits and a small network."""
    digits = bs.load_workload("digits")
    assert isinstance(digits.train, tuple)
    assert isinstance(digits.validation, tuple)
    train: tuple[torch.Tensor, ...] = tuple(part[:400] for part in digits.train)
    held_out = tuple(part[:100] for part in digits.validation)
    return dataclasses.replace(digits, model=_network, train=train, validation=held_out)
