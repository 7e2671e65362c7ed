"""Schedules: which update belongs to which phase, and Smith's published ones."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchscope import Plan, PlanError, load
from batchscope.records import MeasuredGrowth, Phase, Schedule
from batchscope.schedule import (
    constant,
    equal_noise_batch_size,
    exponential_growth,
    linear_growth,
    measured,
    parse_schedule,
    seesaw,
    sgd_noise_scale,
    smith,
    stepped,
    to_megatron,
)

N = 50_000
MILESTONES = (60 * N, 120 * N, 160 * N)


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    gaps = draw(st.lists(st.integers(1, 3000), max_size=6))
    starts = [0, *itertools.accumulate(gaps)]
    return Schedule(tuple(Phase(start, draw(st.integers(1, 500))) for start in starts))


def sizes_by_the_rule(schedule: Schedule, examples: int) -> list[int]:
    """Update for update, as the docstring says it: a phase begins at the nearest end of an update."""
    phase, seen, sizes = 0, 0, []
    while seen < examples:
        while phase + 1 < len(schedule.phases):
            left, size = schedule.phases[phase + 1].start_examples - seen, schedule.phases[phase].batch_size
            if abs(left) > abs(left - size):  # after one more update it would be nearer
                break
            phase += 1
        sizes.append(schedule.phases[phase].batch_size)
        seen += sizes[-1]
    return sizes


@given(schedule=schedules(), examples=st.integers(0, 20_000))
def test_updates_are_those_of_the_rule(schedule: Schedule, examples: int) -> None:
    sizes = sizes_by_the_rule(schedule, examples)
    assert schedule.updates(examples) == len(sizes)
    assert [schedule.batch_size_at(update) for update in range(len(sizes))] == sizes
    assert [schedule.examples(k) for k in range(len(sizes) + 1)] == [0, *itertools.accumulate(sizes)]


@given(schedule=schedules(), updates=st.integers(0, 10**6), extra=st.integers(1, 500))
def test_updates_and_examples_convert_exactly(schedule: Schedule, updates: int, extra: int) -> None:
    examples = schedule.examples(updates)
    assert schedule.updates(examples) == updates
    size = schedule.batch_size_at(updates)
    assert schedule.updates(examples + min(extra, size)) == updates + 1


@given(schedule=schedules())
def test_segments_begin_within_half_a_batch_of_their_phases(schedule: Schedule) -> None:
    for before, after in itertools.pairwise(schedule.segments):
        off = after.first_example - after.phase.start_examples
        # Later by half of the batch before at most; earlier likewise, or because the phase between them had no update.
        assert off <= before.phase.batch_size / 2
        assert schedule.next_border(before.first_update) == after.first_update
    assert schedule.next_border(schedule.segments[-1].first_update) is None


@pytest.mark.parametrize(
    ("schedule", "updates"),
    [
        (stepped(128, at=MILESTONES, factor=5), 78_125),
        (smith(128, at=MILESTONES, factor=5, cap=5120), 29_141),
        (smith(640, at=MILESTONES, factor=5, cap=5120), 6_406),
        (smith(3200, at=MILESTONES, factor=5, cap=5120, momentum=0.98), 2_305),
        (smith(128, at=MILESTONES, factor=5, growths=1), 34_375),
    ],
    ids=["decay", "increase the batch", "larger rate", "larger rate and momentum", "hybrid"],
)
def test_smith_s_published_schedules(schedule: Schedule, updates: int) -> None:
    assert schedule.updates(200 * N) == updates
    plan = Plan(schedule.phases[0].batch_size, 0.1, examples=200 * N, schedule=schedule)
    assert plan.batch_sizes.updates(plan.budget_examples or 0) == updates


def test_smith_s_first_batches_keep_the_noise_scale() -> None:
    assert equal_noise_batch_size(128, learning_rates=(0.1, 0.5)) == 640
    assert equal_noise_batch_size(640, momenta=(0.9, 0.98)) == 3200
    scales = [sgd_noise_scale(*setting) for setting in ((0.1, N, 128, 0.9), (0.5, N, 640, 0.9), (0.5, N, 3200, 0.98))]
    assert scales == pytest.approx([390.625] * 3)


@given(
    size=st.integers(1, 300),
    factor=st.floats(1.1, 6),
    cap=st.none() | st.integers(300, 5000),
    growths=st.none() | st.integers(0, 4),
)
def test_the_noise_scale_falls_by_the_factor_whatever_is_rounded_or_capped(
    size: int, factor: float, cap: int | None, growths: int | None
) -> None:
    at = (1000, 2000, 3000)
    grown = smith(size, at=at, factor=factor, cap=cap, growths=growths)
    decayed, half = stepped(size, at=at, factor=factor), seesaw(size, at=at, factor=factor, cap=cap)
    for k, (one, other, third) in enumerate(zip(grown.phases, decayed.phases, half.phases, strict=True)):
        expected = factor**-k / size
        assert other.batch_size == size
        assert other.learning_rate_factor / size == pytest.approx(expected)
        assert one.learning_rate_factor / one.batch_size == pytest.approx(expected)
        assert third.learning_rate_factor / third.batch_size**0.5 == pytest.approx(factor**-k / size**0.5)
        assert one.batch_size <= (cap or 10**9)
        if growths is None and cap is None:
            assert one.batch_size == third.batch_size == pytest.approx(size * factor**k, abs=0.5)


@given(
    size=st.integers(1, 200),
    more=st.integers(0, 2000),
    examples=st.integers(1, 10**6),
    step=st.none() | st.integers(1, 300),
    factor=st.floats(1.2, 5),
)
def test_growth_ends_where_it_should(size: int, more: int, examples: int, step: int | None, factor: float) -> None:
    for schedule in (
        linear_growth(size, size + more, examples=examples, increment=step),
        exponential_growth(size, size + more, examples=examples, factor=factor),
    ):
        sizes = [phase.batch_size for phase in schedule.phases]
        assert sizes == sorted(set(sizes))
        assert sizes[-1] == size + more
        assert schedule.phases[-1].start_examples <= (examples if more else 0)
        assert sizes[0] == size or examples < len(sizes) * 2  # steps that are shorter than an example


def test_multiples() -> None:
    schedule = exponential_growth(8, 100, examples=10_000, factor=1.5, multiple_of=8)
    assert [phase.batch_size for phase in schedule.phases] == [8, 16, 24, 40, 64, 88, 100]


def test_a_phase_is_appended_where_it_begins() -> None:
    schedule = measured(8, knee=10).then(Phase(80, 16)).then(Phase(240, 32))
    assert [(s.first_update, s.first_example, s.phase.batch_size) for s in schedule.segments] == [
        (0, 0, 8),
        (10, 80, 16),
        (20, 240, 32),
    ]
    assert schedule.then(Phase(80, 64)).phases == (Phase(0, 8), Phase(80, 64))
    assert str(schedule) == (
        "batch 8, growing with the measured noise scale, 16 from 80 examples, 32 from 240 examples"
    )


def megatron_sizes(schedule: str, updates: int) -> list[int]:
    """What Megatron-LM makes of a string of its: at each update the last batch whose threshold has been consumed."""
    steps = [tuple(map(int, entry.split(":"))) for entry in schedule.split()]
    consumed, sizes = 0, []
    for _ in range(updates):
        sizes.append(max((t, size) for t, size in steps if consumed >= t)[1])
        consumed += sizes[-1]
    return sizes


@given(schedule=schedules(), updates=st.integers(1, 100))
def test_megatron_makes_the_same_updates(schedule: Schedule, updates: int) -> None:
    ours = [schedule.batch_size_at(update) for update in range(updates)]
    assert megatron_sizes(to_megatron(schedule), updates) == ours
    tokens = to_megatron(schedule, sequence_length=2048)
    samples = " ".join(f"{int(t) // 2048}:{b}" for t, b in (entry.split(":") for entry in tokens.split()))
    assert samples == to_megatron(schedule)


@given(schedule=schedules())
def test_a_schedule_comes_back_from_json(schedule: Schedule, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = Path(tmp_path_factory.getbasetemp()) / "schedule.json"
    schedule.to_json(path)
    assert load(path) == schedule


def test_a_plan_with_a_schedule_comes_back_from_json(tmp_path: Path) -> None:
    schedule = Schedule((Phase(0, 8, 1.0, 0.5), Phase(100, 16, 0.5)), MeasuredGrowth(12.5, 64))
    plan = Plan(8, 0.1, examples=1000, schedule=schedule, shape="cooldown", cooldown=0.1, warmup_examples=50)
    assert load(plan.to_json(tmp_path / "plan.json")) == plan


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Schedule(()), "first phase must begin at 0 examples; got no phase"),
        (lambda: Schedule((Phase(5, 8),)), "first phase must begin at 0 examples; got 5"),
        (lambda: Schedule((Phase(0, 8), Phase(9, 8), Phase(9, 4))), "must begin one after the other"),
        (lambda: Schedule((Phase(0, 8),), coupling="loose"), "coupling must be stated or rule"),  # type: ignore[arg-type]
        (lambda: Phase(0, 0), "batch_size must be a whole number of at least 1"),
        (lambda: Phase(0, 8, 0.0), "learning_rate_factor must be above 0"),
        (lambda: Phase(0, 8, 1.0, 1.0), "momentum must be at least 0 and below 1"),
        (lambda: measured(8, knee=0), "knee must be above 0"),
        (lambda: measured(8, knee=1, maximum=4), "the largest batch of a measured schedule"),
        (lambda: smith(8, at=(10, 20), factor=1), "factor must be above 1"),
        (lambda: smith(8, at=(10, 20), factor=2, cap=4), "cap must be a whole number of at least 8"),
        (lambda: smith(8, at=(20, 10), factor=2), "must begin one after the other"),
        (lambda: linear_growth(8, 4, examples=10), "to must be a whole number of at least 8"),
        (lambda: exponential_growth(8, 16, examples=10, factor=1.0), "factor must be above 1"),
        (lambda: to_megatron(measured(8, knee=1)), "with fixed phases"),
        (lambda: sgd_noise_scale(0.1, 100, 8, 1.0), "momentum must be at least 0 and below 1"),
        (lambda: Plan(16, 0.1, iterations=5, schedule=constant(8)), "that of its schedule's first phase; got 16 and 8"),
        (lambda: Plan(8, 0.1, iterations=5, schedule=measured(8, knee=1)), "must be given in examples"),
        (lambda: Plan(8, 0.1, examples=5, warmup_examples=-1), "warmup_examples must be a whole number"),
        (lambda: Plan(8, 0.1, examples=5, shape="cooldown", cooldown=0.0), "cooldown must be a share"),
        (lambda: Plan(8, 0.1, target=0.5, shape="cooldown"), "needs to know where it ends"),
        (
            lambda: Plan(8, 0.1, examples=5, micro_batch_size=9, schedule=constant(8)),
            "micro_batch_size must be at most the largest batch of the schedule; got 9 > 8",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(make: Any, said: str) -> None:
    with pytest.raises(PlanError) as caught:
        make()
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "schedule"),
    [
        ("constant", constant(16)),
        ("stepped:at=100/200,factor=4", stepped(16, at=(100, 200), factor=4)),
        ("smith:at=100/200,factor=2.5,cap=50", smith(16, at=(100, 200), factor=2.5, cap=50)),
        ("smith:at=100,factor=2,growths=0,momentum=0.5", smith(16, at=(100,), factor=2, growths=0, momentum=0.5)),
        ("seesaw:factor=2,at=100", seesaw(16, at=(100,), factor=2)),
        ("linear:to=64,examples=1000,increment=8", linear_growth(16, 64, examples=1000, increment=8)),
        (
            "exponential:to=64,examples=1000,coupling=stated",
            exponential_growth(16, 64, examples=1000, coupling="stated"),
        ),
        ("measured:knee=12.5,maximum=64,every=9", measured(16, knee=12.5, maximum=64, every=9)),
    ],
)
def test_schedules_in_a_line(text: str, schedule: Schedule) -> None:
    assert parse_schedule(text, 16) == schedule


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cosine", "a schedule is one of constant, stepped, smith"),
        ("smith", "the schedule smith is written smith:at=60000/120000,factor=5,cap=5120; got smith"),
        ("smith:at=1e5,factor=2", "is written smith:at=60000/120000,factor=5,cap=5120; got at=1e5"),
        ("smith:at=10,factor=2,steps=3", "got steps=3"),
        ("constant:to=3", "the schedule constant is written constant; got to=3"),
        ("smith:at=10/5,factor=2", "must begin one after the other"),
        ("smith:at=10/20/30,factor=1e200", "a batch that can be counted"),
        ("linear:to=1000000000,examples=10,increment=1", "at most 10,000 steps"),
        ("exponential:to=1000,examples=10,factor=1.0000001", "at most 10,000 steps"),
    ],
)
def test_lines_that_are_no_schedule_are_refused(text: str, said: str) -> None:
    with pytest.raises(PlanError) as caught:
        parse_schedule(text, 16)
    assert said in str(caught.value)
