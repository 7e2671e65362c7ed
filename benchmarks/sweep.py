"""Trials an hour on one grid, 6 learning rates × 4 seeds at one batch size: a sweep against what people use instead.

Beside ``bs.sweep``, whose pruning is off, stand plain separate runs in a pool of processes, Optuna's grid sampler in as
many, and Ray Tune's grid search with as many trials at once. The three of them train with the same loop, written by
hand (``grid_by_hand.py``): one thread, data loaded once in each process, validation set and evaluations as in the
sweep. Trials are so long that by hand the updates of one take ``--seconds``; real ones take longer, and the way of
training that a sweep tries out at each call weighs less in them.

A time begins where a tool is ready: imported, processes there, data loaded. What that takes is measured once for each
workload, and the last columns count it in. A sweep forks its workers at each call, within its time. Sweep, separate
runs and Optuna take turns within each round; Ray Tune, whose daemons would disturb them, comes after them, and its
trials' processes import torch within its time.

    python benchmarks/sweep.py [--quick] [--workloads digits,…] [--batch-sizes 8,…] [--rounds 2] [--seconds 1]
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import itertools
import logging
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from rich.console import Console
from rich.table import Table

import batchscope as bs
from batchscope.provenance import available_cores
from cases import keep, machine, median_and_spread
from grid_by_hand import train_trial, workload_of

WORKLOADS = ("digits", "fashion-mlp", "fashion", "text")
BATCH_SIZES = (8, 32, 128, 512)
SEEDS = (0, 1, 2, 3)
# Of the reference; none of them makes a trial diverge, which would end it early in a sweep alone.
RATE_FACTORS = tuple(2.0**-k for k in range(1, 7))
EVALUATIONS = 4
# A grid that takes longer is run once.
LONG_SECONDS = 30.0
# What the project has promised: at least so many times the others' trials an hour.
EVERYWHERE, SMALL_BATCH = 1.0, 32
AT_SMALL_BATCH = {"digits": 3.0, "fashion-mlp": 3.0, "fashion": 1.3, "text": 1.3}


class Case(NamedTuple):
    """One grid."""

    workload: str
    batch_size: int
    rates: tuple[float, ...]
    examples: int

    @property
    def evaluate_every(self) -> int:
        """Examples between two evaluations."""
        return self.examples // EVALUATIONS


class Grid(NamedTuple):
    """What a tool made of a grid: wall-clock time, its trials' best scores, and a word about how."""

    seconds: float
    scores: tuple[float, ...]
    note: str = ""


class Tool(Protocol):
    """A way of running grids of one workload, ready once it is made."""

    def __init__(self, workload: str) -> None: ...

    def run(self, case: Case) -> Grid:
        """Run a grid."""
        ...

    def stop(self) -> None:
        """End whatever was started."""
        ...


class Sweep:
    """``bs.sweep``."""

    def __init__(self, workload: str) -> None:
        self.workload = workload_of(workload)

    def run(self, case: Case) -> Grid:  # noqa: D102 — see Tool
        began = time.perf_counter()
        record = bs.sweep(
            self.workload,
            [case.batch_size],
            learning_rates=case.rates,
            seeds=SEEDS,
            examples=case.examples,
            shape="constant",
            evaluate_every=case.evaluate_every,
            prune=False,
            time_updates=False,
            device="cpu",
        )
        seconds = time.perf_counter() - began
        if {trial.outcome for trial in record.trials} != {"finished"}:
            outcomes = collections.Counter(trial.outcome for trial in record.trials)
            raise RuntimeError(f"{case}: {dict(outcomes)}, where all should finish: nothing to compare")
        return Grid(seconds, tuple(t.best_score or 0.0 for t in record.trials), record.best[0].trained_as)

    def stop(self) -> None:  # noqa: D102
        pass


class Processes:
    """Separate runs: a pool of processes that take the trials one by one."""

    def __init__(self, workload: str, *modules: str) -> None:
        context = multiprocessing.get_context("spawn")
        cores = available_cores()
        ready = context.Barrier(cores + 1)
        self.pool: Pool = context.Pool(cores, _get_ready, (workload, modules, ready))
        ready.wait()

    def run(self, case: Case) -> Grid:  # noqa: D102 — see Tool
        began = time.perf_counter()
        trials = self.pool.starmap(_trial, [(case, *pair) for pair in itertools.product(case.rates, SEEDS)], 1)
        return Grid(time.perf_counter() - began, tuple(trials))

    def stop(self) -> None:  # noqa: D102
        self.pool.terminate()
        self.pool.join()


class Optuna(Processes):
    """A study with the grid sampler in a journal file, which every process of the pool works on."""

    def __init__(self, workload: str) -> None:
        super().__init__(workload, "optuna")

    def run(self, case: Case) -> Grid:  # noqa: D102 — see Tool
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            journal = str(Path(folder) / "journal.log")
            study = _study(journal, case)
            self.pool.starmap(_optimize, [(journal, case)] * available_cores(), 1)
            seconds = time.perf_counter() - began
            values = tuple(float(trial.value or 0.0) for trial in study.get_trials(deepcopy=False))
        return Grid(seconds, values, f"{len(values)} trials")


class RayTune:
    """A grid search with an actor for each trial at once, and processes kept from trial to trial."""

    def __init__(self, workload: str) -> None:
        # Neither usage reports nor loggers of every trial's results, which would only cost Ray Tune time.
        os.environ.update(RAY_USAGE_STATS_ENABLED="0", TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1")
        import ray

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray.init(
                address="local",
                num_cpus=available_cores(),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        # Ray takes it, and pools of processes do not end well in its handler.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def run(self, case: Case) -> Grid:  # noqa: D102 — see Tool
        from ray import tune

        def trainable(config: dict[str, Any]) -> dict[str, float]:
            return {"score": _trial(case, config["learning_rate"], config["seed"])}

        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            began = time.perf_counter()
            results = tune.Tuner(
                tune.with_resources(trainable, {"cpu": 1}),
                param_space={
                    "learning_rate": tune.grid_search(list(case.rates)),
                    "seed": tune.grid_search(list(SEEDS)),
                },
                tune_config=tune.TuneConfig(max_concurrent_trials=available_cores(), reuse_actors=True),
                run_config=tune.RunConfig(storage_path=folder, verbose=0),
            ).fit()
            seconds = time.perf_counter() - began
        if results.errors:
            raise results.errors[0]
        scores = [(results[number].metrics or {})["score"] for number in range(len(results))]
        return Grid(seconds, tuple(map(float, scores)))

    def stop(self) -> None:  # noqa: D102
        import ray

        ray.shutdown()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


TAKING_TURNS: dict[str, type[Tool]] = {"batchscope": Sweep, "separate": Processes, "Optuna": Optuna}


def _get_ready(workload: str, modules: Sequence[str], ready: Any) -> None:
    torch.set_num_threads(1)
    for module in modules:
        __import__(module)
    workload_of(workload)
    ready.wait()


def _trial(case: Case, rate: float, seed: int) -> float:
    score, _ = train_trial(
        case.workload, case.batch_size, rate, seed, examples=case.examples, evaluate_every=case.evaluate_every
    )
    return score


def _study(journal: str, case: Case) -> Any:
    import optuna
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)  # of a pair that two processes try at once
    return optuna.create_study(
        study_name="grid",
        storage=optuna.storages.JournalStorage(JournalFileBackend(journal)),
        sampler=optuna.samplers.GridSampler({"learning_rate": case.rates, "seed": SEEDS}, seed=0),
        direction="maximize",
        load_if_exists=True,
    )


def _optimize(journal: str, case: Case) -> None:
    def objective(trial: Any) -> float:
        rate = trial.suggest_categorical("learning_rate", case.rates)
        return _trial(case, rate, trial.suggest_categorical("seed", SEEDS))

    _study(journal, case).optimize(objective)  # until the sampler finds its grid complete


def case_of(workload: str, batch_size: int, seconds: float) -> Case:
    """A grid the updates of whose trials take so long by hand, and are no fewer than four."""
    rates = tuple(workload_of(workload).learning_rate * factor for factor in RATE_FACTORS)
    examples = EVALUATIONS * batch_size
    while True:
        took = min(
            train_trial(
                workload, batch_size, rates[0], seed, examples=examples, evaluate_every=examples // EVALUATIONS
            )[1]
            for seed in (0, 1)
        )
        if took >= seconds / 2:
            break
        examples *= 2
    updates = max(EVALUATIONS, round(examples / batch_size * seconds / took))
    return Case(workload, batch_size, rates, updates * batch_size)


def startup_of_sweep(workload: str) -> float:
    """Seconds until a fresh process can call ``bs.sweep``: what the others' processes do before they are ready."""
    began = time.perf_counter()
    code = f"import batchscope; from grid_by_hand import workload_of; workload_of({workload!r})"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)
    return time.perf_counter() - began


def measure(workload: str, batch_sizes: Sequence[int], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Every grid of a workload with every tool."""
    cases = [case_of(workload, size, arguments.seconds) for size in batch_sizes]
    grids: dict[Case, dict[str, list[Grid]]] = {case: {name: [] for name in TAKING_TURNS} for case in cases}
    startup = {"batchscope": startup_of_sweep(workload)}
    with contextlib.ExitStack() as stack:

        def started(name: str, tool: type[Tool]) -> Tool:
            began = time.perf_counter()
            made = tool(workload)
            stack.callback(made.stop)
            startup.setdefault(name, time.perf_counter() - began)
            return made

        def run(name: str, tool: Tool, case: Case) -> None:
            made = tool.run(case)
            grids[case].setdefault(name, []).append(made)
            print(f"{case.workload} batch {case.batch_size} {name}: {made.seconds:.2f} s", flush=True)

        tools = {name: started(name, tool) for name, tool in TAKING_TURNS.items()}
        for case in cases:
            for number in range(arguments.rounds):
                if number and grids[case]["batchscope"][0].seconds > LONG_SECONDS:
                    break
                for name in list(tools)[:: 1 if number % 2 == 0 else -1]:
                    run(name, tools[name], case)
        if arguments.ray_rounds:
            tune = started("Ray Tune", RayTune)
            for case in cases:
                for _ in range(arguments.ray_rounds):
                    run("Ray Tune", tune, case)
    return [summary(case, grids[case], startup) for case in cases]


def summary(case: Case, grids: dict[str, list[Grid]], startup: dict[str, float]) -> dict[str, Any]:
    """What is kept of a grid: all times, and how many times the others' trials an hour the sweep makes."""
    seconds = {name: [grid.seconds for grid in made] for name, made in grids.items()}
    ours = seconds["batchscope"]
    over, with_startup = {}, {}
    for name, theirs in seconds.items():
        if name == "batchscope":
            continue
        # Within a round, so that a drift of the machine falls on both.
        pairs = (
            list(zip(theirs, ours, strict=True))
            if len(theirs) == len(ours)
            else [(their, statistics.median(ours)) for their in theirs]
        )
        over[name] = [their / our for their, our in pairs]
        with_startup[name] = [(startup[name] + their) / (startup["batchscope"] + our) for their, our in pairs]
    trials = len(case.rates) * len(SEEDS)
    return {
        "workload": case.workload,
        "batch_size": case.batch_size,
        "learning_rates": case.rates,
        "seeds": SEEDS,
        "examples": case.examples,
        "trained_as": grids["batchscope"][-1].note,
        "optuna_trials": [grid.note for grid in grids["Optuna"]],
        "trials_per_hour": {name: 3600 * trials / statistics.median(values) for name, values in seconds.items()},
        "seconds": seconds,
        "over": over,
        "startup_seconds": startup,
        "over_with_startup": with_startup,
        # The same work was done: the loops draw other random numbers, so only means agree, and those about.
        "mean_score": {name: statistics.mean(made[0].scores) for name, made in grids.items()},
    }


def promised(workload: str, batch_size: int) -> float:
    """How many times the others' trials an hour a sweep has to make."""
    return AT_SMALL_BATCH[workload] if batch_size <= SMALL_BATCH else EVERYWHERE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", default=",".join(WORKLOADS))
    parser.add_argument("--batch-sizes", default=",".join(map(str, BATCH_SIZES)))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--ray-rounds", type=int, default=1, help="of Ray Tune; 0 leaves it out")
    parser.add_argument("--seconds", type=float, default=1.0, help="that the updates of a trial take by hand")
    parser.add_argument("--quick", action="store_true", help="a dry run: one small grid, kept nowhere")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.workloads, arguments.batch_sizes, arguments.rounds, arguments.seconds = "digits", "32", 1, 0.05

    torch.set_num_threads(1)
    table = Table(title="Sweep: trials an hour over the others' on the same grid (median of rounds, least–most)")
    for column in ("workload", "batch", "examples", "trials/h", "promised"):
        table.add_column(column, justify="left" if column == "workload" else "right")
    others = ["separate", "Optuna", *(["Ray Tune"] if arguments.ray_rounds else [])]
    for name in others:
        table.add_column(f"over {name}", justify="right")
    table.add_column("start-up counted in", justify="right")
    table.add_column("trained as")
    rows: list[dict[str, Any]] = []
    for name in arguments.workloads.split(","):
        for row in measure(name, [int(size) for size in arguments.batch_sizes.split(",")], arguments):
            rows.append(row)
            table.add_row(
                name,
                str(row["batch_size"]),
                f"{row['examples']:,}",
                f"{row['trials_per_hour']['batchscope']:,.0f}",
                f"{promised(name, row['batch_size']):.1f}",
                *(median_and_spread(row["over"][other]) for other in others),
                ", ".join(f"{statistics.median(row['over_with_startup'][other]):.1f}" for other in others),
                row["trained_as"],
            )
    console = Console(width=190)
    console.print(table)
    missed = [
        f"{row['workload']} at {row['batch_size']} against {other}"
        for row in rows
        for other in others
        if statistics.median(row["over"][other]) < promised(row["workload"], row["batch_size"])
    ]
    console.print(f"Below what is promised: {', '.join(missed) or 'nothing'}")
    console.print({**machine(), "cores": available_cores()})
    if not arguments.quick:
        console.print(f"Kept in {keep('sweep', rows)}")


if __name__ == "__main__":
    main()
