"""How well the best learning rate of a long run is foretold from the beginning of shorter ones.

The runs that made the ground truth (``make ground-truth`` leaves them in ``build/ground-truth``) are cut off at some
share of their way, three batch sizes at a time. From the valleys until there, and the curves of the best rates,
``fit_rate_drift`` foretells the best rates at the end; beside it stand the rates that looked best where they were cut
off. Errors are those of log ε*, too large above zero; the best rates at the end are themselves known to about 0.2.

    python benchmarks/best_rates.py [--workloads digits …]
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from batchscope.advice.lane import BOTTOM_SPREAD, EDGE_SPREAD
from batchscope.advice.outlook import LEAST_POINTS
from batchscope.fit.learning_curve import Curve, fit_learning_curve
from batchscope.fit.rate_drift import Bottom, along_one_run, fit_rate_drift
from batchscope.fit.valley import valley_bottom
from batchscope.schedule import learning_rate_exponent
from batchscope.study.trial_store import TrialStore
from cases import keep, machine
from ground_truth import STORES
from workloads import TASKS, Task

SHARES = (0.08, 0.15, 0.3, 0.6)
TRIPLES = ((16, 64, 128), (32, 128, 512), (64, 256, 512))
RATIO, SEEDS, LEAST_RATES = 1.3, (0, 1), 3
# The end of the way, over whose places the best rate is averaged.
END = 0.7

Valleys = dict[int, dict[int, dict[float, float]]]
Row = dict[str, Any]


def recorded(name: str, batch_size: int) -> Valleys:
    """Validation losses of one batch size: by seed, examples and learning rate; infinite where training diverged."""
    found: Valleys = {}
    for path in sorted(STORES.glob(f"{name}-{batch_size}-*.db")):
        with TrialStore.read(path) as store:
            for trial in store.trials():
                for point in trial.curve:
                    loss = point.validation_loss
                    at = found.setdefault(trial.seed, {}).setdefault(point.examples, {})
                    if point.examples:
                        at[float(f"{trial.learning_rate:.4g}")] = loss if math.isfinite(loss) else math.inf
    seen = {seed: {e: v for e, v in places.items() if len(v) >= LEAST_RATES} for seed, places in found.items()}
    return {seed: places for seed, places in seen.items() if places} if all(seen.get(seed) for seed in SEEDS) else {}


def best_rate(valley: dict[float, float]) -> tuple[float, bool]:
    """The bottom, and whether it lies at an edge."""
    rates = sorted(valley)
    return valley_bottom(rates, [valley[rate] for rate in rates])


def at_the_end(valleys: Valleys) -> tuple[float, float]:
    """The last place that all seeds got to, and the best rate about there: a geometric mean."""
    last = min(max(places) for places in valleys.values())
    near = [v for places in valleys.values() for e, v in places.items() if END * last <= e <= last]
    return float(last), statistics.geometric_mean(best_rate(valley)[0] for valley in near)


def bottoms(places: dict[int, dict[float, float]], batch_size: int, until: float) -> list[Bottom]:
    """What a race would have seen of one batch size."""
    kept: list[Bottom] = []
    for examples in sorted(e for e in places if 0 < e <= until):
        if not kept or examples >= RATIO * kept[-1].examples:
            rate, at_edge = best_rate(places[examples])
            spread = (EDGE_SPREAD if at_edge else BOTTOM_SPREAD) * math.log(2)
            kept.append(Bottom(batch_size, float(examples), rate, spread))
    return along_one_run(kept)


def curve(places: dict[int, dict[float, float]], batch_size: int, until: float) -> Curve:
    """The losses of the rate that was best there."""
    before = sorted(e for e in places if 0 < e <= until)
    last = places[before[-1]]
    rate = min(last, key=lambda each: last[each])
    points = [(e, places[e][rate]) for e in before if rate in places[e] and math.isfinite(places[e][rate])]
    return Curve(batch_size, tuple(float(e) for e, _ in points), tuple(loss for _, loss in points))


def measured(task: Task) -> list[Row]:
    """Every triple of batch sizes, share of the way and seed."""
    workload = task.make()
    model = workload.model()
    exponent = learning_rate_exponent(workload.optimizer(model.parameters(), workload.learning_rate))
    wanted = sorted({size for triple in TRIPLES for size in triple})
    runs = {size: found for size in wanted if (found := recorded(task.name, size))}
    ends = {size: at_the_end(found) for size, found in runs.items()}
    rows: list[Row] = []
    for triple in TRIPLES:
        sizes = [size for size in triple if size in runs]
        for share in SHARES if len(sizes) > 1 else ():
            for seed in SEEDS:
                seen = {size: bottoms(runs[size][seed], size, share * ends[size][0]) for size in sizes}
                if not all(seen.values()):
                    continue
                curves = [curve(runs[size][seed], size, share * ends[size][0]) for size in sizes]
                if sum(len(each.examples) for each in curves) < LEAST_POINTS:
                    continue
                everything = [bottom for own in seen.values() for bottom in own]
                law = fit_rate_drift(everything, exponent=exponent, curve=fit_learning_curve(curves), seed=seed)
                for size in sizes:
                    end, best = ends[size]
                    said = law.predict(size, end)
                    rows.append(
                        {
                            "workload": task.name,
                            "sizes": sizes,
                            "share": share,
                            "seed": seed,
                            "batch_size": size,
                            "error": math.log((said.value or math.nan) / best),
                            "held": (said.low or 0.0) <= best <= (said.high or math.inf),
                            "best_so_far": math.log(seen[size][-1].learning_rate / best),
                        }
                    )
    return rows


def _summary(errors: Sequence[float]) -> str:
    return f"{math.sqrt(statistics.fmean(e * e for e in errors)):.2f} ({statistics.fmean(errors):+.2f})"


def shown(rows: Sequence[Row]) -> Table:
    """A row for each workload: root mean square and mean of the errors."""
    table = Table(title="Errors of the best rate at the end, in e-folds: root mean square (and mean)")
    for column in ("workload", "foretold", "90% interval held", "best so far", "cases"):
        table.add_column(column, justify="left" if column == "workload" else "right")
    for name in [*dict.fromkeys(row["workload"] for row in rows), "all"]:
        own = [row for row in rows if name in (row["workload"], "all")]
        table.add_row(
            name,
            _summary([row["error"] for row in own]),
            f"{statistics.fmean(row['held'] for row in own):.0%}",
            _summary([row["best_so_far"] for row in own]),
            f"{len(own)}",
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=TASKS, default=list(TASKS), metavar="WORKLOAD")
    arguments = parser.parse_args()
    rows = [row for name in arguments.workloads for row in measured(TASKS[name])]
    console = Console(width=110)
    if not rows:
        console.print("Nothing is recorded yet: make ground-truth")
        return
    console.print(shown(rows))
    console.print(machine())
    if set(arguments.workloads) == set(TASKS):
        console.print(f"Kept in {keep('best_rates', rows)}")


if __name__ == "__main__":
    main()
