"""The learning rate over a budget, against its formulas."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchscope import Plan
from batchscope.schedule import rate_factor, varies


def plan_of(examples: int, **changes: Any) -> Plan:
    return Plan(batch_size=1, learning_rate=0.1, examples=examples, **changes)


@given(budget=st.integers(1, 10**9), size=st.integers(1, 10**4), share=st.floats(0.01, 1), data=st.data())
def test_the_shapes(budget: int, size: int, share: float, data: st.DataObject) -> None:
    seen = data.draw(st.integers(0, budget - 1))
    linear, cooldown = plan_of(budget, shape="linear"), plan_of(budget, shape="cooldown", cooldown=share)
    assert rate_factor(plan_of(budget), seen, size) == 1.0
    assert rate_factor(linear, seen, size) == pytest.approx((budget - seen) / budget)
    falls = seen >= (1 - share) * budget
    assert rate_factor(cooldown, seen, size) == pytest.approx((budget - seen) / (share * budget) if falls else 1.0)
    assert 0 < rate_factor(linear, seen, size) <= rate_factor(cooldown, seen, size) <= 1


@given(warmup=st.integers(0, 10**6), seen=st.integers(0, 10**6 - 1), size=st.integers(1, 10**4))
def test_a_warm_up_ends_when_its_examples_are_seen(warmup: int, seen: int, size: int) -> None:
    factor = rate_factor(plan_of(10**6, warmup_examples=warmup), seen, size)
    assert factor == (pytest.approx((seen + size) / warmup) if seen + size < warmup else 1.0)
    after = max(0, seen - warmup) / (10**6 - warmup) if warmup < 10**6 else 0.0
    linear = rate_factor(plan_of(10**6, warmup_examples=warmup, shape="linear"), seen, size)
    assert linear == pytest.approx(factor * (1 - after))
    cosine = rate_factor(plan_of(10**6, warmup_examples=warmup, shape="cosine"), seen, size)
    assert cosine == pytest.approx(factor * (1 + math.cos(math.pi * after)) / 2)
    assert cosine > 0


def test_what_the_shapes_spend_of_the_constant_one_s_rate() -> None:
    spent = {
        shape: sum(rate_factor(plan_of(1000, shape=shape), k, 1) for k in range(1000))
        for shape in ("linear", "cosine", "cooldown")
    }
    assert spent == pytest.approx({"linear": 500.5, "cosine": 500.5, "cooldown": 900.5})


def test_a_batch_size_leaves_the_rate_where_it_is() -> None:
    plan = plan_of(1000, shape="linear")
    assert rate_factor(plan, 512, 1) == rate_factor(plan, 512, 128)


def test_which_plans_vary() -> None:
    assert not varies(plan_of(10))
    assert varies(plan_of(10, shape="cooldown"))
    assert varies(plan_of(10, warmup_examples=1))
