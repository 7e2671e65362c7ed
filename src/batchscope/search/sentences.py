"""The answer and its reasons in sentences, with this workload's numbers in them."""

from __future__ import annotations

import math

from batchscope.records import Advice, FrontierRow, Interval
from batchscope.schedule import beta_of_half_life, half_life
from batchscope.search.answer import Answer
from batchscope.search.study import Study
from batchscope.study.words import count, counts, listed, seconds

# A difference in time below this is not worth a sentence.
WORTH_SAYING = 0.05


def short_answer(advice: Advice) -> str:
    """What to use, how long it takes, and how that compares with today's setting."""
    goal = advice.goal
    micro = ""
    if advice.accumulation_steps and advice.accumulation_steps > 1:
        micro = f" (in {advice.accumulation_steps} micro-batches of {advice.micro_batch_size:,})"
    tokens = advice.workload.tokens_per_example
    in_tokens = "" if tokens is None else f" ({(advice.batch_size or 0) * tokens:,.0f} tokens)"
    verb = "Keep" if keeps_today(advice) else "Use"
    use = f"{verb} batch size {advice.batch_size:,}{in_tokens}{micro}, learning rate {advice.learning_rate:.3g}"
    if goal.kind == "target":
        if advice.predicted_seconds.value is None:
            low = advice.predicted_seconds.low
            least = "" if low is None else f" It takes more than {seconds(low)}."
            answer = f"{use}, and train until {goal.value:g} is reached. How long that takes is not known yet.{least}"
        else:
            answer = f"{use}: about {took(advice.predicted_seconds)} to reach {goal.value:g}"
            answer += f" ({advice.iterations:,} updates)." if advice.iterations else "."
    elif goal.kind == "examples":
        answer = f"{use}: {_score(advice.predicted_score)} after {count(goal.value)} examples, "
        answer += f"which take {took(advice.predicted_seconds)}."
    else:
        answer = f"{use}: {_score(advice.predicted_score)} after {seconds(goal.value)}."
    present = "" if advice.present is None or keeps_today(advice) else advice.present.sentence
    return f"{answer} {present}".strip()


def keeps_today(advice: Advice) -> bool:
    """Whether what is advised is what is used today."""
    present = advice.present
    return (
        present is not None
        and present.batch_size == advice.batch_size
        and advice.learning_rate is not None
        and math.isclose(present.learning_rate, advice.learning_rate, rel_tol=1e-6)
    )


def took(interval: Interval) -> str:
    """A time with its interval.

    Examples:
        >>> took(Interval(4.0, 3.0, 6.0, 0.9))
        '4 s (3 s to 6 s)'
    """
    if interval.value is None:
        return "an unknown time"
    if interval.low is None or interval.high is None:
        return seconds(interval.value)
    high = seconds(interval.high) if math.isfinite(interval.high) else "much more"
    return f"{seconds(interval.value)} ({seconds(interval.low)} to {high})"


def _score(interval: Interval) -> str:
    if interval.value is None:
        return "an unknown score" if interval.low is None else f"at least {interval.low:.4g}"
    ends = "" if interval.low is None or interval.high is None else f" ({interval.low:.4g} to {interval.high:.4g})"
    return f"about {interval.value:.4g}{ends}"


def present_sentence(
    batch_size: int, rate: float, ratio: Interval, taking: Interval, *, diverged: bool, is_advised: bool
) -> str:
    """Today's setting against the advised one.

    Args:
        batch_size: Today's.
        rate: Today's.
        ratio: Its time over that of the advised setting.
        taking: Its time.
        diverged: Whether its training diverged.
        is_advised: Whether it is the advised setting itself.
    """
    own = f"Today's setting (batch size {batch_size:,}, learning rate {rate:.3g})"
    if diverged:
        return f"{own} diverges."
    if is_advised:
        return "That is today's setting."
    if ratio.value is None or ratio.low is None or ratio.high is None:
        return f"{own} was slower in everything that was seen."
    times = f"{ratio.value:.2g} times as long ({ratio.low:.2g} to {ratio.high:.2g})"
    if taking.value is None:
        return f"{own} takes {times}."
    return f"{own} takes about {seconds(taking.value)}, {times}."


def reasons(advice: Advice, study: Study, answer: Answer) -> list[str]:
    """Why, in sentences.

    Args:
        advice: The advice, all but its reasons.
        study: The search.
        answer: What it found.
    """
    size = advice.batch_size or 1
    rows = {row.batch_size: row for row in advice.frontier}
    said = [
        _search(study),
        _throughput(advice, study),
        _critical(advice),
        *_half_and_double(advice, rows),
        _alternatives(advice),
        _rate(advice, answer),
        _second_moment(advice, study),
        "The plan averages the weights, which reaches at a constant rate what a cooldown at that moment would.",
        _memory(advice, rows.get(size)),
        _noise(advice),
        _money(advice),
        _blend(advice, study),
        _cost(advice),
    ]
    return [sentence for sentence in said if sentence]


def _search(study: Study) -> str:
    tried = [o for o in study.race.observations() if o.points]
    sizes = len({o.setting.batch_size for o in tried})
    rates = len({o.setting for o in tried})
    return (
        f"The search trained {counts_of(rates, 'setting')} at {counts_of(sizes, 'batch size')} and stopped because "
        f"{study.race.stop_reason}."
    )


def counts_of(number: int, noun: str) -> str:
    """A number with its noun.

    Examples:
        >>> counts_of(1, "setting"), counts_of(3, "setting")
        ('1 setting', '3 settings')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _throughput(advice: Advice, study: Study) -> str:
    size = advice.batch_size or 1
    per_second = size / study.step_seconds(size)
    known = {s: s / study.source.update_seconds(s) for s in study.source.times.pieces}
    fastest = max(known, key=lambda s: known[s])
    text = f"Batch size {size:,} trains on {count(per_second)} examples per second"
    if known[fastest] > per_second * (1 + WORTH_SAYING):
        text += f"; the most that was seen is {count(known[fastest])}, at batch size {fastest:,}"
    text += "."
    tokens = advice.workload.tokens_per_example
    if tokens is not None:
        text += f" That is {count(size * tokens)} tokens per update and {count(per_second * tokens)} per second."
    if advice.throughput_knee.value is not None:
        text += f" Throughput reaches half of its maximum at batch size {counts(advice.throughput_knee)}."
    return text


def _critical(advice: Advice) -> str:
    critical, size = advice.critical_batch_size, advice.batch_size or 1
    if critical.value is None:
        return ""
    more = size / critical.value
    return (
        f"The critical batch size is about {counts(critical)}: batch size {size:,} needs about {1 + more:.2g} times "
        f"the fewest possible examples and {1 + 1 / more:.2g} times the fewest possible updates."
    )


def _half_and_double(advice: Advice, rows: dict[int, FrontierRow]) -> list[str]:
    size = advice.batch_size or 1
    own, said = rows.get(size), []
    for other, word in ((size // 2, "Half"), (2 * size, "Twice")):
        row = rows.get(other)
        if row is None or own is None or advice.goal.kind != "target":
            continue
        if row.seconds.value and own.seconds.value:
            said.append(
                f"{word} the batch size ({other:,}) would take {changed(row.seconds.value / own.seconds.value)}."
            )
    return said


def changed(ratio: float) -> str:
    """A ratio of times in words.

    Examples:
        >>> changed(1.36), changed(0.64), changed(3.0), changed(1.0)
        ('36% more time', '36% less time', '3 times as long', 'the same time')
    """
    if ratio >= 2:
        return f"{ratio:.2g} times as long"
    if abs(ratio - 1) < 0.005:
        return "the same time"
    return f"{abs(ratio - 1):.0%} {'more' if ratio > 1 else 'less'} time"


def _alternatives(advice: Advice) -> str:
    if not advice.alternatives:
        return ""
    others = listed([f"{other:,}" for other in advice.alternatives])
    return f"What was seen does not distinguish batch size {advice.batch_size:,} from {others}."


def _rate(advice: Advice, answer: Answer) -> str:
    row = answer.of(advice.batch_size or 1)
    low, high = (float(q) for q in _quantiles(row))
    if not low < high:
        return ""
    return f"The best learning rate at this batch size lies between {low:.2g} and {high:.2g} (90%)."


def _quantiles(row: object) -> tuple[float, float]:
    import numpy as np

    rates = row.rates  # type: ignore[attr-defined]
    low, high = np.quantile(rates, [0.05, 0.95], method="nearest")
    return float(low), float(high)


def _second_moment(advice: Advice, study: Study) -> str:
    """How long Adam's second moment remembers, in tokens, where the batch size changes."""
    tokens, size, present = advice.workload.tokens_per_example, advice.batch_size, advice.workload.batch_size
    beta = study.second_decay
    if beta is None or tokens is None or size is None or not 0 < beta < 1 or size == present:
        return ""
    before, now = (half_life(beta, each * tokens) for each in (present, size))
    kept = beta_of_half_life(before, size * tokens)
    return (
        f"With β₂ = {beta:g} the optimiser's second moment has a half-life of {count(now)} tokens; it is "
        f"{count(before)} at today's batch size, which β₂ = {kept:.4g} would keep."
    )


def _memory(advice: Advice, row: FrontierRow | None) -> str:
    if row is None or row.peak_memory_bytes is None:
        return ""
    return f"Training takes about {row.peak_memory_bytes / 2**20:,.0f} MiB on each device."


def _noise(advice: Advice) -> str:
    if advice.noise_scale.value is None:
        return ""
    return (
        f"The simple noise scale of the gradient is {counts(advice.noise_scale)} examples, a proxy of the critical "
        f"batch size that can be off by a factor of ten."
    )


def _money(advice: Advice) -> str:
    parts = []
    if advice.predicted_cost is not None and advice.predicted_cost.value is not None:
        parts.append(f"{advice.predicted_cost.value:.3g} at {advice.price_per_hour:g} per device and hour")
    if advice.predicted_joules is not None and advice.predicted_joules.value is not None and advice.power is not None:
        joules = advice.predicted_joules.value
        size, unit = (1.0, "J") if joules < 1e3 else (1e3, "kJ") if joules < 1e6 else (3.6e6, "kWh")
        watts = advice.power.watts(advice.batch_size or 1).value or 0.0
        known = {"given": "given", "assumed": "assumed"}.get(advice.power.source, f"measured by {advice.power.source}")
        parts.append(f"{joules / size:.3g} {unit} at {watts:,.0f} W per device ({known})")
    return f"That costs about {' and '.join(parts)}." if parts else ""


def _blend(advice: Advice, study: Study) -> str:
    power, share = advice.power, advice.time_share
    if share is None or power is None:
        return ""
    said = f"Minimised is {1 - share:.0%} energy and {share:.0%} time at the greatest power, {power.max_watts:,.0f} W."
    if not power.varies:
        return f"{said} Power does not depend on the batch size here, so the choice is that of time alone."
    first, last = power.points[0], power.points[-1]
    return (
        f"{said} A device draws {first.watts.value:,.0f} W at batch size {first.batch_size:,} and "
        f"{last.watts.value:,.0f} W at {last.batch_size:,}, so that a second counts "
        f"{study.costs.weight(first.batch_size):.2f} and {study.costs.weight(last.batch_size):.2f}."
    )


def _cost(advice: Advice) -> str:
    trained = advice.predicted_seconds.value
    share = next((part.seconds for part in advice.spending if part.name == "training candidates"), 0.0)
    said = (
        f"The advice took {seconds(advice.cost_seconds)}, {share / max(advice.cost_seconds, 1e-9):.0%} of it training"
    )
    return f"{said}." if trained is None else f"{said}; the training it is for takes {seconds(trained)}."


def no_answer(study: Study) -> str:
    """What was found where nothing trained at all."""
    observations = study.race.observations()
    if not any(o.points for o in observations):
        return "No setting can be advised: the search was stopped before anything had trained."
    rates = [o.setting.learning_rate for o in observations]
    return (
        f"No setting can be advised: training diverged at every learning rate from {min(rates):.2g} to "
        f"{max(rates):.2g}. Check the loss, the scale of the inputs and the optimiser, or start from a smaller "
        f"learning rate; batchscope probe {study.workload.title} shows where the loss rises."
    )
