"""What the page of a sweep holds, section by section; a trade-off law on its own is shown by the same ones."""

from __future__ import annotations

from collections.abc import Iterable

from batchscope.records import Interval, Sweep, TimeToTarget, TradeoffLaw
from batchscope.report import formatting as f
from batchscope.report import sheets, sweep_sheets, tradeoff_sheets
from batchscope.report.content import Card, Content, Figure, Section, drawn
from batchscope.report.marks import RED, TEAL

_BAND = (
    "Line: the law; band: 95%, from all pairs of E_min and B_crit that fit the points almost as well as the best one. "
)
_CRITICAL = {
    True: "Dashed: B_crit, with its interval as a bar on the axis.",
    False: "Dashed: as far as B_crit is known.",
}


def of_sweep(record: Sweep, available: Iterable[str]) -> Content:
    """The page of a sweep.

    Args:
        record: The sweep.
        available: Names of the charts that have something to show.

    Returns:
        The answer, the best of each batch size, the laws, the learning rates, and every trial.
    """
    shown = frozenset(available)
    sections = [
        Section(
            "What each batch size needs" if record.target is not None else "What each batch size reaches",
            cards=_cards(record),
            sheets=(sweep_sheets.best(record),) if record.best else (),
        ),
        Section(
            "Scores",
            figures=drawn(
                shown,
                Figure("score_by_size", "Best score at the best rate", note="Bars: 95% intervals over the seeds."),
            ),
        ),
    ]
    if record.law is not None:
        sections.append(_law(record.law, shown, over_seeds=True))
    if record.time is not None:
        sections.append(
            Section(
                "Time to the target",
                record.time.verdict,
                figures=drawn(
                    shown,
                    Figure(
                        "seconds_to_target",
                        "Time to the target",
                        note="Dots: the measured updates times that of one, with their intervals. Line and band: by "
                        "the law. Shaded: within a tenth of the least.",
                    ),
                    Figure(
                        "front",
                        "Time against examples",
                        note="Dots: batch sizes, by the law. Hollow: another one needs fewer examples and less time.",
                    ),
                ),
                folded=sweep_sheets.times(record.time),
                facts=(("Where it is least", sweep_sheets.time_facts(record.time)),),
            )
        )
    sections += [
        _rates(record, shown),
        Section(
            "Learning curves",
            "Score against examples at the best rate of each batch size; a line is a run"
            + (", dashed the target." if record.target is not None else "."),
            figures=drawn(shown, Figure("best_curves", "Learning curves at the best rates", alone=True)),
        ),
        Section(
            "All that was tried",
            _map_lead(record),
            figures=drawn(
                shown, Figure("rate_map", "Batch size and learning rate", alone=True, note=_map_note(record))
            ),
            folded=sweep_sheets.trials(record) if record.trials else None,
        ),
        Section(
            "How this was measured",
            facts=(
                ("Settings", sweep_sheets.settings(record)),
                ("Provenance", sheets.provenance(record.provenance)),
            ),
        ),
    ]
    return Content(
        name=record.workload.name,
        title=_question(record),
        answer=record.conclusion,
        summary=(
            ("target", "none" if record.target is None else f.number(record.target)),
            ("trials", f.count(len(record.trials))),
            ("seeds", f.count(len(record.seeds))),
            ("the sweep took", f.seconds(record.total_seconds)),
            ("on", record.provenance.device),
        ),
        warnings=sweep_sheets.warnings(record),
        sections=tuple(section for section in sections if section.holds_something()),
    )


def of_law(law: TradeoffLaw, available: Iterable[str]) -> Content:
    """The page of a trade-off law that was fitted to a table."""
    sizes = [point.batch_size for point in law.points]
    runs = sum(point.runs for point in law.points)
    return Content(
        name="Trade-off law",
        title="How do examples and updates to a target depend on batch size?",
        answer=law.verdict,
        summary=(
            ("critical batch size", f.sized(law.critical_batch_size)),
            ("batch sizes", f"{f.count(min(sizes))} to {f.count(max(sizes))}" if sizes else f.UNKNOWN),
            ("runs", f.count(runs)),
        ),
        sections=(_law(law, frozenset(available), over_seeds=False),),
    )


def _law(law: TradeoffLaw, shown: frozenset[str], *, over_seeds: bool) -> Section:
    points = "Points: geometric means over runs"
    points += " with their 95% intervals. " if over_seeds else ". "
    if any(point.missed for point in law.points):
        points += "Hollow: some runs missed the target; a wedge: all did, and more is needed. "
    critical = law.critical_batch_size
    bounded = critical.resolved or f.between(critical) != f.UNKNOWN
    note = points + (_BAND if any(f.known(point.predicted) for point in law.points) else "")
    note += _CRITICAL[critical.resolved] if bounded else ""
    return Section(
        "The trade-off law",
        law.verdict if over_seeds else "",
        figures=drawn(
            shown,
            Figure("updates_to_target", "Updates to the target"),
            Figure("examples_to_target", "Examples to the target", note=note),
        ),
        sheets=(tradeoff_sheets.points(law),) if law.points else (),
        facts=(("The law", tradeoff_sheets.facts(law)),),
    )


def _rates(record: Sweep, shown: frozenset[str]) -> Section:
    law = record.rate_law
    figure = Figure(
        "best_rate",
        "Best learning rate",
        note="Bars reach to where training is clearly worse; a wedge is a best rate at an end of what was tried. Both "
        "rules go through the diamond, what is used today.",
    )
    return Section(
        "Learning rates",
        "" if law is None else law.verdict,
        figures=drawn(shown, figure),
        facts=() if law is None else (("The law of the best rate", sweep_sheets.rate_facts(law)),),
        folded=None if law is None else sweep_sheets.rates(law),
    )


def _cards(record: Sweep) -> tuple[Card, ...]:
    """The numbers that a reader looks for: B_crit, the fastest batch size."""
    cards = []
    if record.law is not None:
        cards.append(
            Card(
                "Critical batch size",
                *_number(record.law.critical_batch_size),
                tradeoff_sheets.regimes(record.law),
                TEAL,
            )
        )
    if record.time is not None:
        cards.append(Card("Fastest batch size", *_number(record.time.best_batch_size), _fastest(record.time), RED))
    return tuple(cards)


def _fastest(time: TimeToTarget) -> str:
    if time.best_batch_size.value is None:
        return time.verdict
    reach = time.within_ten_per_cent
    near = ""
    if reach is not None:
        near = f" From {f.count(reach[0])} to {f.count(reach[1])} it takes at most a tenth more."
        if reach[0] == reach[1]:
            near = " Every other batch size takes more than a tenth more."
    return f"It reaches the target in {f.seconds(time.best_seconds.value)}, trained alone.{near}"


def _number(interval: Interval) -> tuple[str, str]:
    ends = f.between(interval)
    detail = "" if ends == f.UNKNOWN else ends if interval.value is None else f"{ends}, {interval.level:.0%} interval"
    return f.UNRESOLVED if interval.value is None else f.size(interval.value), detail


def _question(record: Sweep) -> str:
    if record.target is None:
        return f"Which batch size reaches the best score after {f.count(record.budget_examples)} examples?"
    return f"Which batch size reaches a score of {f.number(record.target)} soonest?"


def _map_lead(record: Sweep) -> str:
    return f"{f.count(len(record.trials))} trials: {sweep_sheets.outcomes(record)}." if record.trials else ""


def _map_note(record: Sweep) -> str:
    means = "mean over seeds, where a run ended in order"
    if record.target is not None:
        means = "geometric mean over seeds, where a run reached the target"
    return f"Colour: {means}; the signs say what became of the rest. Framed: the best rate of a batch size."
