"""What the recorded curves of the real networks say: seconds to a target at each setting, the best, and the regret.

    python benchmarks/curves_table.py [network ...]

A setting that was not recorded has the seconds that straight lines give, in the logs of seconds, rate and batch size.
A run that ended before its target has a lower bound.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from real import RealTask

CURVES = Path(__file__).parent / "ground_truth" / "real"
LIMIT = 3.0  # times the best seconds so far, after which a run has missed

_DIGITS = 5  # kept of each number


def points_at(
    expected: int, batch_size: int, *, first: float, dense: float, factor: float, every: float
) -> Iterator[int]:
    """Examples at which a curve has points, in whole updates: spaced by a factor, then evenly, then by a factor again.

    Args:
        expected: Examples of the fastest run, about; the shares are of these.
        batch_size: Examples of an update.
        first: Share at which the first point lies.
        dense: Share from which points lie evenly.
        factor: Between two points before.
        every: Share between two points after, up to all that are expected; from there on a factor of 1 plus this.

    Yields:
        Examples, ever more.

    Examples:
        >>> places = points_at(1000, 64, first=0.1, dense=0.5, factor=2, every=0.25)
        >>> [next(places) for _ in range(6)]
        [128, 192, 384, 640, 832, 1088]
    """
    place, last = expected * first, 0
    while True:
        examples = max(1, round(place / batch_size)) * batch_size
        if examples > last:
            yield examples
            last = examples
        if place < dense * expected:
            place *= factor
        else:
            place += every * max(expected, place)


def time_to_target(curve: dict[str, Any], target: float, *, of: str = "seconds") -> float | None:
    """Where a curve first reaches a target, between two evaluations by a straight line in log examples.

    Args:
        curve: As recorded.
        target: The score.
        of: "seconds" or "examples".

    Returns:
        Seconds or examples; None if it never gets there.

    Examples:
        >>> points = {"examples": [100, 200, 400], "seconds": [1.0, 2.0, 4.0], "score": [0.2, 0.4, 0.8]}
        >>> curve = {"points": points, "initial": {"score": 0.1}}
        >>> round(time_to_target(curve, 0.6), 3), time_to_target(curve, 0.9)
        (2.828, None)
    """
    examples, values, scores = (curve["points"][key] for key in ("examples", of, "score"))
    for place, score in enumerate(scores):
        if score >= target:
            if place == 0 or values[place - 1] <= 0:
                return float(values[place])
            before = scores[place - 1]
            share = (target - before) / (score - before)
            at = math.exp((1 - share) * math.log(examples[place - 1]) + share * math.log(examples[place]))
            step = (at - examples[place - 1]) / (examples[place] - examples[place - 1])
            return float(values[place - 1] + step * (values[place] - values[place - 1]))
    return None


def seconds_or_estimate(curve: dict[str, Any], curves: Sequence[dict[str, Any]], target: float) -> float:
    """Seconds of a run to the target; of one that ended before, what its slowness against the best says.

    A run that needs s seconds for a score that the best one has after r is taken to be s/r times slower, and to be no
    faster than what it has trained already.

    Args:
        curve: A run.
        curves: All finished runs of the network.
        target: The score.

    Returns:
        Seconds; infinite if it diverged.
    """
    found = time_to_target(curve, target)
    if found is not None:
        return found
    if curve["outcome"] == "diverged":
        return math.inf
    reached = [(seconds, c) for c in curves if (seconds := time_to_target(c, target)) is not None]
    spent = float(curve["points"]["seconds"][-1])
    if not reached:
        return 10 * spent
    best_seconds, best = min(reached, key=lambda pair: pair[0])
    score = max(curve["points"]["score"])
    pace = time_to_target(best, min(score, target))
    return max(spent, best_seconds * spent / max(pace or best_seconds, 1e-9))


def collect(task: RealTask, folder: Path, into: Path) -> Path:
    """Compress what has finished of one network, rounded.

    Args:
        task: The network.
        folder: Where its runs are.
        into: Where the file goes.

    Returns:
        The file.
    """
    curves = [json.loads(path.read_text()) for path in sorted(folder.glob("b*.json"))]
    curves.sort(key=lambda c: (c["batch_size"], c["step"], c["seed"]))
    whole = {
        "network": task.name,
        "target": task.target,
        "batch_size": task.batch_size,
        "learning_rate": task.learning_rate,
        "clip_norm": task.clip_norm,
        "timing": json.loads((folder / "timing.json").read_text()),
        "curves": curves,
    }
    text = json.dumps(_rounded(whole), separators=(",", ":"), allow_nan=False)
    into.mkdir(parents=True, exist_ok=True)
    path = into / f"{task.name}.json.gz"
    path.write_bytes(gzip.compress(text.encode(), mtime=0))
    return path


def _rounded(value: Any) -> Any:
    """Numbers to five digits; one that is not finite becomes None."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
    return value
