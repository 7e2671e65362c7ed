"""Whether runs can be stacked, and whether that pays: both tried out and not reasoned about."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from batchscope.errors import BatchscopeError
from batchscope.records import Plan, TrainResult
from batchscope.seeding import derive, isolated
from batchscope.training.chance import NoChance
from batchscope.training.evaluation import EvaluationData
from batchscope.training.heap import kept_heap
from batchscope.training.loop import Prepared, Run
from batchscope.training.memory import is_out_of_memory
from batchscope.training.meters import Stopwatch
from batchscope.training.micro_batching import MicroBatchingStep
from batchscope.training.replicas import Replicas
from batchscope.training.stack import Stack, unstackable
from batchscope.training.stacked_feed import StackedFeed, example_batch
from batchscope.training.threads import compute_threads
from batchscope.training.update import fresh

CHECKED_UPDATES = 4
CHECKED_EXAMPLES = 32
CHECKED_BATCH = 16
# Replicas and single runs compute the same with other kernels. Losses must agree to this, weights to this much of the
# way that they went.
LOSS_TOLERANCE, WEIGHT_TOLERANCE = 1e-3, 0.05
# A gradient this much smaller than the largest is rounding, as that of attention's key bias is, which changes nothing:
# an optimiser that divides by the gradient's size takes it for as much as any other.
NO_GRADIENT = 1e-6

# Each way is timed over updates of about so many seconds, the best of so many rounds (two, where a single update takes
# as long as that). Those that are so many times slower than the best are not timed again.
TIMED_SECONDS, ROUNDS, CLOSE = 0.05, 3, 1.1
# A stack so many times slower than the best ends the search in its direction.
WORSE = 1.2
# An update this long is arithmetic for the most part, of which larger stacks save none.
ARITHMETIC_SECONDS = 0.005
# In turn, replicas save what an update costs beside its arithmetic, which seldom is more than this many times that.
MOST_IN_TURN = 2.5
# Finding out ends when it has taken this share of what the trials would take in separate runs, or so many seconds.
MOST_SHARE, LEAST_SECONDS = 0.02, 1.0
MOST_UPDATES = 1_000_000
# Replicas must be faster by this much to be chosen: within it, chance would choose.
MARGIN = 1.05


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
    weights, buffers and evaluations. Random numbers drawn in training are held still for it, and the batches are small.

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
    if (reason := unstackable(prepared.workload)) is not None:
        return reason
    small = _with_few_to_evaluate(prepared)
    plan = replace(plan, batch_size=min(plan.batch_size, CHECKED_BATCH))
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

    Stacks of count, count/2, count/4 … in one batched pass are timed for as long as that gains: from the largest on
    where an update is short; from the smallest on where it is long, as one of a large stack would take that many times
    longer, and arithmetic is not saved. Replicas in turn and a single run are timed beside them. While some are too
    near the best to tell, they are timed again, in alternation, and the best of the rounds counts. The search ends
    early where it takes more than a small share of what the trials themselves would. The workload must be one that
    :func:`refusal` lets pass.

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
    with isolated(derive(seed, "fastest way"), prepared.device), kept_heap():
        search = _Search(prepared, plan, count, seed)
        search()
    separate, stacked = search.separate, search.stacked
    stacked.sort(key=lambda way: way.seconds)
    first = stacked[0]
    replicas = separate.seconds >= MARGIN * first.seconds
    return FastestWay(
        stack_size=(count if first.in_turn else first.size) if replicas else 1,
        replicas=replicas,
        in_turn=first.in_turn and replicas,
        update_seconds=first.seconds if replicas else separate.seconds,
        separate_seconds=separate.seconds,
        reason=_in_words(stacked, separate.seconds, replicas),
    )


class _Search:
    """Times what may be the fastest way, most promising first.

    Attributes:
        separate: One run by itself.
        stacked: Replicas of some numbers of trials; one at least.
    """

    def __init__(self, prepared: Prepared, plan: Plan, count: int, seed: int) -> None:
        self.began = time.perf_counter()
        self.prepared, self.plan, self.count, self.seed = prepared, plan, count, seed
        self.separate = _Separate(prepared, plan, seed)
        self.stacked: list[_Stacked] = []
        examples = plan.budget_examples
        whole = math.inf if examples is None else count * examples / plan.batch_size * self.separate.seconds
        self.most_seconds = max(LEAST_SECONDS, MOST_SHARE * whole)

    def __call__(self) -> None:
        if self.separate.seconds > ARITHMETIC_SECONDS:
            self._add(min(self.count, 2), in_turn=True)
            self._go_through(_sizes(self.count), ascending=True)
        else:
            self._go_through(_sizes(self.count)[::-1], ascending=False)
            if self.separate.seconds < MOST_IN_TURN * self._best:
                self._add(min(self.count, 2), in_turn=True)
        for _ in range(ROUNDS - 1 if self.separate.seconds < TIMED_SECONDS else 1):
            near = [way for way in self.stacked if way.seconds <= CLOSE * self._best]
            told_apart = not 1 / WORSE < MARGIN * self._best / self.separate.seconds < WORSE
            if self._is_late or (len(near) == 1 and told_apart):
                break
            for way in (self.separate, *near):
                way.time_again()

    @property
    def _best(self) -> float:
        return min((way.seconds for way in self.stacked), default=math.inf)

    @property
    def _is_late(self) -> bool:
        return time.perf_counter() - self.began > self.most_seconds

    def _add(self, size: int, *, in_turn: bool) -> bool:
        """Time a stack; False where memory does not hold it."""
        try:
            self.stacked.append(_Stacked(self.prepared, self.plan, self.seed, size=size, in_turn=in_turn))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or in_turn:
                raise
            return False
        return True

    def _go_through(self, sizes: Sequence[int], *, ascending: bool) -> None:
        """Time stacks in one batched pass, until larger ones gain no more or smaller ones lose."""
        best = math.inf
        for size in sizes:
            if self._add(size, in_turn=False):
                last = self.stacked[-1].seconds
                best = min(best, last)
                is_over = last > (min(best, self.separate.seconds) if ascending else WORSE * best)
            else:
                is_over = ascending  # a larger one does not fit either
            if is_over or self._is_late:
                break


class _Separate:
    """One run by itself, timed over some of its updates.

    Attributes:
        seconds: Time of an update of one run, the least of the rounds.
    """

    size = 1

    def __init__(self, prepared: Prepared, plan: Plan, seed: int) -> None:
        self.prepared, self.plan, self.seed = prepared, _short(plan, MOST_UPDATES), seed
        self.work = (prepared.flops_per_example or math.inf) * plan.batch_size
        self._advance(1)  # the first one is slower
        self._updates = 1
        self.seconds = self._timed()
        self._updates = max(1, min(500, round(TIMED_SECONDS / (self.seconds * self.size))))
        if self._updates > 1:
            self.seconds = self._timed()

    def time_again(self) -> None:
        """Time another round."""
        self.seconds = min(self.seconds, self._timed())

    def _timed(self) -> float:
        return self._advance(self._updates) / (self._updates * self.size)

    def _advance(self, updates: int) -> float:
        device = self.prepared.device
        with compute_threads(self.work, device):
            if device.type == "cpu" and torch.get_num_threads() == 1:
                # The processor's time is what it would take on a machine that nobody else is busy on.
                began = time.thread_time()
                for _ in range(updates):
                    self._update()
                return time.thread_time() - began
            clock = Stopwatch(device)
            clock.start()
            for _ in range(updates):
                self._update()
            clock.stop()
            return clock.seconds

    @cached_property
    def _update(self) -> Callable[[], object]:
        workload, plan = self.prepared.workload, self.plan
        model, optimizer = fresh(workload, plan.learning_rate, self.prepared.device)
        step = MicroBatchingStep(workload, model, optimizer, micro_batch_size=None)
        feed = iter(self.prepared.training.feed(plan, MOST_UPDATES * plan.batch_size, seed=self.seed))
        return lambda: step(next(feed), plan.batch_size)


class _Stacked(_Separate):
    """Replicas, likewise; at rates below the plan's, so that none diverges."""

    def __init__(self, prepared: Prepared, plan: Plan, seed: int, *, size: int, in_turn: bool) -> None:
        self.size, self.in_turn = size, in_turn
        super().__init__(prepared, plan, seed)
        self.work *= 1 if in_turn else size

    @cached_property
    def _update(self) -> Callable[[], object]:
        plans = [replace(self.plan, learning_rate=self.plan.learning_rate / (1 + k)) for k in range(self.size)]
        seeds = [self.seed + k % 4 for k in range(self.size)]
        training = self.prepared.training
        stack = Stack(
            self.prepared.workload,
            plans,
            seeds,
            self.prepared.device,
            example=example_batch(training, self.plan, self.seed),
            in_turn=self.in_turn,
        )
        feed = iter(StackedFeed.of(training, self.plan, MOST_UPDATES * self.plan.batch_size, seeds))
        return lambda: stack.update(next(feed))


def _in_words(stacked: list[_Stacked], separate: float, replicas: bool) -> str:
    names = ["in turn" if way.in_turn else f"{way.size} in one batched pass" for way in stacked]
    if not replicas:
        return f"replicas would take {stacked[0].seconds / separate:.2f} times as long at best ({names[0]})"
    others = [f"{name}: {separate / way.seconds:.1f}" for name, way in zip(names[1:], stacked[1:], strict=True)]
    faster = f"{separate / stacked[0].seconds:.1f} times as fast as separate runs, {names[0]}"
    return f"{faster} ({', '.join(others)})" if others else faster


def _sizes(count: int) -> list[int]:
    """The number of trials, half of it and so on, down to a stack of two; ascending."""
    sizes = []
    while count >= 2:
        sizes.append(count)
        count = -(-count // 2) if count > 2 else 1
    return sizes[::-1]


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
