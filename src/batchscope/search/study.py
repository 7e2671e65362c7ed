"""One search on a person's workload: the arguments checked, memory looked at, candidates raced."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from batchscope.errors import PlanError
from batchscope.fit.contention import busy_warning
from batchscope.measure.memory_meter import available_memory
from batchscope.progress import Report, reporter
from batchscope.records import Goal, Interval, MemoryUse, PowerUse, StepTimeLaw
from batchscope.records.communication import AllReduceLaw
from batchscope.schedule import learning_rate_exponent
from batchscope.search.arguments import (
    Question,
    checked_budget,
    checked_devices,
    checked_goal,
    checked_sizes,
    default_sizes,
)
from batchscope.search.candidates import Setting
from batchscope.search.costs import Costs, checked_costs, find_power
from batchscope.search.in_process import InProcess
from batchscope.search.memory import find_memory, largest_micro_batch
from batchscope.search.policy import Policy
from batchscope.search.race import Budget, Race
from batchscope.search.update_times import UpdateSeconds
from batchscope.seeding import current_device, isolated
from batchscope.training.interruption import StopRequest, stop_requests
from batchscope.training.loop import MOST_EPOCHS
from batchscope.training.micro_batching import least_batch_size
from batchscope.training.train import checked_seed, chosen_device
from batchscope.workload.workload import Workload

# What is not measured at a batch size is known to this share of it.
BEYOND = 0.15
LEAST_SPREAD = 0.02
# Candidates that wait may hold this share of the memory; the rest is for the one that trains.
KEPT_SHARE = 0.3


@dataclass
class Study:
    """A search that was run, and what goes with it.

    Attributes:
        workload: What is to be trained.
        goal: What was asked for.
        race: The search.
        source: Its candidates.
        devices: Devices that share each batch.
        communication_seconds: What they need to add up their gradients.
        costs: What a second costs.
        memory: What was measured of it; None where everything fits by far.
        largest_micro_batch: Examples at once at most; None: all of a batch.
        warnings: What to know.
        began: When it began.
        seed: Of everything random.
        device: Where it trains.
        stop: Whether somebody asked to stop.
    """

    workload: Workload
    goal: Goal
    race: Race
    source: InProcess
    devices: int
    communication_seconds: float
    costs: Costs
    memory: MemoryUse | None
    largest_micro_batch: int | None
    warnings: list[str]
    began: float
    seed: int
    device: torch.device
    stop: StopRequest
    other_seconds: dict[str, float] = field(default_factory=dict)

    @property
    def second_decay(self) -> float | None:
        """β₂ of the optimiser; None where it has none."""
        with isolated(0, current_device()):
            model = self.workload.model()
            optimizer = self.workload.optimizer_for(model, self.workload.learning_rate)
        betas = optimizer.param_groups[0].get("betas")
        return float(betas[1]) if isinstance(betas, (tuple, list)) and len(betas) > 1 else None

    @property
    def spent_seconds(self) -> float:
        """Wall time so far."""
        return time.perf_counter() - self.began

    def micro_batch_size(self, batch_size: int) -> int:
        """Examples that pass through the model at once on each device."""
        share = math.ceil(batch_size / self.devices)
        return share if self.largest_micro_batch is None else min(share, self.largest_micro_batch)

    def accumulation_steps(self, batch_size: int) -> int:
        """Micro-batches of an update on each device."""
        return math.ceil(math.ceil(batch_size / self.devices) / self.micro_batch_size(batch_size))

    def step_seconds(self, batch_size: int) -> float:
        """Seconds of an update, with the data that it waits for."""
        known = UpdateSeconds({size: self.source.update_seconds(size) for size in self.source.times.pieces})
        if self.devices == 1:
            return known(batch_size)
        micro = self.micro_batch_size(batch_size)
        return self.accumulation_steps(batch_size) * known(micro) + self.communication_seconds

    def step_interval(self, batch_size: int) -> Interval:
        """Seconds of an update with what is known about it."""
        value = self.step_seconds(batch_size)
        spread = self.source.times.spread(batch_size)
        width = 1.96 * max(LEAST_SPREAD, BEYOND if math.isnan(spread) else spread)
        # On a busy machine all that others took may have lengthened it.
        low = (1 - self.source.times.contention(batch_size)) / (1 + width)
        return Interval(value, value * low, value * (1 + width), 0.95)

    def busy_warning(self) -> str | None:
        """What to know of a busy machine; None where quiet moments came for every batch size."""
        return busy_warning(max(map(self.source.times.contention, self.source.times.pieces), default=None))

    def knee(self) -> Interval:
        """Batch size at which examples/s reach half of what they can."""
        law = self.step_law()
        return Interval.unresolved() if law is None else law.knee

    def step_law(self) -> StepTimeLaw | None:
        """The law of the time of an update; None with fewer than three batch sizes."""
        import numpy as np

        from batchscope.fit.step_time import fit_step_time

        sizes = sorted(size for size in self.source.times.pieces if self.source.times.quiet(size))
        if len(sizes) < 3:
            return None
        rows = [[p.seconds / p.updates for p in self.source.times.quiet(size)] for size in sizes]
        rounds = np.array([np.resize(row, max(map(len, rows))) for row in rows]).T
        return fit_step_time(sizes, rounds)


@contextlib.contextmanager
def study(question: Question) -> Iterator[Study]:
    """Run a search.

    Args:
        question: What is asked.

    Yields:
        The study, while progress is still shown and candidates still hold their weights.

    Raises:
        ArgumentError: Not exactly one goal, or a setting that makes no sense.
    """
    began, workload = time.perf_counter(), question.workload
    goal = checked_goal(question.target, question.examples, question.seconds)
    checked_costs(question.price_per_hour, question.power_watts, question.time_share, goal)
    budget = Budget(checked_budget(question.budget_seconds))
    seed, devices = checked_seed(question.seed), checked_devices(question.devices, question.network)
    device = chosen_device(question.device)
    wanted = checked_sizes(question.batch_sizes, workload)
    with reporter(question.progress, "advising") as report, stop_requests() as stop:
        report.update(label="looking at memory", done=0, total=None)
        with isolated(0, current_device()):
            model = workload.model()
            least = least_batch_size(model)
            gradient_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
            del model
        sizes = wanted or default_sizes(workload, least)
        memory, warning = find_memory(workload, sizes, question.max_memory_bytes, device=device, seed=seed)
        micro = largest_micro_batch(memory, workload)
        other = {"memory": time.perf_counter() - began}
        power, unsure = _power(question, sizes, device, seed, report)
        costs = Costs(question.price_per_hour, power, question.time_share, devices)
        other["power"] = time.perf_counter() - began - other["memory"]
        source = InProcess(
            workload,
            device,
            seed=seed,
            target=goal.value if goal.kind == "target" else None,
            budget_examples=_budget_examples(goal, workload),
            workers=question.workers,
            micro_batch_size=lambda size: None if micro is None or size <= micro else micro,
            stopped=lambda: stop.requested,
            began=began,
        )
        policy = Policy(_start(workload, sizes), sizes, trains_winner=question.trains_winner)
        race = Race(
            source,
            policy,
            goal,
            budget,
            most_score=_most_score(source.perfect, goal),
            keep_bytes=_keep_bytes(question.max_memory_bytes, device),
        )
        found = Study(
            workload=workload,
            goal=goal,
            race=race,
            source=source,
            devices=devices,
            communication_seconds=_communication_seconds(devices, question.network, gradient_bytes),
            costs=costs,
            memory=memory,
            largest_micro_batch=micro,
            warnings=[text for text in (warning, unsure) if text is not None],
            began=began,
            seed=seed,
            device=device,
            stop=stop,
            other_seconds=other,
        )
        policy.weight = _weight(goal, costs, found)
        race.tell, race.stopped = _teller(report, found), lambda: stop.requested
        try:
            race.run()
            yield found
        finally:
            source.close()


def _power(
    question: Question, sizes: Sequence[int], device: torch.device, seed: int, report: Report
) -> tuple[PowerUse | None, str | None]:
    """Power of a device, and what is unsure about it; None where it does not count."""
    given, counts = question.power_watts, question.time_share is not None
    if given == "measured" or (counts and given is None):
        report.update(label="measuring power", done=0, total=None)
    return find_power(question.workload, given, wanted=counts, batch_sizes=tuple(sizes), device=device, seed=seed)


def _most_score(perfect: float | None, goal: Goal) -> float:
    """What no score exceeds; infinite where that is not known, or where it is the target itself."""
    if perfect is None or (goal.kind == "target" and goal.value >= perfect):
        return math.inf
    return perfect


def _start(workload: Workload, sizes: Sequence[int]) -> Setting:
    """Today's setting; at the nearest batch size that may be advised, by the optimiser's rule, where it may not."""
    size = min(sizes, key=lambda size: abs(math.log(size / workload.batch_size)))
    if size == workload.batch_size:
        return Setting(size, workload.learning_rate)
    return Setting(size, workload.learning_rate * (size / workload.batch_size) ** scaling_exponent(workload))


def scaling_exponent(workload: Workload) -> float:
    """The exponent of the optimiser's scaling rule; between the two rules for an optimiser that has none."""
    with isolated(0, current_device()):
        model = workload.model()
        optimizer = workload.optimizer_for(model, workload.learning_rate)
    try:
        return learning_rate_exponent(optimizer)
    except PlanError:
        return 0.75


def _keep_bytes(max_memory_bytes: int | None, device: torch.device) -> float:
    """Memory that candidates may hold between their steps: a part of what training may take."""
    limit = max_memory_bytes if max_memory_bytes is not None else available_memory(device)[0]
    return math.inf if limit is None else KEPT_SHARE * limit


def _weight(goal: Goal, costs: Costs, found: Study) -> Callable[[int], float]:
    """What a second counts for: examples where they are given, energy and time where both count, or 1."""
    if goal.kind != "examples":
        return costs.weight

    def examples_per_second(batch_size: int) -> float:
        seconds = found.step_seconds(batch_size)
        return batch_size / seconds if seconds > 0 else 1.0

    return examples_per_second


def _budget_examples(goal: Goal, workload: Workload) -> Callable[[int], int]:
    most = int(goal.value) if goal.kind == "examples" else MOST_EPOCHS * workload.training_examples
    return lambda batch_size: most


def _communication_seconds(devices: int, network: tuple[float, float] | None, gradient_bytes: int) -> float:
    """What adding up the gradients takes."""
    if network is None or devices == 1:
        return 0.0
    bytes_per_second, latency = network
    law = AllReduceLaw.given(gigabytes_per_second=bytes_per_second / 1e9, microseconds=latency * 1e6)
    return law.seconds(gradient_bytes, ranks=devices) or 0.0


def _teller(report: Report, found: Study) -> Callable[[str, float], None]:
    """Shows what is tried, the best so far, and the seconds left."""

    def tell(label: str, left: float) -> None:
        total = max(found.spent_seconds + left, 1e-9)
        observations = found.race.observations()
        best = found.race.policy.best(observations, found.race.guessed_seconds(observations)) if observations else None
        so_far = "" if best is None else f"; best so far {best.setting.batch_size:,} @ {best.setting.learning_rate:.3g}"
        report.update(
            label=f"training {label}{so_far}",
            done=min(100, round(100 * found.spent_seconds / total)),
            total=100,
            seconds_left=max(0.0, left),
        )

    return tell
