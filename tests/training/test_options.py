"""What a workload says of the loop is done: held to loops written by hand."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from batchscope import GradientNoise, Plan, Workload, step_times
from batchscope.errors import WorkloadError
from batchscope.provenance import fingerprint
from batchscope.seeding import derive, isolated
from batchscope.study.ways import ways_of
from batchscope.training import Prepared
from batchscope.training.compiling import compile_in_place, is_compiled
from batchscope.training.loop import Run
from batchscope.training.replicas import Replicas
from batchscope.training.ways import refusal

Make = Callable[..., Workload]
CPU = torch.device("cpu")
UPDATES, SIZE = 12, 8


def by_hand(
    workload: Workload,
    plan: Plan,
    *,
    before_step: Callable[[nn.Module], Any] = lambda model: None,
    factor: Callable[[int], float] = lambda update: 1.0,
    dtype: torch.dtype | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """A plain loop over the batches that a run with this seed sees."""
    with isolated(derive(seed, "weights"), CPU):
        model = workload.model()
        optimizer = torch.optim.SGD(model.parameters(), lr=plan.learning_rate, momentum=0.9)
    assert plan.budget_examples is not None
    feed = Prepared(workload, CPU).training.feed(plan, plan.budget_examples, seed=derive(seed, "data"))
    for update, [(x, y)] in enumerate(feed):
        optimizer.param_groups[0]["lr"] = plan.learning_rate * factor(update)
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            loss = F.cross_entropy(model(x), y)
        torch.autograd.backward(loss)
        before_step(model)
        optimizer.step()
    return model.state_dict()


def trained(workload: Workload, plan: Plan, **options: Any) -> tuple[Any, dict[str, Tensor]]:
    run = Run(Prepared(workload, CPU), plan, seed=0, **options)
    result = run()
    assert result.outcome == "finished"
    return result, run.model.state_dict()


def same(one: dict[str, Tensor], other: dict[str, Tensor], *, tolerance: float = 0.0) -> bool:
    assert one.keys() == other.keys()
    return all(torch.allclose(one[key], other[key], rtol=tolerance, atol=tolerance) for key in one)


def momentum(parameters: Any, rate: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=rate, momentum=0.9)


CLIPPED: dict[str, tuple[dict[str, Any], Callable[[nn.Module], Any]]] = {
    "norm": ({"clip_norm": 0.3}, lambda model: nn.utils.clip_grad_norm_(model.parameters(), 0.3)),
    "value": ({"clip_value": 0.05}, lambda model: nn.utils.clip_grad_value_(model.parameters(), 0.05)),
}


@pytest.mark.parametrize("kind", CLIPPED)
def test_clipping_is_that_of_a_loop_written_by_hand(make: Make, kind: str) -> None:
    options, by = CLIPPED[kind]
    plan = Plan(SIZE, 0.3, iterations=UPDATES)
    workload = make(optimizer=momentum)
    _, clipped = trained(replace(workload, **options), plan)
    assert same(clipped, by_hand(workload, plan, before_step=by))
    assert not same(clipped, by_hand(workload, plan), tolerance=1e-3)


@pytest.mark.parametrize("kind", CLIPPED)
def test_micro_batches_are_clipped_once_on_their_sum(make: Make, kind: str) -> None:
    workload = replace(make(optimizer=momentum), **CLIPPED[kind][0])
    plan = Plan(SIZE, 0.3, iterations=UPDATES)
    _, whole = trained(workload, plan)
    _, cut = trained(workload, replace(plan, micro_batch_size=3))
    assert same(whole, cut, tolerance=1e-5)


@pytest.mark.parametrize("in_turn", [False, True])
@pytest.mark.parametrize("kind", CLIPPED)
def test_each_replica_of_a_stack_is_clipped_by_itself(make: Make, kind: str, in_turn: bool) -> None:
    workload = replace(make(optimizer=momentum), **CLIPPED[kind][0])
    plans = [Plan(SIZE, rate, iterations=UPDATES) for rate in (0.3, 0.03)]
    stack = Replicas(Prepared(workload, CPU), plans, [0, 0], in_turn=in_turn)
    stack()
    for plan, model in zip(plans, stack.stack.models, strict=True):
        assert same(trained(workload, plan)[1], model.state_dict(), tolerance=1e-5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"clip_norm": 0.0}, "clip_norm must be a finite number above 0; got 0.0"),
        ({"clip_value": True}, "clip_value must be a finite number above 0; got True"),
        ({"clip_norm": 1.0, "clip_value": 1.0}, "gradients can be clipped by norm or by value"),
        ({"precision": "float16"}, "precision must be 'bf16', 'fp16' or None; got float16"),
        ({"compile": "yes"}, "compile must be True or False; got yes"),
        ({"warmup_examples": -1}, "warmup_examples must be a whole number of examples, at least 0; got -1"),
        ({"shape": "cooldown"}, "shape must be 'constant', 'linear' or 'cosine'; got cooldown"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(make: Make, options: dict[str, Any], said: str) -> None:
    with pytest.raises(WorkloadError, match=said):
        replace(make(), **options)


@pytest.mark.parametrize("shape", ["constant", "linear", "cosine"])
def test_the_rate_warms_up_and_falls_as_in_a_loop_written_by_hand(make: Make, shape: Any) -> None:
    warmup, total = 3, UPDATES
    workload = make(optimizer=momentum)
    plan = Plan(SIZE, 0.3, iterations=total)
    assert plan.shape is None
    assert plan.warmup_examples is None

    def factor(update: int) -> float:
        if update + 1 < warmup:
            return (update + 1) / warmup
        done = max(0, update - warmup) / (total - warmup)
        return {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[shape]

    result, weights = trained(replace(workload, shape=shape, warmup_examples=warmup * SIZE), plan)
    assert (result.plan.shape, result.plan.warmup_examples, result.notes) == (shape, warmup * SIZE, ())
    assert same(weights, by_hand(workload, plan, factor=factor), tolerance=1e-6)
    assert not same(weights, by_hand(workload, plan), tolerance=1e-3)


def test_what_a_plan_says_of_the_rate_goes_before_what_the_workload_says(make: Make) -> None:
    workload = make(optimizer=momentum)
    plan = Plan(SIZE, 0.3, iterations=UPDATES, shape="constant", warmup_examples=0)
    assert same(trained(replace(workload, shape="cosine", warmup_examples=24), plan)[1], trained(workload, plan)[1])


def test_a_plan_without_a_length_says_that_the_rate_was_kept_constant(make: Make) -> None:
    workload = replace(make(optimizer=momentum), shape="cosine")
    run = Run(Prepared(workload, CPU), Plan(SIZE, 0.05, target=0.3), seed=0)
    result = run()
    assert result.outcome == "reached"
    assert result.plan.shape == "constant"
    [note] = result.notes
    assert note.startswith("the rate was kept constant: the workload's cosine shape needs a length")


def test_a_stack_follows_the_workload_s_shape(make: Make) -> None:
    workload = replace(make(optimizer=momentum), shape="cosine", warmup_examples=24)
    assert refusal(Prepared(workload, CPU), Plan(SIZE, 0.1, iterations=UPDATES)) is None
    plans = [Plan(SIZE, rate, iterations=UPDATES) for rate in (0.3, 0.03)]
    stack = Replicas(Prepared(workload, CPU), plans, [0, 0])
    stack()
    for plan, model in zip(plans, stack.stack.models, strict=True):
        assert same(trained(workload, plan)[1], model.state_dict(), tolerance=1e-5)


def test_bf16_is_that_of_a_loop_written_by_hand(make: Make) -> None:
    workload = make(optimizer=momentum)
    plan = Plan(SIZE, 0.3, iterations=UPDATES)
    _, weights = trained(replace(workload, precision="bf16"), plan)
    assert same(weights, by_hand(workload, plan, dtype=torch.bfloat16))
    assert not same(weights, by_hand(workload, plan), tolerance=1e-4)
    assert all(tensor.dtype == torch.float32 for tensor in weights.values())


def test_scores_are_given_single_precision(make: Make) -> None:
    seen: set[torch.dtype] = set()

    def score(output: Tensor, target: Tensor) -> float:
        seen.add(output.dtype)
        return float((output.argmax(-1) == target).double().mean())

    workload = replace(make(optimizer=momentum, score=score), precision="bf16")
    seen.clear()
    trained(workload, Plan(SIZE, 0.3, iterations=1))
    assert seen == {torch.float32}


@pytest.mark.parametrize("in_turn", [False, True])
def test_a_stack_in_bf16_does_what_single_runs_do(make: Make, in_turn: bool) -> None:
    workload = replace(make(optimizer=momentum), precision="bf16")
    prepared = Prepared(workload, CPU)
    assert refusal(prepared, Plan(SIZE, 0.1, iterations=UPDATES)) is None
    plans = [Plan(SIZE, rate, iterations=UPDATES) for rate in (0.1, 0.03)]
    stack = Replicas(prepared, plans, [0, 0], in_turn=in_turn)
    stack()
    for plan, model in zip(plans, stack.stack.models, strict=True):
        single = trained(workload, plan)[1]
        assert same(single, model.state_dict(), tolerance=5e-3)
        assert not same(single, trained(replace(workload, precision=None), plan)[1], tolerance=1e-5)


@pytest.mark.parametrize("options", [{"precision": "fp16"}, {"compile": True}])
def test_what_no_stack_does_is_refused(make: Make, options: dict[str, Any]) -> None:
    workload = replace(make(), **options)
    prepared, plan = Prepared(workload, CPU), Plan(SIZE, 0.1, iterations=UPDATES)
    reason = refusal(prepared, plan)
    assert reason is not None
    with pytest.raises(WorkloadError, match=reason.partition("=")[0]):
        Replicas(prepared, [plan], [0])
    assert ways_of(prepared).choose(prepared, Plan(SIZE, 0.1, iterations=1000), 4, "replicas").reason == reason


class OverflowsAt:
    """Cross entropy that is infinite at some of its calls with a gradient."""

    def __init__(self, *calls: int) -> None:
        self.calls, self.made = set(calls), [0]  # neither is plain, so that fingerprints are alike

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        loss = F.cross_entropy(output, target)
        if not loss.requires_grad:
            return loss
        self.made[0] += 1
        return loss * float("inf") if self.made[0] in self.calls else loss


def half(make: Make, *calls: int) -> Workload:
    workload = replace(make(optimizer=momentum), precision="fp16")
    loss = OverflowsAt(*calls)
    workload = replace(workload, loss=loss)
    loss.made[0] = 0  # those of the check do not count
    return workload


def test_updates_that_the_scaler_skips_are_counted_and_are_no_updates(make: Make) -> None:
    plan = Plan(SIZE, 0.05, iterations=UPDATES)
    result, weights = trained(half(make, 3, 4), plan)
    assert (result.skipped_updates, result.iterations, result.examples) == (2, UPDATES - 2, UPDATES * SIZE)
    assert result.curve[-1].iterations == UPDATES - 2
    assert math.isfinite(result.curve[-1].training_loss)

    model = make(optimizer=momentum).model
    with isolated(derive(0, "weights"), CPU):
        mine = model()
        optimizer = torch.optim.SGD(mine.parameters(), lr=0.05, momentum=0.9)
    scaler, loss = torch.amp.GradScaler("cpu"), OverflowsAt(3, 4)
    feed = Prepared(make(optimizer=momentum), CPU).training.feed(plan, UPDATES * SIZE, seed=derive(0, "data"))
    for [(x, y)] in feed:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            value = loss(mine(x), y)
        torch.autograd.backward(scaler.scale(value))
        scaler.step(optimizer)
        scaler.update()
    assert same(weights, mine.state_dict())


def test_half_precision_clips_what_was_unscaled(make: Make) -> None:
    plan = Plan(SIZE, 0.3, iterations=UPDATES)
    _, full = trained(replace(make(optimizer=momentum), clip_norm=0.3), plan)
    _, low = trained(replace(half(make), clip_norm=0.3), plan)
    _, cut = trained(replace(half(make), clip_norm=0.3), replace(plan, micro_batch_size=3))
    assert same(full, low, tolerance=1e-2)
    assert same(low, cut, tolerance=1e-2)


def test_only_skipped_updates_are_a_divergence(make: Make) -> None:
    result = Run(Prepared(half(make, *range(2, 500)), CPU), Plan(SIZE, 0.05, iterations=100), seed=0)()
    assert (result.outcome, result.iterations, result.diverged_at_iteration) == ("diverged", 1, 2)
    assert result.message is not None
    assert result.message.startswith("the gradients of the last")


def test_a_resumed_run_goes_on_with_its_scaler(make: Make, tmp_path: Path) -> None:
    plan = Plan(SIZE, 0.05, iterations=20)

    class Stop(Exception):
        pass

    def stop(point: Any, left: float | None) -> None:
        if point.examples >= 10 * SIZE:
            raise Stop

    file = tmp_path / "run.safetensors"
    options: dict[str, Any] = {"seed": 0, "evaluate_every": 2 * SIZE, "checkpoint": file, "checkpoint_every_seconds": 0}
    unbroken, weights = trained(half(make, 3, 4, 15), plan, evaluate_every=2 * SIZE)
    with pytest.raises(Stop):
        Run(Prepared(half(make, 3, 4), CPU), plan, on_evaluation=stop, **options)()
    done = load_progress(file)
    resumed = Run(Prepared(half(make, 15 - done), CPU), plan, **options)
    result = resumed()
    assert (result.skipped_updates, unbroken.skipped_updates) == (3, 3)
    assert [(p.examples, p.iterations, p.score, p.training_loss) for p in result.curve] == [
        (p.examples, p.iterations, p.score, p.training_loss) for p in unbroken.curve
    ]
    assert same(weights, resumed.model.state_dict())
    assert resumed.scaler is not None
    assert resumed.scaler.get_scale() == 2.0**13


def load_progress(file: Path) -> int:
    with safe_open(file, framework="pt") as opened:
        return int(json.loads(opened.metadata()["batchscope"])["progress"]["iterations"])


def test_noise_along_half_precision_is_of_unscaled_gradients(make: Make) -> None:
    traces = []
    for workload in (make(optimizer=momentum), half(make)):
        run = Run(
            Prepared(workload, CPU),
            Plan(SIZE, 0.01, iterations=60),
            seed=0,
            observer=partial(GradientNoise, every=1, half_life=None),
        )
        run()
        assert isinstance(run.observer, GradientNoise)
        traces.append(run.observer.trace_covariance.value)
    assert traces[0] == pytest.approx(traces[1], rel=0.02)


def test_a_compiled_model_trains_the_same_and_compiling_is_off_the_clock(make: Make) -> None:
    torch._dynamo.reset()
    workload = make(optimizer=momentum)
    plan = Plan(SIZE, 0.1, iterations=UPDATES + 1)
    budget = replace(plan, iterations=None, examples=SIZE * UPDATES + 3)  # the last batch is of another size
    plain, weights = trained(workload, budget)
    counts = torch._dynamo.utils.counters["stats"]
    before = counts["unique_graphs"]
    result, compiled = trained(replace(workload, compile=True), budget)
    assert same(weights, compiled, tolerance=1e-5)  # by the same names, too
    assert result.curve[-1].validation_loss == pytest.approx(plain.curve[-1].validation_loss, rel=1e-5)
    made = counts["unique_graphs"] - before
    assert 1 <= made <= 4  # for one size and for any, in training and in evaluation
    assert result.compile_seconds is not None
    assert plain.compile_seconds is None
    assert result.step_seconds + result.evaluation_seconds < result.total_seconds - 0.9 * result.compile_seconds

    again, _ = trained(replace(workload, compile=True), replace(budget, batch_size=6))
    assert counts["unique_graphs"] - before == made
    assert (again.compile_seconds or 0.0) < 0.1 * result.compile_seconds


def test_a_copy_of_a_compiled_model_runs_its_own_weights() -> None:
    model = nn.Linear(2, 1)
    compile_in_place(model)
    copied = copy.deepcopy(model)
    assert is_compiled(copied)
    x = torch.ones(3, 2)
    with torch.no_grad():
        before = copied(x).clone()
        model.weight.zero_()
        assert torch.equal(copied(x), before)
        assert torch.equal(model(x), model.bias.expand(3, 1))


def test_compiling_leaves_the_person_s_model_alone(make: Make) -> None:
    workload = replace(make(optimizer=momentum), compile=True)
    trained(workload, Plan(SIZE, 0.1, iterations=1))
    assert not is_compiled(workload.model())


def test_an_optimiser_factory_takes_what_its_first_parameter_names(make: Make) -> None:
    def groups(named: Any, rate: float) -> torch.optim.Optimizer:
        decayed = [p for name, p in named if name.endswith("weight")]
        others = [p for name, p in named if not name.endswith("weight")]
        made: list[dict[str, Any]] = [{"params": decayed, "weight_decay": 0.1}, {"params": others}]
        return torch.optim.SGD(made, lr=rate, momentum=0.9)

    def by_parameters(params: Any, lr: float) -> torch.optim.Optimizer:
        kept = list(params)
        named: Any = [("weight" if p.dim() > 1 else "bias", p) for p in kept]
        return groups(named, lr)

    forms: dict[str, Any] = {
        "params": by_parameters,
        "named_parameters": lambda named_parameters, lr: groups(list(named_parameters), lr),
        "named_params": lambda named_params, lr: groups(list(named_params), lr),
        "model": lambda model, lr: groups(list(model.named_parameters()), lr),
    }
    plan = Plan(SIZE, 0.1, iterations=UPDATES)
    weights = {name: trained(make(optimizer=factory), plan)[1] for name, factory in forms.items()}
    for other in weights.values():
        assert same(weights["params"], other)
    prepared = Prepared(make(optimizer=forms["model"]), CPU)
    assert refusal(prepared, plan) is None
    torch_s_own = Prepared(make(optimizer=lambda named_params, lr: torch.optim.SGD(named_params, lr=lr)), CPU)
    assert refusal(torch_s_own, plan) is None  # its groups hold the names


def test_a_factory_that_fails_is_told_what_it_was_given(make: Make) -> None:
    with pytest.raises(WorkloadError, match=r"optimizer\(model, learning_rate\) must return a torch optimiser"):
        make(optimizer=lambda model, lr: torch.optim.SGD(model, lr=lr))


def test_the_fingerprint_tells_options_apart_and_stays_without(make: Make) -> None:
    plain = make(optimizer=momentum)
    told: list[dict[str, Any]] = [
        {"clip_norm": 1.0}, {"clip_norm": 2.0}, {"clip_value": 1.0}, {"precision": "bf16"}, {"precision": "fp16"},
        {"compile": True}, {"warmup_examples": 8}, {"shape": "linear"}, {"shape": "cosine"},
    ]  # fmt: skip
    assert len({fingerprint(plain), *(fingerprint(replace(plain, **options)) for options in told)}) == 1 + len(told)
    assert fingerprint(replace(plain, clip_norm=None, shape="constant")) == fingerprint(plain)


def test_step_times_are_of_what_is_trained(make: Make) -> None:
    seen: set[torch.dtype] = set()

    class Told(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            seen.add(out.dtype)
            return out

    workload = replace(make(model=lambda: Told(6, 3), optimizer=momentum), precision="bf16", clip_norm=1.0)
    seen.clear()
    step_times(workload, batch_sizes=[4, 8], seconds=0.1, device="cpu")
    assert torch.bfloat16 in seen
