"""From runs to rows and differences: the arithmetic of a comparison."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from batchscope.fit import holm, mean_interval, paired_p_value, ratio_interval
from batchscope.fit.contention import QUIET, widened
from batchscope.records import ComparisonRow, Difference, Interval, RateSearch, TrainResult

LEVEL = 0.05
# From so many quiet runs on, those on a busy machine do not count for times.
LEAST_QUIET_RUNS = 2


def common_score(runs: Sequence[TrainResult]) -> float | None:
    """The best score that all finished runs reached: the least of their best ones; None where none finished."""
    return min((run.best_score for run in runs if run.ended_in_order and run.best_score is not None), default=None)


def row(
    batch_size: int,
    iterations: int,
    learning_rate: float,
    runs: Sequence[TrainResult],
    *,
    target: float | None,
    search: RateSearch | None,
    contention: float | None = None,
) -> ComparisonRow:
    """Summarise the runs of one way to spend the budget.

    Args:
        batch_size: Examples per update.
        iterations: Updates.
        learning_rate: The rate at the first update.
        runs: Its runs, one a seed.
        target: The comparison's common score.
        search: How the rate was found; None where it was not searched for.
        contention: Share of the processor that others took, for runs too short to know it themselves; None: unknown.

    Returns:
        The row. Times are those of the runs on a quiet machine, where there are two of them. Diverged and failed runs
        are counted and enter no interval.
    """
    done = [run for run in runs if run.ended_in_order]
    timed = _quietest(done, contention)
    seconds = [run.step_seconds for run in timed]
    reached = [point for run in done if (point := _first_at(run, target)) is not None]
    timed_reached = [point for run in timed if (point := _first_at(run, target)) is not None]
    peaks = [run.peak_memory_bytes for run in runs if run.peak_memory_bytes is not None]
    median_seconds = _median(seconds)

    def over_seeds(value: Callable[[TrainResult], float | None]) -> Interval:
        return mean_interval([v for run in done if (v := value(run)) is not None and math.isfinite(v)])

    return ComparisonRow(
        batch_size=batch_size,
        iterations=iterations,
        examples=batch_size * iterations,
        learning_rate=learning_rate,
        finished=len(done),
        diverged=sum(run.outcome == "diverged" for run in runs),
        failed=sum(run.outcome == "out of memory" for run in runs),
        score=over_seeds(lambda run: run.final_score),
        best_score=over_seeds(lambda run: run.best_score),
        loss=over_seeds(lambda run: run.final_loss),
        best_loss=over_seeds(lambda run: run.best_loss),
        training_score=over_seeds(lambda run: run.training_score),
        training_loss=over_seeds(lambda run: run.training_loss),
        generalisation_gap=over_seeds(lambda run: run.generalisation_gap),
        step_seconds=median_seconds,
        step_seconds_low=min((run.step_seconds * (1 - _taken(run, contention)) for run in timed), default=None),
        step_seconds_high=max(seconds, default=None),
        data_seconds=_median([run.data_seconds for run in timed]),
        examples_per_second=batch_size * iterations / median_seconds if median_seconds else None,
        peak_memory_bytes=max(peaks, default=None),
        common_score_reached=len(reached),
        examples_to_common_score=_median([point[0] for point in reached]),
        seconds_to_common_score=_median([point[1] for point in timed_reached]),
        search_seconds=search.seconds if search else 0.0,
        search_examples=search.examples if search else 0,
    )


def differences(runs: Sequence[Sequence[TrainResult]], *, contention: float | None = None) -> tuple[Difference, ...]:
    """Compare every pair of rows, seed by seed.

    Times are compared over the seeds with which both rows found the machine quiet, where there are two. Otherwise all
    count, the ratio's interval is as much wider as contention leaves open, and times are told apart only where it
    excludes 1 all the same.

    Args:
        runs: The runs of each row.
        contention: Share of the processor that others took, for runs too short to know it themselves; None: unknown.

    Returns:
        One difference for each pair, first against second in the order of the rows. Intervals are at 95% each;
        "told apart" is at 5% over all pairs together (Holm).
    """
    found, score_p, seconds_p = [], [], []
    for first, second in itertools.combinations(range(len(runs)), 2):
        by_seed = {run.seed: run for run in runs[second] if run.ended_in_order}
        pairs = [(run, by_seed[run.seed]) for run in runs[first] if run.ended_in_order and run.seed in by_seed]
        scores = _finite_differences((a.final_score, b.final_score) for a, b in pairs)
        losses = _finite_differences((a.final_loss, b.final_loss) for a, b in pairs)
        timed = _quietest_pairs(pairs, contention)
        times = [math.log(a.step_seconds / b.step_seconds) for a, b in timed]
        ratio = ratio_interval(times)
        taken = [max((_taken(pair[side], contention) for pair in timed), default=0.0) for side in (0, 1)]
        if any(taken):
            ratio = widened(ratio, *taken)
        score_p.append(paired_p_value(scores))
        seconds_p.append(paired_p_value(times))
        found.append(
            Difference(
                first=first,
                second=second,
                seeds=len(pairs),
                score=mean_interval(scores),
                loss=mean_interval(losses),
                seconds_ratio=ratio,
                score_p_value=None,
                seconds_p_value=None,
                score_told_apart=False,
                # Of a quiet machine the test decides alone; else the interval must exclude 1 as well.
                seconds_told_apart=not any(taken) or ratio.excludes(1.0),
            )
        )
    return tuple(
        replace(
            difference,
            score_p_value=score,
            seconds_p_value=seconds,
            score_told_apart=score is not None and score < LEVEL,
            seconds_told_apart=difference.seconds_told_apart and seconds is not None and seconds < LEVEL,
        )
        for difference, score, seconds in zip(found, holm(score_p), holm(seconds_p), strict=True)
    )


def _taken(run: TrainResult, contention: float | None) -> float:
    """Share of the processor time that a run was kept from; 0 where it was quiet, or nothing is known."""
    share = run.contention if run.contention is not None else contention
    return share if share is not None and share > QUIET else 0.0


def _quietest(runs: Sequence[TrainResult], contention: float | None) -> Sequence[TrainResult]:
    quiet = [run for run in runs if not _taken(run, contention)]
    return quiet if len(quiet) >= LEAST_QUIET_RUNS else runs


def _quietest_pairs(
    pairs: Sequence[tuple[TrainResult, TrainResult]], contention: float | None
) -> Sequence[tuple[TrainResult, TrainResult]]:
    quiet = [pair for pair in pairs if not any(_taken(run, contention) for run in pair)]
    return quiet if len(quiet) >= LEAST_QUIET_RUNS else pairs


def _first_at(run: TrainResult, target: float | None) -> tuple[int, float] | None:
    if target is None:
        return None
    return next(((point.examples, point.seconds) for point in run.curve if point.score >= target), None)


def _finite_differences(pairs: Iterable[tuple[float | None, float | None]]) -> list[float]:
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    return [a - b for a, b in known if math.isfinite(a) and math.isfinite(b)]


def _median(values: Sequence[float]) -> float | None:
    return float(statistics.median(values)) if values else None
