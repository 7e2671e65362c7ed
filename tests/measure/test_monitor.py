"""What hooks see is what autograd says of examples, micro-batches and ranks; the loop stays as it is."""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import batchscope as bs
from batchscope.errors import ArgumentError, WorkloadError
from batchscope.fit.noise_series import from_two_sizes
from batchscope.measure.budget import Budget
from batchscope.measure.optimizer_state import preconditioner
from batchscope.records import load

BATCH, PLACES, WIDTH, TOKENS = 6, 6, 4, 7
WORKER = Path(__file__).parent / "monitor_worker.py"


class Positions(nn.Module):
    """Learned positions in three ways: a slice of a parameter, a look-up of a range, and a parameter for the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(TOKENS, WIDTH, padding_idx=2)
        self.places = nn.Embedding(PLACES + 2, WIDTH)
        self.slice = nn.Parameter(torch.randn(PLACES + 3, WIDTH))
        self.whole = nn.Parameter(torch.randn(1, PLACES, WIDTH))
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        # As many places as examples: a range that looks like a batch.
        h = self.tokens(x) + self.places(torch.arange(x.shape[1])) + self.slice[: x.shape[1]]
        out: Tensor = self.head(torch.tanh(self.whole + h).mean(1))
        return out


class ByHand(nn.Module):
    """Parameters without modules: products, a gain, an own norm, a scalar, folded places, changes in place."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Parameter(torch.randn(WIDTH, 5))
        self.gain = nn.Parameter(torch.randn(5))
        self.gate = nn.Parameter(torch.tensor(0.7))
        self.bias = nn.Parameter(torch.randn(3))
        self.out = nn.Parameter(torch.randn(3, 5))
        self.last = nn.Parameter(torch.randn(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        h = (x @ self.into).flatten(0, 1)  # places are folded into the first dimension
        h = self.gain * (h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 1e-5))
        h = torch.addmm(self.bias, h, self.out.t()) * self.gate
        h -= self.bias
        return h.view(len(x), -1, 3).sum(1) @ self.last


class Tied(nn.Module):
    """One table on the way in and on the way out."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(TOKENS, WIDTH)
        self.mix = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.tanh(self.mix(self.table(x))).mean(1), self.table.weight)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))
        return out


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(WIDTH, 5, batch_first=True)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.lstm(x)[0][:, -1])
        return out


class FrozenAndUnused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
        self.unused = nn.Linear(2, 2)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.frozen(x)).mean(1))
        return out


class Reused(nn.Module):
    """A layer applied three times over."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = torch.tanh(self.layer(x))
        out: Tensor = self.head(x.mean(1))
        return out


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).mean(2)


def images(*layers: nn.Module, channels: int = 3) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Unflatten(1, (1, PLACES)), *layers, nn.GELU(), Mean(), nn.Linear(channels, 3))


def volume() -> nn.Module:
    into = nn.Sequential(nn.Unflatten(1, (1, 2, 3)), nn.Conv3d(1, 4, (1, 2, 3), stride=(1, 1, 2), padding=(1, 0, 1)))
    return nn.Sequential(into, nn.GroupNorm(2, 4), nn.GELU(), Mean(), nn.Linear(4, 3))


# Inputs are of BATCH×PLACES×WIDTH numbers, or of BATCH×PLACES tokens.
SINGLE: dict[str, Callable[[], nn.Module]] = {
    "perceptron": lambda: nn.Sequential(nn.Flatten(), nn.Linear(PLACES * WIDTH, 5), nn.Tanh(), nn.Linear(5, 3)),
    "wide on places": lambda: nn.Sequential(nn.Linear(WIDTH, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), Last(40)),
    "convolution 1d": lambda: nn.Sequential(
        nn.Conv1d(PLACES, 4, 2, padding="same", dilation=3), nn.GELU(), Mean(), nn.Linear(4, 3)
    ),
    "convolution 2d": images(
        nn.Conv2d(1, 4, (3, 2), stride=(2, 1), padding=1), nn.GELU(), nn.Conv2d(4, 6, 2, groups=2), channels=6
    ),
    "reflected": images(nn.Conv2d(1, 3, 3, padding=1, padding_mode="reflect", bias=False)),
    "convolution 3d": volume,
    "layer norm": lambda: nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 8), nn.RMSNorm(8), Last(8)),
    "places norm": lambda: nn.Sequential(
        nn.LayerNorm((PLACES, WIDTH)), nn.Linear(WIDTH, 8), nn.GroupNorm(2, PLACES), Last(8)
    ),
    "positions": Positions,
    "by hand": ByHand,
    "tied": Tied,
    "reused": Reused,
    "frozen and unused": FrozenAndUnused,
}
HALVES: dict[str, Callable[[], nn.Module]] = {"attention": Attention, "recurrent": Recurrent}


class Last(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(x.mean(1))
        return out


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().double()


def data(kind: str = "", count: int = BATCH) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    y = torch.randint(3, (count,), generator=g)
    if kind in ("positions", "tied"):
        return torch.randint(TOKENS, (count, PLACES), generator=g), y
    return torch.randn(count, PLACES, WIDTH, generator=g, dtype=torch.float64), y


def gradient(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """By autograd, of the mean loss."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(F.cross_entropy(model(x), y), list(named.values()), allow_unused=True)
    return {n: g for n, g in zip(named, found, strict=True) if g is not None}


def squared(gradients: dict[str, Tensor], factors: dict[str, Tensor] | None = None) -> float:
    return sum(float((g.square() * (1.0 if factors is None else factors[n])).sum()) for n, g in gradients.items())


def expected(
    model: nn.Module, x: Tensor, y: Tensor, size: int = 1, factors: dict[str, Tensor] | None = None
) -> tuple[float, float]:
    """tr Σ and ‖G‖² from groups of ``size`` and their mean, by one backward pass for each."""
    groups = [gradient(model, x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)]
    small = sum(squared(group, factors) for group in groups) / len(groups)
    return from_two_sizes(small, squared(gradient(model, x, y), factors), group_size=size, batch_size=len(x))


def backward(loss: Tensor) -> None:
    loss.backward()  # type: ignore[no-untyped-call]


def loop(
    model: nn.Module,
    batch: tuple[Tensor, Tensor],
    steps: int = 6,
    *,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD,
    rate: float = 0.0,
    parts: int = 1,
    before_update: Callable[[], object] = lambda: None,
    **options: Any,
) -> bs.GradientNoise:
    """A plain loop over one batch again and again, with weights that stay where they are unless there is a rate."""
    x, y = batch
    trained = optimizer([p for p in model.parameters() if p.requires_grad], lr=rate)
    noise = bs.GradientNoise(model, trained, **({"every": 1, "examples": BATCH} | options))
    for _ in range(steps):
        trained.zero_grad()
        for part in zip(x.chunk(parts), y.chunk(parts), strict=True):
            summed = options.get("reduction") == "sum"
            loss = F.cross_entropy(model(part[0]), part[1], reduction="sum" if summed else "mean")
            backward(loss if summed else loss / parts)
        before_update()
        trained.step()
    return noise


def last(noise: bs.GradientNoise) -> tuple[float, float]:
    """What the last measured step said; the first is checked on half of the examples."""
    return noise._window.samples[-1][1], noise._window.samples[-1][2]


@pytest.mark.parametrize("kind", SINGLE)
def test_single_examples_are_as_autograd_has_them(kind: str) -> None:
    model, batch = seeded(SINGLE[kind]), data(kind)
    noise = loop(model, batch)
    assert (noise.note, noise.source) == (None, "per-example gradients")
    assert noise.steps_measured == 4
    assert last(noise) == pytest.approx(expected(model, *batch), rel=1e-5)


@pytest.mark.parametrize("kind", SINGLE)
def test_the_optimisers_own_scaling(kind: str) -> None:
    model, batch = seeded(SINGLE[kind]), data(kind)
    noise = loop(model, batch, 6, optimizer=torch.optim.Adam)
    assert noise.preconditioned_noise_scale is not None
    # With one batch and no updates v̂ is g², whatever the step.
    optimizer = noise._optimizer
    factors = {
        name: preconditioner(optimizer, p, optimizer.param_groups[0])
        for name, p in model.named_parameters()
        if p.grad is not None
    }
    want = expected(model, *batch, factors=factors)  # type: ignore[arg-type]
    assert noise._window.samples[-1][3:5] == pytest.approx(want, rel=1e-5)
    assert last(noise) == pytest.approx(expected(model, *batch), rel=1e-5)


@pytest.mark.parametrize("kind", HALVES)
def test_uses_without_a_rule_are_measured_from_halves(kind: str) -> None:
    model, (x, y) = seeded(HALVES[kind]), data(count=7)
    noise = loop(model, (x, y), 400)
    assert noise.source == "half batches"
    assert noise.note is not None
    assert ("attention." if kind == "attention" else "lstm.") in noise.note
    # Random halves of 3 and 4 of one batch: over all halves, exactly what single examples say.
    traces, norms = (sum(sample[i] for sample in noise._window.samples) / len(noise._window.samples) for i in (1, 2))
    singles = expected(model, x, y)
    spread = math.sqrt(sum((s[1] - traces) ** 2 for s in noise._window.samples)) / len(noise._window.samples)
    assert abs(traces - singles[0]) < 3.5 * spread
    assert abs(norms - singles[1]) < 3.5 * spread / 3


def test_a_sum_of_losses_gives_what_a_mean_does() -> None:
    model, batch = seeded(SINGLE["perceptron"]), data()
    assert last(loop(model, batch, reduction="sum")) == pytest.approx(expected(model, *batch))
    assert last(loop(model, batch, parts=3, reduction="sum")) == pytest.approx(expected(model, *batch, size=2))


@pytest.mark.parametrize("kind", ["perceptron", "convolution 2d", "tied"])
def test_some_examples_stand_for_all(kind: str) -> None:
    model, batch = seeded(SINGLE[kind]), data(kind)
    noise = loop(model, batch, 600, examples=2)
    singles = expected(model, *batch)
    traces = [sample[1] for sample in noise._window.samples]
    spread = math.sqrt(sum((t - sum(traces) / len(traces)) ** 2 for t in traces)) / len(traces)
    assert abs(sum(traces) / len(traces) - singles[0]) < 3.5 * spread


def test_micro_batches_of_an_accumulated_update() -> None:
    model, (x, y) = seeded(SINGLE["perceptron"]), data(count=12)
    noise = loop(model, (x, y), parts=4)
    assert noise.source == "accumulated micro-batches"
    assert noise.estimate().examples_needed == 60
    assert last(noise) == pytest.approx(expected(model, x, y, size=3))
    assert noise.measurement().group_size == 3


def test_batch_norm_is_refused_alone_and_measured_in_micro_batches() -> None:
    make = lambda: nn.Sequential(nn.Flatten(), nn.Linear(24, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))  # noqa: E731
    noise = loop(seeded(make), data())
    with pytest.raises(WorkloadError, match=r"2 normalises over the batch.*[Aa]ccumulate"):
        _ = noise.noise_scale
    assert "cannot be measured" in str(noise)
    model, (x, y) = seeded(make), data(count=12)
    assert last(loop(model, (x, y), parts=3)) == pytest.approx(
        from_two_sizes(
            sum(squared(gradient(model, x[i : i + 4], y[i : i + 4])) for i in (0, 4, 8)) / 3,
            squared(_mean_of([gradient(model, x[i : i + 4], y[i : i + 4]) for i in (0, 4, 8)])),
            group_size=4,
            batch_size=12,
        )
    )


def _mean_of(gradients: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([g[name] for g in gradients]).mean(0) for name in gradients[0]}


class Centred(nn.Module):
    """Ties the examples of a batch without being called a batch norm."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


def test_what_ties_examples_without_a_name_is_found() -> None:
    noise = loop(seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(24, 5), Centred(), nn.Linear(5, 3))), data())
    with pytest.raises(WorkloadError, match="reaches another"):
        noise.measurement()


def test_a_penalty_in_the_loss_is_refused() -> None:
    model, (x, y) = seeded(SINGLE["perceptron"]), data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    noise = bs.GradientNoise(model, optimizer, every=1)
    for _ in range(4):
        optimizer.zero_grad()
        backward(F.cross_entropy(model(x), y) + sum(p.square().sum() for p in model.parameters()))
        optimizer.step()
    with pytest.raises(WorkloadError, match="penalty"):
        _ = noise.trace_covariance


def test_a_compiled_model_is_refused_alone_and_measured_in_micro_batches() -> None:
    model, (x, y) = seeded(SINGLE["perceptron"]), data(count=12)
    compiled: Any = torch.compile(model, backend="eager")
    with pytest.raises(WorkloadError, match="compiled"):
        _ = loop(compiled, (x, y)).noise_scale
    assert last(loop(compiled, (x, y), parts=4)) == pytest.approx(expected(model, x, y, size=3))


@pytest.mark.parametrize("parts", [1, 3])
def test_clipping_does_not_reach_what_is_measured(parts: int) -> None:
    model, batch = seeded(SINGLE["perceptron"]), data()
    clipped = loop(model, batch, parts=parts, before_update=lambda: nn.utils.clip_grad_norm_(model.parameters(), 1e-3))
    assert last(clipped) == pytest.approx(last(loop(model, batch, parts=parts)))


@pytest.mark.parametrize("parts", [1, 3])
def test_a_closure_is_measured_as_a_plain_loop_is(parts: int) -> None:
    """As Lightning makes its updates: all but the last micro-batch before the step, the last one inside of it."""
    model, (x, y) = seeded(SINGLE["perceptron"]), data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    noise = bs.GradientNoise(model, optimizer, every=1, examples=BATCH)
    for _ in range(5):
        for index, part in enumerate(zip(x.chunk(parts), y.chunk(parts), strict=True)):

            def closure(part: tuple[Tensor, Tensor] = part, index: int = index) -> Tensor:
                loss = F.cross_entropy(model(part[0]), part[1]) / parts
                if index == 0:
                    optimizer.zero_grad()
                backward(loss)
                return loss

            if index < parts - 1:
                closure()
            else:
                optimizer.step(closure)
    assert noise.steps_measured == 3
    assert last(noise) == pytest.approx(last(loop(model, (x, y), parts=parts)))


def test_a_gradient_scaler_that_changes_its_scale_and_meets_infinities() -> None:
    model, (x, y) = seeded(SINGLE["perceptron"]), data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
    noise = bs.GradientNoise(model, optimizer, every=1, examples=BATCH, scaler=scaler)
    for step in range(14):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y) * (math.inf if step == 7 else 1.0)
        backward(scaler.scale(loss))
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() != 2.0**10
    assert noise.steps_measured >= 8
    want = expected(model, x, y)
    for sample in noise._window.samples[1:]:
        assert sample[1:3] == pytest.approx(want, rel=1e-5)


def test_autocast_measures_in_single_precision() -> None:
    model, (x, y) = seeded(SINGLE["wide on places"]).float(), data()
    x = x.float()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    noise = bs.GradientNoise(model, optimizer, every=1, examples=BATCH)
    for _ in range(5):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = F.cross_entropy(model(x), y)
        backward(loss)
        optimizer.step()
    assert (noise.source, noise.steps_measured) == ("per-example gradients", 3)
    assert last(noise) == pytest.approx(expected(model, x, y), rel=0.05)


def test_dropout_is_measured_under_the_masks_of_the_step() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(24, 50), nn.Dropout(0.5), nn.Linear(50, 3)).double()
    x, y = data()
    noise = loop(model, (x, y), 3)  # one measured step, of half of the examples, held to autograd's
    assert (noise.note, noise.steps_measured) == (None, 1)


def test_gradients_left_from_before_are_not_taken_for_the_batchs() -> None:
    model, (x, y) = seeded(SINGLE["perceptron"]), data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    noise = bs.GradientNoise(model, optimizer, every=1)
    for _ in range(6):  # no zero_grad
        backward(F.cross_entropy(model(x), y))
        optimizer.step()
    assert noise.steps_measured == 0
    for _ in range(3):
        optimizer.zero_grad(set_to_none=False)
        backward(F.cross_entropy(model(x), y))
        optimizer.step()
    assert noise.steps_measured > 0


def test_evaluation_between_steps_is_not_taken_for_training() -> None:
    model, (x, y) = seeded(SINGLE["perceptron"]), data()

    def evaluate() -> None:
        with torch.no_grad():
            model(x[:2])
        model(x[:3])  # and one that forgot no_grad

    assert last(loop(model, (x, y), before_update=evaluate)) == pytest.approx(expected(model, x, y))


@pytest.mark.parametrize("kind", ["perceptron", "positions", "attention"])
def test_training_is_the_same_bit_for_bit(kind: str) -> None:
    def weights(measure: bool) -> tuple[list[Tensor], Tensor]:
        model, (x, y) = seeded({**SINGLE, **HALVES}[kind]), data(kind)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        noise = bs.GradientNoise(model, optimizer, every=2) if measure else None
        for _ in range(9):
            optimizer.zero_grad()
            backward(F.cross_entropy(F.dropout(model(x), 0.1), y))
            optimizer.step()
        if noise is not None:
            assert noise.steps_measured == (4 if noise.source != "half batches" else 3)
            noise.close()
        hooks = [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
        assert not hooks
        assert not any(p._backward_hooks for p in model.parameters())
        assert not optimizer._optimizer_step_post_hooks
        return [p.detach().clone() for p in model.parameters()], torch.get_rng_state()

    (with_, state), (without, other) = weights(True), weights(False)
    assert all(torch.equal(a, b) for a, b in zip(with_, without, strict=True))
    assert torch.equal(state, other)


def test_an_error_of_ours_ends_the_measuring_and_not_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("out of something")

    monkeypatch.setattr("batchscope.measure.measured_step.squared_norms", fail)
    noise = loop(seeded(SINGLE["perceptron"]), data())
    assert noise.steps == 6
    with pytest.raises(WorkloadError, match="out of something"):
        _ = noise.noise_scale


def test_an_error_in_the_forward_pass_leaves_nothing_behind() -> None:
    model, (x, y) = seeded(SINGLE["perceptron"]), data()
    noise = loop(model, (x, y), 2)
    with pytest.raises(RuntimeError, match="shape"):
        model(x[:, :3])
    assert torch._C._len_torch_function_stack() == 0
    noise.close()


@pytest.mark.parametrize("kind", ["perceptron", "attention"])
@pytest.mark.parametrize("cut", [1, 3, 10, 11])
def test_resuming_goes_on_exactly(kind: str, cut: int) -> None:
    def run(stops: list[int]) -> list[tuple[float, ...]]:
        model, (x, y) = seeded({**SINGLE, **HALVES}[kind]), data()
        state, samples = None, []
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for steps in stops:
            with bs.GradientNoise(model, optimizer, every=2, examples=2) as noise:
                if state is not None:
                    noise.load_state_dict(state)
                for _ in range(steps):
                    optimizer.zero_grad()
                    backward(F.cross_entropy(model(x), y))
                    optimizer.step()
                state, samples = noise.state_dict(), list(noise._window.samples)
        return samples

    assert run([20]) == run([cut, 20 - cut])


def test_the_same_seed_gives_the_same_numbers() -> None:
    def samples(seed: int) -> list[tuple[float, ...]]:
        return loop(seeded(SINGLE["perceptron"]), data(), examples=2, seed=seed)._window.samples

    assert samples(1) == samples(1)
    assert samples(1) != samples(2)


def test_the_window_forgets() -> None:
    model, batch = seeded(SINGLE["perceptron"]), data()
    short = loop(model, batch, 60, half_life=3)
    assert len(short._window.samples) <= 6 * 3 + 1
    assert short.steps_measured == 58
    assert len(loop(model, batch, 60, half_life=None)._window.samples) == 58


def test_the_record_can_be_kept(tmp_path: Path) -> None:
    noise = loop(seeded(SINGLE["perceptron"]), data(), 12, optimizer=torch.optim.Adam)
    record = noise.measurement()
    assert load(record.to_json(tmp_path / "noise.json")) == record
    assert record.steps_measured == 10
    assert record.parameters == 24 * 5 + 5 + 5 * 3 + 3
    assert record.preconditioned_noise_scale is not None
    assert f"{noise.noise_scale}" in str(noise)


def test_before_the_first_measurement_nothing_is_known() -> None:
    noise = loop(seeded(SINGLE["perceptron"]), data(), 1)
    assert not noise.noise_scale.resolved
    assert noise.preconditioned_noise_scale is None
    assert noise.examples_needed is not None
    assert "not resolved" in str(noise)
    assert "0 of 1 steps" in str(noise)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"overhead": 0.0}, "overhead"),
        ({"overhead": 1.5}, "overhead"),
        ({"examples": 0}, "examples"),
        ({"half_life": 0}, "half_life"),
        ({"every": 0}, "every"),
        ({"reduction": "none"}, "reduction"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], said: str) -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(ArgumentError, match=said):
        bs.GradientNoise(model, torch.optim.SGD(model.parameters(), lr=0.1), **options)


def test_loops_that_cannot_be_measured_are_refused() -> None:
    model, other = nn.Linear(2, 2), nn.Linear(2, 2)
    with pytest.raises(ArgumentError, match="parameters of the model"):
        bs.GradientNoise(model, torch.optim.SGD(other.parameters(), lr=0.1))
    with pytest.raises(WorkloadError, match="LBFGS"):
        bs.GradientNoise(model, torch.optim.LBFGS(model.parameters()))
    sparse = nn.Embedding(3, 2, sparse=True)
    with pytest.raises(WorkloadError, match="sparse"):
        bs.GradientNoise(sparse, torch.optim.SGD(sparse.parameters(), lr=0.1))
    alone = loop(seeded(SINGLE["perceptron"]), data(count=1))
    with pytest.raises(WorkloadError, match="one example"):
        _ = alone.noise_scale


@given(st.floats(0.005, 0.5), st.lists(st.floats(0.1, 20), min_size=5, max_size=30))
def test_measuring_keeps_to_its_share(share: float, costs: list[float]) -> None:
    budget, gaps = Budget(share), 0
    for _ in range(3):
        budget.step(1.0)
    for cost in costs:
        budget.step(1.0 + cost, cost)
        budget.sampled(cost)
        gaps = budget.gap()
        for _ in range(gaps - 1):
            budget.step(1.0)
    # With one more measurement of the usual cost it would just be kept; a cost above that is made up for later.
    usual = statistics.median(costs[-9:])
    assert (budget.spent + usual) / (budget.seconds + 1 + usual) <= share * (1 + 1e-9) + 1e-12
    assert gaps == 1 or (budget.spent + usual) / (budget.seconds - 2 + usual) > share * 0.99


@pytest.mark.parametrize("share", [0.01, 0.03, 0.2])
@pytest.mark.parametrize("cost", [0.05, 0.4])
def test_the_share_is_kept_from_the_first_measurement_on(share: float, cost: float) -> None:
    budget = Budget(share)
    due = budget.first()
    for step in range(3000):
        spent = (2.0 if step == budget.first() else cost) if step == due else 0.0
        budget.step(1.0 + spent, spent)
        if spent:
            if spent < 2:
                budget.sampled(spent)
            due = step + budget.gap()
            assert budget.overhead <= share * 1.01
    assert budget.overhead > 0.9 * min(share, cost / (1 + cost))


def test_a_pause_is_not_training() -> None:
    budget = Budget(0.03)
    for _ in range(10):
        budget.step(1.0)
    budget.step(3600.0)
    assert budget.seconds == 20.0


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        (torch.optim.Adam, {"betas": (0.0, 0.9)}),
        (torch.optim.AdamW, {"betas": (0.0, 0.9), "amsgrad": True, "weight_decay": 0.0}),
        (torch.optim.RMSprop, {}),
        (torch.optim.RMSprop, {"centered": True}),
        (torch.optim.Adagrad, {}),
    ],
)
def test_the_factor_is_what_the_optimiser_multiplies_by(optimizer: Any, options: dict[str, Any]) -> None:
    p = nn.Parameter(torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64))
    trained = optimizer([p], lr=0.1, **options)
    assert preconditioner(trained, p, trained.param_groups[0]) is None
    for i in range(20):
        before = p.detach().clone()
        p.grad = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64) * (1 + 0.3 * math.sin(i))
        trained.step()
    factor = preconditioner(trained, p, trained.param_groups[0])
    assert factor is not None
    assert p.grad is not None
    torch.testing.assert_close(before - p.detach(), 0.1 * factor * p.grad)


def test_sgd_has_no_scaling_of_its_own() -> None:
    assert loop(seeded(SINGLE["perceptron"]), data()).preconditioned_noise_scale is None


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks found, by the kind of loop."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, str(WORKER), str(folder)]
    processes = [subprocess.Popen([*command, str(rank)], stderr=subprocess.PIPE, text=True) for rank in range(2)]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("mode", ["plain", "accumulated", "own hook"])
def test_ranks_of_a_data_parallel_loop(mode: str, ranks: list[dict[str, Any]]) -> None:
    first, second = (rank[mode] for rank in ranks)
    assert first["samples"] == second["samples"]
    assert first["next"] == second["next"]
    assert first["source"] == "data-parallel ranks"
    size = first["examples"]
    small = (first["local"] + second["local"]) / 2
    want = from_two_sizes(small, first["mean"], group_size=size, batch_size=2 * size)
    assert len(first["samples"]) == 4
    for sample in first["samples"]:
        assert sample == pytest.approx(want, rel=1e-6)


def test_ranks_agree_on_when_to_measure(ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["own pace"] for rank in ranks)
    assert first["next"] == second["next"]
    assert len(first["samples"]) == len(second["samples"]) > 0


def test_ranks_with_batches_of_different_sizes_are_left_out(ranks: list[dict[str, Any]]) -> None:
    assert [rank["uneven"]["samples"] for rank in ranks] == [[], []]
