"""The answer and its reasons in plain sentences, with this workload's numbers in them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from batchscope.advice.growing import growing_batch
from batchscope.advice.outlook import Outlook
from batchscope.records import Advice, FrontierRow, Interval
from batchscope.schedule import beta_of_half_life, half_life
from batchscope.study.words import count, counts, listed, seconds

if TYPE_CHECKING:
    from batchscope.advice.recommendation import Findings

# How much of a difference in time is worth a sentence.
WORTH_SAYING = 0.05
# A saving below this share of the time is nothing.
LEAST_SAVING = 0.01
# From here on a ratio is told in times, and not in per cent.
MANY_TIMES = 2.0


def short_answer(advice: Advice) -> str:
    """What to use, how long it takes, and what the present setting needs."""
    goal, iterations = advice.goal, advice.iterations or 0
    accumulated = ""
    if advice.accumulation_steps and advice.accumulation_steps > 1:
        accumulated = f" (in {advice.accumulation_steps} micro-batches of {advice.micro_batch_size:,})"
    use = (
        f"Use batch size {advice.batch_size:,}{_in_tokens(advice)}{accumulated}, "
        f"learning rate {advice.learning_rate:.3g}, {iterations:,} iterations with averaged weights"
    )
    if goal.kind == "target":
        answer = f"{use}: about {_took(advice.predicted_seconds)} to reach {goal.value:g}."
    else:
        spent = f"{count(goal.value)} examples" if goal.kind == "examples" else seconds(goal.value)
        answer = f"{use}: about {_score(advice.predicted_score)} after {spent}"
        answer += f", which take {_took(advice.predicted_seconds)}." if goal.kind == "examples" else "."
    return f"{answer} {_against_present(advice)}".strip()


def _in_tokens(advice: Advice) -> str:
    tokens = advice.workload.tokens_per_example
    return "" if tokens is None else f" ({(advice.batch_size or 0) * tokens:,.0f} tokens)"


def without_an_end(advice: Advice, findings: Findings) -> str:
    """What to use towards a target of which most draws do not say when it is reached."""
    low = advice.predicted_seconds.low
    least = "" if low is None else f", {seconds(low)} at least"
    budget = math.ceil(2 * findings.race.clock.spent)
    return (
        f"Use batch size {advice.batch_size:,}{_in_tokens(advice)}, learning rate {advice.learning_rate:.3g} "
        "with averaged weights until "
        f"{advice.goal.value:g} is reached: what was seen does not tell how long that takes{least}. "
        f"--budget {budget} would tell more. {_against_present(advice)}"
    ).strip()


def few_reasons(advice: Advice, findings: Findings) -> tuple[str, ...]:
    """What there is to say without an end."""
    said = (_throughput(advice, findings), _cost(advice))
    return tuple(sentence for sentence in said if sentence)


def _took(interval: Interval) -> str:
    if interval.value is None:
        return "an unknown time"
    if interval.low is None or interval.high is None:
        return seconds(interval.value)
    high = seconds(interval.high) if math.isfinite(interval.high) else "much more"
    return f"{seconds(interval.value)} ({seconds(interval.low)} to {high})"


def _score(interval: Interval) -> str:
    if interval.value is None:
        return "an unknown score"
    ends = "" if interval.low is None or interval.high is None else f" ({interval.low:.4g} to {interval.high:.4g})"
    return f"{interval.value:.4g}{ends}"


def _against_present(advice: Advice) -> str:
    present = advice.present
    if present is None:
        return ""
    own = f"Your present setting (batch size {present.batch_size:,}, learning rate {present.learning_rate:.3g})"
    if "diverges" in present.sentence:
        return f"{own} diverges."
    if advice.goal.kind == "target":
        if present.seconds.value is not None and math.isfinite(present.seconds.value):
            # Both by updates alone; then as a run of its own would take, which is what was predicted.
            row = next((row for row in advice.frontier if row.batch_size == advice.batch_size), None)
            times = present.seconds.value / ((row and row.seconds.value) or math.inf)
            much = f", {times:.2g} times as long" if times > 1 + WORTH_SAYING else ""
            return f"{own} needs about {seconds(times * (advice.predicted_seconds.value or 0.0))}{much}."
        return f"{own} was not seen to get there: {present.sentence[0].lower()}{present.sentence[1:]}"
    if present.score.value is not None:
        return f"{own} reaches about {present.score.value:.4g}."
    return present.sentence


def reasons(advice: Advice, findings: Findings, outlook: Outlook) -> list[str]:
    """Why, in sentences.

    Args:
        advice: The advice, all but its reasons.
        findings: What it rests on.
        outlook: The race's laws.

    Returns:
        The sentences.
    """
    size = advice.batch_size or 1
    rows = {row.batch_size: row for row in advice.frontier}
    said = [_throughput(advice, findings), _critical(advice, outlook), *_half_and_double(advice, rows)]
    if advice.alternatives:
        others = listed([f"{other:,}" for other in advice.alternatives])
        said.append(
            f"What was seen does not tell batch size {size:,} from {others}: they differ by less than "
            f"{_noticed(advice)}. "
            f"{_of_these(advice)}"
        )
    said.append(_without_averaging(advice, findings, rows))
    said.append(_growing(advice, findings, outlook))
    said += [_rate(advice, findings, rows[size]), _second_moment(advice, findings)]
    said.append(
        "The plan evaluates and keeps the average of the weights, in which late updates count most: at a constant "
        "learning rate it reaches what a cooldown at that moment would, and needs no end that is known beforehand."
    )
    if row_memory := rows[size].peak_memory_bytes:
        limit = findings.memory.limit_bytes if findings.memory else None
        of = f" of {limit / 2**30:.3g} GiB" if limit else ""
        said.append(f"It takes about {row_memory / 2**20:,.0f} MiB{of} on each device.")
    noise = advice.noise_scale
    if noise.value is not None:
        said.append(
            f"The gradient's simple noise scale there is {counts(noise)} examples: a proxy of the critical batch size "
            f"that is off by up to a factor of ten either way, shown beside what the race found."
        )
    said += [_money(advice), _blend(advice, findings), _cost(advice)]
    return [sentence for sentence in said if sentence]


def _money(advice: Advice) -> str:
    """What training costs in money and energy."""
    parts = []
    if advice.predicted_cost is not None and advice.predicted_cost.value is not None:
        parts.append(
            f"about {_ends(advice.predicted_cost, 1.0, '')} at {advice.price_per_hour:g} for a device and hour"
        )
    if advice.predicted_joules is not None and advice.predicted_joules.value is not None and advice.power is not None:
        joules = advice.predicted_joules.value
        size, unit = (1.0, " J") if joules < 1e3 else (1e3, " kJ") if joules < 1e6 else (3.6e6, " kWh")
        watts = advice.power.watts(advice.batch_size or 1).value or 0.0
        known = {"given": "given", "assumed": "assumed"}.get(advice.power.source, f"measured by {advice.power.source}")
        parts.append(f"{_ends(advice.predicted_joules, size, unit)} at {watts:,.0f} W for a device, {known}")
    return f"That costs {' and '.join(parts)}." if parts else ""


def _ends(interval: Interval, size: float, unit: str) -> str:
    value = f"{(interval.value or 0.0) / size:.3g}{unit}"
    if interval.low is None or interval.high is None:
        return value
    high = f"{interval.high / size:.3g}" if math.isfinite(interval.high) else "much more"
    return f"{value} ({interval.low / size:.3g} to {high})"


def _blend(advice: Advice, findings: Findings) -> str:
    """What weighing up energy and time has changed."""
    power, share = advice.power, advice.time_share
    if share is None or power is None:
        return ""
    said = f"What is least is {1 - share:.0%} energy and {share:.0%} time at the most power, {power.max_watts:,.0f} W."
    if not power.varies:
        return (
            f"{said} The same power is taken at every batch size, so that energy and cost are in proportion to time: "
            f"the choice is that of time alone."
        )
    first, last = power.points[0], power.points[-1]
    return (
        f"{said} A device draws {first.watts.value:,.0f} W at batch size {first.batch_size:,} and "
        f"{last.watts.value:,.0f} W at {last.batch_size:,}, so that a second counts "
        f"{findings.costs.weight(first.batch_size):.2f} at the one and {findings.costs.weight(last.batch_size):.2f} at "
        f"the other."
    )


def _noticed(advice: Advice) -> str:
    if advice.goal.kind != "target":
        return "what anybody would notice"
    return "3% of the time" if advice.time_share is None else "3% of what is to be least"


def _of_these(advice: Advice) -> str:
    if advice.goal.kind == "examples":
        return "The fastest one is advised."
    return "The smallest one that was trained is advised, since it takes the least memory."


def _throughput(advice: Advice, findings: Findings) -> str:
    points = [p for p in findings.measured.points if p.examples_per_second.value]
    if not points:
        return ""
    fastest = max(points, key=lambda p: p.examples_per_second.value or 0.0)
    size = advice.batch_size or 1
    per_second = size / findings.times.seconds(size)
    most = fastest.examples_per_second.value or per_second
    knee = findings.measured.law.knee
    text = (
        f"Batch size {size:,} trains on {count(per_second)} examples a second, {min(1.0, per_second / most):.0%} of "
        f"the most that was measured ({count(most)} at {fastest.batch_size:,})."
    )
    tokens = findings.workload.tokens_per_example
    if tokens is not None:
        text += f" That is {count(size * tokens)} tokens an update and {count(per_second * tokens)} a second."
    if knee.value is not None:
        text += f" Throughput is at half of what it can be at {counts(knee)} examples, the knee."
    return text


def _critical(advice: Advice, outlook: Outlook) -> str:
    critical = advice.critical_batch_size
    size = advice.batch_size or 1
    if critical.value is None:
        return "The critical batch size is not resolved by what was trained."
    more = size / critical.value
    return (
        f"The critical batch size near the goal is {counts(critical)}: at {size:,} training takes about "
        f"{1 + more:.2g} times the fewest examples that would do, and {1 + 1 / more:.2g} times the fewest updates."
    )


def _half_and_double(advice: Advice, rows: dict[int, FrontierRow]) -> list[str]:
    size, goal = advice.batch_size or 1, advice.goal
    own = rows[size]
    said = []
    for other, word in ((size // 2, "Half"), (2 * size, "Double")):
        row = rows.get(other)
        if row is None:
            continue
        if (
            goal.kind == "target"
            and row.seconds.value
            and own.seconds.value
            and row.examples.value
            and own.examples.value
        ):
            said.append(
                f"{word} the batch ({other:,}) would take {_changed(row.seconds.value / own.seconds.value)} time and "
                f"{_changed(row.examples.value / own.examples.value)} examples."
            )
        elif row.score.value is not None and own.score.value is not None:
            change = row.score.value - own.score.value
            times = (row.seconds.value or 1.0) / (own.seconds.value or 1.0)
            time = f" in {_changed(times)} time" if goal.kind == "examples" else ""
            said.append(
                f"{word} the batch ({other:,}) would end {abs(change):.2g} {'higher' if change > 0 else 'lower'}{time}."
            )
    return said


def _without_averaging(advice: Advice, findings: Findings, rows: dict[int, FrontierRow]) -> str:
    """Why the size that the plan would be the fastest with is not the one advised, where that is so."""
    as_stands, own = findings.race.outlook, rows[advice.batch_size or 1]
    known = [row for row in rows.values() if row.seconds.value is not None]
    fastest = min(known, key=lambda row: row.seconds.value or math.inf, default=own)
    if as_stands is None or fastest is own or own.seconds.value is None or not findings.race.as_they_stand:
        return ""
    slower = own.seconds.value / (fastest.seconds.value or math.inf)
    here, there = (float(np.median(as_stands.seconds[as_stands.sizes.index(row.batch_size)])) for row in (own, fastest))
    if slower < 1 + WORTH_SAYING or not here < there:
        return ""
    without = f"{there / here:.2g} times as long as" if math.isfinite(there) else "without end, unlike"
    return (
        f"With averaged weights batch size {fastest.batch_size:,} would be there in {1 / slower:.0%} of the time. "
        f"Without, as in a loop that does not average, it would train {without} {own.batch_size:,}: "
        f"the setting advised is the one that is good for both."
    )


def _growing(advice: Advice, findings: Findings, outlook: Outlook) -> str:
    """What a growing batch would save, where the critical batch size is known well enough to say."""
    if advice.critical_batch_size.value is None or not advice.examples or not advice.batch_size:
        return ""
    law = outlook.loss
    ahead = float(advice.examples)
    critical = float(np.median(law.critical_batch_size(ahead)))
    sizes = [row.batch_size for row in advice.frontier]
    found = growing_batch(law, sizes, findings.times.seconds, ahead / (1 + advice.batch_size / critical))
    phases = found.schedule.phases
    if len(phases) < 2 or found.saving < LEAST_SAVING:
        return "A batch that grows on the way would save next to nothing by these laws."
    return (
        f"A batch that grows on the way, from {phases[0].batch_size:,} to {phases[-1].batch_size:,}, would save about "
        f"{found.saving:.0%} of the time by these laws, with less noise later on. Averaged weights have that gain "
        f"already: with them no growing batch was faster in our measurements, so a constant one is advised."
    )


def _changed(ratio: float) -> str:
    if abs(ratio - 1) < 0.005:
        return "the same"
    if ratio >= MANY_TIMES:
        return f"{count(ratio)} times as much"
    return f"{abs(ratio - 1):.0%} {'more' if ratio > 1 else 'less'}"


def _rate(advice: Advice, findings: Findings, row: FrontierRow) -> str:
    workload, rate = findings.workload, row.learning_rate
    if rate.value is None:
        return ""
    scaled = workload.learning_rate * (row.batch_size / workload.batch_size) ** findings.race.exponent
    ratio = rate.value / scaled
    rule = "linear" if findings.race.exponent == 1 else "square-root" if findings.race.exponent == 0.5 else "usual"
    text = (
        f"The learning rate lies at {rate.value:.3g} ({rate.low:.2g} to {rate.high:.2g})"
        if rate.low and rate.high
        else (f"The learning rate lies at {rate.value:.3g}")
    )
    if abs(math.log2(ratio)) < 0.5:
        return f"{text}, where the {rule} scaling rule puts your present one for this batch size."
    many = f"{ratio:.2g} times" if ratio > 1 else f"one {1 / ratio:.2g}th of"
    return f"{text}: {many} what the {rule} scaling rule makes of your present one."


def _second_moment(advice: Advice, findings: Findings) -> str:
    """How long Adam's second moment remembers, where that is told in tokens and the batch size changes."""
    beta, tokens, size = findings.second_decay, findings.workload.tokens_per_example, advice.batch_size
    present = findings.workload.batch_size
    if beta is None or tokens is None or size is None or not 0 < beta < 1 or size == present:
        return ""
    before, now = (half_life(beta, each * tokens) for each in (present, size))
    kept = beta_of_half_life(before, size * tokens)
    return (
        f"With β₂ at {beta:g}, as it is and as the race had it, the optimiser's second moment forgets half in "
        f"{count(now)} tokens; at your present batch size that is {count(before)}, which {kept:.4g} would keep."
    )


def _cost(advice: Advice) -> str:
    trained = advice.predicted_seconds.value
    if trained is None:
        return f"The advice took {seconds(advice.cost_seconds)}."
    share = advice.cost_seconds / trained
    width = ""
    if advice.predicted_seconds.low and advice.predicted_seconds.high and math.isfinite(advice.predicted_seconds.high):
        off = math.sqrt(advice.predicted_seconds.high / advice.predicted_seconds.low) - 1
        if advice.goal.kind == "target":
            known = f"to about {off:.0%} either way" if off < 1 else "hardly"
            width = f" The predicted time is known {known}; a larger budget narrows that."
    took = f"The advice took {seconds(advice.cost_seconds)}, {count(share)} times what the training takes"
    return f"{took} that it is for.{width}"


def no_answer(findings: Findings, outlook: Outlook | None) -> str:
    """What was found out where nothing can be advised, and what to do.

    Args:
        findings: What was found out.
        outlook: The race's laws, where they could be fitted.

    Returns:
        Sentences.
    """
    race, goal = findings.race, findings.goal
    if race.trouble is not None:
        mend = (
            "Check the loss, the scale of the inputs and the optimiser, or start from another learning rate: "
            f"batchscope probe {findings.workload.name} shows where the loss turns up."
            if "diverged" in race.trouble
            else f"Give it more: --budget {2 * race.clock.limit:.0f}."
        )
        return f"No setting can be advised: {race.trouble}. {mend}"
    points = [p for heat in race.heats for e in heat.entrants for p in e.points if math.isfinite(p.score)]
    if not points:
        return "No setting can be advised: no score was finite. Check score() on a few validation examples."
    best = max(points, key=lambda p: p.score)
    scores = {p.score for p in points}
    if len(scores) == 1:
        return (
            f"No setting can be advised: the score was {best.score:.4g} at every evaluation, whatever the batch size "
            f"and the learning rate. Check score(), or leave it out to go by the loss."
        )
    if findings.interrupted or outlook is None:
        return (
            f"Too little was seen to tell settings apart: the best score so far is {best.score:.4g}, after "
            f"{count(best.examples)} examples. Give it more: --budget {2 * race.clock.limit:.0f}."
        )
    i = int(np.argmax(np.isfinite(outlook.costs).mean(axis=1)))
    law = outlook.score
    floor = -float(np.median(law.value - law.gap))
    chance = float(np.isfinite(outlook.examples[i]).mean())
    settings = [
        (lane.best.points[-1].score, size, lane.best.learning_rate) for size, lane in race.lanes.items() if lane.best
    ]
    top = max(settings, default=None)
    found = f" The best setting seen is batch size {top[1]:,} with learning rate {top[2]:.3g}." if top else ""
    return (
        f"{goal.value:g} seems out of reach: the best score seen is {best.score:.4g} after {count(best.examples)} "
        f"examples, and it is heading for about {floor:.4g} (by these curves the target is ever reached with a "
        f"probability of {chance:.0%}).{found} Ask for a lower target, give more budget to look further ahead, or "
        f"change the model."
    )
