"""Gradients of single examples are right on every kind of model, and the measurement leaves nothing changed."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import batchscope as bs
from batchscope.errors import ArgumentError, WorkloadError
from batchscope.fit.noise import estimate_noise, moments_of
from batchscope.measure.optimizer_state import preconditioner_of
from batchscope.measure.per_example import MICRO_BATCH, GradientRows
from batchscope.seeding import derive, isolated
from batchscope.workload import quadratic

EXAMPLES = 200


class Attention(nn.Module):
    """Two tokens' worth of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(4, 8)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.into(x.reshape(len(x), 2, 4))
        logits: Tensor = self.out(F.scaled_dot_product_attention(h, h, h).mean(1))
        return logits


class TiedAndFrozen(nn.Module):
    """A tied matrix, a frozen layer and a parameter that the loss does not see."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 8, bias=False)
        self.b = nn.Linear(8, 8, bias=False)
        self.b.weight = self.a.weight
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.unused = nn.Parameter(torch.ones(2))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.frozen(self.b(torch.tanh(self.a(x)))))
        return logits


class Branching(nn.Module):
    """Control flow that depends on the data, which torch.func cannot batch."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(x if float(x.sum()) > 0 else 2 * x)
        return logits


class BackwardOnly(torch.autograd.Function):
    """Mean square of the output, with a backward pass that torch.func batches and no forward derivative."""

    generate_vmap_rule = True

    @staticmethod
    def forward(output: Tensor, target: Tensor) -> Tensor:
        return output.square().mean() + 0 * target.sum()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (output,) = ctx.saved_tensors
        return grad * 2 * output / output.numel(), None


MODELS: dict[str, Any] = {
    "perceptron": lambda: nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)),
    "convolution": lambda: nn.Sequential(nn.Unflatten(1, (1, 8)), nn.Conv1d(1, 3, 3), nn.Flatten(), nn.Linear(18, 3)),
    "attention": Attention,
    "tied and frozen": TiedAndFrozen,
    "layer norm": lambda: nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 3)),
    "branching": Branching,
}
WIDE = lambda: nn.Sequential(nn.Linear(8, 4096), nn.ReLU(), nn.Linear(4096, 3))  # noqa: E731
BATCH_NORM = lambda: nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))  # noqa: E731


def make(model: Any, **changes: Any) -> bs.Workload:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(EXAMPLES, 8, generator=g)
    y = x[:, :3].argmax(1)  # to be learned, so that the gradient is more than noise
    settings: dict[str, Any] = {
        "model": model,
        "train": (x, y),
        "validation": (x[:20], y[:20]),
        "loss": F.cross_entropy,
        "optimizer": lambda params, lr: torch.optim.SGD(params, lr=lr),
        "learning_rate": 0.1,
        "batch_size": 10,
    }
    return bs.Workload(**(settings | changes))


def by_hand(workload: bs.Workload, model: nn.Module, index: int) -> Tensor:
    x, y = workload.train  # type: ignore[misc]
    model.zero_grad()
    workload.loss(model(x[index : index + 1]), y[index : index + 1]).backward()  # type: ignore[no-untyped-call]
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in trained])


@pytest.mark.parametrize("kind", MODELS)
def test_rows_are_the_gradients_of_single_examples(kind: str) -> None:
    workload = make(MODELS[kind])
    with isolated(0):
        model = workload.model()
    rows = GradientRows(workload, model, chunk_bytes=4 * 100 * 7)
    assert (rows.source == "single backward passes") == (kind == "branching")
    assert (rows.note is None) == (kind != "branching")
    got = torch.cat(list(rows.chunks(list(range(12)))))
    expected = torch.stack([by_hand(workload, model, index) for index in range(12)])
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", [*MODELS, "dropout"])
def test_products_with_a_vector_are_those_of_the_rows(kind: str) -> None:
    workload = make(MODELS.get(kind, lambda: nn.Sequential(nn.Linear(8, 6), nn.Dropout(0.5), nn.Linear(6, 3))))
    rows = GradientRows(workload, _fresh(workload), chunk_bytes=4 * 100 * 7)
    direction = torch.randn(rows.parameters, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with isolated(2):
        whole = torch.cat(list(rows.chunks(list(range(30))))).double()
    with isolated(2):
        along = torch.cat(list(rows.along(list(range(30)), direction)))
    torch.testing.assert_close(along.double(), whole @ direction, rtol=1e-4, atol=1e-5)
    assert rows._has_forward_mode == (kind != "branching")


def test_a_loss_without_a_forward_derivative_is_passed_over_twice() -> None:
    workload = make(MODELS["perceptron"], loss=BackwardOnly.apply)
    rows = GradientRows(workload, _fresh(workload))
    assert rows.source == "per-example gradients"
    assert not rows._has_forward_mode
    direction = torch.ones(rows.parameters)
    along = torch.cat(list(rows.along(list(range(12)), direction)))
    torch.testing.assert_close(along, torch.cat(list(rows.chunks(list(range(12))))) @ direction)


def test_batch_norm_in_training_mode_is_measured_in_micro_batches() -> None:
    workload = make(BATCH_NORM)
    model = workload.model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rows = GradientRows(workload, model)
    assert rows.source == "micro-batches"
    assert rows.note is not None
    assert "BatchNorm" in rows.note or "1 normalises" in rows.note
    got = torch.cat(list(rows.chunks(list(range(MICRO_BATCH * 3 + 5)))))
    assert got.shape == (3, sum(p.numel() for p in model.parameters()))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    x, y = workload.train  # type: ignore[misc]
    workload.loss(model(x[:MICRO_BATCH]), y[:MICRO_BATCH]).backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(got[0], torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))


def test_micro_batches_and_examples_agree_on_one_point() -> None:
    g = torch.Generator().manual_seed(1)
    x, y = torch.randn(2048, 8, generator=g), torch.randint(3, (2048,), generator=g)
    workload = make(MODELS["perceptron"], train=(x, y))
    by_example = bs.gradient_noise(workload, examples=2048)
    rows = GradientRows(workload, _fresh_under(workload, 0))
    rows.source, rows.group_size = "micro-batches", MICRO_BATCH
    matrix = torch.cat(list(rows.chunks(list(range(2048))))).double().numpy()
    by_group = estimate_noise(moments_of(matrix, MICRO_BATCH))
    for one, other in (
        (by_example.noise_scale, by_group.noise_scale),
        (by_example.trace_covariance, by_group.trace_covariance),
    ):
        assert None not in (one.low, one.high, other.low, other.high)
        assert one.low <= other.high  # type: ignore[operator]
        assert other.low <= one.high  # type: ignore[operator]


def test_known_answers_on_the_quadratic() -> None:
    workload = quadratic.quadratic()
    held = {"trace": 0, "norm": 0, "scale": 0}
    repetitions = 60
    for seed in range(repetitions):
        with isolated(seed):
            state = workload.model().state_dict()
        theta = next(iter(state.values()))
        truths = {
            "trace": quadratic.true_covariance_trace(workload),
            "norm": float(quadratic.true_gradient(workload, theta).square().sum()),
        }
        truths["scale"] = truths["trace"] / truths["norm"]
        measured = bs.gradient_noise(workload, state, examples=256, seed=seed)
        intervals = {
            "trace": measured.trace_covariance,
            "norm": measured.gradient_norm_squared,
            "scale": measured.noise_scale,
        }
        for name, interval in intervals.items():
            assert interval.low is not None
            assert interval.high is not None
            held[name] += interval.low <= truths[name] <= interval.high
    # At a true 95%, fewer than 52 of 60 come up once in a thousand.
    assert min(held.values()) >= 52, held


def test_error_of_a_batch_falls_as_one_over_its_root() -> None:
    measured = bs.gradient_noise(bs.load_workload("digits"), examples=1024)
    assert [row.batch_size for row in measured.gradient_error][:3] == [1, 2, 4]
    assert measured.gradient_error[0].predicted == pytest.approx((measured.trace_covariance.value or 0) ** 0.5)
    for row in measured.gradient_error:
        if row.batches >= 16:
            assert row.error == pytest.approx(row.predicted, rel=0.25)


def test_many_rows_are_measured_in_two_passes_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    workload = make(MODELS["perceptron"])
    g = torch.Generator().manual_seed(4)
    factors = {name: torch.rand(value.shape, generator=g) for name, value in _fresh(workload).state_dict().items()}
    whole = bs.gradient_noise(workload, examples=EXAMPLES, preconditioner=factors)
    monkeypatch.setattr("batchscope.measure.noise.KEPT_BYTES", 0)
    monkeypatch.setattr("batchscope.measure.noise.LEAST_ROWS", EXAMPLES)
    parts = bs.gradient_noise(workload, examples=EXAMPLES, preconditioner=factors)
    for one, other in (
        (whole.noise_scale, parts.noise_scale),
        (whole.preconditioned_noise_scale, parts.preconditioned_noise_scale),
    ):
        assert one is not None
        assert other is not None
        assert dataclasses.astuple(other) == pytest.approx(dataclasses.astuple(one), rel=1e-5)


def test_a_long_gradient_is_held_only_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    workload = make(WIDE)
    length = sum(p.numel() for p in _fresh(workload).parameters())
    monkeypatch.setattr("batchscope.measure.noise.KEPT_BYTES", 8 * length)  # two rows
    monkeypatch.setattr("batchscope.measure.per_example.MOST_ROWS", 1)
    held: list[int] = []
    chunks = GradientRows.chunks

    def storages() -> dict[int, int]:
        found = {}
        for tensor in gc.get_objects():
            if type(tensor) in (Tensor, nn.Parameter):
                # Tensors of functorch and of the compiler, which other tests leave behind, have no memory of their own.
                with contextlib.suppress(RuntimeError, NotImplementedError):
                    found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return found

    before = set(storages())

    def watched(self: GradientRows, indices: list[int]) -> Any:
        own = before | {p.untyped_storage().data_ptr() for p in self._values.values()}
        for place, chunk in enumerate(chunks(self, indices)):
            if place == 13 and len(held) < 2:  # in the pass for the sums, and in one for the pairs
                held.append(sum(size for at, size in storages().items() if size >= length and at not in own))
            yield chunk

    monkeypatch.setattr(GradientRows, "chunks", watched)
    bs.gradient_noise(workload, examples=64)
    # Bytes of a parameter: a sum in double precision, two rows, all folded rows, a chunk and its copy, signs.
    assert max(held) <= (8 + 8 + 8 + 2 * 4 + 1) * length + (1 << 12)


def test_folded_gradients_give_the_error_of_whole_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    workload = make(WIDE)
    whole = bs.gradient_noise(workload)
    monkeypatch.setattr("batchscope.measure.noise.KEPT_BYTES", 1 << 20)  # 1,311 numbers for each gradient of 49,155
    folded = bs.gradient_noise(workload)
    assert folded.noise_scale.value == pytest.approx(whole.noise_scale.value, rel=1e-5)
    for one, other in zip(whole.gradient_error, folded.gradient_error, strict=True):
        assert dataclasses.replace(other, error=one.error) == dataclasses.replace(one, predicted=other.predicted)
        assert other.error != one.error
        assert other.error == pytest.approx(one.error, rel=0.05)


def test_two_passes_see_the_same_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    workload = make(lambda: nn.Sequential(nn.Linear(8, 6), nn.Dropout(0.5), nn.Linear(6, 3)))
    whole = bs.gradient_noise(workload, examples=EXAMPLES)
    monkeypatch.setattr("batchscope.measure.noise.KEPT_BYTES", 0)
    monkeypatch.setattr("batchscope.measure.noise.LEAST_ROWS", EXAMPLES)
    parts = bs.gradient_noise(workload, examples=EXAMPLES)
    for one, other in (
        (whole.noise_scale, parts.noise_scale),
        (whole.trace_covariance, parts.trace_covariance),
    ):
        assert dataclasses.astuple(other) == pytest.approx(dataclasses.astuple(one), rel=1e-6)


def test_a_preconditioner_costs_no_second_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    chunks = GradientRows.chunks

    def counted(self: GradientRows, indices: list[int]) -> Any:
        seen.append(len(indices))
        return chunks(self, indices)

    monkeypatch.setattr(GradientRows, "chunks", counted)
    workload = make(MODELS["perceptron"])
    bs.gradient_noise(
        workload, preconditioner={n: torch.ones_like(v) for n, v in _fresh(workload).state_dict().items()}
    )
    assert seen == [EXAMPLES]


def test_dropout_adds_to_the_noise_and_the_seed_settles_it() -> None:
    def dropping() -> nn.Module:
        return nn.Sequential(nn.Linear(8, 6), nn.Dropout(0.5), nn.Linear(6, 3))

    workload = make(dropping)
    state = _fresh(workload).state_dict()
    one, again = (bs.gradient_noise(workload, state, examples=128) for _ in range(2))
    without = bs.gradient_noise(
        make(lambda: nn.Sequential(nn.Linear(8, 6), nn.Identity(), nn.Linear(6, 3))), state, examples=128
    )
    assert one.trace_covariance == again.trace_covariance
    assert (one.trace_covariance.value or 0) > (without.trace_covariance.value or 0)


def test_preconditioned_noise_scale_is_that_of_scaled_gradients() -> None:
    workload = make(MODELS["perceptron"])
    state = _fresh(workload).state_dict()
    even = bs.gradient_noise(
        workload, state, preconditioner={name: torch.full_like(v, 3.0) for name, v in state.items()}
    )
    assert even.preconditioned_noise_scale is not None
    assert even.preconditioned_noise_scale.value == pytest.approx(even.noise_scale.value, rel=1e-4)
    # Only the last layer's matrix counts.
    only = {name: torch.zeros_like(value) for name, value in state.items()} | {"2.weight": torch.ones(3, 6)}
    partial = bs.gradient_noise(workload, state, preconditioner=only).preconditioned_noise_scale
    model = _fresh(workload)
    g = torch.stack([by_hand(workload, model, i)[-21:-3] for i in range(EXAMPLES)]).double()
    trace = float((g - g.mean(0)).square().sum() / (EXAMPLES - 1))
    norm = float(g.mean(0).square().sum()) - trace / EXAMPLES
    assert partial is not None
    assert partial.value == pytest.approx(trace / norm, rel=1e-3)


def stepped(optimizer: Callable[..., torch.optim.Optimizer], steps: int) -> tuple[nn.Module, Any, list[list[Tensor]]]:
    """A model after some steps, its optimiser, and each parameter's gradients."""
    with isolated(3):
        model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
        held = optimizer(model.parameters())
        seen: list[list[Tensor]] = [[] for _ in model.parameters()]
        for _ in range(steps):
            held.zero_grad()
            F.cross_entropy(model(torch.randn(8, 4)), torch.randint(2, (8,))).backward()  # type: ignore[no-untyped-call]
            for parameter, gradients in zip(model.parameters(), seen, strict=True):
                assert parameter.grad is not None
                gradients.append(parameter.grad.clone())
            held.step()
    return model, held, seen


def of_adam(gradients: list[Tensor]) -> Tensor:
    mean = sum(0.1 * 0.9 ** (len(gradients) - 1 - i) * g.square() for i, g in enumerate(gradients))
    return 1 / (torch.as_tensor(mean / (1 - 0.9 ** len(gradients))).sqrt() + 1e-8)


def of_rmsprop(gradients: list[Tensor]) -> Tensor:
    mean = sum(0.2 * 0.8 ** (len(gradients) - 1 - i) * g.square() for i, g in enumerate(gradients))
    return 1 / (torch.as_tensor(mean).sqrt() + 1e-8)


def of_adagrad(gradients: list[Tensor]) -> Tensor:
    return 1 / (torch.stack(gradients).square().sum(0).sqrt() + 1e-10)


BY_HAND: dict[str, tuple[Callable[..., torch.optim.Optimizer], Callable[[list[Tensor]], Tensor]]] = {
    "Adam": (lambda p: torch.optim.Adam(p, betas=(0.8, 0.9)), of_adam),
    "AdamW": (lambda p: torch.optim.AdamW(p, betas=(0.8, 0.9)), of_adam),
    "NAdam": (lambda p: torch.optim.NAdam(p, betas=(0.8, 0.9)), of_adam),
    "RAdam": (lambda p: torch.optim.RAdam(p, betas=(0.8, 0.9)), of_adam),
    "RMSprop": (lambda p: torch.optim.RMSprop(p, alpha=0.8), of_rmsprop),
    "Adagrad": (torch.optim.Adagrad, of_adagrad),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_an_optimisers_own_scaling_is_what_a_hand_computes(name: str) -> None:
    make_optimizer, by_formula = BY_HAND[name]
    model, held, seen = stepped(make_optimizer, steps=4)
    factors = preconditioner_of(held, model)
    assert factors is not None
    for (parameter, _), gradients in zip(model.named_parameters(), seen, strict=True):
        torch.testing.assert_close(factors[parameter], by_formula(gradients), rtol=1e-4, atol=0.0)
    model, held, _ = stepped(make_optimizer, steps=0)
    assert preconditioner_of(held, model) is None


def test_sgd_has_no_scaling_of_its_own_and_what_it_does_not_hold_counts_for_nothing() -> None:
    model, held, _ = stepped(lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), steps=2)
    assert preconditioner_of(held, model) is None
    model, held, _ = stepped(lambda p: torch.optim.Adam(list(p)), steps=2)
    model.register_parameter("unheld", nn.Parameter(torch.ones(2)))
    model.register_parameter("frozen", nn.Parameter(torch.ones(2), requires_grad=False))
    factors = preconditioner_of(held, model)
    assert factors is not None
    assert factors["unheld"].tolist() == [0.0, 0.0]
    assert set(factors) == {"0.weight", "0.bias", "1.weight", "1.bias", "unheld"}


def test_nothing_of_the_persons_is_changed() -> None:
    workload = make(BATCH_NORM, train=make(MODELS["perceptron"]).train)
    big = make(BATCH_NORM, train=tuple(torch.cat([t, t]) for t in workload.train))  # type: ignore[union-attr]
    state = _fresh(big).state_dict()
    before = {name: value.clone() for name, value in state.items()}
    torch.manual_seed(7)
    random.seed(7)
    np.random.seed(7)  # noqa: NPY002
    expected = torch.rand(1), random.random(), np.random.rand()  # noqa: NPY002
    torch.manual_seed(7)
    random.seed(7)
    np.random.seed(7)  # noqa: NPY002
    bs.gradient_noise(big, state, examples=400)
    assert (torch.rand(1), random.random(), np.random.rand()) == expected  # noqa: NPY002
    for name, value in state.items():
        assert torch.equal(value, before[name])


def test_dropout_draws_nothing_from_the_persons_generator() -> None:
    workload = make(lambda: nn.Sequential(nn.Linear(8, 6), nn.Dropout(0.5), nn.Linear(6, 3)))
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    bs.gradient_noise(workload, examples=32)
    assert torch.rand(1) == expected


@pytest.mark.parametrize("chunk", [1, 2, 4, 64])
def test_error_against_batch_size_does_not_depend_on_how_rows_come(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    workload = make(MODELS["perceptron"])
    monkeypatch.setattr("batchscope.measure.per_example.MOST_ROWS", chunk)
    measured = bs.gradient_noise(workload, examples=150)
    indices = torch.randperm(EXAMPLES, generator=torch.Generator().manual_seed(derive(0, "noise examples")))[:150]
    model = _fresh_under(workload, 0)
    g = torch.stack([by_hand(workload, model, int(i)) for i in indices]).double()
    sizes = [1, 2, 4, 8, 16, 32]
    assert [row.batch_size for row in measured.gradient_error] == sizes
    for row, size in zip(measured.gradient_error, sizes, strict=True):
        means = g[: 150 // size * size].view(-1, size, g.shape[1]).mean(1)
        expected = float((means - g.mean(0)).square().sum(1).mean()) / (1 - size / 150)
        assert row.batches == 150 // size
        assert row.error == pytest.approx(expected**0.5, rel=1e-4)


def test_refusals_say_what_to_do() -> None:
    workload = make(MODELS["perceptron"])
    with pytest.raises(ArgumentError, match="at least 16"):
        bs.gradient_noise(workload, examples=3)
    with pytest.raises(WorkloadError, match="state dict"):
        bs.gradient_noise(workload, {"nothing": torch.zeros(1)})
    with pytest.raises(ArgumentError, match="20 examples in micro-batches of 2"):
        bs.gradient_noise(make(BATCH_NORM), examples=20)
    with pytest.raises(ArgumentError, match="preconditioner"):
        bs.gradient_noise(workload, preconditioner={})
    broken = {name: value * float("nan") for name, value in _fresh(workload).state_dict().items()}
    with pytest.raises(WorkloadError, match="finite"):
        bs.gradient_noise(workload, broken)


def test_record_round_trips(tmp_path: Any) -> None:
    measured = bs.gradient_noise(make(MODELS["perceptron"]), examples=64)
    assert bs.load(measured.to_json(tmp_path / "noise.json")) == measured


def _fresh_under(workload: bs.Workload, seed: int) -> nn.Module:
    """The fresh weights that the measurement takes under a seed."""
    with isolated(derive(seed, "weights")):
        return workload.model()


def _fresh(workload: bs.Workload) -> nn.Module:
    with isolated(0):
        return workload.model()


def test_of_few_examples_micro_batches_are_smaller() -> None:
    noise = bs.gradient_noise(make(BATCH_NORM), examples=40)
    assert (noise.group_size, noise.examples) == (2, 40)
