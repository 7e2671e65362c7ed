"""What people use instead of the advice, on the questions of advice_real.py.

For each network, reference and seed:

- keep today's: the reference itself;
- batch 32: at today's learning rate;
- Lightning: its batch size finder, then its learning rate finder;
- Optuna TPE and Optuna Hyperband: for as long as the advice took, by the rows of advice_real.py;
- Prodigy: an optimiser that sets its own rate (Mishchenko and Defazio 2024, arXiv 2306.06101), at today's batch size.

A setting is judged by the recorded curves (``make ground-truth-real``). Prodigy has no rate to look up, so it is
trained to the target, or for twice the seconds of the best recorded setting. Everything runs on one thread.

    python benchmarks/real_peers.py [--networks conv gpt …] [--references default] [--seeds 2] [--peers …] [--resume]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from advice_pickers import Picker, Question, at_reference, batch_32, lightning_tuner, optuna_hyperband, optuna_tpe
from advice_real import references
from cases import RESULTS, RowByRow, finite, keep, known, machine
from curves_table import CURVES, LIMIT, Curves, time_to_target
from ground_truth_table import Bounded, Setting
from real import TASKS, RealTask
from record_one import Trial

# Optuna's seconds for a question that advice_real.py has not asked yet: the least budget of an advice.
UNASKED_SECONDS = 10.0
# A training with Prodigy is evaluated this many times in the seconds of the best setting, as the recorded curves are.
EVALUATIONS = 40
PRODIGY = "Prodigy"
PRODIGY_RATE = 1.0  # its own default, a factor on the rate that it finds

PICKERS: dict[str, Picker] = {
    "keep today's": lambda question: Setting(question.workload.batch_size, question.workload.learning_rate),
    "batch 32": batch_32,
    "Lightning": lightning_tuner,
    "Optuna TPE": optuna_tpe,
    "Optuna Hyperband": optuna_hyperband,
}
PEERS = (*PICKERS, PRODIGY)
OURS, OUR_PLAN = "batchscope", "batchscope, its plan trained"

Row = dict[str, Any]
Key = tuple[str, str, int]


def key(row: Row) -> Key:
    """The question that a row answers."""
    return row["network"], row["reference_name"], row["seed"]


def prodigy(parameters: Iterable[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    """Prodigy with its defaults."""
    import prodigyopt

    optimizer: torch.optim.Optimizer = prodigyopt.Prodigy(parameters, lr=learning_rate)
    return optimizer


def seconds_of_training(trial: Trial, target: float, best_seconds: float) -> Bounded:
    """CPU seconds of a run to the target, evaluating left out; infinite where it diverges.

    Args:
        trial: The run, about to begin.
        target: The score.
        best_seconds: Seconds of the best setting; the run is given up after ``LIMIT`` times as many.

    Returns:
        Seconds, or the limit as a bound.
    """
    points: dict[str, list[float]] = {"examples": [], "seconds": [], "score": []}
    while trial.seconds < LIMIT * best_seconds:
        evaluate_at = trial.seconds + best_seconds / EVALUATIONS
        while trial.seconds < evaluate_at:
            if not math.isfinite(trial.update()):
                return Bounded(math.inf)
        for name, value in zip(points, (trial.examples, trial.seconds, trial.evaluate()[1]), strict=True):
            points[name].append(value)
        seconds = time_to_target({"points": points}, target)
        if seconds is not None:
            return Bounded(seconds)
    return Bounded(LIMIT * best_seconds, at_least=True)


def asked(task: RealTask, question: Question, *, name: str, peer: str, best_seconds: float) -> Row:
    """What one peer picks for a question, in how many seconds; a failure is said in the row."""
    workload = question.workload
    setting, trained, failure, search = None, None, None, 0.0
    began = time.perf_counter()
    try:
        if peer == PRODIGY:
            setting = Setting(workload.batch_size, PRODIGY_RATE)
            trial = Trial(task, dataclasses.replace(workload, optimizer=prodigy), *setting, question.seed)
            run = seconds_of_training(trial, task.target, best_seconds)
            trained = (finite(run.value), run.at_least)
        else:
            setting = PICKERS[peer](question)
            search = time.perf_counter() - began
    except Exception as error:  # whatever a peer runs into must not end the benchmark
        failure, search = f"{type(error).__name__}: {error}", time.perf_counter() - began
    if failure is None and setting is None:
        failure = "no setting"
    return {
        "network": task.name,
        "reference_name": name,
        "reference": Setting(workload.batch_size, workload.learning_rate),
        "seed": question.seed,
        "peer": peer,
        "setting": setting,
        "search_seconds": search,
        "trained": trained,
        "failure": failure,
    }


def judged(row: Row, curves: Curves) -> Row:
    """A row with the seconds of a run at what was picked, and with search and run over the best and over today's.

    Args:
        row: As ``asked`` returns it.
        curves: What is recorded of the network by now.

    Returns:
        The row with more columns. None: infinite, or not known.
    """
    best, today = curves.seconds(curves.best).value, curves.seconds(Setting(*row["reference"]))
    run = Bounded(math.inf)
    if row["failure"] is None:
        run = curves.seconds(Setting(*row["setting"]))
        if row["trained"] is not None:
            run = Bounded(known(row["trained"][0]), row["trained"][1])
    everything = row["search_seconds"] + run.value
    return row | {
        "failure": row["failure"] or ("diverged" if math.isinf(run.value) else None),
        "run_seconds": finite(run.value),
        "run_at_least": run.at_least,
        "best": curves.best,
        "best_seconds": best,
        "today_seconds": finite(today.value),
        "today_at_least": today.at_least,
        "regret": finite(run.value / best),
        "everything_over_best": finite(everything / best),
        "everything_over_today": finite(everything / today.value) if math.isfinite(run.value) else None,
    }


def advice_rows() -> dict[Key, Row]:
    """The rows of advice_real.py: those kept, and those of a run that goes on or was stopped."""
    path = RESULTS / "advice-real.json"
    kept = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    return {key(row): row for row in (*kept, *RowByRow("advice-real", resume=True).rows)}


def ours(advice: Iterable[Row]) -> list[Row]:
    """The advice's own rows: its setting, to be judged as the peers' are, and its plan as it was trained."""
    found: list[Row] = []
    for row in advice:
        own = {name: row[name] for name in ("network", "reference_name", "reference", "seed")}
        own |= {
            "setting": row["advised"],
            "search_seconds": row["cost_seconds"],
            "failure": "no setting" if row["advised"] is None else None,
        }
        found.append({**own, "peer": OURS, "trained": None})
        found.append({**own, "peer": OUR_PLAN, "trained": (row["trained_seconds"], False)})
    return found


def figures(rows: Sequence[Row]) -> Row:
    """One peer's figures over all its rows.

    Args:
        rows: Of one peer.

    Returns:
        Median and worst regret, and medians of everything over the best and over today's, each with whether it is a
        bound; the median of search seconds; the share of runs that take over ``LIMIT`` times the best seconds or never
        get there; and how many rows failed.
    """
    worst = max((known(row["regret"]), row["run_at_least"]) for row in rows)
    late = [known(row["run_seconds"]) >= LIMIT * row["best_seconds"] for row in rows]
    return {
        "median_regret": _median(rows, "regret"),
        "worst_regret": worst,
        "search_seconds": statistics.median(row["search_seconds"] for row in rows),
        "everything_over_best": _median(rows, "everything_over_best"),
        "everything_over_today": _median(rows, "everything_over_today"),
        "never": statistics.fmean(late),
        "failed": sum(row["failure"] is not None for row in rows),
    }


def _median(rows: Sequence[Row], column: str) -> tuple[float, bool]:
    """The median of a column, and whether it rests on a bound."""
    pairs = sorted((known(row[column]), row["run_at_least"]) for row in rows)
    middle = pairs[(len(pairs) - 1) // 2 : len(pairs) // 2 + 1]
    return statistics.fmean(value for value, _ in middle), any(at_least for _, at_least in middle)


def shown(rows: Sequence[Row]) -> Table:
    """A line for every peer."""
    table = Table(
        title="What people use instead: seconds to the target on one thread",
        caption=f"≥: a bound. Never: over {LIMIT:g} times the best seconds, diverged, or no setting.",
    )
    for column in (
        "",
        "questions",
        "median regret",
        "worst",
        "search",
        "everything/best",
        "/today's",
        "never",
        "failed",
    ):
        table.add_column(column, justify="right" if column else "left")
    for peer in (OURS, OUR_PLAN, *PEERS):
        own = [row for row in rows if row["peer"] == peer]
        if not own:
            continue
        of = figures(own)
        table.add_row(
            peer,
            str(len(own)),
            _ratio(*of["median_regret"]),
            _ratio(*of["worst_regret"]),
            f"{of['search_seconds']:.0f} s",
            _ratio(*of["everything_over_best"]),
            _ratio(*of["everything_over_today"]),
            f"{of['never']:.0%}",
            str(of["failed"]),
        )
    return table


def _ratio(value: float, at_least: bool) -> str:
    return "never" if math.isinf(value) else f"{'≥ ' if at_least else ''}{value:.2f}"


def said(row: Row) -> str:
    """A row in a line."""
    setting = "nothing" if row["setting"] is None else f"{row['setting'][0]:,} @ {row['setting'][1]:.3g}"
    bound = "≥ " if row["run_at_least"] else ""
    run = row["failure"] if row["run_seconds"] is None else f"{bound}{row['run_seconds']:.1f} s"
    return (
        f"{row['network']}, {row['reference_name']}, seed {row['seed']}: {row['peer']} picks {setting}"
        f" in {row['search_seconds']:.1f} s, a run takes {run}, the best {row['best_seconds']:.1f} s"
    )


def questions(network: str, seed: int, advice: dict[Key, Row]) -> Iterator[tuple[RealTask, float, str, Question]]:
    """What is asked of each peer about a network: with the best recorded seconds, and the reference's name."""
    task, curves = TASKS[network], Curves.load(network)
    workload = task.make()
    step_seconds = {size: curves.step_seconds(size) for size in curves.truth.batch_sizes}
    best_seconds = curves.seconds(curves.best).value
    for name, reference in references(task, curves).items():
        seconds = advice.get((network, name, seed), {}).get("cost_seconds", UNASKED_SECONDS)
        yield task, best_seconds, name, Question(at_reference(workload, reference), step_seconds, seconds, seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=TASKS, default=list(TASKS), metavar="NETWORK")
    parser.add_argument("--references", nargs="+", choices=("small", "default", "large"), default=None)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=PEERS, metavar="PEER")
    parser.add_argument("--resume", action="store_true", help="keep the rows of a run that was stopped, and go on")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=160)
    kept = RowByRow("real-peers", resume=arguments.resume)
    done = {(key(row), row["peer"]) for row in kept.rows}
    advice = advice_rows()
    for seed in range(arguments.seeds):
        for network in arguments.networks:
            if not (CURVES / f"{network}.json.gz").exists():
                console.print(f"{network} is left out: it has no recorded curves yet; make ground-truth-real")
                continue
            for task, best_seconds, name, question in questions(network, seed, advice):
                if arguments.references and name not in arguments.references:
                    continue
                for peer in arguments.peers:
                    if ((network, name, seed), peer) not in done:
                        kept.add(asked(task, question, name=name, peer=peer, best_seconds=best_seconds))
                        console.print(said(judged(kept.rows[-1], Curves.load(network))))
    if kept.rows:
        recorded = {network: Curves.load(network) for network in {row["network"] for row in kept.rows}}
        rows = [judged(row, recorded[row["network"]]) for row in kept.rows]
        found = {key(row) for row in rows}
        beside = [judged(row, recorded[row["network"]]) for row in ours(advice.values()) if key(row) in found]
        console.print(shown([*beside, *rows]), machine())
        console.print(f"Kept in {keep('real-peers', rows)}")


if __name__ == "__main__":
    main()
