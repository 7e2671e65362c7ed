"""What a probe's page holds, section by section; a part on its own is shown by the same sections."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from batchscope.records import (
    BranchedRuns,
    Interval,
    MemoryUse,
    MonitoredNoise,
    NoiseMeasurement,
    Probe,
    RangeTest,
    StepTimes,
)
from batchscope.report import formatting as f
from batchscope.report import probe_sheets, sheets
from batchscope.report.content import Card, Content, Figure, Section, drawn, of_one_measurement
from batchscope.report.marks import AMBER, BLUE, TEAL

Part = StepTimes | MemoryUse | NoiseMeasurement | BranchedRuns | RangeTest
"""The records that a probe is made of."""

_QUESTIONS: dict[type[Part], str] = {
    StepTimes: "What does an update cost in time?",
    MemoryUse: "How large a micro-batch fits into memory?",
    NoiseMeasurement: "How noisy are the gradients?",
    BranchedRuns: "From which batch size on does training lose?",
    RangeTest: "Which learning rates work?",
}


def of_probe(record: Probe, available: Iterable[str]) -> Content:
    """The page of a probe.

    Args:
        record: The probe.
        available: Names of the charts that have something to show.

    Returns:
        The answer, the three limits, and a section for each part that was measured.
    """
    found = record.limits
    shown = frozenset(available)
    overview = drawn(shown, Figure("limits", "The limits on one axis of batch sizes", alone=True))
    sections = [
        Section(
            "The three limits",
            "Below the knee, hardware idles; beyond the critical batch size, examples are wasted; memory bounds what "
            "passes through the model at once. A bar is a 95% interval, an arrow one that goes on.",
            figures=overview,
            cards=(
                Card(
                    "Memory",
                    f.count(found.memory) if found.memory is not None else "not known",
                    "" if found.memory is None else "examples in a micro-batch at most",
                    found.memory_sentence,
                    AMBER,
                ),
                Card("Throughput knee", *_number_of(found.knee), found.knee_sentence, BLUE),
                Card("Critical batch size", *_number_of(found.critical), found.critical_sentence, TEAL),
            ),
        ),
        _time(record.step_time, shown),
    ]
    if record.memory is not None:
        sections.append(_memory(record.memory, shown))
    sections.append(_gradients(record, shown))
    if record.branched is not None:
        sections.append(_branches(record.branched, shown))
    if record.learning_rate is not None:
        sections.append(_rates(record.learning_rate, shown))
    sections.append(
        Section(
            "How this was measured",
            facts=(
                ("Settings", probe_sheets.settings(record)),
                ("Provenance", sheets.provenance(record.provenance)),
            ),
        )
    )
    return Content(
        name=record.workload.name,
        title="How large a batch is worth having?",
        answer=found.conclusion,
        notice="" if record.replanned is None else probe_sheets.replanned(record.replanned),
        summary=(
            ("worth having", f.sized(found.worth_having)),
            ("used today", f.count(record.workload.batch_size)),
            ("the probe took", f.seconds(record.seconds)),
            ("on", record.provenance.device),
        ),
        warnings=record.warnings,
        sections=tuple(section for section in sections if section.holds_something()),
    )


def of_part(record: Part, available: Iterable[str]) -> Content:
    """The page of a part on its own, as :func:`of_probe` makes that of the whole."""
    shown = frozenset(available)
    if isinstance(record, StepTimes):
        section = _time(record, shown)
    elif isinstance(record, MemoryUse):
        section = _memory(record, shown)
    elif isinstance(record, NoiseMeasurement):
        section = _noise(record, shown)
    elif isinstance(record, BranchedRuns):
        section = _branches(record, shown)
    else:
        section = _rates(record, shown)
    if isinstance(record, BranchedRuns | RangeTest):  # the verdict is the answer already
        section = replace(section, lead="")
    content = of_one_measurement(record, title=_QUESTIONS[type(record)], answer=answer(record), measured=section)
    return replace(content, warnings=record.warnings) if isinstance(record, StepTimes) else content


def answer(record: Part) -> str:
    """What a part says, in a sentence or two."""
    if isinstance(record, StepTimes):
        return _speed(record)
    if isinstance(record, MemoryUse):
        return _room(record)
    if isinstance(record, NoiseMeasurement):
        return _noise_said(record.noise_scale, record.examples, record.examples_needed)
    return record.verdict


def of_monitor(record: MonitoredNoise) -> Content:
    """The page of the noise measured in a person's own loop."""
    return Content(
        name="your own loop",
        title=_QUESTIONS[NoiseMeasurement],
        answer=_noise_said(record.noise_scale, record.examples, record.examples_needed),
        summary=(("batch size", f.count(record.batch_size)), ("steps", f.count(record.steps)), ("on", record.device)),
        sections=(Section("What was measured", facts=(("Gradient noise", probe_sheets.monitored_facts(record)),)),),
    )


def _noise_said(scale: Interval, examples: int, needed: int | None) -> str:
    if scale.value is None:
        more = "" if needed is None else f" About {f.number(needed, 2)} examples would settle it."
        return f"The noise scale is {f.sized(scale)} with {f.count(examples)} examples.{more}"
    return (
        f"The noise scale is {f.sized(scale)} examples. In batches far below it the gradient is mostly noise, and "
        "more examples an update save updates; far above it they save few."
    )


def parts_of(record: Probe) -> tuple[Part, ...]:
    """The parts of a probe that were measured, in the order of the page."""
    found = (record.step_time, record.memory, record.gradient_noise, record.branched, record.learning_rate)
    return tuple(part for part in found if part is not None)


def _speed(steps: StepTimes) -> str:
    knee, law = steps.law.knee, steps.law
    if knee.value is None or law.fixed_seconds.value is None or law.seconds_per_example.value is None:
        first = "Where examples per second stop growing is not resolved."
    else:
        first = (
            f"The throughput knee lies at {f.sized(knee)}: there, examples per second are half of the most that the "
            f"law allows. An update costs {f.seconds(law.fixed_seconds.value)} whatever its size, and "
            f"{f.seconds(law.seconds_per_example.value)} for each example more."
        )
    size, rate = f.count(steps.fastest_batch_size), f.number(steps.most_examples_per_second, 3)
    bound = steps.loader_bound_from
    waits = "" if bound is None else f" From {f.count(bound)} on, getting a batch takes longer than computing with it."
    return f"{first} The fastest size measured is {size}, at {rate} examples per second.{waits}"


def _room(use: MemoryUse) -> str:
    ran = f.count(use.largest_executed)
    first = f"Micro-batches of up to {ran} ran here." if use.largest_executed else "No micro-batch ran here."
    if use.holds_all and use.largest_executed and use.largest_executed >= (use.largest_predicted or 0):
        return f"The full training set ran as one batch of {ran} here."
    if use.holds_all:
        return f"{first} By the law, even the full training set fits as one batch."
    if use.largest_predicted is None:
        return f"{first} What would fit beyond is not known."
    limit = f.memory(use.limit_bytes)
    free = f" with {f.share(use.margin, 1)} left free" if use.margin else ""
    return f"{first} By the law, {f.count(use.largest_predicted)} fit into {limit}{free}."


def _time(steps: StepTimes, shown: frozenset[str]) -> Section:
    law = steps.law.seconds(1.0) is not None
    figures = drawn(
        shown,
        Figure(
            "step_time",
            "Time of an update",
            note="Medians with 95% intervals" + ("; line: the law of computing." if law else "."),
        ),
        Figure("throughput", "Examples per second", note="Line: computing alone, by the law." if law else ""),
    )
    return Section(
        "Time",
        "",
        figures=figures,
        sheets=(probe_sheets.step_times(steps),) if steps.points else (),
        facts=(("The law of computing, and reading", probe_sheets.step_time_facts(steps)),),
    )


def _memory(use: MemoryUse, shown: frozenset[str]) -> Section:
    line = "Line: the fitted law. " if use.law else ""
    figure = Figure("memory", "Peak memory", note=f"{line}Of micro-batches that fit, any batch can be summed up.")
    return Section(
        "Memory",
        "",
        figures=drawn(shown, figure),
        sheets=(probe_sheets.memory(use),) if use.points else (),
        facts=(("The law, and the limit", probe_sheets.memory_facts(use)),),
    )


def _gradients(record: Probe, shown: frozenset[str]) -> Section:
    """The noise scale along training, and the last of its points in full."""
    last = _noise(record.gradient_noise, shown)
    note = "Band and bars: 95% intervals. Dashed, with an arrow: not resolved, known to one side alone."
    if any(point.preconditioned_noise_scale is not None for point in record.noise):
        note += " Preconditioned: after the optimiser's own scaling of every coordinate."
    along = drawn(shown, Figure("noise_scale", "Noise scale along training", note=note))
    table = (probe_sheets.noise_points(record.noise),) if record.noise else ()
    return replace(last, title="Gradient noise", figures=along + last.figures, sheets=table)


def _noise(noise: NoiseMeasurement, shown: frozenset[str]) -> Section:
    note = "Root mean square distance of a batch's gradient g from the true one G; line: what tr Σ predicts."
    return Section(
        "Gradient noise at one point",
        noise.note or "",
        figures=drawn(shown, Figure("gradient_error", "Error of a batch's gradient", note=note)),
        folded=probe_sheets.gradient_errors(noise) if noise.gradient_error else None,
        facts=(("The last measurement", probe_sheets.noise_facts(noise)),),
    )


def _branches(runs: BranchedRuns, shown: frozenset[str]) -> Section:
    note = "Bars: 95% intervals over the repeats. An arrow: far above; a cross: the branch diverged."
    return Section(
        "Branched runs",
        runs.verdict,
        figures=drawn(shown, Figure("branches", "Loss after the same number of examples", note=note)),
        sheets=(probe_sheets.branches(runs),) if runs.branches else (),
        facts=(("Where they branch", probe_sheets.branch_facts(runs)),),
    )


def _rates(test: RangeTest, shown: frozenset[str]) -> Section:
    note = "Line: mean over the repeats; band: their range. Shaded columns: 95% intervals."
    return Section(
        "Learning rate",
        test.verdict,
        figures=drawn(shown, Figure("rate_range", "Loss as the rate grows", note=note)),
        facts=(("What the test says", probe_sheets.range_facts(test)),),
        folded=probe_sheets.range_points(test) if test.points else None,
    )


def _number_of(interval: Interval) -> tuple[str, str]:
    """What a card shows of a limit: the number, and its interval."""
    ends = f.between(interval)
    if interval.value is None:
        return f.UNRESOLVED, "" if ends == f.UNKNOWN else ends
    return f.size(interval.value), "" if ends == f.UNKNOWN else f"{ends}, {interval.level:.0%} interval"
