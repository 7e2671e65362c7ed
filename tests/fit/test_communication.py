"""The law of an all-reduce, against a ring's closed form."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchscope.errors import ArgumentError
from batchscope.fit.communication import data_parallel_step_seconds, fit_all_reduce
from batchscope.records import AllReduceLaw, Interval, StepTimeLaw, decode, encode

SIZES = [1 << 10, 1 << 14, 1 << 18, 1 << 22, 1 << 24]


def ring(size: int, ranks: int, latency: float, bandwidth: float) -> float:
    """Scatter and gather: ranks − 1 steps each, which pass on a ranks-th of the bytes."""
    return sum(latency + size / ranks / bandwidth for _ in range(2 * (ranks - 1)))


def known(value: float) -> Interval:
    return Interval(value, None, None)


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_a_ring_is_found_again(ranks: int) -> None:
    noise = np.random.default_rng(0).lognormal(0.0, 0.05, (40, len(SIZES)))
    law = fit_all_reduce(SIZES, noise * [ring(n, ranks, 3e-5, 2e9) for n in SIZES], ranks=ranks)
    for interval, truth in ((law.latency_seconds, 3e-5), (law.bytes_per_second, 2e9)):
        assert interval.value == pytest.approx(truth, rel=0.05)
        assert interval.low is not None
        assert interval.high is not None
        assert interval.low <= truth <= interval.high
    for other in (2, 5, 64):
        assert law.seconds(10**7, ranks=other) == pytest.approx(ring(10**7, other, 3e-5, 2e9), rel=0.05)
    assert [point.message_bytes for point in law.points] == SIZES
    assert decode(AllReduceLaw, encode(law), "here") == law


def test_bytes_that_cost_nothing_leave_the_bandwidth_unresolved() -> None:
    law = fit_all_reduce([4, 8], np.full((8, 2), 1e-4), ranks=2)
    assert not law.bytes_per_second.resolved
    assert law.seconds(8, ranks=2) is None


@given(
    st.integers(1, 10**6),
    st.integers(1, 64),
    st.integers(0, 10**10),
    st.floats(0.01, 1000.0),
    st.floats(0.0, 1e4),
)
def test_an_update_takes_its_largest_share_and_one_all_reduce(
    batch: int, ranks: int, size: int, gigabytes: float, microseconds: float
) -> None:
    tau = StepTimeLaw(known(1e-3), known(2e-6), None, None, known(500.0), 0.0)
    law = AllReduceLaw.given(gigabytes_per_second=gigabytes, microseconds=microseconds)
    found = data_parallel_step_seconds(tau, batch, ranks=ranks, parameter_bytes=size, law=law)
    largest = max(len(range(rank, batch, ranks)) for rank in range(min(batch, ranks)))
    expected = 1e-3 + 2e-6 * largest + ring(size, ranks, 1e-6 * microseconds, 1e9 * gigabytes)
    assert found == pytest.approx(expected)


def test_one_device_communicates_nothing() -> None:
    tau = StepTimeLaw(known(1e-3), known(2e-6), 100, 1e-6, known(500.0), 0.0)
    law = AllReduceLaw.given(gigabytes_per_second=1)
    assert data_parallel_step_seconds(tau, 300, ranks=1, parameter_bytes=10**9, law=law) == tau.seconds(300)


@pytest.mark.parametrize("wrong", [{"gigabytes_per_second": 0}, {"gigabytes_per_second": 1, "microseconds": -1}])
def test_a_law_without_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ArgumentError, match="between ranks must be"):
        AllReduceLaw.given(**wrong)
