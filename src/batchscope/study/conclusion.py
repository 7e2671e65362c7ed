"""The answer in words, made from the numbers of a comparison and never saying more than its intervals do."""

from __future__ import annotations

from batchscope.fit.contention import busy_warning
from batchscope.records import Comparison, ComparisonRow, Difference, Interval
from batchscope.study.words import counted, interval, listed, seconds


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
            f"{_name(row).capitalize()} ends at a score of {interval(row.score)} in {seconds(row.step_seconds)}; "
            "with one row there is nothing to compare it with."
        )
    elif len(scored) == 1:
        sentences.append(f"Only {_name(rows[scored[0]])} has runs that finished, so there is nothing to compare.")
    else:
        sentences += _score_and_time(comparison, scored)
    for i, row in enumerate(rows):
        name = _batch(comparison, i)
        if row.diverged:
            runs = row.diverged + row.finished + row.failed
            counts = "they count" if row.diverged > 1 else "it counts"
            sentences.append(
                f"At {name}, {row.diverged} of {counted(runs, 'run')} diverged at a learning rate of "
                f"{row.learning_rate:.3g}; {counts} in no score."
            )
        if row.failed:
            sentences.append(f"At {name}, {counted(row.failed, 'run')} ran out of memory.")
    sentences += _caveats(comparison)
    return " ".join(sentences)


def _score_and_time(comparison: Comparison, scored: list[int]) -> list[str]:
    rows = comparison.rows
    best = max(scored, key=lambda i: rows[i].score.value or 0.0)
    others = [i for i in scored if i != best]
    leads = {i: _lead(comparison, best, i) for i in others}
    level = [i for i in others if not _difference(comparison, best, i).score_told_apart]
    beaten = [i for i in others if i not in level and (leads[i].value or 0.0) > 0]
    # The highest mean may be over fewer seeds, and turn round over those that both rows finished.
    ahead = [i for i in others if i not in level and i not in beaten]
    fastest = min(scored, key=lambda i: rows[i].step_seconds or 0.0)
    sentences = [_highest(comparison, best, leads, level, beaten)]
    sentences += [
        f"But over the seeds that both finished, {_batch(comparison, i)} is ahead of it by "
        f"{interval(_lead(comparison, i, best))}."
        for i in ahead
    ]
    sentences.append(_least_time(comparison, scored, fastest, best))
    if not ahead:
        sentences += _choice(comparison, best, fastest, beaten=beaten, level=level)
    return sentences


def _highest(comparison: Comparison, best: int, leads: dict[int, Interval], level: list[int], beaten: list[int]) -> str:
    rows = comparison.rows
    equal = len({row.examples for row in rows}) == 1
    budget = f"For the same {rows[0].examples:,} examples, " if equal else "Of budgets that differ, "
    tied = [i for i in level if rows[i].score.value == rows[best].score.value]
    names = listed([_name(rows[i]) for i in (best, *tied)])
    has = f"{budget}{names} {'share' if tied else 'has'} the highest mean final score, {interval(rows[best].score)}"
    common = {_difference(comparison, best, i).seeds for i in leads}
    if max(common) < 2:
        seeds = "one seed" if max(common) == 1 else "no seed that both finished"
        return f"{has}, but with {seeds} a difference can't be told from luck: run it with --seeds 5 or more."
    if beaten:
        won = [f"{_batch(comparison, i)} by {interval(leads[i])}" for i in beaten]
        rest = [_batch(comparison, i) for i in level]
        return f"{has}: more than {listed(won)}." + (f" It can't be told apart from {listed(rest)}." if rest else "")
    if not level:
        return f"{has}."
    seeds = f"{max(common)} seeds" if len(common) == 1 else f"{min(common)} to {max(common)} seeds"
    behind = [f"{_batch(comparison, i)} {_behind(leads[i])}" for i in level]
    return f"{has}, but no other row's score can be told apart from it with {seeds}: {listed(behind)}."


def _behind(lead: Interval) -> str:
    if lead.value is None:
        return "has no seed in common with it"
    if lead.value < 0:
        return f"is ahead by {interval(_negative(lead))} over the seeds that both finished"
    return f"is behind by {interval(lead)}"


def _least_time(comparison: Comparison, scored: list[int], fastest: int, best: int) -> str:
    rows = comparison.rows
    least = seconds(rows[fastest].step_seconds)
    said = f"{_name(rows[fastest]).capitalize()} takes the least time, {least} a run"
    unclear = [i for i in scored if i != fastest and not _faster(comparison, fastest, i)]
    if unclear:
        said += f", which can't be told apart from the time of {listed([_batch(comparison, i) for i in unclear])}"
    if best != fastest and best not in unclear:
        ratio = _seconds_ratio(comparison, best, fastest)
        spread = "" if ratio.low is None or ratio.high is None else f" ({ratio.low:.3g} to {ratio.high:.3g})"
        said += f"; {_batch(comparison, best)} takes {ratio.value:.3g} times{spread} as long"
    return said + "."


def _choice(comparison: Comparison, best: int, fastest: int, *, beaten: list[int], level: list[int]) -> list[str]:
    rows = comparison.rows
    candidates = [best, *level]
    choice = min(candidates, key=lambda i: rows[i].step_seconds or 0.0)
    if rows[choice].diverged or rows[choice].failed:  # nobody can choose which of its runs end in order
        return []
    chosen = _batch(comparison, choice)
    if fastest == best:
        if not level and all(_faster(comparison, best, i) for i in beaten):
            return [f"{chosen.capitalize()} is the better choice for both."]
    elif choice != best and _faster(comparison, choice, best):
        if all(_faster(comparison, choice, i) for i in candidates if i != choice):
            found = f"Among the rows whose scores can't be told apart from the highest, {chosen} is the fastest"
        else:
            other = _batch(comparison, best)
            found = f"{chosen.capitalize()} is faster than {other}, and their scores can't be told apart"
        return [f"{found}: the better choice unless more seeds show a difference."]
    elif choice == best and fastest in beaten and _faster(comparison, fastest, best):
        saved = (rows[best].step_seconds or 0.0) - (rows[fastest].step_seconds or 0.0)
        return [
            f"So {chosen} is the better choice for score and {_batch(comparison, fastest)} for time: it saves "
            f"{seconds(saved)} a run and gives up {interval(_lead(comparison, best, fastest))} of score."
        ]
    return []


def _caveats(comparison: Comparison) -> list[str]:
    said = []
    if comparison.learning_rate == "fixed" and len(comparison.rows) > 1:
        workload = comparison.workload
        said.append(
            f"All rows used the learning rate {workload.learning_rate:.3g}, which was chosen for batch "
            f"{workload.batch_size:,}: what differs may be the rate's doing as much as the batch's."
        )
    found = [(i, comparison.search_of(row)) for i, row in enumerate(comparison.rows) if row.finished]
    edges = [_batch(comparison, i) for i, search in found if search is not None and search.at_edge]
    if edges:
        said.append(
            f"At {listed(edges)} the best learning rate lies at the edge of what "
            "the search tried, so a better one may exist."
        )
    if (busy := busy_warning(comparison.contention, "training")) is not None:
        said.append(busy)
    if comparison.error is not None:
        said.append(f"The comparison was stopped by an error: this is what was finished. {comparison.error}.")
    elif comparison.interrupted:
        said.append("The comparison was interrupted: this is what was finished.")
    return said


def _difference(comparison: Comparison, first: int, second: int) -> Difference:
    wanted = (min(first, second), max(first, second))
    return next(d for d in comparison.differences if (d.first, d.second) == wanted)


def _lead(comparison: Comparison, first: int, second: int) -> Interval:
    """Final score of one row minus that of another, over the seeds that both finished."""
    difference = _difference(comparison, first, second)
    return difference.score if difference.first == first else _negative(difference.score)


def _negative(interval: Interval) -> Interval:
    value, low, high = (None if end is None else -end for end in (interval.value, interval.high, interval.low))
    return Interval(value, low, high, interval.level, interval.resolved)


def _seconds_ratio(comparison: Comparison, first: int, second: int) -> Interval:
    """Time of one row over that of another."""
    difference = _difference(comparison, first, second)
    ratio = difference.seconds_ratio
    if difference.first == first:
        return ratio
    value, low, high = (None if end is None else 1 / end for end in (ratio.value, ratio.high, ratio.low))
    return Interval(value, low, high, ratio.level, ratio.resolved)


def _faster(comparison: Comparison, first: int, second: int) -> bool:
    """Whether one row takes less time than another and the two times can be told apart."""
    ratio = _seconds_ratio(comparison, first, second).value
    return _difference(comparison, first, second).seconds_told_apart and ratio is not None and ratio < 1


def _batch(comparison: Comparison, index: int) -> str:
    """A row by its batch size, and by its updates too where another row has the same batch size."""
    row = comparison.rows[index]
    alone = sum(other.batch_size == row.batch_size for other in comparison.rows) == 1
    return f"batch {row.batch_size:,}" if alone else f"batch {row.batch_size:,} × {row.iterations:,}"


def _name(row: ComparisonRow) -> str:
    return f"batch {row.batch_size:,} × {row.iterations:,} updates"
