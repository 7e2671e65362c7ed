"""What the recorded curves of the real networks say: seconds to a target at each setting, the best, and the regret.

    python benchmarks/curves_table.py [network ...]

A setting that was not recorded has the seconds that straight lines give, in the logs of seconds, rate and batch size.
A run that ended before its target has a lower bound.

The last table is the limit of any search that takes what is ahead at some time for the fastest: it trains *all*
recorded settings to a share of the best run, chooses the one with the highest score there, and shows the regret.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from rich.console import Console
from rich.table import Table

from ground_truth_table import Bounded, GroundTruth, RateRow, Setting, SizeRow

if TYPE_CHECKING:
    from real import RealTask

CURVES = Path(__file__).parent / "ground_truth" / "real"
SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)  # of the best run, after which settings are compared
LIMIT = 2.0  # times the best seconds so far, after which a run has missed

UNKNOWN = 10.0  # times its seconds so far, for a run that ended before the target while none has reached it
Curve: TypeAlias = dict[str, Any]  # a run as record_one.py writes it

_DIGITS = 5  # kept of each number


def is_beginning(curve: Curve) -> bool:
    """Whether a curve was recorded up to a share of the best run, and might have gone on."""
    return bool(curve["outcome"] == "begun")


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
        >>> places = points_at(1000, 50, first=0.1, dense=0.5, factor=2, every=0.25)
        >>> [next(places) for _ in range(6)]
        [100, 200, 400, 800, 1050, 1300]
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


def time_to_target(curve: Curve, target: float, *, of: str = "seconds", window: int = 1) -> float | None:
    """Where a curve first reaches a target, between two evaluations by a straight line in log examples.

    Args:
        curve: As recorded.
        target: The score.
        of: "seconds" or "examples".
        window: Evaluations whose running median is taken first, an odd number; the ends have fewer. A median that never
            reaches the target counts for nothing: scores that do so once are enough to end a run.

    Returns:
        Seconds or examples; None if it never gets there.

    Examples:
        >>> points = {"examples": [100, 200, 400], "seconds": [1.0, 2.0, 4.0], "score": [0.2, 0.4, 0.8]}
        >>> round(time_to_target({"points": points}, 0.6), 3), time_to_target({"points": points}, 0.9)
        (2.828, None)
    """
    examples, values, raw = (curve["points"][key] for key in ("examples", of, "score"))
    half = window // 2
    for scores in ([statistics.median(raw[max(0, i - half) : i + half + 1]) for i in range(len(raw))], raw):
        place = next((place for place, score in enumerate(scores) if score >= target), None)
        if place is None:
            continue
        if place == 0:
            return float(values[0])
        share = (target - scores[place - 1]) / (scores[place] - scores[place - 1])
        at = examples[place - 1] ** (1 - share) * examples[place] ** share
        step = (at - examples[place - 1]) / (examples[place] - examples[place - 1])
        return float(values[place - 1] + step * (values[place] - values[place - 1]))
    return None


def estimate(curve: Curve, curves: Sequence[Curve], target: float, *, of: str = "seconds") -> float:
    """What a run needs to the target; of one that ended before, what its slowness against the best says.

    A run that needs s for a score that the best one has after r is taken to be s/r times slower, and to need no less
    than what it has trained already.

    Args:
        curve: A run.
        curves: All finished runs of the network.
        target: The score.
        of: "seconds" or "examples".

    Returns:
        Seconds or examples; infinite if it diverged.
    """
    found = time_to_target(curve, target, of=of)
    if found is not None:
        return found
    if curve["outcome"] == "diverged":
        return math.inf
    reached = [(value, c) for c in curves if (value := time_to_target(c, target, of=of)) is not None]
    spent = float(curve["points"][of][-1])
    if not reached:
        return UNKNOWN * spent
    least, best = min(reached, key=lambda pair: pair[0])
    pace = time_to_target(best, min(max(curve["points"]["score"]), target), of=of) or least
    return max(spent, least * spent / pace)


@dataclass(frozen=True)
class Curves:
    """What was recorded of one network.

    Attributes:
        network: Its name.
        target: Score to reach.
        batch_size: Batch size of the public example.
        learning_rate: Learning rate of the public example.
        clip_norm: Largest norm of the gradient. None: no clipping.
        timing: CPU seconds of single updates and of an evaluation, by batch size.
        curves: The runs.
    """

    network: str
    target: float
    batch_size: int
    learning_rate: float
    clip_norm: float | None
    timing: dict[str, Any]
    curves: tuple[Curve, ...]

    @classmethod
    def load(cls, name: str, folder: Path = CURVES) -> Curves:
        """What is kept of a network."""
        data = json.loads(gzip.decompress((folder / f"{name}.json.gz").read_bytes()))
        return cls(curves=tuple(data.pop("curves")), **data)

    @property
    def truth(self) -> GroundTruth:
        """Examples to the target at every batch size and rate; runs that ended before are estimated, as bounds."""
        groups: dict[int, dict[float, list[Curve]]] = {}
        for curve in self.curves:
            groups.setdefault(curve["batch_size"], {}).setdefault(curve["learning_rate"], []).append(curve)
        return GroundTruth(
            workload=self.network,
            target=self.target,
            evaluate_every_examples=0,
            training_examples=self.timing["training_examples"],
            sizes=tuple(
                SizeRow(size, tuple(self._rate_row(rate, rates[rate]) for rate in sorted(rates)))
                for size, rates in sorted(groups.items())
            ),
            provenance={},
        )

    def step_seconds(self, batch_size: int) -> float:
        """CPU seconds of an update with its reading: the median of whole runs; between their batch sizes by logs.

        Whole runs take turns with whatever else the machine does, so that they differ less than a few single updates.
        Beyond the batch sizes of the runs, the timed updates say how seconds go on.
        """
        pace: dict[int, list[float]] = {}
        for curve in self.curves:
            each = curve["points"]["seconds"][-1] / curve["points"]["examples"][-1] * curve["batch_size"]
            pace.setdefault(curve["batch_size"], []).append(each)
        sizes = sorted(pace)
        inside = min(max(batch_size, sizes[0]), sizes[-1])
        measured = _line(inside, sizes, [statistics.median(pace[size]) for size in sizes])
        timed = [_line(size, self.timing["batch_sizes"], self.timing["seconds"]) for size in (batch_size, inside)]
        return measured * timed[0] / timed[1]

    def seconds(self, setting: Setting) -> Bounded:
        """CPU seconds to the target at any setting."""
        return self.truth.seconds(setting, self.step_seconds)

    @property
    def best(self) -> Setting:
        """The setting that takes the least time."""
        return self.truth.best(self.step_seconds)

    def regret(self, setting: Setting) -> Bounded:
        """Seconds to the target at a setting over those at the best one."""
        return self.truth.regret(setting, self.step_seconds)

    def ahead_at(self, seconds: float) -> Setting | None:
        """The setting with the highest score after some CPU seconds; None: none was recorded so far.

        Beginnings of a coarse grid don't count, since nobody knows how they end.

        Args:
            seconds: Of training.
        """
        scores: dict[Setting, float] = {}
        for curve in self.curves:
            times, values = (np.array(curve["points"][key], float) for key in ("seconds", "score"))
            if not is_beginning(curve) and times[0] <= seconds <= times[-1]:
                score = float(np.interp(math.log(seconds), np.log(times), np.maximum.accumulate(values)))
                setting = Setting(curve["batch_size"], curve["learning_rate"])
                scores[setting] = max(score, scores.get(setting, -math.inf))
        return max(scores, key=scores.__getitem__, default=None)

    def _rate_row(self, rate: float, runs: Sequence[Curve]) -> RateRow:
        examples = [estimate(run, self.curves, self.target, of="examples") for run in runs]
        if any(math.isinf(value) for value in examples):
            return RateRow(rate, "diverged", tuple(run["points"]["examples"][-1] for run in runs))
        reached = all(time_to_target(run, self.target) is not None for run in runs)
        return RateRow(rate, "reached" if reached else "missed", tuple(map(round, examples)))


def _line(x: float, places: Sequence[float], values: Sequence[float]) -> float:
    """Straight lines between logs; the nearest value beyond the ends."""
    return math.exp(float(np.interp(math.log(x), np.log(places), np.log(values))))


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
    """Numbers to five digits, rates exactly; one that is not finite becomes None."""
    if isinstance(value, dict):
        return {key: item if key == "learning_rate" else _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
    return value


def table(curves: Curves) -> Table:
    """CPU seconds to the target by batch size and rate."""
    truth, best = curves.truth, curves.best
    steps = sorted({curve["step"] for curve in curves.curves})
    shown = Table(
        title=f"{curves.network}: CPU seconds to {curves.target:g}, {len(curves.curves)} runs",
        caption=f"best: {curves.seconds(best).value:.1f} s, batch {best.batch_size}, rate {best.learning_rate:.3g}",
    )
    shown.add_column("batch size", justify="right")
    shown.add_column("ms/example", justify="right")
    for step in steps:
        shown.add_column(f"{curves.learning_rate * 2.0**step:.2g}", justify="right")
    for row in truth.sizes:
        each = curves.step_seconds(row.batch_size) / row.batch_size
        cells = {rate.learning_rate: _cell(rate, each) for rate in row.rates}
        line = [cells.get(curves.learning_rate * 2.0**step, "") for step in steps]
        shown.add_row(str(row.batch_size), f"{1000 * each:.3g}", *line)
    return shown


def early_table(networks: Sequence[Curves]) -> Table:
    """Regret of the setting that is ahead at a share of the best run, and what training all of them so far costs."""
    shown = Table(title="Regret of the setting that is ahead after a share of the best run, of all recorded ones")
    shown.add_column("network")
    for share in SHARES:
        shown.add_column(f"{share:.3g}", justify="right")
    regrets: dict[float, list[float]] = {share: [] for share in SHARES}
    for curves in networks:
        best = curves.seconds(curves.best).value
        cells = []
        for share in SHARES:
            ahead = curves.ahead_at(share * best)
            regret = None if ahead is None else curves.regret(ahead)
            cells.append("–" if regret is None else f"{'≥ ' if regret.at_least else ''}{regret.value:.2f}")
            regrets[share] += [] if regret is None else [regret.value]
        shown.add_row(curves.network, *cells)
    for name, of in (("median", statistics.median), ("worst", max)):
        shown.add_row(name, *(f"{of(own):.2f}" if (own := regrets[share]) else "–" for share in SHARES))
    whole = [[c for c in curves.curves if not is_beginning(c)] for curves in networks]
    counts = [len({(c["batch_size"], c["learning_rate"]) for c in own}) for own in whole]
    costs = [f"{statistics.median(counts) * share:.2g}" for share in SHARES]
    shown.add_row("cost in best runs", *costs)
    return shown


def _cell(row: RateRow, seconds_per_example: float) -> str:
    """Seconds; "> " before an estimate; "÷" where it diverged; the runs behind it where there are more."""
    if row.ended == "diverged":
        return "÷"
    runs = f" ({len(row.examples)})" if len(row.examples) > 1 else ""
    return f"{'> ' if row.ended == 'missed' else ''}{row.mean.value * seconds_per_example:.0f}{runs}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", help="all that are kept, if none is named")
    parser.add_argument("--folder", type=Path, default=CURVES)
    arguments = parser.parse_args()
    console = Console(width=140)
    names = arguments.networks or sorted(path.name.partition(".")[0] for path in arguments.folder.glob("*.gz"))
    networks = [Curves.load(name, arguments.folder) for name in names]
    for curves in networks:
        console.print(table(curves))
    console.print(early_table(networks))


if __name__ == "__main__":
    main()
