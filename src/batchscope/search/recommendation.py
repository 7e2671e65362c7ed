"""From a search to an advice: the setting, what it takes, how sure that is, and every other batch size beside it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from batchscope.errors import BatchscopeError
from batchscope.fit.memory import predicted_bytes
from batchscope.measure.noise import gradient_noise
from batchscope.provenance import provenance
from batchscope.records import (
    Advice,
    FrontierRow,
    Interval,
    Plan,
    PresentSetting,
    RaceCandidate,
    RacePoint,
    Spending,
)
from batchscope.search import sentences
from batchscope.search.answer import INDISTINGUISHABLE, LEVEL, Answer, SizeAnswer, find_answer, interval
from batchscope.search.candidates import Setting
from batchscope.search.costs import scaled
from batchscope.search.scores import Scores
from batchscope.search.study import Study
from batchscope.search.trained import Trained
from batchscope.seeding import derive
from batchscope.training.averaging import POWER
from batchscope.workload.summary import summarise

Floats = NDArray[np.float64]

# A training run may take this many times the upper end of what was predicted before it gives up.
PATIENCE = 3.0
# The noise scale is measured where training on this many examples takes at most this share of the budget; measuring
# takes several times as long, since each gradient is of one example.
NOISE_EXAMPLES, NOISE_SHARE = 64, 0.01
JUDGED_BY = (
    "by the training loss of each batch before its update, which estimates the loss on new data without evaluating; "
    "scores are of averaged weights, with which the plan ends"
)


def recommend(study: Study) -> Advice:
    """Put the advice together.

    Args:
        study: A search that was run; its candidates still hold their weights.

    Returns:
        The advice; without a setting where training diverged everywhere.
    """
    _evaluate_the_best(study)
    answer = find_answer(study.race, study.step_seconds, seed=study.seed)
    advice = _empty(study, answer)
    if answer is None:
        return replace(advice, conclusion=sentences.no_answer(study))
    noise, scores = _noise_scale(study, answer), Scores(study, answer)
    size = answer.best.batch_size
    best = answer.of(size)
    frontier = tuple(_row(study, scores, each) for each in answer.sizes)
    row = next(row for row in frontier if row.batch_size == size)
    plan = _plan(study, answer, row)
    alternatives = tuple(
        each.setting.batch_size
        for each in answer.sizes
        if each.trained and each.setting.batch_size != size and _is_as_good(best, each)
    )
    advice = replace(
        advice,
        frontier=frontier,
        batch_size=size,
        micro_batch_size=row.micro_batch_size,
        accumulation_steps=row.accumulation_steps,
        learning_rate=answer.best.learning_rate,
        iterations=row.iterations,
        examples=plan.examples if study.goal.kind != "target" else row.iterations and row.iterations * size,
        predicted_seconds=row.seconds,
        predicted_score=row.score,
        predicted_cost=row.cost,
        predicted_joules=row.joules,
        peak_memory_bytes=row.peak_memory_bytes,
        critical_batch_size=_critical(answer),
        noise_scale=noise,
        alternatives=alternatives,
        present=_present(study, answer, scores, row),
        plan=plan,
        cost_seconds=study.spent_seconds,
        spending=_spending(study),
    )
    advice = replace(advice, reasons=tuple(sentences.reasons(advice, study, answer)))
    return replace(advice, conclusion=sentences.short_answer(advice))


def _evaluate_the_best(study: Study) -> None:
    """Evaluate the best candidate where it stands, since the forecast goes on from there."""
    observations = study.race.observations()
    best = study.race.policy.best(observations, study.race.horizon_seconds(observations)) if observations else None
    candidate = None if best is None else study.race.candidates[best.setting]
    if isinstance(candidate, Trained) and candidate.ended is None and not study.stop.requested:
        points = candidate.points
        if points and points[-1].score is None:
            candidate.evaluate()


def _is_as_good(best: SizeAnswer, other: SizeAnswer) -> bool:
    slower = best.log_speed - other.log_speed
    low, high = np.quantile(slower, [0.1, 0.9])
    return bool(low < INDISTINGUISHABLE and np.median(slower) < 2 * INDISTINGUISHABLE and high > -1.0)


def _plan(study: Study, answer: Answer, row: FrontierRow) -> Plan:
    goal, (size, rate) = study.goal, answer.best
    micro = None if row.accumulation_steps == 1 else row.micro_batch_size
    examples = int(goal.value) if goal.kind == "examples" else row.iterations and row.iterations * size
    if goal.kind == "target":
        high = row.seconds.high
        known = high is not None and math.isfinite(high)
        examples = max(1, math.ceil(PATIENCE * high / study.step_seconds(size))) * size if high and known else None
    return Plan(
        batch_size=size if goal.kind == "target" else min(size, examples or size),
        learning_rate=rate,
        examples=examples,
        target=goal.value if goal.kind == "target" else None,
        micro_batch_size=micro,
        shape="constant",
        averaging=POWER,
    )


def _row(study: Study, scores: Scores, each: SizeAnswer) -> FrontierRow:
    size, rate, step = each.setting.batch_size, each.setting.learning_rate, study.step_interval(each.setting.batch_size)
    low, high = np.quantile(each.rates, [0.05, 0.95], method="nearest")
    iterations, examples, seconds = _taken(study, each, step)
    goal_seconds = _goal_seconds(each)
    return FrontierRow(
        batch_size=size,
        micro_batch_size=study.micro_batch_size(size),
        accumulation_steps=study.accumulation_steps(size),
        learning_rate=Interval(rate, min(rate, float(low)), max(rate, float(high)), LEVEL),
        step_seconds=step,
        examples_per_second=_per_second(size, step),
        peak_memory_bytes=_peak_bytes(study, size),
        iterations=iterations,
        examples=examples,
        seconds=seconds,
        score=_score(study, scores, each),
        raced=each.trained,
        forecast=scores.forecast(each, goal_seconds),
        cost=study.costs.money(seconds),
        joules=study.costs.joules(size, seconds),
    )


def _goal_seconds(each: SizeAnswer) -> float:
    return float(np.median(each.seconds))


def _score(study: Study, scores: Scores, each: SizeAnswer) -> Interval:
    """The score at the goal."""
    if study.goal.kind == "target":
        return Interval(study.goal.value, None, None, LEVEL)
    return scores.at(each, _goal_seconds(each))


def _taken(study: Study, each: SizeAnswer, step: Interval) -> tuple[int | None, Interval, Interval]:
    """Updates, examples and seconds to the goal: what it gives is exact, and the time of an update makes the rest."""
    goal, size = study.goal, each.setting.batch_size
    given = Interval(goal.value, None, None, LEVEL)
    if goal.kind == "examples":
        updates = math.ceil(goal.value / size)
        return updates, given, replace(scaled(step, updates), level=LEVEL)
    if goal.kind == "seconds":
        speed = _per_second(size, step)
        return max(1, int(goal.value / each.step_seconds)), replace(scaled(speed, goal.value), level=LEVEL), given
    examples, seconds = interval(each.examples), interval(each.seconds)
    if examples.value is None:
        seen = max((o.seconds for o in study.race.observations() if o.setting == each.setting), default=None)
        return None, examples, Interval.unresolved(LEVEL, low=seen)
    updates = max(1, math.ceil(examples.value / size))
    return updates, replace(examples, value=float(updates * size)), seconds


def _per_second(size: int, step: Interval) -> Interval:
    slow, usual, fast = (size / (seconds or math.inf) for seconds in (step.high, step.value, step.low))
    return Interval(usual, slow, fast)


def _peak_bytes(study: Study, size: int) -> int | None:
    if study.memory is None or study.memory.law is None:
        return None
    return round(predicted_bytes(study.memory.law, study.micro_batch_size(size)))


def _critical(answer: Answer) -> Interval:
    if answer.critical is None:
        return Interval.unresolved(LEVEL)
    found = interval(answer.critical)
    vague = found.low is not None and found.high is not None and found.high > 100 * found.low
    return Interval.unresolved(LEVEL, low=found.low, high=found.high) if vague else found


def _present(study: Study, answer: Answer, scores: Scores, advised: FrontierRow) -> PresentSetting | None:
    """Today's setting for the same goal; None where it was not trained."""
    today = Setting(study.workload.batch_size, study.workload.learning_rate)
    observed = next((o for o in study.race.observations() if o.setting == today), None)
    if observed is None or not observed.points:
        return None
    diverged = observed.ended in ("diverged", "failed")
    ratio = seconds = score = Interval.unresolved(LEVEL)
    if not diverged and answer.today is not None:
        _, _, seconds = _taken(study, answer.today, study.step_interval(today.batch_size))
        score = _score(study, scores, answer.today)
        ratio = interval(np.exp(answer.of(advised.batch_size).log_speed - answer.today.log_speed))
        if seconds.value and advised.seconds.value:
            ratio = _about(seconds.value / advised.seconds.value, ratio)
    return PresentSetting(
        batch_size=today.batch_size,
        learning_rate=today.learning_rate,
        seconds=seconds,
        score=score,
        sentence=sentences.present_sentence(*today, ratio, seconds, diverged=diverged, is_advised=answer.best == today)
        if study.goal.kind == "target" or diverged
        else _score_sentence(*today, score),
    )


def _about(value: float, drawn: Interval) -> Interval:
    """An interval with another middle, so that a ratio is that of the two numbers that are shown."""
    if drawn.low is None or drawn.high is None:
        return drawn
    return replace(drawn, value=value, low=min(drawn.low, value), high=max(drawn.high, value))


def _score_sentence(size: int, rate: float, score: Interval) -> str:
    own = f"Today's setting (batch size {size:,}, learning rate {rate:.3g})"
    return f"{own} reaches about {score.value:.4g}." if score.value is not None else f"{own} was not seen far enough."


def _spending(study: Study) -> tuple[Spending, ...]:
    spent, source = study.source.spent, study.source
    examples = sum(c.updates * c.setting.batch_size for c in source.candidates)
    parts = [
        Spending("training candidates", spent.training, examples),
        Spending("reading data", spent.reading, 0),
        Spending("evaluating", spent.evaluating, 0),
        Spending("making models", spent.making, 0),
        *(Spending(name, seconds, 0) for name, seconds in study.other_seconds.items() if seconds > 0.01),
    ]
    rest = study.spent_seconds - sum(part.seconds for part in parts)
    return (*parts, Spending("deciding", max(0.0, rest), 0))


def _noise_scale(study: Study, answer: Answer) -> Interval:
    """The noise scale where the best candidate stands, if there is time for it."""
    candidate = study.race.candidates.get(answer.best)
    run = candidate.run if isinstance(candidate, Trained) else None
    total = study.race.budget_seconds()
    each = study.step_seconds(answer.best.batch_size) / answer.best.batch_size
    one = study.step_seconds(1)
    taking = NOISE_EXAMPLES * max(each, one if math.isfinite(one) else each)
    if run is None or study.stop.requested or taking > NOISE_SHARE * total:
        return Interval.unresolved()
    began = study.spent_seconds
    try:
        found = gradient_noise(
            study.workload,
            run.state(averaged=True),
            examples=min(NOISE_EXAMPLES, study.workload.training_examples),
            seed=derive(study.seed, "advice") % 2**31,
            device=str(study.device),
        )
    except BatchscopeError:
        return Interval.unresolved()
    study.other_seconds["noise scale"] = study.spent_seconds - began
    return found.noise_scale


def _empty(study: Study, answer: Answer | None) -> Advice:
    unresolved = Interval.unresolved(LEVEL)
    return Advice(
        workload=summarise(study.workload),
        goal=study.goal,
        conclusion="",
        batch_size=None,
        micro_batch_size=None,
        accumulation_steps=None,
        learning_rate=None,
        iterations=None,
        examples=None,
        schedule=None,
        predicted_seconds=unresolved,
        predicted_score=unresolved,
        peak_memory_bytes=None,
        critical_batch_size=unresolved,
        noise_scale=unresolved,
        throughput_knee=study.knee(),
        cost_seconds=study.spent_seconds,
        spending=_spending(study),
        reasons=(),
        frontier=(),
        alternatives=(),
        present=None,
        race=_candidates(study, answer),
        judged_by=JUDGED_BY,
        devices=study.devices,
        plan=None,
        warnings=tuple(text for text in (*study.warnings, study.busy_warning()) if text is not None),
        interrupted=study.stop.requested,
        provenance=provenance(study.workload, device=study.device, seed=study.seed),
        price_per_hour=study.costs.price_per_hour,
        power=study.costs.power,
        time_share=study.costs.time_share,
    )


def _candidates(study: Study, answer: Answer | None) -> tuple[RaceCandidate, ...]:
    found = []
    for o in study.race.observations():
        ended: Literal["advised", "beaten", "diverged", "kept"]
        if answer is not None and o.setting == answer.best:
            ended, reason = "advised", "the fastest to the goal by everything that was seen"
        elif o.ended in ("diverged", "failed"):
            ended, reason = "diverged", "its loss exploded"
        elif o.ended == "out of memory":
            ended, reason = "beaten", "it ran out of memory"
        elif o.ended == "reached":
            ended, reason = "kept", "it reached the target"
        else:
            ended, reason = "beaten", "training it further was not expected to pay"
        points = tuple(
            RacePoint(p.examples, p.updates, p.seconds, p.loss, p.score)
            for p in o.points
            if p.examples > 0 and math.isfinite(p.loss)
        )
        found.append(
            RaceCandidate(
                batch_size=o.setting.batch_size,
                learning_rate=o.setting.learning_rate,
                seed=study.seed,
                points=points,
                ended=ended,
                reason=reason,
                seconds_spent=o.cost_seconds,
            )
        )
    return tuple(sorted(found, key=lambda c: (c.batch_size, c.learning_rate, c.seed)))
