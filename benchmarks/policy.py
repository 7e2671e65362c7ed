"""The search policy played many times, on recorded grids and on noisy quadratics; successive halving alone beside it.

    python benchmarks/policy.py [--plays 1000] [--processes 2] [--ablate [NAME ...]]

Regret is the time to the target at the setting that was chosen, over that at the best one; cost is what the search
took, over the best run. Both are counted on the curves' own clocks, so a busy machine changes nothing.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from batchscope.records import Goal
from batchscope.search import answer as answer_module
from batchscope.search import policy as policy_module
from batchscope.search import race as race_module
from batchscope.search import speed as speed_module
from batchscope.search.answer import find_answer
from batchscope.search.candidates import Setting
from batchscope.search.policy import Policy
from batchscope.search.race import Budget, Race
from batchscope.search.recorded import RecordedSource
from batchscope.search.speed import SpeedPrior
from cases import keep
from curves_table import CURVES, Curves
from halving import grid_about, successive_halving
from policy_cases import LEAST_SETTINGS, Case, quadratic_case, recorded_cases

# A setting that takes so many times the best one's time, or never gets there, counts as this.
WORST_REGRET = 10.0
# A search is given this share of the best run where successive halving is judged by itself.
QUARTER = 0.25
QUANTILES = (0.25, 0.5, 0.75, 0.9, 1.0)
POLICY, HALVING, HALVING_QUARTER, TODAY = (
    "policy",
    "successive halving, the same seconds",
    "successive halving, 1/4 of the best run",
    "today's setting",
)


@dataclass(frozen=True)
class Variant:
    """A change to the policy.

    Attributes:
        name: What is changed.
        prior: Attributes of the prior.
        constants: Constants of the policy, the race or the answer.
        off: Rules of the policy that never have a step to propose.
    """

    name: str
    prior: Mapping[str, float] = field(default_factory=dict)
    constants: Mapping[str, float] = field(default_factory=dict)
    off: tuple[str, ...] = ()


AS_IT_IS = Variant("as it is")


def _scaled(name: str, *factors: float) -> list[Variant]:
    """Variants with one attribute of the prior times some factors."""
    value = getattr(SpeedPrior(), name)
    return [Variant(f"{name} x {factor:g}", {name: value * factor}) for factor in factors]


def _home(name: str) -> ModuleType:
    """The module that a constant stands in."""
    return next(module for module in (policy_module, race_module, answer_module, speed_module) if hasattr(module, name))


def _constant(name: str, *factors: float) -> list[Variant]:
    value = getattr(_home(name), name)
    return [Variant(f"{name} x {factor:g}", constants={name: value * factor}) for factor in factors]


NEVER = 1e6  # a width or a range so great that it has no effect
ABLATIONS = (
    AS_IT_IS,
    Variant("no pilot", off=("_pilot",)),
    *_scaled("early_noise", 0.0, 0.5, 2.0),
    *_scaled("noise", 0.5, 2.0),
    *_scaled("horizon_folds", 0.5, 2.0, NEVER),
    Variant("no drift", {"rate_drift": 0.0, "batch_drift": 0.0}),
    *_scaled("rate_drift", 2.0),
    *_scaled("batch_drift", 2.0),
    Variant("no valley", {"batch_width": NEVER, "rate_width": NEVER}),
    *_scaled("batch_width", 0.5, 2.0),
    *_scaled("rate_width", 0.5, 2.0),
    *_scaled("deviation", 0.5, 2.0),
    *_scaled("batch_octaves", 0.5, 2.0),
    *_scaled("rate_octaves", 0.5, 2.0),
    *_constant("WORTHWHILE", 1 / 3, 3.0),
    *_constant("FIRST_SHARE", 0.125, 0.5, 1.5, 2.0),
    *_constant("LEAST_UPDATES", 0.5, 2.0),
    *_constant("PILOT_SHARE", 0.5, 2.0),
    *_constant("GROWTH", 2.0),
    *_constant("UNSEEN", 0.5, 2.0),
    *_constant("WORTH_CHANGING", 0.0, 3.0, 6.0),
    *_constant("LEAST_FALL", 0.0),
    *_constant("HARMFUL_RISE", 0.0),
    *_constant("LEAST_BUDGETS", 0.0, 2.0),
)


@dataclass(frozen=True)
class Play:
    """One search.

    Attributes:
        variant: Change to the policy.
        family: "quadratic" or the network.
        reference: Which of today's settings.
        method: What searched.
        regret: Seconds to the target of the chosen setting over the best one's, at most ``WORST_REGRET``.
        cost: Seconds of the search over the best run's.
        steps: Steps of the policy.
        tried: Settings that it trained.
    """

    variant: str
    family: str
    reference: str
    method: str
    regret: float
    cost: float
    steps: int = 0
    tried: int = 0


@contextmanager
def changed(variant: Variant) -> Iterator[None]:
    """The policy's constants and rules as a variant has them."""
    with ExitStack() as stack:
        for name, value in variant.constants.items():
            stack.enter_context(mock.patch.object(_home(name), name, value))
        for name in variant.off:
            stack.enter_context(mock.patch.object(Policy, name, return_value=None))
        yield


def search(case: Case, start: Setting, variant: Variant = AS_IT_IS) -> tuple[Setting, float, Race]:
    """Let the policy search a case at its default budget.

    Args:
        case: The problem.
        start: Today's setting.
        variant: Change to the policy.

    Returns:
        The setting that it chose, what that cost, and the race.
    """
    source = RecordedSource(case.curves)
    prior = replace(SpeedPrior(), **variant.prior)
    policy = Policy(start, case.sizes, prior=prior, is_allowed=case.is_allowed)
    race = Race(source, policy, Goal("target", case.target), Budget(None))
    with changed(variant):
        race.run()
        answer = find_answer(race)
    return (start if answer is None else answer.best), source.elapsed_seconds(), race


def plays_of(case: Case, variants: Sequence[Variant]) -> list[Play]:
    """All plays of a case: each variant from each reference, and for the first one what stands beside it."""
    found = []
    for reference, start in case.references.items():
        spent = 0.0
        beside: list[tuple[str, Setting, float]] = [(TODAY, start, 0.0)]
        for variant in variants:
            setting, cost, race = search(case, start, variant)
            play = _play(case, reference, POLICY, setting, cost, variant=variant.name)
            found.append(replace(play, steps=race.steps, tried=len(race.candidates)))
            spent = spent or cost
        settings = [s for s in grid_about(start, case.sizes) if case.is_allowed is None or case.is_allowed(s)]
        for method, seconds in ((HALVING, spent), (HALVING_QUARTER, QUARTER * case.best_seconds)):
            beside.append((method, *successive_halving(case.curves, settings or [start], seconds)))
        found += [_play(case, reference, *one, variant=variants[0].name) for one in beside]
    return found


def _play(case: Case, reference: str, method: str, setting: Setting, cost: float, *, variant: str) -> Play:
    regret = min(case.regret(setting), WORST_REGRET)
    return Play(variant, case.family, reference, method, regret, cost / case.best_seconds)


def _quadratic(task: tuple[int, Sequence[Variant]]) -> list[Play]:
    warnings.simplefilter("ignore", RuntimeWarning)
    seed, variants = task
    return plays_of(quadratic_case(seed), variants)


def networks(console: Console) -> list[Case]:
    """Cases of the recorded networks; says which are left out."""
    cases = []
    for path in sorted(CURVES.glob("*.json.gz")):
        curves = Curves.load(path.name.partition(".")[0])
        own = recorded_cases(curves)
        if not own:
            count = len({(c["batch_size"], c["learning_rate"]) for c in curves.curves})
            console.print(f"{curves.network}: left out, {count} settings recorded of at least {LEAST_SETTINGS}")
            continue
        cases += own
    return cases


def summary(plays: Sequence[Play], key: Callable[[Play], tuple[str, ...]]) -> list[dict[str, Any]]:
    """Quantiles of regret, cost and their sum, by group.

    Args:
        plays: Any.
        key: Group of a play: variant, family, reference and method.

    Returns:
        A row for each group, in the order of their first plays.
    """
    groups: dict[tuple[str, ...], list[Play]] = {}
    for play in plays:
        groups.setdefault(key(play), []).append(play)
    rows = []
    for group, own in groups.items():
        row: dict[str, Any] = dict(zip(("variant", "family", "reference", "method"), group, strict=True))
        row["plays"] = len(own)
        for name, values in (
            ("regret", [p.regret for p in own]),
            ("cost", [p.cost for p in own]),
            ("total", [p.regret + p.cost for p in own]),
        ):
            row[name] = [round(float(q), 4) for q in np.quantile(values, QUANTILES)]
        row["mean_total"] = round(float(np.mean([p.regret + p.cost for p in own])), 4)
        row["settings"] = round(float(np.mean([p.tried for p in own])), 1)
        rows.append(row)
    return rows


def table(rows: Sequence[dict[str, Any]], columns: Sequence[str], title: str) -> Table:
    """Rows of :func:`summary`, with the median first."""
    shown = Table(title=title, caption="median (quartiles) 90% worst; total: regret and cost together")
    for name in columns:
        shown.add_column(name)
    shown.add_column("plays", justify="right")
    for name in ("regret", "cost", "total"):
        shown.add_column(name, justify="right")
    shown.add_column("settings", justify="right")
    for row in rows:
        cells = [_quantiles(row[name]) for name in ("regret", "cost", "total")]
        shown.add_row(*(row[name] for name in columns), str(row["plays"]), *cells, f"{row['settings']:.0f}")
    return shown


def _quantiles(values: Sequence[float]) -> str:
    """Median, quartiles, 90% and worst.

    Examples:
        >>> _quantiles([1.0, 1.25, 1.5, 2.0, 10.0])
        '1.25 (1.00–1.50) 2.00 10.0'
    """
    low, middle, high, most, worst = values
    return f"{middle:.2f} ({low:.2f}–{high:.2f}) {most:.2f} {worst:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plays", type=int, default=1000, help="plays of the policy on quadratics, about")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--ablate", nargs="*", metavar="NAME", help="change the policy; only what contains a NAME")
    arguments = parser.parse_args()
    console = Console(width=150)
    variants: Sequence[Variant] = (AS_IT_IS,)
    if arguments.ablate is not None:
        asked = [v for v in ABLATIONS if not arguments.ablate or any(name in v.name for name in arguments.ablate)]
        variants = [AS_IT_IS, *(v for v in asked if v is not AS_IT_IS)]
    plays: list[Play] = []
    for case in networks(console):
        plays += plays_of(case, variants)
    tasks = [(seed, variants) for seed in range(math.ceil(arguments.plays / 3))]
    with multiprocessing.Pool(arguments.processes) as pool:
        for own in track(pool.imap(_quadratic, tasks), "quadratics", len(tasks), console=Console(stderr=True)):
            plays += own
    if arguments.ablate is None:
        rows = summary(plays, lambda p: (p.variant, p.family, p.reference, p.method))
        console.print(table(rows, ("family", "reference", "method"), "by reference"))
        together = summary(plays, lambda p: (p.variant, p.family, "all", p.method))
        console.print(table(together, ("family", "method"), "all references"))
        console.print(f"kept in {keep('policy', [*together, *rows])}")
        return
    own = [play for play in plays if play.method == POLICY]
    for family in dict.fromkeys(play.family for play in own):
        some = [play for play in own if play.family == family]
        console.print(table(summary(some, lambda p: (p.variant, p.family, "all", p.method)), ("variant",), family))


if __name__ == "__main__":
    main()
