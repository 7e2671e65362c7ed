"""What the frameworks' files stand on: versions, optimisers made again, loaders taken apart, schedules, spans."""

from __future__ import annotations

import importlib.metadata
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import batchscope as bs
from batchscope.errors import MissingPackageError, PlanError, WorkloadError
from batchscope.integrations import frameworks
from batchscope.integrations.accumulation import Accumulation
from batchscope.integrations.loaders import source_of
from batchscope.integrations.optimizers import OptimizerLike
from batchscope.integrations.watching import Calls, span
from batchscope.schedule import measured


def sgd(rate: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.zeros(1)], lr=rate, momentum=0.9)


# Versions


def test_a_missing_framework_names_its_extra() -> None:
    with pytest.raises(MissingPackageError, match=r"pip install 'batchscope\[skorch\]'") as error:
        frameworks.framework("skorch", "read a net", module="skorch_that_is_not_here")
    assert frameworks.AT_LEAST["skorch"] in str(error.value)


def test_an_old_framework_names_what_is_needed_and_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "1.9.4")
    with pytest.raises(MissingPackageError, match=r"lightning 2\.4 or newer .* got 1\.9\.4.*batchscope\[lightning\]"):
        frameworks.lightning()


def test_versions_are_compared_as_numbers() -> None:
    assert frameworks._numbers("2.10.0rc1") > frameworks._numbers("2.4")


# Optimisers


def test_an_optimiser_is_made_again_with_its_groups() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    matrices, vectors = ([p for p in model.parameters() if (p.dim() > 1) == kind] for kind in (True, False))
    groups = [{"params": vectors, "weight_decay": 0.0, "lr": 3e-3}, {"params": matrices, "lr": 1e-3}]
    first = torch.optim.AdamW(groups, lr=1.0, weight_decay=0.3, betas=(0.8, 0.95))
    torch.optim.lr_scheduler.LambdaLR(first, lambda step: min(1.0, step / 10))  # sets the rates to 0, and keeps them
    like = OptimizerLike(first, model)
    other = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    made = like(other.parameters(), 0.03)
    assert type(made) is torch.optim.AdamW
    assert like.learning_rate == 3e-3
    assert [g["lr"] for g in made.param_groups] == pytest.approx([0.03, 0.01])
    assert [(g["weight_decay"], g["betas"]) for g in made.param_groups] == [(0.0, (0.8, 0.95)), (0.3, (0.8, 0.95))]
    assert [[p.dim() for p in g["params"]] for g in made.param_groups] == [[1, 1, 1], [2]]
    assert {id(p) for g in made.param_groups for p in g["params"]} == {id(p) for p in other.parameters()}


def test_an_optimiser_of_another_model_is_refused() -> None:
    with pytest.raises(WorkloadError, match="made for each other"):
        OptimizerLike(sgd(), nn.Linear(2, 1))


def test_clipping_goes_with_the_optimiser() -> None:
    model = nn.Linear(4, 1)
    made = OptimizerLike(torch.optim.SGD(model.parameters(), lr=1.0), model, max_grad_norm=0.5)(model.parameters(), 1.0)
    before = [p.detach().clone() for p in model.parameters()]
    (100 * model(torch.ones(1, 4)).sum()).backward()
    made.step()
    moved = torch.cat([(a - b.detach()).flatten() for a, b in zip(before, model.parameters(), strict=True)])
    assert float(moved.norm()) == pytest.approx(0.5, rel=1e-4)
    assert isinstance(made, torch.optim.SGD)
    assert type(made) is not torch.optim.SGD  # so that nothing takes its updates for elementwise ones


# Loaders


def test_a_subset_of_tensors_comes_as_tensors() -> None:
    data = TensorDataset(torch.arange(10), torch.arange(10) * 2)
    source = source_of(DataLoader(Subset(data, [7, 2, 5]), batch_size=2), "train")
    assert type(source.dataset) is TensorDataset
    assert [t.tolist() for t in source.dataset.tensors] == [[7, 2, 5], [14, 4, 10]]


def test_a_collate_of_the_persons_sees_every_example() -> None:
    def summed(examples: list[Any]) -> Tensor:
        return torch.stack([example[0] for example in examples]).sum()

    source = source_of(DataLoader(TensorDataset(torch.arange(4)), batch_size=2, collate_fn=summed), "train")
    assert source.collate is summed
    assert type(source.dataset) is not TensorDataset  # whose examples are gathered without a collate
    assert int(source.dataset[3][0]) == 3


PAIR: Any = [1, 2]


class Stream(IterableDataset[int]):
    def __iter__(self) -> Any:
        return iter(range(3))


@pytest.mark.parametrize(
    ("loader", "said"),
    [
        (DataLoader(Stream()), "map-style"),
        ([DataLoader(PAIR), DataLoader(PAIR)], "2 of them"),
        (DataLoader(PAIR, sampler=WeightedRandomSampler([0.5, 0.5], 2)), "WeightedRandomSampler"),
        (DataLoader(PAIR, sampler=SubsetRandomSampler([0])), "SubsetRandomSampler"),
        (DataLoader(PAIR, batch_size=None), "single examples"),
        (iter([1]), "one DataLoader"),
    ],
)
def test_loaders_that_cannot_be_drawn_from_are_refused_with_a_mend(loader: Any, said: str) -> None:
    with pytest.raises(WorkloadError, match=said) as error:
        source_of(loader, "train")
    assert error.value.mend


# Schedules by accumulation


def test_phases_begin_where_old_and_new_updates_both_do() -> None:
    schedule = bs.Schedule((bs.Phase(0, 2), bs.Phase(6, 6), bs.Phase(30, 4)), coupling="rule")
    optimizer = sgd()
    following = Accumulation(schedule, optimizer, micro_batch_size=2, training_examples=100)
    counts = [following.before(i) for i in range(25)]
    # 6 examples are over before micro-batch 3, which is a multiple of 3; 30 before 15, but 18 is the next of 2 and 3.
    assert counts == [1] * 3 + [3] * 15 + [2] * 7
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.2)
    assert following.examples == 50


def test_a_measured_schedule_grows_with_the_noise_scale() -> None:
    optimizer = sgd()
    schedule = measured(8, knee=100, maximum=32, sustained=2, every=1)
    following = Accumulation(schedule, optimizer, micro_batch_size=8, training_examples=100)
    counts = []
    for i in range(16):
        counts.append(following.before(i))
        if (i + 1) % counts[-1] == 0:
            following.updated(bs.Interval(10_000.0, 9_000.0, 11_000.0))
    assert counts == [1, 1] + [2] * 6 + [4] * 8
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.4)


def test_a_schedule_goes_on_from_its_state() -> None:
    schedule = bs.Schedule((bs.Phase(0, 2), bs.Phase(4, 4)), coupling="rule")
    first = Accumulation(schedule, sgd(), micro_batch_size=2, training_examples=100)
    for i in range(3):
        first.before(i)
    optimizer = sgd(0.7)  # as a restored optimiser has other settings than those that it began with
    again = Accumulation(schedule, optimizer, micro_batch_size=2, training_examples=100)
    again.load_state_dict(first.state_dict())
    assert (again.examples, again.count) == (6, 2) == (first.examples, first.count)
    assert again.before(4) == 2
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.2)
    other = Accumulation(schedule, sgd(), micro_batch_size=1, training_examples=100)
    with pytest.raises(PlanError, match="the same micro-batch size"):
        other.load_state_dict(first.state_dict())


def test_a_batch_that_micro_batches_do_not_fill_is_refused() -> None:
    with pytest.raises(PlanError, match="48 with micro-batches of 32"):
        Accumulation(bs.Schedule((bs.Phase(0, 48),)), sgd(), micro_batch_size=32, training_examples=100)


# What is watched


class Halves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(5, 4), nn.Tanh())
        self.decoder = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.decoder(self.encoder(x))
        return out


def test_a_span_of_parts_is_measured_as_the_whole_is() -> None:
    def estimates(apart: bool) -> list[float]:
        torch.manual_seed(0)
        model = Halves()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        x, y = torch.randn(12, 5), torch.randint(3, (12,))

        def forward() -> Tensor:
            return F.cross_entropy(model.decoder(model.encoder(x)) if apart else model(x), y)

        calls = Calls(model)
        forward()
        calls.close()
        assert calls.called == ([model.encoder, model.decoder] if apart else [model])
        with bs.GradientNoise(span(model, calls.called), optimizer, every=1) as noise:
            for _ in range(6):
                optimizer.zero_grad()
                forward().backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            assert (noise.source, noise.steps_measured, noise.note) == ("per-example gradients", 4, None)
            found = [value for sample in noise._window.samples for value in sample[1:3]]
        hooked = [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
        assert not hooked
        return found

    assert estimates(True) == pytest.approx(estimates(False))
