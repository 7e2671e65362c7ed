"""One training run."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from batchscope.cli.ending import INTERRUPTED
from batchscope.cli.options import EvaluateEvery, MicroBatchSize, TrainingOptions, WorkloadName
from batchscope.cli.parsing import load_record
from batchscope.errors import ArgumentError

if TYPE_CHECKING:
    from batchscope.records import Advice, Plan
    from batchscope.training.tracking import Tracker
    from batchscope.workload import Workload


def train(
    workload: WorkloadName,
    plan: Annotated[
        Path | None, typer.Option(help="JSON file of a plan or an advice; the other options override its fields.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples per update; by default the workload's own.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="By default the workload's own.")] = None,
    iterations: Annotated[int | None, typer.Option(help="Number of updates.")] = None,
    examples: Annotated[int | None, typer.Option(help="Examples to train on, instead of --iterations.")] = None,
    target: Annotated[float | None, typer.Option(help="Validation score at which training stops.")] = None,
    shape: Annotated[
        Literal["constant", "linear", "cosine", "cooldown"] | None,
        typer.Option(help="Learning-rate schedule; by default the workload's own."),
    ] = None,
    cooldown: Annotated[
        float | None,
        typer.Option(
            help="With --shape cooldown, the last share of the budget in which the rate falls; by default 0.2."
        ),
    ] = None,
    warmup_examples: Annotated[
        int | None, typer.Option(help="Examples of learning-rate warm-up; by default the workload's own.")
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            help="Batch-size schedule, for example smith:at=60000/120000,factor=5,cap=512 or measured:knee=200; or a "
            "JSON file."
        ),
    ] = None,
    order: Annotated[
        Literal["shuffled", "replacement", "stratified", "bucketed"] | None,
        typer.Option(help="How batches are drawn; by default shuffled."),
    ] = None,
    patience: Annotated[int | None, typer.Option(help="Stop after this many evaluations without improvement.")] = None,
    tolerance: Annotated[
        float | None, typer.Option(help="Improvements up to this size do not count for --patience; by default 0.")
    ] = None,
    averaging: Annotated[
        float | None, typer.Option(help="Evaluate and keep an average of the weights, with this power; 8 works well.")
    ] = None,
    auto: Annotated[
        bool, typer.Option("--auto", help="Search for the setting while training; needs --target or a budget.")
    ] = False,
    seconds: Annotated[float | None, typer.Option(help="Seconds to train, with --auto.")] = None,
    budget: Annotated[
        float | None,
        typer.Option(help="Seconds that the search of --auto may take; by default a quarter of a training run."),
    ] = None,
    micro_batch_size: MicroBatchSize = None,
    evaluate_every: EvaluateEvery = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="File to save checkpoints to, and to resume from if it exists.")
    ] = None,
    start: Annotated[Path | None, typer.Option(help="A safetensors file with the initial weights.")] = None,
    ghost_batch_norm: Annotated[
        int | None, typer.Option(help="Compute batch-norm statistics over groups of this many examples.")
    ] = None,
    inner_steps: Annotated[
        int | None, typer.Option(help="Steps on each batch, as in conservative training; by default 1.")
    ] = None,
    proximity: Annotated[
        float | None,
        typer.Option(help="Penalty on the distance that --inner-steps move the weights; by default 0."),
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="Write the best weights to this safetensors file.")] = None,
    noise: Annotated[
        bool, typer.Option("--noise", help="Measure the gradient noise scale in at most 3% of the training time.")
    ] = False,
    tracker: Annotated[
        str | None,
        typer.Option(help="Log curves and result to tensorboard:DIR, mlflow:URI or wandb:PROJECT (offline)."),
    ] = None,
    *,
    common: TrainingOptions,
) -> int:
    """Train a workload once, with early stopping, and keep the best weights."""
    from batchscope.study import train as run
    from batchscope.training.checkpoint import load_weights, save_weights
    from batchscope.training.ghost_norm import ghost_batch_norm as with_ghosts
    from batchscope.training.tracking import tracked

    common.check(weights, checkpoint, reads=plan)
    advice, saved = (None, None) if plan is None else _saved_plan(plan)
    chosen = common.load(workload)
    if ghost_batch_norm is not None:
        chosen = with_ghosts(chosen, ghost_batch_norm)
    asked = _given(
        batch_size=batch_size,
        learning_rate=learning_rate,
        iterations=iterations,
        examples=examples,
        target=target,
        shape=shape,
        cooldown=cooldown,
        warmup_examples=warmup_examples,
        order=order,
        micro_batch_size=micro_batch_size,
        patience=patience,
        tolerance=tolerance,
        averaging=averaging,
        inner_steps=inner_steps,
        proximity=proximity,
    )
    if auto:
        others = _given(
            plan=plan,
            schedule=schedule,
            evaluate_every=evaluate_every,
            checkpoint=checkpoint,
            start=start,
            noise=noise or None,
        )
        _check_auto([*asked, *others])
        from batchscope.search import train_from_nothing

        with tracked(_opened(tracker)) as watched:
            result = train_from_nothing(
                chosen,
                target=target,
                examples=examples,
                seconds=seconds,
                budget_seconds=budget,
                **common.arguments,
            )
            for point in result.curve:  # only now is it known which candidate's curve this is
                watched.point(point)
            watched.record(result)
    else:
        if seconds is not None or budget is not None:
            raise ArgumentError(
                "--seconds and --budget need --auto",
                got="--seconds" if seconds is not None else "--budget",
                mend="add --auto, or give --iterations or --examples instead",
            )
        result = run(
            chosen,
            _planned(chosen, saved, asked, schedule),
            noise=noise,
            evaluate_every=evaluate_every,
            checkpoint=checkpoint,
            start=None if start is None else load_weights(start),
            tracker=_opened(tracker, advice),
            **common.arguments,
        )
    common.show(result)
    if advice is not None and not common.quiet:
        from batchscope.report.views.advice import held

        print(held(advice, result))
    if weights is not None and result.state is not None:
        save_weights(weights, result.state)
    if result.outcome == "interrupted":
        print("batchscope: Interrupted; finished results are kept.", file=sys.stderr)
        return INTERRUPTED
    return 0 if result.ended_in_order else 1


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _opened(name: str | None, advice: Advice | None = None) -> Tracker | None:
    """Open the tracker of that name, and log the advice where there is one."""
    if name is None:
        return None
    from batchscope.integrations.tracker import open_tracker
    from batchscope.training.tracking import Tracked

    watched = Tracked(open_tracker(name))
    if advice is not None:
        watched.record(advice, "advice.json")
    return watched.tracker


def _check_auto(given: list[str]) -> None:
    """Refuse with --auto what it searches for itself."""
    if wrong := [name for name in given if name not in ("target", "examples")]:
        raise ArgumentError(
            "--auto takes --target, --examples or --seconds, and finds the other settings",
            got=", ".join("--" + name.replace("_", "-") for name in wrong),
            mend="leave that out, or leave --auto out",
        )


def _planned(workload: Workload, saved: Plan | None, given: dict[str, Any], schedule: str | None) -> Plan:
    """Override the saved plan, or one at the workload's own settings, with what was given."""
    from batchscope.records import Plan, Schedule
    from batchscope.schedule import parse_schedule

    if "iterations" in given and "examples" not in given:
        given["examples"] = None
    elif "examples" in given and "iterations" not in given:
        given["iterations"] = None
    first = saved.batch_size if saved is not None else workload.batch_size
    if schedule is not None and schedule.endswith(".json"):
        given["schedule"] = load_record(Path(schedule), Schedule, rule="--schedule must be the JSON of a schedule")
        given.setdefault("batch_size", given["schedule"].phases[0].batch_size)
    elif schedule is not None:
        given["schedule"] = parse_schedule(schedule, given.get("batch_size", first))
    if saved is not None:
        return dataclasses.replace(saved, **given)
    return Plan(**({"batch_size": first, "learning_rate": workload.learning_rate} | given))


def _saved_plan(path: Path) -> tuple[Advice | None, Plan]:
    from batchscope.records import Advice, Plan

    rule = "--plan must be a plan, or an advice with a plan"
    record = load_record(path, Plan, Advice, rule=rule)
    if isinstance(record, Plan):
        return None, record
    if record.plan is None:
        raise ArgumentError(rule, got=f"{path}, an advice without one")
    return record, record.plan
