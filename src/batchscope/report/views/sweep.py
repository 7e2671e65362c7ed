"""What is shown of a sweep, and of a trade-off law on its own."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable

from batchscope.fit.tradeoff import REGIME
from batchscope.records import (
    Interval,
    RateLaw,
    RatePoint,
    Sweep,
    SweepBest,
    SweepTrial,
    TimePoint,
    TimeToTarget,
    TradeoffLaw,
    TradeoffPoint,
)
from batchscope.report import formatting as f
from batchscope.report.charts.axes import Spec
from batchscope.report.charts.plot import RED, TEAL
from batchscope.report.view import (
    Card,
    Column,
    Facts,
    Figure,
    Section,
    Table,
    View,
    facts,
    measured,
    number_card,
    table,
    workload_facts,
)
from batchscope.report.views import sweep_charts as charts

EDGES = {"lowest": "lowest tried", "highest": "highest tried"}
MOST_REASONS = 3

_BAND = (
    "Line: the law; band: 95%, from all pairs of E_min and B_crit that fit the points almost as well as the best one. "
)
_CRITICAL = {
    True: "Dashed: B_crit, with its interval as a bar on the axis.",
    False: "Dashed: as far as B_crit is known.",
}


def view(record: Sweep) -> View:
    """A sweep: the answer, the best of each batch size, the laws, the learning rates, and every trial."""
    target = record.target is not None

    def figure(
        name: str, title: str, draw: Callable[[Sweep], Spec | None], note: str = "", *, alone: bool = False
    ) -> Figure:
        return Figure(name, title, functools.partial(draw, record), note=note, alone=alone)

    mean = "geometric mean over seeds, where a run reached the target"
    if not target:
        mean = "mean over seeds, where a run ended in order"
    question = f"Which batch size reaches the best score after {f.count(record.budget_examples)} examples?"
    if record.target is not None:
        question = f"Which batch size reaches a score of {f.number(record.target)} soonest?"
    ended = outcomes(record)
    return View(
        name=record.workload.name,
        title=question,
        answer=record.conclusion,
        summary=(
            ("target", "none" if record.target is None else f.number(record.target)),
            ("batch sizes", f.count(len(record.best))),
            ("trials", f.count(len(record.trials)) + (f", {ended}" if record.trials else "")),
            ("seeds", f.count(len(record.seeds))),
            ("the sweep took", f.seconds(record.total_seconds)),
            ("on", record.provenance.device),
        ),
        warnings=warnings(record),
        sections=(
            Section(
                "What each batch size needs" if target else "What each batch size reaches",
                cards=_cards(record),
                tables=(best(record),) if record.best else (),
                on="both",
            ),
            Section(
                "Scores",
                figures=(
                    figure(
                        "score_by_size",
                        "Best score at the best rate",
                        charts.score_by_size,
                        "Bars: 95% intervals over the seeds.",
                    ),
                ),
            ),
            *((_law(record.law, record),) if record.law is not None else ()),
            *((_time(record.time, figure),) if record.time is not None else ()),
            _rates(record.rate_law, figure),
            Section(
                "Learning curves",
                "Score against examples at the best rate of each batch size; a line is a run"
                + (", dashed the target." if target else "."),
                figures=(figure("best_curves", "Learning curves at the best rates", charts.best_curves, alone=True),),
            ),
            Section(
                "All that was tried",
                f"{f.count(len(record.trials))} trials: {ended}." if record.trials else "",
                figures=(
                    figure(
                        "rate_map",
                        "Batch size and learning rate",
                        charts.rate_map,
                        f"Colour: {mean}; marks: what became of the rest. Framed: the best rate of a batch size.",
                        alone=True,
                    ),
                ),
                folded=trials(record) if record.trials else None,
            ),
            measured(record.provenance, ("Settings", settings(record))),
        ),
        origin=record.provenance,
    )


def law_view(law: TradeoffLaw) -> View:
    """A trade-off law that was fitted to a table."""
    sizes = [point.batch_size for point in law.points]
    return View(
        name="Trade-off law",
        title="How do examples and updates to a target depend on batch size?",
        answer=law.verdict,
        summary=(
            ("critical batch size", f.sized(law.critical_batch_size)),
            ("batch sizes", f"{f.count(min(sizes))} to {f.count(max(sizes))}" if sizes else f.UNKNOWN),
            ("runs", f.count(sum(point.runs for point in law.points))),
        ),
        sections=(_law(law, law),),
    )


def _cards(record: Sweep) -> tuple[Card, ...]:
    """The numbers that a reader looks for: B_crit, the fastest batch size."""
    cards = []
    if record.law is not None:
        cards.append(number_card("Critical batch size", record.law.critical_batch_size, _regimes(record.law), TEAL))
    if (time := record.time) is not None:
        said, reach = time.verdict, time.within_ten_per_cent
        if time.best_batch_size.value is not None:
            said = f"It reaches the target in {f.seconds(time.best_seconds.value)}, trained alone."
            if reach is not None and reach[0] == reach[1]:
                said += " Every other batch size takes more than a tenth more."
            elif reach is not None:
                said += f" From {f.count(reach[0])} to {f.count(reach[1])} it takes at most a tenth more."
        cards.append(number_card("Fastest batch size", time.best_batch_size, said, RED))
    return tuple(cards)


def best(record: Sweep) -> Table:
    """The best learning rate of each batch size, and what it needs."""
    target = record.target is not None
    timed = target and any(line.update_seconds is not None for line in record.best)
    unit = f.time_unit(line.seconds_to_target.value for line in record.best)
    update = f.time_unit(line.update_seconds for line in record.best)
    places = f.places_for([line.score for line in record.best])

    def rate(line: SweepBest) -> str:
        return "none" if line.learning_rate is None else f.number(line.learning_rate, 3)

    def tried(line: SweepBest) -> str:
        return f"{line.trials} ({line.pruned})" if line.pruned else f.count(line.trials)

    def runs(line: SweepBest) -> str:
        return f"{line.reached} of {line.runs}" if target else f.count(line.runs)

    edged = any(line.edge for line in record.best)
    columns: tuple[Column[SweepBest] | bool, ...] = (
        Column("batch", lambda line: f.count(line.batch_size), "size", "left"),
        Column("best rate", rate),
        edged and Column("which is", lambda line: EDGES[line.edge] if line.edge else "", "the", "left"),
        target and Column("examples", lambda line: needs(line.examples_to_target), "to the target, 95%"),
        target and Column("updates", lambda line: f.number(line.updates_to_target.value, 3)),
        timed and Column("update", lambda line: update.of(line.update_seconds), update.name, minor=True),
        timed and Column("time", lambda line: unit.of(line.seconds_to_target.value), unit.name),
        Column("best score", lambda line: f.estimate(line.score, places), "95%", minor=target),
        Column("runs", runs, "reached" if target else ""),
        Column("trials", tried, "pruned", minor=True),
        Column("spent", lambda line: f.number(line.examples_spent, 3), "examples", minor=True),
    )
    note = "Geometric means over the runs at the best rate." if target else "Means over the runs at the best rate."
    if timed:
        note += " Time: updates to the target times that of an update alone."
    return table("The best of each batch size", record.best, filter(None, columns), note)  # type: ignore[arg-type]


# The trade-off law


def _law(law: TradeoffLaw, record: Sweep | TradeoffLaw) -> Section:
    over_seeds = isinstance(record, Sweep)
    points = f"Points: geometric means over runs{' with their 95% intervals' if over_seeds else ''}. "
    if any(point.missed for point in law.points):
        points += "Hollow: some runs missed the target; a wedge: all did, and more is needed. "
    critical = law.critical_batch_size
    note = points + (_BAND if any(f.known(point.predicted) for point in law.points) else "")
    note += _CRITICAL[critical.resolved] if critical.resolved or f.between(critical) != f.UNKNOWN else ""
    updates, examples = (
        functools.partial(draw, record) for draw in (charts.updates_to_target, charts.examples_to_target)
    )
    return Section(
        "The trade-off law",
        law.verdict if over_seeds else "",
        figures=(
            Figure("updates_to_target", "Updates to the target", updates),
            Figure("examples_to_target", "Examples to the target", examples, note=note),
        ),
        tables=(law_points(law),) if law.points else (),
        facts=(("The trade-off law", law_facts(law)),),
        on="both",
    )


def law_points(law: TradeoffLaw) -> Table:
    """Examples and updates to the target at each batch size, beside the law."""
    missed = any(point.missed for point in law.points)
    predicted = any(f.known(point.predicted) for point in law.points)

    def taken(point: TradeoffPoint, by: int = 1) -> str:
        if point.examples is not None:
            return f.number(point.examples / by, 3)
        return "not reached" if point.at_least is None else f"> {f.number(point.at_least / by, 3)}"

    def runs(point: TradeoffPoint) -> str:
        return f"{point.missed} of {point.runs}" if point.missed else f.count(point.runs)

    columns: tuple[Column[TradeoffPoint] | bool, ...] = (
        Column("batch", lambda point: f.count(point.batch_size), "size", "left"),
        Column("examples", taken, "to the target"),
        Column("updates", lambda point: taken(point, point.batch_size), "to the target"),
        predicted and Column("law", lambda point: f.number(point.predicted, 3), "examples", minor=True),
        predicted and Column("residual", lambda point: f.off(point.examples, point.predicted), "relative"),
        any(point.left_out for point in law.points)
        and Column("left out", lambda point: f.off(point.examples, point.left_out), "residual", minor=True),
        any(point.regime for point in law.points)
        and Column("regime", lambda point: point.regime or f.UNKNOWN, align="left"),
        Column("runs", runs, "missed" if missed else "", minor=not missed),
    )
    form = "E(B) = E_min·(1 + B/B_crit)" if law.form == "hyperbola" else "E(B) = E_min·(1 + (B/B_crit)^p)"
    note = "Geometric means over runs."
    if missed:
        note += " A run that missed the target counts as one that needs more than it was given."
    if predicted:
        note += f" The law is {form}; a size left out is predicted from the others."
    return table("Examples and updates to the target", law.points, filter(None, columns), note)  # type: ignore[arg-type]


def law_facts(law: TradeoffLaw) -> Facts:
    """The law's numbers, and where its regimes end."""
    critical = law.critical_batch_size
    return facts(
        ("critical, B_crit", f.sized(critical)),
        None if critical.value is None else ("perfect scaling", f"below {f.size(critical.value / REGIME)}"),
        None if critical.value is None else ("flat", f"above {f.size(critical.value * REGIME)}"),
        ("least examples, E_min", needs(law.minimum_examples)),
        ("least updates, S_min", needs(law.minimum_updates)),
        ("exponent p, beside it" if law.form == "hyperbola" else "exponent p", f.sized(law.exponent)),
        ("form", law.form),
        ("residuals, r.m.s.", f.percent(law.relative_error)),
        ("error at sizes left out", f.percent(law.leave_one_out_error)),
        ("of the other form", f.percent(law.rival_leave_one_out_error)),
    )


def _regimes(law: TradeoffLaw) -> str:
    """Where more examples an update save updates, and where they do not; the verdict where that is not known."""
    critical = law.critical_batch_size.value
    if critical is None:
        return law.verdict
    return (
        f"There, a run needs twice the least examples and twice the least updates. Below {f.size(critical / REGIME)} "
        f"twice the batch size saves nearly half of the updates, above {f.size(critical * REGIME)} next to none."
    )


def needs(interval: Interval) -> str:
    """Examples or updates with their interval, three digits each.

    Examples:
        >>> needs(Interval(31234.0, 29876.0, 33456.0)), needs(Interval.unresolved(low=50000.0))
        ('31,200 (29,900 to 33,500)', 'more than 50,000')
        >>> needs(Interval(5.0, 4.0, float("inf"))), needs(Interval(5.0, None, None)), needs(Interval.unresolved())
        ('5 (4 or more)', '5', 'not resolved')
    """
    low, high = (end if f.known(end) and end > 0 else None for end in (interval.low, interval.high))
    if interval.value is None:
        if high is not None:
            return f"less than {f.number(high, 3)}" if low is None else f"{f.number(low, 3)} to {f.number(high, 3)}"
        return f.UNRESOLVED if low is None else f"more than {f.number(low, 3)}"
    value = f.number(interval.value, 3)
    if high is None:
        return value if low is None else f"{value} ({f.number(low, 3)} or more)"
    return f"{value} ({f.number(low or 0.0, 3)} to {f.number(high, 3)})"


# Time


def _time(time: TimeToTarget, figure: Callable[..., Figure]) -> Section:
    dots = (
        "Dots: the measured updates times that of one, with their intervals. Line and band: by the law. Shaded: within "
    )
    front = "Dots: batch sizes, by the law. Hollow: another one needs fewer examples and less time."
    return Section(
        "Time to the target",
        time.verdict,
        figures=(
            figure("seconds_to_target", "Time to the target", charts.seconds_to_target, f"{dots}a tenth of the least."),
            figure("front", "Time against examples", charts.front, front),
        ),
        folded=times(time),
        facts=(("Time to the target", time_facts(time)),),
        on="both",
    )


def times(time: TimeToTarget) -> Table:
    """Seconds and examples to the target by the law and the time of an update."""
    unit = f.time_unit(point.seconds.value for point in time.points)
    update = f.time_unit(point.update_seconds.value for point in time.points)
    columns: tuple[Column[TimePoint], ...] = (
        Column("batch", lambda point: f.count(point.batch_size), "size", "left"),
        Column("update", lambda point: update.of(point.update_seconds.value), update.name),
        Column("examples", lambda point: needs(point.examples), "by the law"),
        Column("time", lambda point: f.within(point.seconds, unit), f"{unit.name}, 95%"),
        Column("beaten", lambda point: "no" if point.on_front else "yes", "in both"),
    )
    note = "Beaten in both: another batch size needs fewer examples and less time."
    return table("Time to the target", time.points, columns, note)


def time_facts(time: TimeToTarget) -> Facts:
    """Where the time is least."""
    reach, least = time.within_ten_per_cent, time.best_seconds
    said = f.seconds(least.value)
    if least.value is not None and f.known(least.low) and f.known(least.high):
        unit = f.time_unit([least.value])
        said = f"{unit.text(least.value)} ({unit.of(least.low)} to {unit.of(least.high)})"
    return (
        ("fastest batch size", f.sized(time.best_batch_size)),
        ("its time", said),
        ("within a tenth of it", f.UNKNOWN if reach is None else f"{f.count(reach[0])} to {f.count(reach[1])}"),
    )


# Learning rates, and trials


def _rates(law: RateLaw | None, figure: Callable[..., Figure]) -> Section:
    note = (
        "Bars reach to where training is clearly worse; a wedge is a best rate at an end of what was tried. Both rules "
        "go through the diamond, what is used today."
    )
    return Section(
        "Learning rates",
        "" if law is None else law.verdict,
        figures=(figure("best_rate", "Best learning rate", charts.best_rate, note),),
        facts=() if law is None else (("The law of the best learning rate", rate_facts(law)),),
        folded=None if law is None else rates(law),
        on="both",
    )


def rates(law: RateLaw) -> Table:
    """The best rate of each batch size, beside the rate's law."""
    columns: tuple[Column[RatePoint], ...] = (
        Column("batch", lambda p: f.count(p.batch_size), "size", "left"),
        Column("best rate", lambda p: f.number(p.learning_rate, 3) + (f", {EDGES[p.edge]}" if p.edge else "")),
        Column("bracket", lambda p: f"{f.number(p.low, 3)} to {f.number(p.high, 3)}", "worse beyond"),
        Column("law", lambda p: f.number(p.predicted, 3)),
        Column("residual", lambda p: f.off(p.learning_rate, p.predicted), "relative", minor=True),
    )
    note = "Between the rates tried, where the losses around the best one determine it."
    return table("The best learning rate", law.points, columns, note)


def rate_facts(law: RateLaw) -> Facts:
    """The rate's law in numbers."""
    forms = {"power": "ε = c·B^α", "saturating": "ε = ε_max/(1 + B_half/B)"}
    return (
        ("form", forms[law.form]),
        ("exponent α", f.sized(law.exponent)),
        ("largest rate, ε_max", f.sized(law.largest_rate)),
        ("half of it at", f.sized(law.half_batch_size)),
        ("error at sizes left out", f.percent(law.leave_one_out_error)),
    )


def trials(record: Sweep) -> Table:
    """Every trial in a line."""
    target = record.target is not None
    alone = f.time_unit(trial.step_seconds for trial in record.trials)
    shared = f.time_unit(trial.sweep_seconds for trial in record.trials)

    def examples(trial: SweepTrial) -> str:
        if not target or trial.examples_to_target is not None:
            return f.count(trial.examples_to_target if target else trial.examples)
        return f"> {f.count(trial.examples)}"

    def score(trial: SweepTrial) -> str:
        return f.UNKNOWN if trial.best_score is None else f.fixed(trial.best_score, 4)

    columns: tuple[Column[SweepTrial], ...] = (
        Column("batch", lambda trial: f.count(trial.batch_size), "size", "left"),
        Column("rate", lambda trial: f.number(trial.learning_rate, 3)),
        Column("seed", lambda trial: str(trial.seed)),
        Column("outcome", lambda trial: trial.outcome, align="left"),
        Column("examples", examples, "to the target" if target else ""),
        Column("best score", score),
        Column("time alone", lambda trial: alone.of(trial.step_seconds), alone.name),
        Column("in the sweep", lambda trial: shared.of(trial.sweep_seconds), shared.name),
        Column("together", lambda trial: f.count(trial.stack_size - 1 if trial.stack_size else None), "with"),
    )
    note = "Time alone: its updates times the time of one, measured by itself."
    return table("Trials", record.trials, columns, note)


def settings(record: Sweep) -> Facts:
    """What was trained and how."""
    searched = "searched" if record.searched else "given"
    trained = Counter(line.trained_as.partition(":")[0] for line in record.best if line.trained_as)
    return (
        *workload_facts(record.workload),
        ("target", "none: scores at the budget" if record.target is None else f.number(record.target)),
        ("budget of a trial", f"{f.count(record.budget_examples)} examples"),
        ("learning rates", searched + (", hopeless trials stopped" if record.pruning else ", every trial to its end")),
        ("rate over the run", f.shape(record.shape)),
        ("order of the data", record.order),
        ("seeds", ", ".join(map(str, record.seeds))),
        ("evaluated every", f"{f.count(record.evaluate_every_examples)} examples"),
        ("engine", f"{record.engine}, {record.processes} process{'' if record.processes == 1 else 'es'}"),
        ("trained as", ", ".join(f"{way} at {number} sizes" for way, number in trained.items()) or f.UNKNOWN),
        ("trials", outcomes(record)),
        ("examples, all trials", f.count(record.examples_spent)),
        ("whole sweep", f.seconds(record.total_seconds)),
    )


def outcomes(record: Sweep) -> str:
    """How many trials ended how, the most frequent first."""
    counted = Counter(trial.outcome for trial in record.trials)
    return ", ".join(f"{f.count(number)} {outcome}" for outcome, number in counted.most_common()) or "none"


def warnings(record: Sweep) -> tuple[str, ...]:
    """What a reader must know before trusting the numbers, most serious first.

    Rates at an end of what was tried are not among it: the conclusion says so, and the table marks them.
    """
    found = []
    if record.error is not None:
        found.append(f"Stopped by an error; what follows is what was finished until then. {record.error}")
    elif record.interrupted:
        found.append("Interrupted before the sweep was done: what follows is what was finished until then.")
    if sizes := [f.count(line.batch_size) for line in record.best if line.learning_rate is None]:
        found.append(f"Batch size {', '.join(sizes)}: no trial ended with a result.")
    reasons = Counter(
        f"{trial.outcome}{': ' + f.shortened(trial.message) if trial.message else ''}"
        for trial in record.trials
        if trial.outcome in ("out of memory", "crashed", "timed out")
    )
    for reason, number in reasons.most_common(MOST_REASONS):
        found.append(f"{f.plural(number, 'trial')} without a result, {reason}")
    if len(record.seeds) == 1:
        found.append("One seed: the spread between runs is not known, and no interval over seeds can be given.")
    return (*found, *record.warnings)
