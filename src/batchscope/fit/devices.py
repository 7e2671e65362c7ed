"""How far more devices pay, from a probe of one device, a network and the law of examples against batch size.

With N devices and a batch of B an update takes τ(m)·k + w: B/N examples on each, in k micro-batches of m, and the wait
w = max(0, κ·a(N) − o·⅔·τ(m)) for the sum of the gradients. τ is the probe's law of step times with what reading the
data takes; a(N) the time of an all-reduce of the gradients by the α–β model
(:func:`batchscope.fit.communication.all_reduce_seconds`); κ is 1, or 3/2 where the weights are divided too, which are
then gathered twice (ZeRO stage 3: Rajbhandari et al. 2020, arXiv 1910.02054); o is the share of the last backward pass,
two thirds of the computing, beside which gradients are summed. The time to a target is that of an update times
E(B)/B updates, with E(B) = E_min·(1 + B/B_crit) (McCandlish et al. 2018).

All of it is worked out for the estimates and for draws from what the laws leave possible; intervals are quantiles of
the draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from batchscope.errors import ArgumentError
from batchscope.fit import devices_in_words as words
from batchscope.fit.device_draws import (
    LEVEL,
    DeviceCase,
    DrawnExamples,
    DrawnStep,
    Floats,
    SolvedCase,
    drawn_interval,
)
from batchscope.fit.sharding import STAGES, sharded_memory
from batchscope.fit.tradeoff import LEAST_SIZES
from batchscope.records import (
    AllReduceLaw,
    DevicePlan,
    DeviceRow,
    Interval,
    Probe,
    ShardedMemory,
    Sweep,
    TradeoffLaw,
)
from batchscope.records.devices import AllReduceAlgorithm

MOST_DEVICES = 2**20
BYTES_OF = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


def plan_devices(
    probe: Probe,
    devices: Sequence[int] = (1, 8, 64, 1024),
    *,
    network: AllReduceLaw | tuple[float, float],
    law: TradeoffLaw | Sweep | None = None,
    target_examples: float | None = None,
    algorithm: AllReduceAlgorithm = "ring",
    overlap: float = 0.0,
    zero_stage: int = 0,
    price_per_hour: float | None = None,
    power_watts: float | None = None,
    least_gain: float = 0.1,
    least_efficiency: float = 0.5,
    seed: int = 0,
) -> DevicePlan:
    """Say how fast, how well used and how dear training is on some numbers of devices, and from where more don't pay.

    Args:
        probe: Of one such device; :func:`batchscope.replan` makes one for a faster device or another memory.
        devices: Numbers of devices that share each batch.
        network: The law of an all-reduce, or bytes per second and seconds of latency of the slowest link of the ring.
        law: Examples to a target against batch size, or a sweep that fitted it; None: 1 + B/B_crit with the probe's
            critical batch size, of which only ratios follow.
        target_examples: Examples that the target takes with the workload's own batch size, where no law is given: then
            times follow too.
        algorithm: How gradients are summed: "ring", "tree", or the "fastest" of both.
        overlap: Share of the last backward pass during which gradients are summed already; 0: after it, as
            :func:`batchscope.train` does.
        zero_stage: What is divided among the devices: 0 nothing, 1 the optimiser's state, 2 the gradients too, 3 the
            weights too.
        price_per_hour: Price of a device for an hour.
        power_watts: Power of a device.
        least_gain: A doubling of the devices pays where the time falls by a factor of at least one plus this.
        least_efficiency: And where the efficiency stays at least this.
        seed: Of the draws.

    Returns:
        The plan: a row for each number of devices, and the largest number that pays.

    Raises:
        ArgumentError: Arguments that make no sense, a probe without a law of step times, or neither the probe nor the
            law says where the critical batch size lies, not even from where on.

    Examples:
        >>> import batchscope as bs
        >>> probe = bs.probe(bs.load_workload("digits"), seconds=5, branches=False, learning_rate=False)
        >>> law = bs.fit_tradeoff([8, 32, 128, 512], [11e3, 13e3, 23e3, 61e3])
        >>> plan = bs.plan_devices(probe, (1, 2), network=(1e9, 1e-4), law=law, price_per_hour=2.5)
        >>> [row.devices for row in plan.rows], plan.rows[0].efficiency.value
        ([1, 2], 1.0)
    """
    counts = _checked_devices(devices)
    _check_numbers(
        overlap=overlap,
        zero_stage=zero_stage,
        price_per_hour=price_per_hour,
        power_watts=power_watts,
        least_gain=least_gain,
        least_efficiency=least_efficiency,
        target_examples=target_examples,
    )
    if algorithm not in ("ring", "tree", "fastest"):
        raise ArgumentError("algorithm must be ring, tree or fastest", got=algorithm)
    between = _network(network)
    fitted = _fitted(law, target_examples)
    generator = np.random.default_rng(seed)
    step = DrawnStep.drawn(probe.step_time, between, generator)
    gradient_bytes = probe.workload.parameters * BYTES_OF.get(probe.provenance.dtype.removeprefix("torch."), 4)
    cases = [
        DeviceCase.of(
            probe,
            step,
            count,
            algorithm=algorithm,
            overlap=overlap,
            zero_stage=zero_stage,
            gradient_bytes=gradient_bytes,
        )
        for count in _between(counts)
    ]
    examples = DrawnExamples.drawn(probe, fitted, target_examples, np.concatenate([c.sizes for c in cases]), generator)
    known = [SolvedCase.of(case, examples) for case in cases if len(case.sizes)]
    if not known:
        raise ArgumentError(
            "at least one of the numbers of devices must have a setting",
            got=cases[0].reason,
            mend="give zero_stage=3, or a probe re-planned for more memory",
        )
    first = next((s for s in known if s.case.devices in counts), known[0])
    solved = {s.case.devices: s for s in known}
    rows = tuple(
        _row(
            case,
            solved.get(case.devices),
            first,
            examples,
            asked=case.devices in counts,
            price_per_hour=price_per_hour,
            power_watts=power_watts,
            memory=None
            if probe.memory is None or case.devices not in solved
            else sharded_memory(
                probe.memory, solved[case.devices].micro, devices=case.devices, gradient_bytes=gradient_bytes
            ),
        )
        for case in cases
    )
    worth = _worth([s for s in known if s.case.devices >= first.case.devices], least_gain, least_efficiency)
    plan = DevicePlan(
        workload=probe.workload,
        conclusion="",
        rows=rows,
        network=between,
        algorithm=algorithm,
        overlap=float(overlap),
        zero_stage=zero_stage,
        gradient_bytes=gradient_bytes,
        updates_from=examples.source,
        critical_batch_size=probe.limits.critical if fitted is None else fitted.critical_batch_size,
        relative=examples.relative,
        price_per_hour=price_per_hour,
        power_watts=power_watts,
        least_gain=float(least_gain),
        least_efficiency=float(least_efficiency),
        worth_devices=worth,
        warnings=words.warnings(probe, rows, source=examples.source, law=fitted, network=between, overlap=overlap),
        provenance=probe.provenance,
    )
    return words.concluded(plan)


def _row(
    case: DeviceCase,
    solved: SolvedCase | None,
    first: SolvedCase,
    examples: DrawnExamples,
    *,
    asked: bool,
    price_per_hour: float | None,
    power_watts: float | None,
    memory: ShardedMemory | None,
) -> DeviceRow:
    unresolved = Interval.unresolved(LEVEL)
    if solved is None:
        return DeviceRow(
            devices=case.devices,
            asked=asked,
            batch_size=None,
            best_batch_size=unresolved,
            examples_per_device=None,
            micro_batch_size=None,
            accumulation_steps=None,
            step_seconds=unresolved,
            communication_seconds=unresolved,
            examples_ratio=unresolved,
            examples=unresolved,
            updates=unresolved,
            seconds=unresolved,
            relative_time=unresolved,
            speed_up=unresolved,
            efficiency=unresolved,
            device_hours=unresolved,
            reason=case.reason,
        )
    size, micro, devices = solved.size, solved.micro, case.devices
    share = round(size / devices)
    needed = examples.at(np.array([size]))[:, 0]
    speed_up = first.times / solved.times
    hours = devices * solved.times / 3600

    def only_known(draws: Floats) -> Interval:
        return unresolved if examples.relative else drawn_interval(draws)

    return DeviceRow(
        devices=devices,
        asked=asked,
        batch_size=round(size),
        best_batch_size=drawn_interval(solved.least_sizes),
        examples_per_device=share,
        micro_batch_size=micro,
        accumulation_steps=share // micro,
        step_seconds=drawn_interval(case.seconds[:, solved.best]),
        communication_seconds=drawn_interval(case.communication[:, solved.best]),
        examples_ratio=drawn_interval(np.exp(needed - examples.least)),
        examples=only_known(np.exp(needed)),
        updates=only_known(np.exp(needed) / size),
        seconds=only_known(solved.times),
        relative_time=drawn_interval(1 / speed_up),
        speed_up=drawn_interval(speed_up),
        efficiency=drawn_interval(speed_up * first.case.devices / devices),
        device_hours=only_known(hours),
        cost=None if price_per_hour is None else only_known(price_per_hour * hours),
        joules=None if power_watts is None else only_known(3600 * power_watts * hours),
        memory=memory,
        measured_sizes=case.measured[0] <= micro <= case.measured[1],
    )


def _worth(solved: list[SolvedCase], least_gain: float, least_efficiency: float) -> Interval:
    """The largest number of devices that a doubling up to it still pays for, in each draw."""
    if len(solved) < 2:
        return Interval.unresolved(LEVEL)
    counts = np.array([s.case.devices for s in solved], dtype=np.float64)
    times = np.stack([s.least_times for s in solved])
    doublings = np.log2(counts[1:] / counts[:-1])[:, None]
    gains = (times[:-1] / times[1:]) ** (1 / doublings)
    efficiency = times[0] * counts[0] / (times[1:] * counts[1:, None])
    pays = np.cumprod((gains >= 1 + least_gain) & (efficiency >= least_efficiency), axis=0)
    worth = drawn_interval(counts[pays.sum(axis=0).astype(int)])
    # At the end of what was looked at, even more may pay.
    beyond = math.inf if worth.high == counts[-1] else worth.high
    return Interval(worth.value, worth.low, beyond, LEVEL)


def _checked_devices(devices: Sequence[int]) -> tuple[int, ...]:
    counts = tuple(devices)
    if not counts or any(type(n) is not int or not 1 <= n <= MOST_DEVICES for n in counts):
        raise ArgumentError(
            f"devices must be whole numbers from 1 to {MOST_DEVICES:,}", got=list(counts), mend="as in (1, 8, 64)"
        )
    return tuple(sorted(set(counts)))


def _between(counts: tuple[int, ...]) -> list[int]:
    """The numbers asked for, and doublings of the first one between them."""
    doublings = range((counts[-1] // counts[0]).bit_length())
    return sorted({*counts, *(counts[0] * 2**k for k in doublings)})


def _check_numbers(
    *,
    overlap: float,
    zero_stage: int,
    price_per_hour: float | None,
    power_watts: float | None,
    least_gain: float,
    least_efficiency: float,
    target_examples: float | None,
) -> None:
    for name, share in (("overlap", overlap), ("least_efficiency", least_efficiency)):
        if not 0 <= share <= 1:
            raise ArgumentError(f"{name} must be a share from 0 to 1", got=share)
    if type(zero_stage) is not int or zero_stage not in STAGES:
        raise ArgumentError("zero_stage must be 0, 1, 2 or 3", got=zero_stage)
    if not 0 <= least_gain < math.inf:
        raise ArgumentError("least_gain must be at least 0", got=least_gain, mend="0.1 asks for a tenth")
    for name, value in (
        ("price_per_hour", price_per_hour),
        ("power_watts", power_watts),
        ("target_examples", target_examples),
    ):
        if value is not None and not 0 < value < math.inf:
            raise ArgumentError(f"{name} must be above 0", got=value)


def _network(network: AllReduceLaw | tuple[float, float]) -> AllReduceLaw:
    if isinstance(network, AllReduceLaw):
        return network
    try:
        per_second, latency = network
        return AllReduceLaw.given(gigabytes_per_second=per_second / 1e9, microseconds=1e6 * latency)
    except (TypeError, ValueError) as error:
        raise ArgumentError(
            "network must be the law of an all-reduce, or bytes per second and seconds of latency", got=network
        ) from error


def _fitted(law: TradeoffLaw | Sweep | None, target_examples: float | None) -> TradeoffLaw | None:
    found = law.law if isinstance(law, Sweep) else law
    if law is None:
        return None
    if target_examples is not None:
        raise ArgumentError(
            "a law says how many examples the target takes", got="target_examples beside it", mend="leave it out"
        )
    if not isinstance(found, TradeoffLaw):
        raise ArgumentError(
            "law must be a trade-off law, or a sweep that fitted one",
            got=f"a {law.kind} record" + (" without a target" if isinstance(law, Sweep) else ""),
            mend="sweep with target=, or fit a table with bs.fit_tradeoff",
        )
    if sum(point.examples is not None for point in found.points) < LEAST_SIZES or found.examples(1.0) is None:
        raise ArgumentError("a law must be resolved to plan by it", got=found.verdict, mend="sweep more batch sizes")
    return found
