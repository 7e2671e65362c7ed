"""Money, energy, and the blend of energy and time: arithmetic, when it changes the choice, and what is refused."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import batchscope as bs
from batchscope.errors import ArgumentError
from batchscope.measure.power import Found, given_power
from batchscope.records import Goal, Interval, PowerPoint, PowerUse
from batchscope.search import advise, costs
from batchscope.search.candidates import Observation, Point, Setting
from batchscope.search.costs import Costs, checked_costs, find_power, product
from batchscope.search.policy import Policy

TARGET = Goal("target", 0.9)
SIZES = tuple(1 << k for k in range(2, 12))


def rising(low: float, high: float, *, most: float | None = None) -> PowerUse:
    ends = ((SIZES[0], low), (SIZES[-1], high))
    points = tuple(PowerPoint(size, Interval(watts, None, None)) for size, watts in ends)
    return PowerUse("given", points, high if most is None else most, "")


def test_the_weight_is_that_of_zeus() -> None:
    power, share = rising(100.0, 300.0, most=400.0), 0.25
    blend = Costs(power=power, time_share=share)
    for size in SIZES:
        watts, seconds = power.watts(size).value or 0.0, 7.0
        zeus = (1 - share) * watts * seconds + share * 400.0 * seconds
        assert blend.weight(size) * 400.0 * seconds == pytest.approx(zeus)
    assert {Costs(power=power).weight(size) for size in SIZES} == {1.0}
    assert {Costs(power=power, time_share=1.0).weight(size) for size in SIZES} == {1.0}


def test_money_and_joules_are_of_all_devices() -> None:
    own = Costs(price_per_hour=2.5, power=given_power(300.0), devices=8)
    seconds = Interval(3600.0, 1800.0, 7200.0)
    assert own.money(seconds) == Interval(20.0, 10.0, 40.0)
    assert own.joules(64, seconds) == Interval(8 * 300 * 3600.0, 8 * 300 * 1800.0, 8 * 300 * 7200.0)
    assert Costs().money(seconds) is None
    assert Costs().joules(64, seconds) is None
    beyond = own.joules(64, Interval.unresolved(0.9, low=60.0))
    assert beyond is not None
    assert (beyond.value, beyond.low, beyond.resolved) == (None, 8 * 300 * 60.0, False)


@given(st.floats(0.1, 1e6), st.floats(1.0, 3.0), st.floats(0.1, 1e3), st.floats(1.0, 3.0))
def test_a_product_is_as_wide_as_both_are_in_square(value: float, wide: float, other: float, far: float) -> None:
    found = product(Interval(value, value / wide, value * wide), Interval(other, other / far, other * far))
    assert found.value == pytest.approx(value * other)
    assert found.low is not None
    assert found.high is not None
    width = found.high / (found.value or 1)
    assert max(wide, far) * (1 - 1e-9) <= width <= wide * far * (1 + 1e-9)
    assert found.low == pytest.approx((found.value or 0) / width)


def observed(batch_size: int, seconds_per_update: float, examples_needed: float) -> Observation:
    """A candidate whose loss has halved after so many examples, from 2 downwards."""
    updates = np.unique(np.geomspace(1, 4 * examples_needed / batch_size, 30).astype(int))
    points = [
        Point(n * batch_size, n, n * seconds_per_update, 2.0 / (1 + n * batch_size / examples_needed))
        for n in updates.tolist()
    ]
    return Observation(Setting(batch_size, 0.1), (Point(0, 0, 0.0, 2.0), *points))


def best(costs: Costs) -> int:
    """The batch size of the best of three candidates: each larger one is faster by a third."""
    candidates = [observed(size, 1e-3 * (size / 16) ** 0.7, 4000.0) for size in (16, 64, 256)]
    found = Policy(Setting(16, 0.1), (16, 64, 256), weight=costs.weight).best(candidates, 10.0)
    assert found is not None
    return found.setting.batch_size


def test_the_blend_changes_the_choice_where_power_depends_on_the_batch_size_and_nowhere_else() -> None:
    assert best(Costs()) == 256
    assert best(Costs(power=given_power(250.0), time_share=0.0)) == 256
    steep = rising(50.0, 800.0)
    assert best(Costs(power=steep, time_share=0.0)) < 256
    assert best(Costs(power=steep, time_share=1.0)) == 256


@pytest.mark.parametrize(
    ("wrong", "rule"),
    [
        ({"price_per_hour": 0.0}, "price_per_hour"),
        ({"power_watts": -3.0}, "power_watts"),
        ({"power_watts": "some"}, "measured"),
        ({"power_watts": {}}, "by batch size"),
        ({"power_watts": {16: 0.0}}, "by batch size"),
        ({"time_share": 1.5}, "time_share"),
        ({"time_share": 0.5, "goal": Goal("seconds", 3.0)}, "on the way to a target"),
    ],
)
def test_what_makes_no_sense_is_refused(wrong: dict[str, Any], rule: str) -> None:
    given_ = {"price_per_hour": None, "power_watts": None, "time_share": None, "goal": TARGET} | wrong
    with pytest.raises(ArgumentError, match=rule):
        checked_costs(given_["price_per_hour"], given_["power_watts"], given_["time_share"], given_["goal"])


def test_power_is_given_measured_or_assumed(monkeypatch: pytest.MonkeyPatch) -> None:
    workload, cpu = bs.load_workload("digits"), torch.device("cpu")
    rest: dict[str, Any] = {"batch_sizes": (8, 64), "device": cpu, "seed": 0}
    assert find_power(workload, None, wanted=False, **rest) == (None, None)
    use, said = find_power(workload, {64: 90.0, 8: 60.0}, wanted=False, **rest)
    assert use is not None
    assert ([p.batch_size for p in use.points], use.max_watts, said) == ([8, 64], 90.0, None)
    use, said = find_power(workload, 300.0, wanted=True, **rest)
    assert use is not None
    assert (use.source, use.max_watts, said) == ("given", 300.0, None)
    monkeypatch.setattr(costs, "find_power_meter", lambda device: Found(None, "there is none"))
    use, said = find_power(workload, "measured", wanted=False, **rest)
    assert use is not None
    assert use.source == "assumed"
    assert said is not None
    assert "there is none" in said

    class Meter:
        source, max_watts, note, block_seconds = "RAPL", 120.0, "made up", 0.02

        def joules(self) -> float:
            return 75.0 * time.perf_counter()

    monkeypatch.setattr(costs, "find_power_meter", lambda device: Found(Meter()))  # type: ignore[arg-type]
    use, said = find_power(workload, None, wanted=True, **rest)
    assert use is not None
    assert (use.source, use.max_watts, said) == ("RAPL", 120.0, None)
    assert use.watts(16).value == pytest.approx(75.0, rel=0.02)


def test_advice_carries_cost_and_energy_from_end_to_end(tmp_path: Any) -> None:
    workload = dataclasses.replace(bs.load_workload("digits"), batch_size=8, learning_rate=0.005)
    found = advise(
        workload,
        target=0.9,
        budget_seconds=10.0,
        price_per_hour=3.6,
        power_watts={8: 40.0, 512: 80.0},
        time_share=0.2,
    )
    assert found.batch_size is not None
    row = next(row for row in found.frontier if row.batch_size == found.batch_size)
    assert row.cost is not None
    assert row.joules is not None
    assert found.power is not None
    assert row.cost.value == pytest.approx(0.001 * (row.seconds.value or 0))
    watts = found.power.watts(row.batch_size).value or 0
    assert row.joules.value == pytest.approx(watts * (row.seconds.value or 0))
    assert found.predicted_cost is not None
    assert found.predicted_cost.value == pytest.approx(0.001 * (found.predicted_seconds.value or 0))
    assert found.time_share == 0.2
    reasons = " ".join(found.reasons)
    assert "80% energy and 20% time" in reasons or not found.frontier[0].forecast
    assert bs.load(found.to_json(tmp_path / "a.json")) == found
