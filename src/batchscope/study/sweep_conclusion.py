"""What a sweep found, in words made from its numbers."""

from __future__ import annotations

from batchscope.records import Sweep, SweepBest
from batchscope.study.words import count, counted, counts, interval, listed, seconds


def conclude_sweep(sweep: Sweep) -> str:
    """Say which batch size reaches the target with the fewest examples, updates and seconds, and where that ends.

    Args:
        sweep: Everything but its conclusion filled in.

    Returns:
        Sentences, one paragraph.
    """
    lines = [line for line in sweep.best if line.learning_rate is not None]
    if not lines:
        said = ["No trial ended with a result, so nothing can be said of batch sizes."]
    elif sweep.target is None:
        said = _scores(sweep, lines)
    else:
        said = _target(sweep, lines)
    return " ".join([*said, *_caveats(sweep)])


def _target(sweep: Sweep, lines: list[SweepBest]) -> list[str]:
    target = f"a score of {sweep.target:.6g}"
    reached = [line for line in lines if line.examples_to_target.value is not None]
    if not reached:
        best = max(lines, key=lambda line: line.score.value or 0.0)
        most = (
            "" if best.score.value is None else f"; the best was {interval(best.score)}, at batch {best.batch_size:,}"
        )
        return [f"No trial reached {target} within {sweep.budget_examples:,} examples{most}."]
    fewest = min(reached, key=lambda line: line.examples_to_target.value or 0.0)
    least = min(reached, key=lambda line: line.updates_to_target.value or 0.0)
    said = [
        f"Of the batch sizes tried, {fewest.batch_size:,} reaches {target} with the fewest examples, "
        f"{counts(fewest.examples_to_target)} at a learning rate of {fewest.learning_rate:.3g}"
    ]
    if least.batch_size != fewest.batch_size:
        said[0] += (
            f", and {least.batch_size:,} with the fewest updates, {counts(least.updates_to_target)} at "
            f"{least.learning_rate:.3g}"
        )
    said[0] += "."
    timed = [line for line in reached if line.seconds_to_target.value is not None]
    if timed:
        fastest = min(timed, key=lambda line: line.seconds_to_target.value or 0.0)
        said.append(
            f"Batch {fastest.batch_size:,} takes the least time of them, "
            f"{seconds(fastest.seconds_to_target.value)} at {seconds(fastest.update_seconds)} an update."
        )
    for found in (sweep.law, sweep.rate_law, sweep.time):
        if found is not None:
            said.append(found.verdict)
    return said


def _scores(sweep: Sweep, lines: list[SweepBest]) -> list[str]:
    scored = [line for line in lines if line.score.value is not None]
    if not scored:
        return [f"No trial has a score after {sweep.budget_examples:,} examples."]
    best = max(scored, key=lambda line: line.score.value or 0.0)
    said = [
        f"After {sweep.budget_examples:,} examples batch {best.batch_size:,} has the highest score, "
        f"{interval(best.score)} at a learning rate of {best.learning_rate:.3g}."
    ]
    low = best.score.low
    level = [
        line.batch_size
        for line in scored
        if line is not best and line.score.high is not None and low is not None and line.score.high >= low
    ]
    if level:
        said.append(f"Its interval overlaps with that of batch {listed([f'{size:,}' for size in level])}.")
    if sweep.rate_law is not None:
        said.append(sweep.rate_law.verdict)
    return said


def _caveats(sweep: Sweep) -> list[str]:
    said = []
    edges = [f"{line.batch_size:,}" for line in sweep.best if line.edge is not None]
    if edges:
        said.append(
            f"At batch {listed(edges)} the best learning rate lies at the edge of what was tried, so a better one may "
            "exist."
        )
    if sweep.target is not None:
        missed = [f"{line.batch_size:,}" for line in sweep.best if line.runs and line.reached < line.runs]
        if missed and any(line.reached for line in sweep.best):
            said.append(f"At batch {listed(missed)} not every run at the best rate reached the target.")
    bad = [trial for trial in sweep.trials if trial.outcome in ("crashed", "timed out", "out of memory")]
    if bad:
        kinds: list[str] = sorted({trial.outcome for trial in bad})
        said.append(f"{counted(len(bad), 'trial').capitalize()} ended without a result ({listed(kinds)}).")
    pruned = sum(line.pruned for line in sweep.best)
    if pruned:
        said.append(
            f"{counted(pruned, 'trial')} of {len(sweep.trials)} could not win and were stopped; all together trained "
            f"on {count(sweep.examples_spent)} examples."
        )
    if any(line.seconds_to_target.value is not None for line in sweep.best):
        said += sweep.warnings  # which are about times
    if sweep.error is not None:
        said.append(f"The sweep was stopped by an error: this is what was finished. {sweep.error}.")
    elif sweep.interrupted:
        said.append("The sweep was interrupted: this is what was finished.")
    return said
