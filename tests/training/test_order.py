"""The order of examples: permutations, exact budgets, class proportions, and no memory of where one began."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from batchscope import Plan, PlanError, Workload
from batchscope.records import Order
from batchscope.training.feed import Feed, TrainingData
from batchscope.training.order import ExampleOrder

CPU = torch.device("cpu")
KINDS: tuple[Order, ...] = ("shuffled", "replacement", "stratified", "bucketed")
sizes = st.integers(1, 40)


def order_of(kind: Order, labels: list[int], seed: int = 0) -> ExampleOrder:
    given = torch.tensor(labels)
    return ExampleOrder(kind, len(labels), seed=seed, labels=lambda: given, lengths=lambda: given, batch_size=3)


@given(n=st.integers(1, 60), stretch=st.integers(0, 5), seed=st.integers(0, 2**40), classes=st.integers(1, 8))
def test_every_stretch_is_a_permutation(n: int, stretch: int, seed: int, classes: int) -> None:
    for kind in ("shuffled", "stratified", "bucketed"):
        order = order_of(kind, [i % classes for i in range(n)], seed)
        assert sorted(order.indices(stretch * n, (stretch + 1) * n).tolist()) == list(range(n))


@given(
    n=st.integers(1, 30),
    cuts=st.lists(st.integers(1, 20), min_size=1, max_size=8),
    start=st.integers(0, 70),
    kind=st.sampled_from(KINDS),
)
def test_the_stream_does_not_depend_on_where_one_starts_or_how_it_is_cut(
    n: int, cuts: list[int], start: int, kind: Order
) -> None:
    labels = [i % 3 for i in range(n)]
    whole = order_of(kind, labels).indices(0, start + sum(cuts))
    order, pieces, at = order_of(kind, labels), [], start
    for cut in cuts:
        pieces.append(order.indices(at, at + cut))
        at += cut
    assert torch.equal(torch.cat(pieces), whole[start:])
    assert torch.equal(order_of(kind, labels).indices(0, start + sum(cuts)), whole)  # and backwards


@pytest.mark.parametrize("kind", KINDS)
def test_stretches_and_seeds_differ(kind: Order) -> None:
    labels = [i % 4 for i in range(64)]
    order = order_of(kind, labels)
    first, second = order.indices(0, 64), order.indices(64, 128)
    assert not torch.equal(first, second)
    assert not torch.equal(first, order_of(kind, labels, seed=1).indices(0, 64))


@given(n=sizes, batch=sizes, examples=st.integers(1, 130), micro=sizes, kind=st.sampled_from(KINDS[:3]))
@settings(max_examples=60)
def test_a_run_sees_exactly_its_budget(
    *, make: Callable[..., Workload], n: int, batch: int, examples: int, micro: int, kind: Order
) -> None:
    batch, micro = min(batch, n), min(micro, batch, n)
    data = data_of(make, n)
    plan = Plan(batch_size=batch, learning_rate=0.1, examples=examples, order=kind, micro_batch_size=micro)
    updates = [torch.cat([part[0][:, 0] for part in update]).long() for update in data.feed(plan, examples, seed=5)]

    assert sum(map(len, updates)) == examples
    assert [len(u) for u in updates[:-1]] == [batch] * (len(updates) - 1)
    assert len(updates[-1]) == (examples % batch or batch)
    if kind != "replacement":
        seen = torch.cat(updates)
        for start in range(0, examples, n):
            stretch = seen[start : start + n].tolist()
            assert len(set(stretch)) == len(stretch)


@given(n=sizes, batch=sizes, iterations=st.integers(1, 12))
@settings(max_examples=40)
def test_iterations_times_batch_size_are_the_examples(
    make: Callable[..., Workload], n: int, batch: int, iterations: int
) -> None:
    plan = Plan(batch_size=min(batch, n), learning_rate=0.1, iterations=iterations)
    assert plan.budget_examples is not None
    updates = list(data_of(make, n).feed(plan, plan.budget_examples, seed=0))
    assert [len(update[0][0]) for update in updates] == [plan.batch_size] * iterations


def data_of(make: Callable[..., Workload], n: int) -> TrainingData:
    """Examples whose first feature says which one it is."""
    x = torch.zeros(n, 6)
    x[:, 0] = torch.arange(n)
    return TrainingData(make(examples=n, train=(x, torch.arange(n) % 3)), CPU)


def counts_off(labels: Tensor, order: ExampleOrder, batch: int, batches: int) -> Fraction:
    """The largest distance of a class's count in a batch from its share of the batch."""
    n, worst = len(labels), Fraction(0)
    values, totals = torch.unique(labels, return_counts=True)
    for i in range(batches):
        drawn = labels[order.indices(i * batch, (i + 1) * batch)]
        for value, total in zip(values.tolist(), totals.tolist(), strict=True):
            share = Fraction(batch * total, n)
            worst = max(worst, abs(int((drawn == value).sum()) - share))
    return worst


@given(
    classes=st.lists(st.integers(1, 25), min_size=1, max_size=12),
    batch=st.integers(1, 60),
    seed=st.integers(0, 2**30),
)
@example(classes=[50] + [1] * 50, batch=10, seed=0)  # many classes of one example beside a large one
@example(classes=[200] + [3] * 40, batch=16, seed=0)
@example(classes=[30, 29, 28, 27, 2, 2, 2, 1], batch=7, seed=3)
@example(classes=[1] * 40, batch=4, seed=0)
def test_stratified_batches_hold_every_class_within_two_of_its_share(classes: list[int], batch: int, seed: int) -> None:
    labels = torch.repeat_interleave(torch.arange(len(classes)), torch.tensor(classes))
    order = ExampleOrder("stratified", len(labels), seed=seed, labels=lambda: labels)
    # Two stretches and a bit, so that batches across a border are among them.
    assert counts_off(labels, order, batch, 2 * len(labels) // batch + 2) < 2


def test_shuffled_batches_do_not_hold_to_the_shares() -> None:
    labels = torch.arange(400) % 2
    order = ExampleOrder("shuffled", 400, seed=0, labels=lambda: labels)
    assert counts_off(labels, order, 40, 20) > 2  # or the test above says nothing


def test_stratified_draws_examples_of_a_class_at_random() -> None:
    labels = torch.arange(60) % 3
    order = ExampleOrder("stratified", 60, seed=0, labels=lambda: labels)
    places = torch.stack([order.indices(60 * s, 60 * s + 60).argsort() for s in range(300)]).double()
    # Each example's place in the stretch is about uniform: its mean is 29.5 ± 17.3/√300 = 1.0 for one standard error.
    assert (places.mean(0) - 29.5).abs().max() < 5


def test_classes_of_one_size_take_each_other_s_places() -> None:
    labels = torch.arange(60) % 3
    order = ExampleOrder("stratified", 60, seed=0, labels=lambda: labels)
    first, second = (
        torch.stack([labels[order.indices(60 * s + i, 60 * s + i + 1)] for s in range(60)]) for i in (0, 1)
    )
    assert sorted(set(zip(first.flatten().tolist(), second.flatten().tolist(), strict=True))) == [
        (a, b) for a in range(3) for b in range(3) if a != b
    ]


def test_a_rare_class_comes_now_late_and_now_early() -> None:
    labels = torch.tensor([0] * 40 + [1])
    order = ExampleOrder("stratified", 41, seed=0, labels=lambda: labels)
    places = [order.indices(41 * s, 41 * s + 41).tolist().index(40) for s in range(40)]
    assert min(places) < 20 < max(places)


def test_replacement_draws_every_example_independently_and_evenly() -> None:
    n, stretches = 50, 400
    drawn = ExampleOrder("replacement", n, seed=0).indices(0, n * stretches)
    counts = np.bincount(drawn.numpy(), minlength=n)
    # χ² with 49 degrees of freedom: mean 49, standard deviation 9.9; five of them are a chance of 1 in a million.
    assert ((counts - stretches) ** 2 / stretches).sum() < 49 + 5 * 9.9
    # Distinct examples in a stretch: n(1 − (1 − 1/n)**n) = 31.8, standard deviation 2.2 for one stretch, 0.11 for 400.
    distinct = np.mean([len(set(drawn[s * n : s * n + n].tolist())) for s in range(stretches)])
    assert abs(distinct - n * (1 - (1 - 1 / n) ** n)) < 0.6
    # Neighbours repeat one in n times: 400 ± 20.
    repeats = int((drawn[1:] == drawn[:-1]).sum())
    assert abs(repeats - len(drawn) / n) < 100


def test_shuffled_permutations_are_uniform() -> None:
    order = ExampleOrder("shuffled", 3, seed=0)
    stretches = [tuple(order.indices(3 * s, 3 * s + 3).tolist()) for s in range(6000)]
    counts = [stretches.count(p) for p in set(stretches)]
    assert len(counts) == 6
    assert max(abs(count - 1000) for count in counts) < 150  # a standard deviation is 29


def test_stratified_without_labels_is_refused() -> None:
    with pytest.raises(PlanError, match="labels"):
        ExampleOrder("stratified", 5, seed=0)


def feed_with(make: Callable[..., Workload], **changes: object) -> Feed:
    workload = make("augmented")
    for name, value in changes.items():
        setattr(workload.train, name, value)
    plan = Plan(batch_size=4, learning_rate=0.1, iterations=2, order="stratified")
    return TrainingData(workload, CPU).feed(plan, 8, seed=0)


@pytest.mark.parametrize("targets", [torch.zeros(45), torch.zeros(45, 2, dtype=torch.long), ["a"] * 45, [0] * 44, None])
def test_labels_that_are_no_classes_are_refused(make: Callable[..., Workload], targets: object) -> None:
    with pytest.raises(PlanError, match="stratified") as caught:
        feed_with(make, targets=targets)
    assert caught.value.mend


def test_labels_of_a_dataset_may_be_a_list_or_an_array(make: Callable[..., Workload]) -> None:
    labels = [i % 3 for i in range(45)]
    orders = [feed_with(make, targets=kind(labels)).order.indices(0, 45) for kind in (list, np.array, torch.tensor)]
    assert torch.equal(orders[0], orders[1])
    assert torch.equal(orders[0], orders[2])


def test_tensors_without_classes_are_refused(make: Callable[..., Workload]) -> None:
    x = torch.randn(45, 6)
    workload = make(train=(x, x[:, :3]), validation=(x, x[:, :3]), loss=torch.nn.functional.mse_loss, score=None)
    plan = Plan(batch_size=4, learning_rate=0.1, iterations=2, order="stratified")
    with pytest.raises(PlanError, match="class"):
        TrainingData(workload, CPU).feed(plan, 8, seed=0)


@given(n=st.integers(1, 200), size=st.integers(1, 40), stretches=st.integers(1, 4), seed=st.integers(0, 2**40))
def test_bucketed_batches_are_of_about_equal_length(n: int, size: int, stretches: int, seed: int) -> None:
    lengths = torch.randint(1, 50, (n,), generator=torch.Generator().manual_seed(seed))
    order = ExampleOrder("bucketed", n, seed=seed, lengths=lambda: lengths, batch_size=size)
    for number in range(stretches):
        stretch = order.indices(number * n, (number + 1) * n)
        assert sorted(stretch.tolist()) == list(range(n))
        # Whole batches within a stretch cut its lengths, sorted, into pieces that do not overlap.
        first = min(-number * n % size, n)
        ends = sorted(
            (int(lengths[batch].min()), int(lengths[batch].max()))
            for batch in torch.split(stretch[first:], size)
            if len(batch) == size
        )
        assert all(longest <= shortest for (_, longest), (shortest, _) in itertools.pairwise(ends)) or n > 64 * size


def test_a_bucketed_order_needs_lengths() -> None:
    with pytest.raises(PlanError, match="needs lengths"):
        ExampleOrder("bucketed", 5, seed=0)
