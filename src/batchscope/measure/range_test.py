"""The learning-rate range test: the rate grows geometrically from update to update, several times over (Smith 2017).

What is recorded at each update is not the loss L_B(θ) of its batch but L_B(θ) − L_B(θ₀), the same batch, with the same
dropout, at the weights that the test began with, plus the mean of L_B(θ₀). The mean is the same, and what a batch owes
to its examples rather than to the weights is gone: on the built-in quadratic, whose batches' losses spread as widely
as the whole fall, the spread at small rates shrinks a thousandfold. It costs one more forward pass for each update.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from batchscope.errors import ArgumentError, PlanError, RunError, WorkloadError
from batchscope.fit.range_test import RangeEstimate, estimate_range
from batchscope.measure.curvature import curvature_bound, largest_eigenvalue
from batchscope.progress import Report, Reporter, reporter
from batchscope.provenance import provenance
from batchscope.records import Plan
from batchscope.records.learning_rate import RangePoint, RangeTest
from batchscope.schedule import set_rate
from batchscope.seeding import derive, isolated
from batchscope.training.feed import TrainingData
from batchscope.training.memory import is_out_of_memory
from batchscope.training.step import TrainingStep
from batchscope.training.threads import compute_threads, flops_per_example
from batchscope.training.train import checked_seed, chosen_device
from batchscope.training.update import fresh
from batchscope.workload.workload import Batch, Workload

# The range where none is given: four decades to either side of the workload's rate.
DECADES = 4
LEAST_REPEATS = 3
# Updates that the budget of seconds chooses from, the last that fits; below the first a decade has fewer than eight.
UPDATES = (64, 128, 256)
TIMED_UPDATES = 4
# A loss that has risen by this many times the initial one has diverged.
DIVERGED = 10.0
# Losses are read this many at a time, so that a GPU is not waited for at each update.
READ_AT_ONCE = 8
CURVATURE_EXAMPLES = 256
CURVATURE_TOLERANCE = 1e-2
# What λ_max costs: about so many products, each some times what training on as many examples does.
PRODUCTS, PRODUCT_COST = 22, 4


def range_test(
    workload: Workload,
    *,
    batch_size: int | None = None,
    repeats: int = 5,
    updates: int | None = None,
    least: float | None = None,
    most: float | None = None,
    curvature: bool = True,
    seconds: float = 10.0,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool | Reporter = False,
) -> RangeTest:
    """Find a learning rate to start from, with a range test that survives noise.

    The rate grows by the same factor at every update, from the same fresh weights in every repeat, each with a data
    order of its own, until the loss diverges. See :mod:`batchscope.fit.range_test` for what is made of the losses: the
    suggested rate is half the geometric mean of where the loss falls fastest and where it turns up for good.

    Args:
        workload: What is trained.
        batch_size: Examples per update; None: the workload's.
        repeats: Repeats, at least 3; the intervals come from how they differ.
        updates: Updates of each repeat; None: 256, or 128 or 64 where that takes longer than ``seconds``. Give it for
            numbers that are the same on every machine.
        least: The rate at the first update; None: the workload's over 10,000.
        most: The rate at the last one; None: 10,000 times the workload's.
        curvature: Whether to compute λ_max where the test starts, on 256 examples, and the bound that it puts on the
            rate. It is left out all the same where the model cannot be differentiated twice, and, unless ``updates``
            are given, where it would take longer than ``seconds``.
        seconds: What the test may take, as far as 64 updates allow; λ_max comes on top.
        seed: Initial weights, data orders and the bootstrap derive from it.
        device: "cpu", "cuda" …; None: CUDA where there is one.
        progress: True shows progress on stderr; or a function called with every step.

    Returns:
        The test. Where the loss does not fall by more than its noise, nothing is suggested and the verdict says so.

    Raises:
        ArgumentError: Too few repeats or updates, or a range that is none.
        PlanError: A batch size that the workload cannot fill.
        RunError: Memory runs out.

    Examples:
        >>> import batchscope as bs
        >>> found = bs.range_test(bs.load_workload("digits"), updates=128, curvature=False)
        >>> 0.05 < found.suggested < 0.8
        True
    """
    began = time.perf_counter()
    seed = checked_seed(seed)
    least = workload.learning_rate / 10**DECADES if least is None else least
    most = workload.learning_rate * 10**DECADES if most is None else most
    _check(repeats, updates, least, most, seconds)
    chosen = chosen_device(device)
    size = workload.batch_size if batch_size is None else batch_size
    test = _Test(workload, size, chosen, seed)
    flops = flops_per_example(workload) if chosen.type == "cpu" else None
    with compute_threads(None if flops is None else flops * size, chosen), reporter(progress, "range test") as report:
        if updates is None:
            each = test.seconds_per_update(least)
            updates = max((n for n in UPDATES if n * repeats * each <= seconds), default=UPDATES[0])
            curvature = curvature and PRODUCTS * PRODUCT_COST * CURVATURE_EXAMPLES / size * each <= seconds
        rates = np.geomspace(least, most, updates)
        losses = np.stack([test.repeat(rates, repeat, _teller(report, repeat, repeats)) for repeat in range(repeats)])
        found = estimate_range(rates, losses, seed=derive(seed, "bootstrap"))
    eigenvalue = _eigenvalue(workload, seed, chosen) if curvature else None
    bound = None
    if eigenvalue is not None:
        with isolated(derive(seed, "weights"), chosen):
            bound = curvature_bound(workload.optimizer_for(workload.model(), workload.learning_rate), eigenvalue)
    return RangeTest(
        workload=workload.title,
        batch_size=size,
        updates=updates,
        repeats=repeats,
        points=_points(rates, losses, found),
        steepest=found.steepest,
        largest_stable=found.largest_stable,
        suggested=found.suggested,
        verdict=found.verdict,
        largest_eigenvalue=eigenvalue,
        curvature_bound=bound,
        seconds=time.perf_counter() - began,
        provenance=provenance(workload, device=chosen, seed=seed),
    )


class _Test:
    """Repeats of one range test on one device."""

    def __init__(self, workload: Workload, batch_size: int, device: torch.device, seed: int) -> None:
        self.workload, self.device, self.seed = workload, device, seed
        self.plan = Plan(batch_size=batch_size, learning_rate=workload.learning_rate, iterations=1)
        self.data = TrainingData(workload, device)
        self.data.check(self.plan)

    def seconds_per_update(self, rate: float) -> float:
        """Time of one update with both its forward passes, from a few after a first one."""
        updates = self._updates(np.full(1 + TIMED_UPDATES, rate), repeat=0)
        float(next(updates)[0])
        began = time.perf_counter()
        for loss, _ in updates:
            float(loss)
        return (time.perf_counter() - began) / TIMED_UPDATES

    def repeat(self, rates: NDArray[np.float64], repeat: int, tell: Callable[[int], None]) -> NDArray[np.float64]:
        """The loss at each rate: infinite from where it diverged."""
        pairs: list[tuple[float, float]] = []
        unread: list[Tensor] = []
        for count, pair in enumerate(self._updates(rates, repeat), 1):
            unread.append(torch.stack(pair))
            if count % READ_AT_ONCE == 0 or count == len(rates):
                pairs += torch.stack(unread).double().tolist()
                unread.clear()
                tell(count)
                if any(_diverged(loss, reference) for loss, reference in pairs[-READ_AT_ONCE:]):
                    break
        losses = np.full(len(rates), math.inf)
        measured = np.array(pairs)
        losses[: len(pairs)] = measured[:, 0] - measured[:, 1] + measured[:, 1].mean()
        gone = [i for i, (loss, reference) in enumerate(pairs) if _diverged(loss, reference)]
        losses[gone[0] if gone else len(pairs) :] = math.inf
        return losses

    def _updates(self, rates: NDArray[np.float64], repeat: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Train, yielding each batch's loss before its update and the same batch's at the first weights."""
        with isolated(derive(self.seed, "weights"), self.device):
            model, optimizer = fresh(self.workload, self.workload.learning_rate, self.device)
        first = copy.deepcopy(model)
        # Groups may have rates of their own: each grows by the same factor from where the person has it.
        factors = [float(group["lr"]) / self.workload.learning_rate for group in optimizer.param_groups]
        step = TrainingStep(self.workload, model, optimizer, micro_batch_size=None)
        size = self.plan.batch_size
        feed = self.data.feed(self.plan, len(rates) * size, seed=derive(self.seed, "range test", repeat))
        devices = [self.device] if self.device.type == "cuda" else []
        with isolated(derive(self.seed, "range test training", repeat), self.device):
            for rate, batches in zip(rates, feed, strict=True):
                for group, factor in zip(optimizer.param_groups, factors, strict=True):
                    set_rate(group, float(rate) * factor)
                try:
                    with torch.random.fork_rng(devices), torch.no_grad():  # so that both draw the same dropout
                        reference = self._loss(first, batches[0])
                    loss = step(batches, size)
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error):
                        raise
                    raise RunError(
                        "a range test needs memory for an update and a second copy of the weights",
                        got=f"none left at batch size {size}",
                        mend="give a smaller batch_size",
                    ) from error
                yield loss, reference

    def _loss(self, model: nn.Module, batch: Batch) -> Tensor:
        with self.workload.autocast(self.device):
            output, target = self.workload.output_and_target(model, batch)
            return self.workload.loss(output, target)


def _diverged(loss: float, reference: float) -> bool:
    return not loss - reference <= DIVERGED * abs(reference)  # so that nan counts


def _points(rates: NDArray[np.float64], losses: NDArray[np.float64], found: RangeEstimate) -> tuple[RangePoint, ...]:
    diverged = ~np.isfinite(losses)
    return tuple(
        RangePoint(
            learning_rate=float(rate),
            loss=float(curve.mean()),
            low=float(curve.min()),
            high=math.inf if gone.any() else float(curve.max()),
            diverged=int(gone.sum()),
        )
        for rate, curve, gone in zip(rates, found.curves.T, diverged.T, strict=True)
        if not gone.all()
    )


def _teller(report: Report, repeat: int, repeats: int) -> Callable[[int], None]:
    def tell(done: int) -> None:
        report.update(label=f"repeat {repeat + 1} of {repeats}, update {done}", done=repeat, total=repeats)

    return tell


def _eigenvalue(workload: Workload, seed: int, device: torch.device) -> float | None:
    try:
        found = largest_eigenvalue(
            workload, examples=CURVATURE_EXAMPLES, tolerance=CURVATURE_TOLERANCE, seed=seed, device=device
        )
    except (RuntimeError, WorkloadError):  # an operation without a second derivative, or without a finite one
        return None
    # Exactly 0 is what autograd gives where nothing of the loss has a second derivative: no bound either way.
    return found.value if math.isfinite(found.value) and found.value != 0 else None


def _check(repeats: Any, updates: Any, least: Any, most: Any, seconds: Any) -> None:
    if type(repeats) is not int or repeats < LEAST_REPEATS:
        raise ArgumentError(
            f"repeats must be a whole number of at least {LEAST_REPEATS}", got=repeats, mend="the intervals need them"
        )
    if updates is not None and (type(updates) is not int or updates < 32):
        raise ArgumentError("updates must be a whole number of at least 32", got=updates, mend="try 256")
    if not (isinstance(seconds, (int, float)) and seconds > 0):
        raise ArgumentError("seconds must be above 0", got=seconds)
    for name, rate in (("least", least), ("most", most)):
        if not isinstance(rate, (int, float)) or isinstance(rate, bool) or not math.isfinite(rate) or rate <= 0:
            raise PlanError(f"{name} must be a finite rate above 0", got=rate)
    if most < 10 * least:
        raise PlanError("most must be at least ten times least", got=f"{least:.3g} to {most:.3g}")
