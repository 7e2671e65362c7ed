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
    ForecastPoint,
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
from batchscope.search.in_process import Trained
from batchscope.search.study import Study
from batchscope.seeding import derive
from batchscope.training.averaging import POWER
from batchscope.workload.summary import summarise

Floats = NDArray[np.float64]

# A training run may take this many times the upper end of what was predicted before it gives up.
PATIENCE = 3.0
# The forecast of each batch size reaches from this share of the time to the goal to this many times as long.
FORECAST_FROM, FORECAST_TO, FORECAST_POINTS = 1 / 16, 4.0, 13
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
    noise = _noise_scale(study, answer)
    size = answer.best.batch_size
    best = answer.of(size)
    frontier = tuple(_row(study, answer, each) for each in answer.sizes)
    row = next(row for row in frontier if row.batch_size == size)
    seconds = interval(best.seconds)
    if not seconds.resolved and study.goal.kind == "target":
        seen = max((o.seconds for o in study.race.observations() if o.setting == answer.best), default=None)
        seconds = Interval.unresolved(LEVEL, low=seen)
    goal = study.goal
    iterations = row.iterations
    plan = _plan(study, answer, seconds)
    alternatives = tuple(
        each.setting.batch_size
        for each in answer.sizes
        if each.trained and each.setting.batch_size != size and _is_as_good(best, each)
    )
    score = row.score if goal.kind == "target" else interval(_scores(study, answer, best, _goal_seconds(study, best)))
    advice = replace(
        advice,
        frontier=frontier,
        batch_size=size,
        micro_batch_size=row.micro_batch_size,
        accumulation_steps=row.accumulation_steps,
        learning_rate=answer.best.learning_rate,
        iterations=iterations,
        examples=plan.examples if goal.kind != "target" else None if iterations is None else iterations * size,
        predicted_seconds=seconds,
        predicted_score=score,
        predicted_cost=study.costs.money(seconds),
        predicted_joules=study.costs.joules(size, seconds),
        peak_memory_bytes=row.peak_memory_bytes,
        critical_batch_size=_critical(answer),
        noise_scale=noise,
        alternatives=alternatives,
        present=_present(study, answer, best),
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


def _goal_seconds(study: Study, best: SizeAnswer) -> float:
    return float(np.median(best.seconds)) if study.goal.kind != "seconds" else study.goal.value


def _plan(study: Study, answer: Answer, seconds: Interval) -> Plan:
    goal, (size, rate) = study.goal, answer.best
    micro = None if study.accumulation_steps(size) == 1 else study.micro_batch_size(size)
    each = study.step_seconds(size)
    if goal.kind == "target":
        high = seconds.high if seconds.high is not None and math.isfinite(seconds.high) else None
        most = None if high is None else max(1, math.ceil(PATIENCE * high / each)) * size
        return Plan(
            batch_size=size,
            learning_rate=rate,
            examples=most,
            target=goal.value,
            micro_batch_size=micro,
            shape="constant",
            averaging=POWER,
        )
    examples = int(goal.value) if goal.kind == "examples" else max(1, int(goal.value / each)) * size
    return Plan(
        batch_size=min(size, examples),
        learning_rate=rate,
        examples=examples,
        micro_batch_size=micro,
        shape="constant",
        averaging=POWER,
    )


def _row(study: Study, answer: Answer, each: SizeAnswer) -> FrontierRow:
    goal, size = study.goal, each.setting.batch_size
    seconds, examples, step = interval(each.seconds), interval(each.examples), study.step_interval(size)
    low, high = np.quantile(each.rates, [0.05, 0.95], method="nearest")
    rate = each.setting.learning_rate
    needed = examples.value
    return FrontierRow(
        batch_size=size,
        micro_batch_size=study.micro_batch_size(size),
        accumulation_steps=study.accumulation_steps(size),
        learning_rate=Interval(rate, min(rate, float(low)), max(rate, float(high)), LEVEL),
        step_seconds=step,
        examples_per_second=_per_second(size, step),
        peak_memory_bytes=_peak_bytes(study, size),
        iterations=None if needed is None else max(1, math.ceil(needed / size)),
        examples=examples,
        seconds=seconds,
        score=Interval(goal.value, None, None, LEVEL)
        if goal.kind == "target"
        else interval(_scores(study, answer, each, _goal_seconds(study, each))),
        raced=each.trained,
        forecast=_forecast(study, answer, each),
        cost=study.costs.money(seconds),
        joules=study.costs.joules(size, seconds),
    )


def _scores(study: Study, answer: Answer, each: SizeAnswer, seconds: float) -> Floats:
    """Draws of the score after some seconds at a setting: the best one's curve, at the setting's speed."""
    own = answer.of(answer.best.batch_size)
    if answer.law is None:
        return np.full(1, answer.score)
    ratio = np.exp(float(np.median(each.log_speed)) - float(np.median(own.log_speed)))
    weight = study.race.policy.weight(each.setting.batch_size) / study.race.policy.weight(answer.best.batch_size)
    return answer.law.score_at(max(seconds * float(ratio) * weight, 1e-9))


def _forecast(study: Study, answer: Answer, each: SizeAnswer) -> tuple[ForecastPoint, ...]:
    goal_seconds = float(np.median(each.seconds))
    if not math.isfinite(goal_seconds):
        return ()
    places = np.geomspace(FORECAST_FROM * goal_seconds, FORECAST_TO * goal_seconds, FORECAST_POINTS)
    scores = [interval(_scores(study, answer, each, float(place))) for place in places]
    if not all(score.value is not None and math.isfinite(score.value) for score in scores):
        return ()
    per_second = each.setting.batch_size / each.step_seconds
    return tuple(
        ForecastPoint(max(1, round(place * per_second)), float(place), score)
        for place, score in zip(places, scores, strict=True)
    )


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


def _present(study: Study, answer: Answer, best: SizeAnswer) -> PresentSetting | None:
    start = study.race.policy.start
    observed = next((o for o in study.race.observations() if o.setting == start), None)
    if observed is None or not observed.points:
        return None
    unresolved = Interval.unresolved(LEVEL)
    diverged = observed.ended in ("diverged", "failed")
    ratio, seconds, score = unresolved, unresolved, unresolved
    if not diverged and answer.today is not None:
        with np.errstate(invalid="ignore"):
            slower = np.exp(best.log_speed - answer.today.log_speed)
        ratio, seconds = interval(slower), interval(answer.today.seconds)
        if study.goal.kind == "target":
            score = Interval(study.goal.value, None, None, LEVEL)
        else:
            score = interval(_scores(study, answer, answer.today, _goal_seconds(study, answer.today)))
    return PresentSetting(
        batch_size=start.batch_size,
        learning_rate=start.learning_rate,
        seconds=seconds,
        score=score,
        sentence=sentences.present_sentence(*start, ratio, seconds, diverged=diverged)
        if study.goal.kind == "target" or diverged
        else _score_sentence(start.batch_size, start.learning_rate, score),
    )


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
    total = study.race.budget.limit(study.race.run_seconds()[0])
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
        warnings=tuple(study.warnings),
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
        candidate = study.race.candidates[o.setting]
        losses = {}
        if isinstance(candidate, Trained):
            losses = {p.iterations: p.validation_loss for p in candidate.evaluations}
        points = tuple(
            RacePoint(p.examples, p.updates, p.seconds, losses.get(p.updates, p.loss), p.score)
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
