"""What goes before advice: the measurements that the race needs, and the race."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from batchscope.advice.arguments import checked_goal, checked_sizes, default_sizes
from batchscope.advice.clock import Clock
from batchscope.advice.costs import Costs, Power, checked_costs, find_power
from batchscope.advice.pace import LONG, Pace, pace
from batchscope.advice.race import Race
from batchscope.advice.recommendation import Findings
from batchscope.advice.update_times import UpdateTimes
from batchscope.errors import ArgumentError, BatchscopeError, PlanError
from batchscope.measure.memory import memory_use
from batchscope.measure.noise import gradient_noise
from batchscope.measure.step_time import step_times
from batchscope.progress import Report, Reporter, reporter
from batchscope.provenance import provenance
from batchscope.records import MemoryUse, NoiseMeasurement, Spending
from batchscope.records.communication import AllReduceLaw
from batchscope.schedule import learning_rate_exponent
from batchscope.seeding import current_device, derive, isolated
from batchscope.training.interruption import StopRequest, stop_requests
from batchscope.training.loop import Prepared
from batchscope.training.micro_batching import least_batch_size
from batchscope.training.train import checked_seed, chosen_device
from batchscope.workload.summary import summarise
from batchscope.workload.workload import Workload

# Shares of the budget, and the least of each in seconds.
STEP_TIMES, MEMORY = (0.08, 0.5), (0.06, 0.4)
# Updates that take longer than this share of the budget are worked out from shorter ones.
LONGEST_UPDATE = 1 / 640
NOISE_EXAMPLES, LEAST_NOISE_EXAMPLES, NOISE_COST = 256, 64, 2.0
PACE_SHARE = 0.1
# Left of the budget for seeing the winner further, for judging the present setting, and for the noise.
RESERVE = 0.2
LEAST_BUDGET = 1.0


@dataclass(frozen=True)
class Contest:
    """A race that was run, and what goes with it.

    Attributes:
        findings: What was found out.
        tell: Shows what goes on.
    """

    findings: Findings
    tell: Callable[[str], None]


@contextlib.contextmanager
def contest(
    workload: Workload,
    *,
    target: float | None,
    examples: int | None,
    seconds: float | None,
    budget_seconds: float | None,
    max_memory_bytes: int | None,
    batch_sizes: Sequence[int] | None,
    devices: int,
    network: tuple[float, float] | None,
    seed: int,
    device: str | None,
    workers: int | None,
    progress: bool | Reporter,
    to_train: bool = False,
    price_per_hour: float | None = None,
    power_watts: Power | None = None,
    time_share: float | None = None,
) -> Iterator[Contest]:
    """Measure and race, as :func:`batchscope.advise` describes it.

    Args:
        workload: As for :func:`batchscope.advise`, and so are the others.
        target: Likewise.
        examples: Likewise.
        seconds: Likewise.
        budget_seconds: Likewise.
        max_memory_bytes: Likewise.
        batch_sizes: Likewise.
        devices: Likewise.
        network: Likewise.
        seed: Likewise.
        device: Likewise.
        workers: Likewise.
        progress: Likewise.
        to_train: Whether the winner is to be trained on: then nothing is spent on the present setting and on repeats.
        price_per_hour: As for :func:`batchscope.advise`.
        power_watts: Likewise.
        time_share: Likewise.

    Yields:
        The race, run, while progress is still shown.
    """
    goal = checked_goal(target, examples, seconds)
    checked_costs(price_per_hour, power_watts, time_share, goal)
    clock = Clock(_checked_budget(budget_seconds), to_train)
    seed = checked_seed(seed)
    if type(devices) is not int or devices < 1:
        raise ArgumentError("devices must be a whole number of at least 1", got=devices)
    if devices > 1 and network is None:
        raise ArgumentError(
            "with several devices the network between them must be known",
            got=f"devices={devices} without network",
            mend="give network=(bytes_per_second, latency_seconds)",
        )
    chosen = chosen_device(device)
    wanted = checked_sizes(batch_sizes, workload)
    with reporter(progress, "advising") as report, stop_requests() as stop:
        report.update(label="timing updates", done=0, total=None)
        measured = step_times(
            workload,
            longest_update_seconds=LONGEST_UPDATE * clock.sure_seconds,
            seconds=max(STEP_TIMES[1], STEP_TIMES[0] * clock.sure_seconds),
            seed=seed,
            device=chosen,
            workers=workers,
        )
        spending = [Spending("step times", clock.spent, 0)]
        memory, warnings = _memory(workload, max_memory_bytes, clock, seed, chosen)
        spending.append(Spending("memory", clock.spent - spending[0].seconds, 0))
        least = _least(workload)
        times = UpdateTimes(
            measured,
            largest_micro_batch=None if memory is None else _largest_micro_batch(memory, workload),
            devices=devices,
            communication_seconds=lambda count: _ring_seconds(count, network, memory, workload),
        )
        if times.busy:
            warnings.append(
                "Times of an update varied widely: the machine was busy with something else. Which batch size is the "
                "fastest depends on them: ask again when it is quiet."
            )
        sizes = wanted or default_sizes(workload, measured, least)

        if power_watts == "measured" or (time_share is not None and power_watts is None):
            report.update(label="measuring power", done=0, total=None)
        before = clock.spent
        power, unsure = find_power(
            workload,
            power_watts,
            wanted=time_share is not None,
            batch_sizes=tuple(sizes),
            device=chosen,
            seed=seed,
        )
        if unsure is not None:
            warnings.append(unsure)
        if power is not None and power.source in ("NVML", "RAPL"):
            spending.append(Spending("power", clock.spent - before, 0))
        costs = Costs(price_per_hour, power, time_share, devices)

        def measure_noise(state: dict[str, Any], seconds: float) -> NoiseMeasurement | None:
            # A gradient of a single example takes longer than its share of a batch's.
            affordable = seconds * measured.most_examples_per_second / NOISE_COST
            examples = round(min(max(affordable, LEAST_NOISE_EXAMPLES), NOISE_EXAMPLES))
            return _noise(workload, state, examples, seed=seed, device=chosen, stop=stop)

        exponent, second_decay = _of_the_optimizer(workload)
        race = Race(
            Prepared(workload, chosen, workers=workers),
            goal,
            sizes,
            times,
            exponent=exponent,
            clock=clock,
            seed=seed,
            reserve=0.0 if to_train else RESERVE,
            to_train=to_train,
            measure_noise=measure_noise,
            weight=costs.weight,
            tell=_teller(report, clock),
            stopped=lambda: stop.requested,
        )
        before = clock.spent
        race.run()
        spending.append(Spending("race", clock.spent - before, race.examples))
        if race.unstacked is not None:
            warnings.append(f"Candidates were trained in single runs, which takes longer: {race.unstacked}.")
        state = None if to_train else race.state_of_best()
        noise = None if state is None else measure_noise(state, math.inf)
        findings = Findings(
            workload=summarise(workload),
            goal=goal,
            race=race,
            times=times,
            measured=measured,
            memory=memory,
            noise=noise,
            spending=spending,
            warnings=warnings,
            devices=devices,
            costs=costs,
            second_decay=second_decay,
            interrupted=stop.requested,
            provenance=provenance(workload, device=chosen, seed=seed),
            pace=lambda size, rate: None if to_train else _pace(race, clock, size, rate),
        )
        yield Contest(findings, _teller(report, clock))


def _checked_budget(budget_seconds: float | None) -> float | None:
    if budget_seconds is None:
        return None
    if not isinstance(budget_seconds, (int, float)) or not LEAST_BUDGET <= budget_seconds < math.inf:
        raise ArgumentError(f"a budget must be at least {LEAST_BUDGET:g} second", got=budget_seconds)
    return float(budget_seconds)


def _teller(report: Report, clock: Clock) -> Callable[[str], None]:
    def tell(label: str) -> None:
        limit = max(clock.limit, 1e-9)
        report.update(
            label=label,
            done=min(100, round(100 * clock.spent / limit)),
            total=100,
            seconds_left=max(0.0, clock.left),
        )

    return tell


def _least(workload: Workload) -> int:
    with isolated(0, current_device()):
        return least_batch_size(workload.model())


def _of_the_optimizer(workload: Workload) -> tuple[float, float | None]:
    """The scaling rule's exponent, between the two rules for an optimiser that has none, and β₂ where it has one."""
    with isolated(0, current_device()):
        model = workload.model()
        optimizer = workload.optimizer_for(model, workload.learning_rate)
    betas = optimizer.param_groups[0].get("betas")
    second_decay = float(betas[1]) if isinstance(betas, (tuple, list)) and len(betas) > 1 else None
    try:
        return learning_rate_exponent(optimizer), second_decay
    except PlanError:
        return 0.75, second_decay


def _memory(
    workload: Workload, limit_bytes: int | None, clock: Clock, seed: int, device: object
) -> tuple[MemoryUse | None, list[str]]:
    try:
        return (
            memory_use(
                workload,
                limit_bytes=limit_bytes,
                seconds=max(MEMORY[1], MEMORY[0] * clock.sure_seconds),
                seed=seed,
                device=str(device),
            ),
            [],
        )
    except BatchscopeError as error:
        if limit_bytes is not None:
            raise
        return None, [f"Memory could not be measured: {error}"]


def _largest_micro_batch(memory: MemoryUse, workload: Workload) -> int | None:
    """The largest power of two that fits; None where everything does."""
    largest = memory.largest_predicted
    if largest is None or memory.holds_all or largest >= workload.training_examples:
        return None
    if largest < 1:
        raise ArgumentError(
            "the memory must hold one example at least",
            got=f"{memory.limit_bytes:,} bytes" if memory.limit_bytes else "none",
            mend="give more memory, or a smaller model",
        )
    return 1 << (largest.bit_length() - 1)


def _ring_seconds(
    devices: int, network: tuple[float, float] | None, memory: MemoryUse | None, workload: Workload
) -> float:
    """What adding up the gradients takes."""
    if network is None:
        return 0.0
    if memory is not None:
        gradient_bytes = memory.parameter_bytes
    else:
        with isolated(0, current_device()):
            gradient_bytes = sum(p.numel() * p.element_size() for p in workload.model().parameters())
    bytes_per_second, latency = network
    law = AllReduceLaw.given(gigabytes_per_second=bytes_per_second / 1e9, microseconds=latency * 1e6)
    return law.seconds(gradient_bytes, ranks=devices) or 0.0


def _pace(race: Race, clock: Clock, batch_size: int, learning_rate: float) -> Pace | None:
    """What updates take in a run of its own, where finding out costs little of what the advice costs."""
    allowed = PACE_SHARE * max(clock.limit, clock.spent)
    if race.times.devices > 1 or LONG * race.seconds_per_update(batch_size) > allowed:
        return None
    return pace(race.prepared, batch_size, learning_rate, seed=race.seed)


def _noise(
    workload: Workload, state: dict[str, Any], examples: int, *, seed: int, device: object, stop: StopRequest
) -> NoiseMeasurement | None:
    """The noise scale at some weights; None where it cannot be measured."""
    if stop.requested:
        return None
    try:
        return gradient_noise(
            workload,
            state,
            examples=min(examples, workload.training_examples),
            seed=derive(seed, "advice") % 2**31,
            device=str(device),
        )
    except BatchscopeError:
        return None
