"""What the three limits mean for a workload, in sentences with its own numbers in them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from batchscope.records import BranchedRuns, Interval, MemoryUse, NoisePoint, StepTimes, WorkloadSummary
from batchscope.records.probe import CriticalSource


def memory(use: MemoryUse | None, workload: WorkloadSummary) -> str:
    """What an example costs in memory, and how large a micro-batch fits."""
    if use is None or use.law is None:
        return "Memory was not measured here."
    per_example, state = use.law.bytes_per_example.value or 0.0, use.law.state_bytes.value or 0.0
    costs = f"Each example of a micro-batch takes {_bytes(per_example)}, beside {_bytes(state)} whatever its size."
    if use.limit_bytes is None or use.largest_predicted is None:
        return f"{costs} How much memory there is could not be told."
    room = f"{_bytes(use.limit_bytes)} ({_source(use)}, {use.margin:.0%} of it left free)"
    if use.holds_all:
        return f"{costs} In {room} the whole training set of {workload.training_examples:,} would fit as one batch."
    return (
        f"{costs} {room} hold a micro-batch of about {_size(use.largest_predicted)}; "
        f"a larger batch runs as several micro-batches, at no gain in speed."
    )


def _source(use: MemoryUse) -> str:
    return "as given" if use.limit_source == "given" else use.limit_source


def knee(step_time: StepTimes) -> str:
    """What an update costs in time, and from which batch size on the machine is busy."""
    law = step_time.law
    text = ""
    if step_time.loader_bound_from is not None:
        text = (
            f" From batch size {step_time.loader_bound_from:,} on it is reading the data that takes most of the time, "
            f"not the network: more workers or faster reading would help, a larger batch would not."
        )
    fixed, each = law.fixed_seconds.value or 0.0, law.seconds_per_example.value or 0.0
    if law.knee.value is None:
        if law.knee.low is not None and law.knee.low > 1:
            start = (
                f"Throughput still grows at the largest batch size timed; its knee lies above {_size(law.knee.low)}."
            )
        else:
            start = "Throughput hardly depends on batch size here: an example costs the same time in any batch."
        return start + text
    if law.knee.value < 1:
        return f"An update's fixed cost is less than that of one example, {_time(each)}: any batch size is fast." + text
    return (
        f"An update takes {_time(fixed)} whatever its size and {_time(each)} for each example, so half of the full "
        f"speed is reached at batch size {_range(law.knee)}, and nine tenths at about {_size(9 * law.knee.value)}."
        + text
    )


def critical(
    size: Interval,
    source: CriticalSource | None,
    where: NoisePoint | None,
    branched: BranchedRuns | None,
    noise: Sequence[NoisePoint],
) -> str:
    """Up to which batch size more examples per update save updates."""
    if size.value is None:
        last = noise[-1] if noise else None
        needed = f" About {last.examples_needed:,} examples would tell." if last and last.examples_needed else ""
        above = f" It lies above {_size(size.low)}." if size.low and size.low >= 1 else ""
        return f"The gradients measured do not determine the noise scale.{above}{needed}"
    means = "At that size training needs about twice the examples of a small batch and twice the updates of a huge one."
    if source == "branched runs" and branched is not None:
        start = (
            f"Branched after {branched.examples_before:,} examples, training loses nothing up to batch size "
            f"{_size(size.low)} and clearly does at {_size(size.high)}."
        )
        latest = next((p for p in reversed(noise) if p.noise_scale.resolved), None)
        if latest is not None:
            start += f" The noise scale of the gradients is {_range(latest.noise_scale)} there."
        return f"{start} {means}"
    after = f" after {where.examples:,} examples" if where is not None else ""
    kind = "noise scale, in the optimiser's own scaling," if source == "preconditioned noise scale" else "noise scale"
    text = f"The {kind} of the gradients is {_range(size)}{after}. {means}"
    text += _branches_beside(branched)
    return text + " It is a proxy: in published runs the critical batch size was 0.05 to 8 times as large."


def _branches_beside(branched: BranchedRuns | None) -> str:
    """What branched runs say where they end on one side only."""
    if branched is None:
        return ""
    found = branched.critical_batch_size
    if found.value is not None:
        return f" Branched runs lost nothing up to {_size(found.value)}, the largest tried or told."
    if found.high is not None and math.isfinite(found.high):
        over = f" over {branched.branches[0].examples:,} examples" if branched.branches else ""
        return f" Branched runs{over} lost by it at {_size(found.high)} already, the least that could be told."
    return ""


def conclusion(
    workload: WorkloadSummary,
    worth: Interval,
    low: int | None,
    high: int | None,
    *,
    excess: float | None,
    critical: Interval,
    knee: Interval,
    holds: int | None,
) -> str:
    """How large a batch is worth having, and why."""
    if worth.value is None or low is None or high is None or excess is None:
        missing = [
            name
            for name, interval in (("throughput knee", knee), ("critical batch size", critical))
            if interval.value is None
        ]
        return (
            f"How large a batch is worth having cannot be told yet: the {' and the '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not resolved."
        )
    text = (
        f"A batch size of about {_size(worth.value)} should reach a given loss soonest here; "
        f"anything from {_size(low)} to {_size(high)} takes at most a tenth longer."
    )
    if high < workload.batch_size or low > workload.batch_size:
        text += f" Today's {workload.batch_size:,} takes {excess:.0%} longer."
    else:
        text += f" Today's {workload.batch_size:,} is among them."
    if worth.value < (critical.value or 0.0):
        text += " Below it the machine idles between updates; above it examples are spent faster than they teach."
    if holds is not None and holds < high:
        text += f" Memory holds {_size(holds)} at once."
    return text


def _size(size: float | None) -> str:
    """A batch size, to two digits where it is an estimate."""
    if size is None:
        return "an unknown size"
    if math.isinf(size):
        return "infinity"
    if size < 10:
        return f"{size:.2g}"
    digits = 2 - len(str(round(size)))
    return f"{round(size, min(0, digits)):,.0f}"


def _range(interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return _size(interval.value)
    return f"{_size(interval.value)} ({_size(interval.low)} to {_size(interval.high)})"


def _time(seconds: float) -> str:
    for size, name in ((1e-3, "µs"), (0.5, "ms"), (math.inf, "s")):
        if seconds < size:
            unit = {"µs": 1e-6, "ms": 1e-3, "s": 1.0}[name]
            return f"{seconds / unit:.3g} {name}"
    return "an unknown time"


def _bytes(size: float) -> str:
    names = ("bytes", "KiB", "MiB", "GiB", "TiB")
    power = min(len(names) - 1, max(0, int(math.log2(max(size, 1)) // 10)))
    return f"{size / 1024**power:.3g} {names[power]}"
