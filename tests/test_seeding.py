"""Random streams: named, apart from each other, and none of them the person's."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from batchscope.seeding import derive, isolated, random_state, set_random_state

names = st.lists(st.one_of(st.text(), st.integers()), max_size=4)


def draw() -> tuple[float, float, float]:
    return torch.rand(()).item(), random.random(), float(np.random.rand())  # noqa: NPY002


def seed_everything(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002


@given(seed=st.integers(0, 2**70), path=names)
def test_a_derived_seed_is_one_that_every_generator_takes(seed: int, path: list[Any]) -> None:
    derived = derive(seed, *path)
    assert 0 <= derived < 2**63
    assert derive(seed, *path) == derived
    torch.Generator().manual_seed(derived)


@given(seeds=st.tuples(st.integers(0, 99), st.integers(0, 99)), paths=st.tuples(names, names))
def test_streams_of_other_names_or_seeds_differ(seeds: tuple[int, int], paths: tuple[list[Any], list[Any]]) -> None:
    same = (seeds[0], paths[0]) == (seeds[1], paths[1])
    assert (derive(seeds[0], *paths[0]) == derive(seeds[1], *paths[1])) == same


def test_a_derived_seed_is_the_same_on_every_machine() -> None:
    assert derive(0) == 7210762507766007076
    assert derive(0, "order", 1) == 7021862330116196507
    assert derive(2**40, "dataset", 7) == 8657400464735349852


def test_it_does_not_depend_on_the_hash_seed() -> None:
    code = "from batchscope.seeding import derive; print(derive(3, 'data'))"
    for hash_seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert int(done.stdout) == derive(3, "data")


def test_inside_the_block_everything_is_seeded_and_after_it_everything_is_as_before() -> None:
    seed_everything(11)
    expected = [draw() for _ in range(3)]
    seed_everything(11)
    found = [draw()]
    with isolated(5):
        inside = draw()
    found.append(draw())
    with isolated(5):
        assert draw() == inside
    with isolated(6):
        assert all(a != b for a, b in zip(draw(), inside, strict=True))
    found.append(draw())
    assert found == expected


def test_the_state_comes_back_after_an_error_and_from_a_block_inside_a_block() -> None:
    seed_everything(1)
    expected = draw()
    seed_everything(1)
    drawn = []

    def draw_and_fail() -> None:
        drawn.append(draw())
        with isolated(3):
            draw()
        drawn.append(draw())
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), isolated(2):
        draw_and_fail()
    assert draw() == expected
    with isolated(2):
        assert [draw(), draw()] == drawn


@given(seed=st.integers(0, 2**63 - 1))
def test_any_derived_seed_will_do(seed: int) -> None:
    with isolated(seed):
        first = draw()
    with isolated(seed):
        assert draw() == first


def test_a_normal_deviate_held_in_reserve_is_part_of_the_state() -> None:
    # numpy and Python draw normal deviates in pairs, and keep one.
    np.random.randn()  # noqa: NPY002
    random.gauss(0, 1)
    state = random_state()
    expected = (float(np.random.randn()), random.gauss(0, 1))  # noqa: NPY002
    seed_everything(4)
    set_random_state(state)
    assert (float(np.random.randn()), random.gauss(0, 1)) == expected  # noqa: NPY002
