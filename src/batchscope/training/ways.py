"""Whether runs can be stacked, and whether that pays: both tried out and not reasoned about."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from batchscope.errors import BatchscopeError
from batchscope.records import Plan, TrainResult
from batchscope.training.chance import NoChance
from batchscope.training.evaluation import EvaluationData
from batchscope.training.loop import Prepared, Run
from batchscope.training.memory import is_out_of_memory
from batchscope.training.replicas import Replicas

CHECKED_UPDATES = 4
CHECKED_EXAMPLES = 32
# Replicas and single runs compute the same with other kernels. Losses must agree to this, weights to this much of the
# way that they went.
LOSS_TOLERANCE, WEIGHT_TOLERANCE = 1e-3, 0.05
# A gradient this much smaller than the largest is rounding, as that of attention's key bias is, which changes nothing:
# an optimiser that divides by the gradient's size takes it for as much as any other.
NO_GRADIENT = 1e-6

# Each way is timed over updates of about so many seconds, the best of so many rounds.
TIMED_SECONDS, ROUNDS = 0.05, 3
# Replicas must be faster by this much to be chosen: within it, chance would choose.
MARGIN = 1.03


@dataclass(frozen=True)
class FastestWay:
    """The fastest way to train a number of trials of one batch size, as measured.

    Attributes:
        stack_size: Trials to train together in one :class:`Replicas`; 1 may be a stack too.
        replicas: Whether as replicas; False: as separate runs.
        in_turn: What :class:`Replicas` is to be told.
        update_seconds: Time of an update of one trial, this way.
        separate_seconds: The same in separate runs.
        reason: That in words.
    """

    stack_size: int
    replicas: bool
    in_turn: bool
    update_seconds: float
    separate_seconds: float
    reason: str


def refusal(prepared: Prepared, plan: Plan, seed: int = 0) -> str | None:
    """Why runs of this workload cannot be stacked.

    A few updates of a stack of three, in one batched pass and in turn, are compared with three single runs: losses,
    weights, buffers and evaluations. Random numbers drawn in training are held still for it.

    Args:
        prepared: The workload, with its data on the device.
        plan: Batch size, rate, order and shape.
        seed: Of the first run.

    Returns:
        The reason, in a sentence without a full stop; None where they can be stacked.

    Examples:
        >>> from batchscope.workload.digits import digits
        >>> print(refusal(Prepared(digits(), torch.device("cpu")), Plan(8, 0.1, iterations=1)))
        None
    """
    small = _with_few_to_evaluate(prepared)
    short = _short(plan, CHECKED_UPDATES)
    plans = [replace(short, learning_rate=plan.learning_rate * factor) for factor in (1.0, 0.3, 0.6)]
    seeds = [seed, seed + 1, seed]
    try:
        runs = [
            Run(
                small,
                own,
                seed=own_seed,
                evaluate_every=plan.batch_size,
                keep_best_weights=False,
                evaluate_training=False,
                measure_memory=False,
            )
            for own, own_seed in zip(plans, seeds, strict=True)
        ]
        before = [_flattened(run.model) for run in runs]
        with NoChance():  # type: ignore[no-untyped-call]
            expected = [run() for run in runs]
        for in_turn in (False, True):
            stack = Replicas(small, plans, seeds, evaluate_every=plan.batch_size, in_turn=in_turn)
            with NoChance():  # type: ignore[no-untyped-call]
                found = stack()
            for k, run in enumerate(runs):
                difference = _difference(found[k], expected[k]) or _difference_of_weights(
                    stack.stack.models[k], run.model, before[k]
                )
                if difference is not None:
                    return f"a stack of three does not do what single runs do: {difference}"
    except Exception as error:
        if is_out_of_memory(error):
            raise
        said = error.rule if isinstance(error, BatchscopeError) else str(error) or type(error).__name__
        return f"it cannot be batched: {said.strip().splitlines()[0].rstrip('.')}"
    return None


def fastest_way(prepared: Prepared, plan: Plan, count: int, *, seed: int = 0) -> FastestWay:
    """Measure how trials of one batch size are trained fastest: stacked, and how many at a time, or separately.

    Stacks of count, count/2, count/4 … in one batched pass are timed from the smallest one on, for as long as larger
    ones gain; so are replicas in turn and a single run. The workload must be one that :func:`refusal` lets pass.

    Args:
        prepared: The workload, with its data on the device.
        plan: Batch size, rate, order and shape of one of them.
        count: Trials.
        seed: Of the runs that are timed.

    Returns:
        The fastest.

    Examples:
        >>> from batchscope.workload.digits import digits
        >>> way = fastest_way(Prepared(digits(), torch.device("cpu")), Plan(8, 0.1, iterations=1), 12)
        >>> way.replicas, way.update_seconds < way.separate_seconds
        (True, True)
    """
    small = _with_few_to_evaluate(prepared)
    separate = _timed(small, plan, 0, seed)
    times = {(min(count, 2), True): _timed(small, plan, min(count, 2), seed, in_turn=True)}
    best = math.inf
    for size in _sizes(count):
        try:
            times[size, False] = now = _timed(small, plan, size, seed)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            break
        if now > 1.1 * best:
            break
        best = min(best, now)
    (size, in_turn), seconds = min(times.items(), key=lambda item: item[1])
    replicas = separate >= MARGIN * seconds
    return FastestWay(
        stack_size=(count if in_turn else size) if replicas else 1,
        replicas=replicas,
        in_turn=in_turn and replicas,
        update_seconds=seconds if replicas else separate,
        separate_seconds=separate,
        reason=_in_words(times, separate, replicas),
    )


def _in_words(times: dict[tuple[int, bool], float], separate: float, replicas: bool) -> str:
    (size, in_turn), seconds = min(times.items(), key=lambda item: item[1])
    how = "in turn" if in_turn else f"{size} in one batched pass"
    if not replicas:
        return f"replicas would take {seconds / separate:.2f} times as long at best ({how})"
    faster = f"{separate / seconds:.1f} times as fast as separate runs, {how}"
    others = [
        f"{'in turn' if turn else number}: {separate / other:.1f}"
        for (number, turn), other in times.items()
        if other > seconds
    ]
    return f"{faster} ({', '.join(others)})" if others else faster


def _sizes(count: int) -> list[int]:
    """Half of the trials, half of that and so on, ascending, down to a stack of two."""
    sizes = []
    while count >= 2:
        sizes.append(count)
        count = -(-count // 2) if count > 2 else 1
    return sizes[::-1]


def _timed(prepared: Prepared, plan: Plan, size: int, seed: int, *, in_turn: bool = False) -> float:
    """Seconds for an update of one trial: in a stack, or by itself where the size is 0."""

    def seconds_per_update(updates: int) -> float:
        short = _short(plan, updates)
        if size == 0:
            alone = Run(
                prepared,
                short,
                seed=seed,
                evaluate_every=updates * plan.batch_size,
                keep_best_weights=False,
                evaluate_training=False,
                measure_memory=False,
            )
            return alone().step_seconds / updates
        plans = [replace(short, learning_rate=plan.learning_rate / (1 + k)) for k in range(size)]
        stack = Replicas(
            prepared,
            plans,
            [seed + k % 4 for k in range(size)],
            evaluate_every=updates * plan.batch_size,
            in_turn=in_turn,
        )
        return max(result.step_seconds / result.iterations for result in stack())

    once = seconds_per_update(2)
    updates = max(2, min(500, round(TIMED_SECONDS / (once * max(1, size)))))
    return min(seconds_per_update(updates) for _ in range(ROUNDS if updates > 2 else 1))


def _short(plan: Plan, iterations: int) -> Plan:
    return replace(plan, iterations=iterations, examples=None, target=None, patience=None)


def _with_few_to_evaluate(prepared: Prepared) -> Prepared:
    few = copy.copy(prepared)
    few.validation = EvaluationData(prepared.workload, "validation", prepared.device)
    few.validation.indices = few.validation.indices[:CHECKED_EXAMPLES]
    return few


def _flattened(model: torch.nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten().double() for parameter in model.parameters()])


def _moving(model: torch.nn.Module) -> Tensor:
    """Which weights have a gradient that is more than rounding."""
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    sizes = torch.cat([gradient.flatten().abs() for gradient in gradients])
    return sizes > NO_GRADIENT * sizes.max()


def _difference(found: TrainResult, expected: TrainResult) -> str | None:
    for here, there in zip(found.curve, expected.curve, strict=True):
        pairs: Sequence[tuple[str, float | None, float | None]] = (
            ("training loss", here.training_loss, there.training_loss),
            ("validation loss", here.validation_loss, there.validation_loss),
            ("learning rate", here.learning_rate, there.learning_rate),
        )
        for what, one, other in pairs:
            if one is None or other is None:
                continue
            if not math.isclose(one, other, rel_tol=LOSS_TOLERANCE, abs_tol=LOSS_TOLERANCE**2):
                return f"the {what} at update {here.iterations} is {one:.6g} and not {other:.6g}"
    return None


def _difference_of_weights(found: torch.nn.Module, expected: torch.nn.Module, before: Tensor) -> str | None:
    moving = _moving(expected)
    way = float(torch.linalg.vector_norm((_flattened(expected) - before)[moving]))
    apart = float(torch.linalg.vector_norm((_flattened(expected) - _flattened(found))[moving]))
    if not apart <= WEIGHT_TOLERANCE * way:
        return f"after {CHECKED_UPDATES} updates the weights are {apart:.3g} apart, having moved by {way:.3g}"
    for (name, one), (_, other) in zip(found.named_buffers(), expected.named_buffers(), strict=True):
        if not torch.allclose(one.double(), other.double(), rtol=LOSS_TOLERANCE, atol=LOSS_TOLERANCE**2):
            return f"after {CHECKED_UPDATES} updates the buffer {name} is another"
    return None
