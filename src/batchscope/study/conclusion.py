"""The answer in words, made from the numbers of a comparison and never saying more than its intervals do."""

from __future__ import annotations

from batchscope.records import Comparison, ComparisonRow, Difference, Interval


def conclude(comparison: Comparison) -> str:
    """Say which way to spend the budget is better for score, which for time, by how much, and what can't be told.

    Args:
        comparison: Rows and differences filled in; its ``conclusion`` is not looked at.

    Returns:
        Sentences, one paragraph.
    """
    rows = comparison.rows
    scored = [i for i, row in enumerate(rows) if row.score.value is not None]
    sentences: list[str] = []
    if not scored:
        sentences.append("No run finished in order, so nothing can be said of scores or times.")
    elif len(rows) == 1:
        row = rows[0]
        sentences.append(
            f"{_name(row).capitalize()} ends at a score of {_interval(row.score)} in {_seconds(row.step_seconds)}; "
            "with one row there is nothing to compare it with."
        )
    elif len(scored) == 1:
        sentences.append(f"Only {_name(rows[scored[0]])} has runs that finished, so there is nothing to compare.")
    else:
        sentences += _score_and_time(comparison, scored)
    for row in rows:
        if row.diverged:
            runs = row.diverged + row.finished + row.failed
            sentences.append(
                f"At batch {row.batch_size:,}, {row.diverged} of {runs} runs diverged at a learning rate of "
                f"{row.learning_rate:.3g}; they count in no score."
            )
        if row.failed:
            sentences.append(f"At batch {row.batch_size:,}, {row.failed} runs ran out of memory.")
    sentences += _caveats(comparison)
    return " ".join(sentences)


def _score_and_time(comparison: Comparison, scored: list[int]) -> list[str]:
    rows = comparison.rows
    best = max(scored, key=lambda i: rows[i].score.value or 0.0)
    fastest = min(scored, key=lambda i: rows[i].step_seconds or 0.0)
    others = [i for i in scored if i != best]
    against = {i: _oriented(comparison, best, i) for i in others}
    beaten = [i for i in others if against[i].told_apart]
    level = [i for i in others if not against[i].told_apart]

    equal = len({row.examples for row in rows}) == 1
    budget = f"For the same {rows[0].examples:,} examples, " if equal else "Of budgets that differ, "
    highest = f"{budget}{_name(rows[best])} has the highest mean final score, {_interval(rows[best].score)}"
    sentences = []
    if comparison.differences and all(d.seeds < 2 for d in comparison.differences):
        sentences.append(
            f"{highest}, but with one seed a difference can't be told from luck: run it with --seeds 5 or more."
        )
    elif beaten:
        sentences.append(
            f"{highest}: more than {_listed([f'{_batch(rows[i])} by {against[i].said}' for i in beaten])}."
        )
        if level:
            sentences.append(f"It can't be told apart from {_listed([_batch(rows[i]) for i in level])}.")
    else:
        sentences.append(
            f"{highest}, but no other row's score can be told apart from it with {_seeds(comparison)}: "
            f"{_listed([f'{_batch(rows[i])} is behind by {against[i].said}' for i in level])}."
        )

    quickest = rows[fastest]
    sentences.append(
        f"{_name(quickest).capitalize()} takes the least time, {_seconds(quickest.step_seconds)} a run"
        + "".join(_times_faster(comparison, fastest, i) for i in scored if i == best != fastest)
        + "."
    )
    if fastest == best:
        told = [i for i in beaten if _seconds_told_apart(comparison, best, i)]
        if len(told) == len(others):
            sentences.append(f"{_batch(quickest).capitalize()} is the better choice for both.")
        return sentences
    candidates = [i for i in (best, *level) if rows[i].step_seconds is not None]
    choice = min(candidates, key=lambda i: rows[i].step_seconds or 0.0)
    if choice != best and _seconds_told_apart(comparison, choice, best):
        sentences.append(
            f"Among the rows whose scores can't be told apart, {_batch(rows[choice])} is the fastest: "
            "the better choice unless more seeds show a difference."
        )
    elif choice == best and beaten and _seconds_told_apart(comparison, best, fastest):
        saved = (rows[best].step_seconds or 0.0) - (quickest.step_seconds or 0.0)
        sentences.append(
            f"So {_batch(rows[best])} is the better choice for score and {_batch(quickest)} for time: "
            f"it saves {_seconds(saved)} a run and gives up {against[fastest].said} of score."
        )
    return sentences


def _caveats(comparison: Comparison) -> list[str]:
    said = []
    if comparison.learning_rate == "fixed" and len(comparison.rows) > 1:
        workload = comparison.workload
        said.append(
            f"All rows used the learning rate {workload.learning_rate:.3g}, which was chosen for batch "
            f"{workload.batch_size:,}: what differs may be the rate's doing as much as the batch's."
        )
    edges = [search.batch_size for search in comparison.searches if search.at_edge]
    if edges:
        said.append(
            f"At batch {_listed([f'{size:,}' for size in edges])} the best learning rate lies at the edge of what the "
            "search tried, so a better one may exist."
        )
    if comparison.interrupted:
        said.append("The comparison was interrupted: this is what was finished.")
    return said


class _Against:
    """The best row's lead over another one."""

    def __init__(self, lead: Interval, told_apart: bool) -> None:
        self.told_apart = told_apart
        self.said = _interval(lead)


def _oriented(comparison: Comparison, first: int, second: int) -> _Against:
    difference = _difference(comparison, first, second)
    score = difference.score
    if difference.first != first and score.value is not None:
        low, high = score.low, score.high
        score = Interval(
            -score.value, None if high is None else -high, None if low is None else -low, score.level, score.resolved
        )
    return _Against(score, difference.score_told_apart)


def _difference(comparison: Comparison, first: int, second: int) -> Difference:
    wanted = (min(first, second), max(first, second))
    return next(d for d in comparison.differences if (d.first, d.second) == wanted)


def _seconds_told_apart(comparison: Comparison, first: int, second: int) -> bool:
    return _difference(comparison, first, second).seconds_told_apart


def _times_faster(comparison: Comparison, fast: int, slow: int) -> str:
    difference = _difference(comparison, fast, slow)
    ratio = difference.seconds_ratio
    if ratio.value is None:
        return ""
    if not difference.seconds_told_apart:
        return f", which can't be told apart from the time of {_batch(comparison.rows[slow])}"
    ends = (ratio.value, ratio.low, ratio.high)
    value, low, high = ends if difference.first == slow else (_inverse(ends[0]), _inverse(ends[2]), _inverse(ends[1]))
    spread = "" if low is None or high is None else f" ({low:.3g} to {high:.3g})"
    return f"; {_batch(comparison.rows[slow])} takes {value:.3g} times{spread} as long"


def _inverse(value: float | None) -> float | None:
    return None if value is None else 1 / value


def _seeds(comparison: Comparison) -> str:
    return "one seed" if len(comparison.seeds) == 1 else f"{len(comparison.seeds)} seeds"


def _batch(row: ComparisonRow) -> str:
    return f"batch {row.batch_size:,}"


def _name(row: ComparisonRow) -> str:
    return f"batch {row.batch_size:,} × {row.iterations:,} updates"


def _interval(interval: Interval) -> str:
    if interval.value is None:
        return "an unknown amount"
    if interval.low is None or interval.high is None:
        return _number(interval.value)
    return f"{_number(interval.value)} ({_number(interval.low)} to {_number(interval.high)})"


def _number(value: float) -> str:
    return f"{value:.4f}" if 0.0001 <= abs(value) < 100 else f"{value:.3g}"


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return "an unknown time"
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 120 else f"{seconds / 60:.3g} min"


def _listed(items: list[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
