"""Tokens: counted with padding left out, refused where they are no count, and in what is said of a language model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import batchscope as bs
from batchscope import Workload, WorkloadError
from batchscope.errors import PlanError
from batchscope.measure.peak_flops import peak_of
from batchscope.records.plan import Order
from batchscope.schedule import beta_of_half_life, half_life, rescale
from batchscope.training.feed import TrainingData
from batchscope.workload.summary import summarise
from batchscope.workload.tokens import mean_tokens, tokens_in

Make = Callable[..., Workload]
PADDING = 0


class Sentences(Dataset[Tensor]):
    """Sequences of 3 to 12 tokens of 5 kinds, the next of which follows from the last."""

    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(3, 13, (count,), generator=generator).tolist()
        starts = torch.randint(0, 5, (count,), generator=generator).tolist()
        self.sentences: list[Tensor] = [(torch.arange(n) + s) % 5 + 1 for n, s in zip(lengths, starts, strict=True)]

    def __len__(self) -> int:
        return len(self.sentences)

    def __getitem__(self, index: int) -> Tensor:
        return self.sentences[index]


def padded(sentences: list[Tensor]) -> Tensor:
    batch: Tensor = nn.utils.rnn.pad_sequence(sentences, batch_first=True, padding_value=PADDING)
    return batch


def next_token(model: nn.Module, batch: Tensor) -> tuple[Tensor, Tensor]:
    return model(batch[:, :-1]), batch[:, 1:]


def loss(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output.flatten(0, 1), target.flatten(), ignore_index=PADDING)


def language_model(**changes: Any) -> Workload:
    arguments: dict[str, Any] = {
        "model": lambda: nn.Sequential(nn.Embedding(6, 8), nn.Linear(8, 6)),
        "train": Sentences(300, 0),
        "validation": Sentences(50, 1),
        "collate": padded,
        "forward": next_token,
        "loss": loss,
        "optimizer": lambda parameters, rate: torch.optim.AdamW(parameters, lr=rate),
        "learning_rate": 0.01,
        "batch_size": 16,
        "tokens_per_example": lambda batch: (batch != PADDING).sum(),
    }
    return Workload(**(arguments | changes))


def test_padding_is_left_out() -> None:
    workload = language_model()
    sentences = Sentences(300, 0).sentences
    lengths = [len(sentence) for sentence in sentences]
    assert mean_tokens(workload) == pytest.approx(sum(lengths) / len(lengths))
    assert tokens_in(workload, padded(sentences[:7]), 7) == sum(lengths[:7])


def test_a_number_holds_for_every_example(make: Make) -> None:
    workload = make(tokens_per_example=12)
    assert mean_tokens(workload) == 12.0
    assert tokens_in(workload, None, 5) == 60.0
    assert mean_tokens(make()) is None
    assert tokens_in(make(), None, 5) == 5.0


@pytest.mark.parametrize("tokens", [0, -3, 2.5, True, "64"])
def test_what_is_no_number_of_tokens_is_refused(make: Make, tokens: Any) -> None:
    with pytest.raises(WorkloadError, match="tokens_per_example must be a whole number"):
        make(tokens_per_example=tokens)


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (lambda batch: "many", "must return the number of tokens"),
        (lambda batch: torch.ones(3), "must return the number of tokens"),
        (lambda batch: 0, "a batch must have at least one token"),
        (lambda batch: float("nan"), "a batch must have at least one token"),
        (lambda batch: batch["input_ids"].sum(), "must be able to count"),
    ],
)
def test_functions_that_do_not_count_are_refused(make: Make, count: Any, said: str) -> None:
    with pytest.raises(WorkloadError, match=said):
        make(tokens_per_example=count)


def test_counting_changes_nothing_of_the_persons() -> None:
    workload = language_model(tokens_per_example=lambda batch: (torch.rand(1) < 2).sum() + batch.shape[1])
    before = torch.get_rng_state()
    mean_tokens(workload)
    assert torch.equal(before, torch.get_rng_state())


def test_a_language_model_s_throughput_is_in_tokens_too() -> None:
    workload = language_model()
    times = bs.step_times(workload, batch_sizes=[8, 64], seconds=0.5)
    tokens = mean_tokens(workload)
    assert tokens is not None
    assert times.tokens_per_example == pytest.approx(tokens)
    assert times.most_tokens_per_second == pytest.approx(tokens * times.most_examples_per_second)
    assert times.flops_per_example is not None
    assert times.most_flops_per_second == pytest.approx(times.flops_per_example * times.most_examples_per_second)
    assert times.model_flops_utilisation is None  # no published peak of a CPU
    assert summarise(workload).tokens_per_example == pytest.approx(tokens)


def test_the_work_of_an_example_is_what_its_products_take() -> None:
    x = torch.randn(64, 20)
    workload = Workload(
        model=lambda: nn.Linear(20, 3),
        train=(x, torch.zeros(64, 3)),
        validation=(x, torch.zeros(64, 3)),
        loss=nn.functional.mse_loss,
        optimizer=lambda parameters, rate: torch.optim.SGD(parameters, lr=rate),
        learning_rate=0.1,
        batch_size=8,
    )
    assert bs.step_times(workload, batch_sizes=[8, 16], seconds=0.2).flops_per_example == 3 * 2 * 20 * 3


def test_peaks_are_found_by_name() -> None:
    assert peak_of("NVIDIA H100 80GB HBM3", torch.bfloat16, tf32=False) == 989e12
    assert peak_of("NVIDIA H100 PCIe", torch.bfloat16, tf32=False) == 756e12
    assert peak_of("NVIDIA L4", torch.float32, tf32=False) == 30.3e12
    assert peak_of("NVIDIA A100-SXM4-40GB", torch.float32, tf32=True) == 156e12
    assert peak_of("GeForce of the future", torch.float32, tf32=True) is None


def test_a_rescaled_beta_keeps_its_half_life_in_tokens() -> None:
    optimizer = torch.optim.Adam([torch.zeros(1)], lr=0.1, betas=(0.9, 0.95))
    before = half_life(0.95, 512 * 1024)
    rescale(optimizer, from_batch_size=512, to_batch_size=8)
    after = optimizer.param_groups[0]["betas"][1]
    assert after == pytest.approx(beta_of_half_life(before, 8 * 1024))
    assert half_life(after, 8 * 1024) == pytest.approx(before)
    assert after == pytest.approx(0.95 ** (1 / 64))
    for beta in (0.0, 1.0, float("nan")):
        with pytest.raises(PlanError):
            half_life(beta, 10)
    with pytest.raises(PlanError):
        beta_of_half_life(0.0, 10)
    with pytest.raises(PlanError):
        half_life(0.5, 0.0)


def by_tokens(model: nn.Module, sentences: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Gradients of single sentences, and how many targets each has."""
    rows, counts = [], []
    for sentence in sentences:
        output, target = next_token(model, padded([sentence]))
        gradients = torch.autograd.grad(loss(output, target), list(model.parameters()))
        rows.append(torch.cat([gradient.flatten() for gradient in gradients]).double())
        counts.append(float((target != PADDING).sum()))
    return torch.stack(rows), torch.tensor(counts, dtype=torch.float64)


def test_the_noise_of_a_mean_over_tokens_weighs_examples_by_theirs() -> None:
    workload = language_model(tokens_per_example=lambda batch: (batch[:, 1:] != PADDING).sum())
    torch.manual_seed(3)
    model = workload.model()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    rows, counts = by_tokens(model, Sentences(300, 0).sentences)
    weights = counts / counts.mean()
    gradient = (weights[:, None] * rows).mean(0)
    whole, target = next_token(model, padded(Sentences(300, 0).sentences))
    of_batch = torch.autograd.grad(loss(whole, target), list(model.parameters()))
    torch.testing.assert_close(gradient.float(), torch.cat([g.flatten() for g in of_batch]), rtol=1e-4, atol=1e-6)
    found = bs.gradient_noise(workload, state, examples=300)
    trace = float((weights[:, None] * rows - gradient).square().sum() / (len(rows) - 1))
    assert found.trace_covariance.value == pytest.approx(trace, rel=1e-4)
    assert found.gradient_norm_squared.value == pytest.approx(float(gradient.square().sum()) - trace / 300, rel=1e-3)
    plain = float((rows - rows.mean(0)).square().sum() / (len(rows) - 1))
    assert plain != pytest.approx(trace, rel=2e-3)


def test_a_mean_over_examples_weighs_all_alike() -> None:
    def per_sentence(output: Tensor, target: Tensor) -> Tensor:
        each = nn.functional.cross_entropy(output.transpose(1, 2), target, ignore_index=PADDING, reduction="none")
        return (each.sum(1) / (target != PADDING).sum(1)).mean()

    changes: dict[str, Any] = {
        "loss": per_sentence,
        "tokens_per_example": lambda batch: (batch[:, 1:] != PADDING).sum(),
    }
    counted, uncounted = language_model(**changes), language_model(**(changes | {"tokens_per_example": None}))
    torch.manual_seed(3)
    state = counted.model().state_dict()
    measured = [bs.gradient_noise(workload, state, examples=200) for workload in (counted, uncounted)]
    assert measured[0].trace_covariance == measured[1].trace_covariance


def test_bucketed_batches_have_less_padding_and_train_alike() -> None:
    workload = language_model()
    padding: dict[str, int] = {}
    losses: dict[str, float] = {}
    orders: tuple[Order, ...] = ("shuffled", "bucketed")
    for order in orders:
        plan = bs.Plan(batch_size=16, learning_rate=0.03, examples=1200, order=order)
        losses[order] = bs.train(workload, plan).curve[-1].validation_loss
        updates = TrainingData(workload, torch.device("cpu"), workers=0).feed(plan, 1200, seed=0)
        padding[order] = sum(int((batch == PADDING).sum()) for update in updates for batch in update)
    assert padding["bucketed"] < 0.3 * padding["shuffled"]
    assert losses["bucketed"] == pytest.approx(losses["shuffled"], rel=0.2)


def test_buckets_need_lengths(make: Make) -> None:
    plan = bs.Plan(batch_size=8, learning_rate=0.1, iterations=2, order="bucketed")
    with pytest.raises(PlanError, match="Give the workload a function tokens_per_example"):
        bs.train(make(tokens_per_example=3), plan)
