"""How often the 95% intervals of bs.fit_tradeoff hold the truth, on tables whose law is known; published curves.

python benchmarks/tradeoff.py [--repetitions 1000] [--designs plain ...]

A table has K sizes a factor 2 apart and a few seeds each. log E scatters about the law by size, as a learning rate
suits one better than another, and by run. B_crit is drawn anew each time, anywhere between the second size and the last
but one. What else can be wrong with a table has a design of its own. An interval that is unresolved is one-sided, and
holds the truth where that lies within it. "curve_fit" is what one would do by hand: scipy's least squares in log E over
all runs that reached the target, with its own covariance. The published curves are mean examples or epochs to the
reference quality, from MLPerf's reference convergence points (mlcommons/logging); what is expected there is B_crit of a
plain least-squares fit.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import multiprocessing
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from scipy.optimize import OptimizeWarning, curve_fit
from scipy.stats import t as student

import batchscope as bs
from batchscope.provenance import available_cores
from cases import keep, machine

Floats = NDArray[np.float64]

LEAST, FIRST = 1e4, 4
LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Design:
    """How tables are made.

    Attributes:
        sizes: Batch sizes.
        seeds: Runs at each.
        within: Standard deviation of log E of runs.
        between: Standard deviation of log E of sizes.
        evaluations: Evaluations before a run of E_min examples ends; E is rounded up to the next one. 0: not rounded.
        told: Whether the fit is told of that distance.
        budget: Examples of a run over E_min: runs that need more miss the target.
        rates: Learning rates at each size of which the best by its runs is taken; costs of them differ by 5%.
        wrong: Each size's rate costs up to that much more: log E is higher by half-normal numbers.
        one_branch: B_crit is ten times the last size or a tenth of the first.
    """

    sizes: int = 8
    seeds: int = 3
    within: float = 0.08
    between: float = 0.05
    evaluations: float = 0.0
    told: bool = True
    budget: float = math.inf
    rates: int = 1
    wrong: float = 0.0
    one_branch: bool = False


DESIGNS = {
    "plain": Design(),
    "6 sizes": Design(sizes=6),
    "10 sizes": Design(sizes=10),
    "1 seed": Design(seeds=1),
    "5 seeds": Design(seeds=5),
    "noisy runs": Design(within=0.25),
    "sizes alike": Design(between=0.0),
    "sizes unlike": Design(between=0.15),
    "20 evaluations": Design(evaluations=20),
    "5 evaluations": Design(evaluations=5),
    "5 evaluations, not told": Design(evaluations=5, told=False),
    "missed targets": Design(budget=5.0),
    "missed targets, 1 seed": Design(budget=5.0, seeds=1),
    "best of 5 rates": Design(rates=5),
    "wrong rates": Design(wrong=0.15),
    "one branch": Design(one_branch=True),
}

# Batch size: epochs of ResNet-50 on ImageNet with LARS; million samples of BERT with LAMB.
PUBLISHED = {
    "ResNet-50": (
        47_000,
        {1632: 35, 3264: 35.2, 4096: 40, 8192: 42, 13056: 45.4, 32768: 56, 49152: 68, 58880: 79.9, 65536: 84.5}
        | {67840: 85.9},
    ),
    "BERT": (
        12_800,
        {256: 2.553, 448: 2.411, 1536: 2.778, 3072: 2.768, 4096: 2.843, 4608: 2.795, 6144: 3.321, 6912: 3.596}
        | {8192: 4.191, 8704: 4.278, 12288: 4.470, 13056: 4.633, 16384: 5.504},
    ),
}


def made_up(design: Design, seed: int) -> tuple[list[int], float, list[list[float]]]:
    """Batch sizes, the true B_crit, and the examples of every run."""
    generator = np.random.default_rng([seed, *name_as_numbers(design)])
    sizes = [FIRST * 2**i for i in range(design.sizes)]
    if design.one_branch:
        critical = sizes[-1] * 10.0 if generator.random() < 0.5 else sizes[0] / 10.0
    else:
        critical = math.exp(generator.uniform(math.log(sizes[1]), math.log(sizes[-2])))
    table = []
    for size in sizes:
        level = math.log(LEAST * (1 + size / critical)) + generator.normal(0, design.between)
        level += abs(generator.normal(0, design.wrong))
        ways = level + 0.05 * np.arange(design.rates)[:, None]
        logs = ways + generator.normal(0, design.within, (design.rates, design.seeds))
        runs = np.exp(logs[int(np.argmin(logs.mean(1)))])
        if design.evaluations:
            every = LEAST / design.evaluations
            runs = np.ceil(runs / every) * every
        table.append(np.where(runs > design.budget * LEAST, math.inf, runs).tolist())
    return sizes, critical, table


def name_as_numbers(design: Design) -> list[int]:
    """A seed that belongs to a design."""
    return list(repr(design).encode())


def by_hand(sizes: list[int], table: list[list[float]]) -> tuple[float, float] | None:
    """The interval of B_crit by scipy's curve_fit; None where it finds none."""
    pairs = [(math.log(b), math.log(e)) for b, runs in zip(sizes, table, strict=True) for e in runs if e < math.inf]
    x, y = np.array(pairs).T

    def law(x: Floats, log_least: float, log_critical: float) -> Floats:
        return np.asarray(log_least + np.logaddexp(0.0, x - log_critical))

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", OptimizeWarning)
            found, covariance = curve_fit(law, x, y, p0=(y.min(), x.mean()))
    except (RuntimeError, TypeError, OptimizeWarning):
        return None
    half = float(student.ppf((1 + LEVEL) / 2, len(x) - 2)) * math.sqrt(covariance[1, 1])
    return math.exp(max(-700.0, found[1] - half)), math.exp(min(700.0, found[1] + half))


def holds(interval: bs.Interval, truth: float) -> bool:
    low = -math.inf if interval.low is None else interval.low
    high = math.inf if interval.high is None else interval.high
    return low <= truth <= high


def one(task: tuple[str, int]) -> dict[str, Any]:
    """What one table gives."""
    name, seed = task
    design = DESIGNS[name]
    sizes, critical, table = made_up(design, seed)
    spent = None if math.isinf(design.budget) else design.budget * LEAST
    every = LEAST / design.evaluations if design.evaluations and design.told else 0.0
    law = bs.fit_tradeoff(sizes, table, spent=spent, evaluated_every=every, level=LEVEL)
    hand = by_hand(sizes, table)
    value = law.critical_batch_size.value
    return {
        "critical_batch_size": holds(law.critical_batch_size, critical),
        "minimum_examples": holds(law.minimum_examples, LEAST),
        "minimum_updates": holds(law.minimum_updates, LEAST / critical),
        "resolved": value is not None,
        "hyperbola": law.form == "hyperbola",
        "follows": law.follows,
        "log_error": None if value is None else math.log(value / critical),
        "by_hand": hand is not None and hand[0] <= critical <= hand[1],
        "missed": float(np.mean([math.isinf(e) for runs in table for e in runs])),
    }


def measured(name: str, found: list[dict[str, Any]]) -> dict[str, Any]:
    """A design's row."""
    errors = [f["log_error"] for f in found if f["log_error"] is not None]
    # A general exponent has no S_min, and a law that is not a hyperbola no B_crit that could be compared.
    fair = [f for f in found if f["hyperbola"]]
    return {
        "design": name,
        **dataclasses.asdict(DESIGNS[name]),
        "budget": None if math.isinf(DESIGNS[name].budget) else DESIGNS[name].budget,
        "repetitions": len(found),
        **{
            f"{quantity}_cover": float(np.mean([f[quantity] for f in fair]))
            for quantity in ("critical_batch_size", "minimum_examples", "minimum_updates")
        },
        "critical_batch_size_cover_all_forms": float(np.mean([f["critical_batch_size"] for f in found])),
        "by_hand_cover": float(np.mean([f["by_hand"] for f in found])),
        **{key: float(np.mean([f[key] for f in found])) for key in ("resolved", "hyperbola", "follows", "missed")},
        "critical_batch_size_bias": float(np.expm1(np.median(errors))) if errors else None,
        "critical_batch_size_error": float(np.expm1(np.median(np.abs(errors)))) if errors else None,
    }


def published() -> list[dict[str, Any]]:
    rows = []
    for name, (expected, curve) in PUBLISHED.items():
        law = bs.fit_tradeoff(list(curve), list(curve.values()))
        found = law.critical_batch_size
        rows.append(
            {
                "curve": name,
                "sizes": len(curve),
                "expected": expected,
                "critical_batch_size": [found.value, found.low, found.high],
                "leave_one_out_error": law.leave_one_out_error,
                "form": law.form,
                "verdict": law.verdict,
            }
        )
    return rows


def cover(share: float, *, aim: bool) -> str:
    return f"{share:.1%}" if not aim or 0.93 <= share <= 0.97 else f"[red]{share:.1%}[/red]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=1_000)
    parser.add_argument("--designs", nargs="+", choices=DESIGNS, default=list(DESIGNS), metavar="DESIGN")
    arguments = parser.parse_args()
    console = Console(width=150)
    tasks = [(name, seed) for name in arguments.designs for seed in range(arguments.repetitions)]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in arguments.designs}
    with multiprocessing.Pool(available_cores()) as pool, Progress(console=Console(stderr=True)) as progress:
        results = pool.imap(one, tasks, chunksize=20)
        for (name, _), result in progress.track(zip(tasks, results, strict=True), total=len(tasks)):
            found[name].append(result)
    rows = [measured(name, of_design) for name, of_design in found.items()]
    table = Table(title=f"95% intervals of the trade-off law, {arguments.repetitions:,} tables each")
    for column in (
        "design",
        "B_crit",
        "E_min",
        "S_min",
        "curve_fit",
        "resolved",
        "hyperbola",
        "follows",
        "bias",
        "error",
    ):
        table.add_column(column, justify="left" if column == "design" else "right")
    for row in rows:
        bias, error = row["critical_batch_size_bias"], row["critical_batch_size_error"]
        table.add_row(
            row["design"],
            *(cover(row[f"{name}_cover"], aim=True) for name in ("critical_batch_size", "minimum_examples")),
            cover(row["minimum_updates_cover"], aim=True),
            cover(row["by_hand_cover"], aim=False),
            *(f"{row[key]:.0%}" for key in ("resolved", "hyperbola", "follows")),
            "" if bias is None else f"{bias:+.0%}",
            "" if error is None else f"{error:.0%}",
        )
    console.print(table)
    curves = published()
    for curve in curves:
        value, low, high = curve["critical_batch_size"]
        off = value / curve["expected"] - 1
        console.print(
            f"{curve['curve']}: B_crit {value:,.0f} ({low:,.0f} to {high:,.0f}), expected {curve['expected']:,} "
            f"({off:+.0%}); left-out sizes to within {curve['leave_one_out_error']:.1%}"
        )
    console.print(machine())
    if set(arguments.designs) == set(DESIGNS):
        console.print(f"Kept in {keep('tradeoff', [*rows, *curves])}")


if __name__ == "__main__":
    main()
