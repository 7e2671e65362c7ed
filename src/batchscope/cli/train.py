"""One training run."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from batchscope.cli.ending import INTERRUPTED
from batchscope.cli.options import (
    Data,
    Debug,
    Device,
    EvaluateEvery,
    Json,
    LoadTimeout,
    MicroBatchSize,
    Quiet,
    Report,
    Seed,
    Workers,
    WorkloadName,
)
from batchscope.cli.parsing import check_writable, load_named
from batchscope.cli.showing import show
from batchscope.errors import ArgumentError

if TYPE_CHECKING:
    from batchscope.records import Advice, Plan, Schedule
    from batchscope.training.tracking import Tracker
    from batchscope.workload import Workload


def train(
    workload: WorkloadName,
    plan: Annotated[
        Path | None, typer.Option(help="A saved plan or advice; other options change what they say.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples per update; the workload's, if left out.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="The workload's, if left out.")] = None,
    iterations: Annotated[int | None, typer.Option(help="Updates to make.")] = None,
    examples: Annotated[int | None, typer.Option(help="Examples to train on, instead of --iterations.")] = None,
    target: Annotated[float | None, typer.Option(help="A validation score to stop at.")] = None,
    shape: Annotated[
        Literal["constant", "linear", "cosine", "cooldown"] | None,
        typer.Option(help="The rate over the budget; as the workload says, if left out."),
    ] = None,
    cooldown: Annotated[
        float | None, typer.Option(help="Share of the budget that --shape cooldown falls in; 0.2, if left out.")
    ] = None,
    warmup_examples: Annotated[
        int | None, typer.Option(help="Examples over which the rate rises; the workload's, if left out.")
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(help="As in smith:at=60000/120000,factor=5,cap=512 or measured:knee=200; or a JSON file."),
    ] = None,
    order: Annotated[
        Literal["shuffled", "replacement", "stratified", "bucketed"] | None,
        typer.Option(help="How batches are drawn; shuffled, if left out."),
    ] = None,
    patience: Annotated[int | None, typer.Option(help="Stop after this many evaluations without improvement.")] = None,
    tolerance: Annotated[
        float | None, typer.Option(help="Improvements up to this do not count for --patience; 0, if left out.")
    ] = None,
    averaging: Annotated[
        float | None, typer.Option(help="Judge and keep the average of the weights, with this power; 8 is a good one.")
    ] = None,
    auto: Annotated[
        bool, typer.Option("--auto", help="Find out how, and go on with the winner: with --target or a budget alone.")
    ] = False,
    seconds: Annotated[float | None, typer.Option(help="Seconds to train, with --auto.")] = None,
    budget: Annotated[
        float | None, typer.Option(help="Seconds that --auto may take to find out; a quarter of a run, if left out.")
    ] = None,
    micro_batch_size: MicroBatchSize = None,
    evaluate_every: EvaluateEvery = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="File to save to, and to resume from where it exists.")
    ] = None,
    start: Annotated[
        Path | None, typer.Option(help="Begin with the weights of this safetensors file, as of a small batch.")
    ] = None,
    ghost_batch_norm: Annotated[
        int | None, typer.Option(help="Let batch norm see so many examples at once, however large the batch.")
    ] = None,
    inner_steps: Annotated[
        int | None, typer.Option(help="Steps on each batch, as in conservative training; 1, if left out.")
    ] = None,
    proximity: Annotated[
        float | None, typer.Option(help="How much --inner-steps are held back to where they begin; 0, if left out.")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="Write the best weights to this safetensors file.")] = None,
    noise: Annotated[
        bool, typer.Option("--noise", help="Measure the gradient noise scale on the way, in at most 3% of the time.")
    ] = False,
    tracker: Annotated[
        str | None, typer.Option(help="Keep curves and result: tensorboard:DIR, mlflow:URI or wandb:PROJECT (offline).")
    ] = None,
    data: Data = None,
    load_timeout: LoadTimeout = 30.0,
    workers: Workers = None,
    seed: Seed = 0,
    device: Device = None,
    json: Json = None,
    report: Report = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Train a workload once, stop in time, and keep the best weights."""
    from batchscope.study import train as run
    from batchscope.training.checkpoint import load_weights, save_weights
    from batchscope.training.ghost_norm import ghost_batch_norm as with_ghosts
    from batchscope.training.tracking import tracked

    check_writable(json, report, weights, checkpoint, reads=plan)
    advice, saved = (None, None) if plan is None else _saved_plan(plan)
    chosen = load_named(workload, data, load_timeout)
    if ghost_batch_norm is not None:
        chosen = with_ghosts(chosen, ghost_batch_norm)
    given = {
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "iterations": iterations,
        "examples": examples,
        "target": target,
        "shape": shape,
        "cooldown": cooldown,
        "warmup_examples": warmup_examples,
        "order": order,
        "micro_batch_size": micro_batch_size,
        "patience": patience,
        "tolerance": tolerance,
        "averaging": averaging,
        "inner_steps": inner_steps,
        "proximity": proximity,
    }
    asked = {name: value for name, value in given.items() if value is not None}
    if auto:
        others = {
            "plan": plan,
            "schedule": schedule,
            "evaluate_every": evaluate_every,
            "checkpoint": checkpoint,
            "start": start,
        }
        _check_auto([*asked, *(name for name, value in others.items() if value is not None)], noise=noise)
        from batchscope.search import train_from_nothing

        with tracked(_opened(tracker)) as watched:
            result = train_from_nothing(
                chosen,
                target=target,
                examples=examples,
                seconds=seconds,
                budget_seconds=budget,
                seed=seed,
                device=device,
                workers=workers,
                progress=not quiet,
            )
            for point in result.curve:  # now, since before the end of the race nobody knew whose curve it would be
                watched.point(point)
            watched.record(result)
    else:
        if seconds is not None or budget is not None:
            raise ArgumentError(
                "--seconds and --budget belong to --auto",
                got="--seconds" if seconds is not None else "--budget",
                mend="give --auto as well, or --iterations or --examples",
            )
        planned = _planned(chosen, saved, asked, schedule)
        weights_at_first = None if start is None else load_weights(start)
        result = run(
            chosen,
            planned,
            noise=noise,
            seed=seed,
            device=device,
            evaluate_every=evaluate_every,
            checkpoint=checkpoint,
            workers=workers,
            progress=not quiet,
            start=weights_at_first,
            tracker=_opened(tracker, advice),
        )
    show(result, json, report, quiet=quiet)
    if advice is not None and not quiet:
        from batchscope.report.views.advice import held

        print(held(advice, result))
    if weights is not None and result.state is not None:
        save_weights(weights, result.state)
    if result.outcome == "interrupted":
        print("batchscope: Interrupted; what was finished is kept.", file=sys.stderr)
        return INTERRUPTED
    return 0 if result.ended_in_order else 1


def _opened(name: str | None, advice: Advice | None = None) -> Tracker | None:
    """The tracker of that name, which has the advice already where there is one."""
    if name is None:
        return None
    from batchscope.integrations.tracker import open_tracker
    from batchscope.training.tracking import Tracked

    watched = Tracked(open_tracker(name))
    if advice is not None:
        watched.record(advice, "advice.json")
    return watched.tracker


def _check_auto(given: list[str], *, noise: bool) -> None:
    """With --auto the setting is what is to be found out."""
    wrong = [name for name in given if name not in ("target", "examples")] + (["noise"] if noise else [])
    if wrong:
        raise ArgumentError(
            "--auto takes --target, --examples or --seconds, and finds the rest",
            got=", ".join("--" + name.replace("_", "-") for name in wrong),
            mend="leave that out, or leave --auto out",
        )


def _planned(workload: Workload, saved: Plan | None, given: dict[str, Any], schedule: str | None) -> Plan:
    """The saved plan, or one at the workload's own settings, with what was given in the place of what it says."""
    from batchscope.records import Plan
    from batchscope.schedule import parse_schedule

    if "iterations" in given and "examples" not in given:
        given["examples"] = None
    elif "examples" in given and "iterations" not in given:
        given["iterations"] = None
    first = saved.batch_size if saved is not None else workload.batch_size
    if schedule is not None and schedule.endswith(".json"):
        given["schedule"] = _saved_schedule(Path(schedule))
        given.setdefault("batch_size", given["schedule"].phases[0].batch_size)
    elif schedule is not None:
        given["schedule"] = parse_schedule(schedule, given.get("batch_size", first))
    if saved is not None:
        return dataclasses.replace(saved, **given)
    return Plan(**({"batch_size": first, "learning_rate": workload.learning_rate} | given))


def _saved_plan(path: Path) -> tuple[Advice | None, Plan]:
    from batchscope.records import Advice, Plan, load

    record = load(path)
    advice = record if isinstance(record, Advice) else None
    found = record if advice is None else advice.plan
    if not isinstance(found, Plan):
        got = "an advice that found none" if advice is not None else f"a record of kind {record.kind}"
        raise ArgumentError("--plan takes a plan, or an advice with one", got=f"{path}, {got}")
    return advice, found


def _saved_schedule(path: Path) -> Schedule:
    from batchscope.records import Schedule, load

    record = load(path)
    if not isinstance(record, Schedule):
        raise ArgumentError("--schedule takes a schedule's JSON", got=f"{path}, a record of kind {record.kind}")
    return record
