"""What several ranks say of the gradient noise, held against gradients whose noise is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from batchscope.errors import ArgumentError
from batchscope.measure.shared_noise import SharedNoise


def noise(every: int = 1, half_life: float | None = None) -> SharedNoise:
    return SharedNoise(torch.nn.Linear(1, 1), None, every=every, half_life=half_life)


@pytest.mark.parametrize("shares", [(4, 4), (5, 2), (3, 3, 1, 0), (1,) * 16])
def test_the_estimate_is_unbiased_for_shares_of_any_size(shares: tuple[int, ...]) -> None:
    generator = np.random.default_rng(0)
    # ‖G‖² = 4 and tr Σ = 100 in 20 dimensions, so a noise scale of 25.
    gradient, deviation = np.full(20, math.sqrt(4 / 20)), math.sqrt(100 / 20)
    found = noise()
    for _ in range(4000):
        found.is_due()
        parts = [gradient + deviation * generator.standard_normal((m, 20)) for m in shares if m]
        small = np.mean([np.square(part.mean(0)).sum() for part in parts])
        found.see(float(small), float(np.square(np.concatenate(parts).mean(0)).sum()), shares=shares)
    estimate = found.window.estimate()
    assert estimate.trace_covariance.value == pytest.approx(100, rel=0.05)
    assert estimate.noise_scale.low is not None
    assert estimate.noise_scale.high is not None
    assert estimate.noise_scale.low < 25 < estimate.noise_scale.high
    assert found.noise_scale.value == pytest.approx(25, rel=0.15)


def test_an_update_of_one_rank_or_without_a_finite_gradient_says_nothing() -> None:
    found = noise()
    for small, large, shares in ((1.0, 1.0, (3, 0)), (math.inf, 1.0, (3, 2)), (1.0, math.nan, (3, 2))):
        found.see(small, large, shares=shares)
    assert found.window.measured == 0
    assert not found.noise_scale.resolved


def test_it_goes_on_exactly() -> None:
    whole, first, second = noise(3, 50.0), noise(3, 50.0), noise(3, 50.0)
    generator = np.random.default_rng(1)
    numbers = [(5 + generator.random(), 1.5 + generator.random()) for _ in range(60)]

    def take(own: SharedNoise, part: list[tuple[float, float]]) -> list[bool]:
        due = []
        for small, large in part:
            due.append(own.is_due())
            if due[-1]:
                own.see(small, large, shares=(1,) * 8)
        return due

    expected = take(whole, numbers)
    found = take(first, numbers[:31])
    second.load_state_dict(first.state_dict())
    assert [*found, *take(second, numbers[31:])] == expected
    assert second.noise_scale == whole.noise_scale


def test_a_distance_below_one_update_is_refused() -> None:
    with pytest.raises(ArgumentError, match="every"):
        noise(0)
