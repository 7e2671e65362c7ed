"""Training from nothing: the race, and its winner trained on from where it stands."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace

from batchscope.advice.anytime import AnytimeRate
from batchscope.advice.contest import contest
from batchscope.advice.reasons import no_answer
from batchscope.errors import RunError
from batchscope.progress import Reporter
from batchscope.records import TrainResult
from batchscope.training.interruption import stop_requests
from batchscope.workload.workload import Workload

# A target counts as out of reach after so many times the examples predicted, and so many passes over the data.
PATIENCE, PATIENT_EPOCHS = 16.0, 10


def train_from_nothing(
    workload: Workload,
    *,
    target: float | None = None,
    examples: int | None = None,
    seconds: float | None = None,
    budget_seconds: float | None = None,
    max_memory_bytes: int | None = None,
    batch_sizes: Sequence[int] | None = None,
    seed: int = 0,
    device: str | None = None,
    workers: int | None = None,
    progress: bool | Reporter = False,
) -> TrainResult:
    """Find out how to train a workload, and train it.

    The race of :func:`batchscope.advise` is run as far as its budget goes. Of the candidates that it trained, the one
    with the least time left to the goal goes on from its weights, its optimiser's state, its place in the data and the
    average of its weights, at the learning rate that the whole way wants where that is smaller than what did best so
    far. Where a target is not reached in the examples that were predicted, the rate falls with 1/√examples, and by half
    where the loss gets no less; it is given up after 16 times as many, and 10 passes over the data.

    Args:
        workload: What is to be trained.
        target: As for :func:`batchscope.advise`, and so are the others.
        examples: Likewise.
        seconds: Likewise.
        budget_seconds: Likewise.
        max_memory_bytes: Likewise.
        batch_sizes: Likewise.
        seed: Likewise.
        device: Likewise.
        workers: Likewise.
        progress: Likewise.

    Returns:
        The run of the winner: its ``step_seconds`` are its own, its ``total_seconds`` all that was spent. Its ``state``
        is what was evaluated last.

    Raises:
        ArgumentError: Not exactly one goal, or a setting that makes no sense.
        RunError: Nothing could be advised; the message says what was found out.

    Examples:
        >>> import batchscope as bs
        >>> bs.train_from_nothing(bs.load_workload("digits"), target=0.9, budget_seconds=4).reached
        True
    """
    began = time.perf_counter()
    with (
        stop_requests() as stop,
        contest(
            workload,
            target=target,
            examples=examples,
            seconds=seconds,
            budget_seconds=budget_seconds,
            max_memory_bytes=max_memory_bytes,
            batch_sizes=batch_sizes,
            devices=1,
            network=None,
            seed=seed,
            device=device,
            workers=workers,
            progress=progress,
            to_train=True,
        ) as held,
    ):
        race = held.findings.race
        if race.trouble is not None:
            said = no_answer(held.findings, race.outlook)
            raise RunError("training from nothing needs a setting to train with", got="none", mend=said)
        heat, entrant = race.nearest_to_the_goal()
        horizon = race.horizon_examples(heat.batch_size)
        # Rates that look best soon are too large for all of the way.
        rate = min(entrant.learning_rate, race.foretold_rate(heat.batch_size) or math.inf)
        held.tell(f"training with batch size {heat.batch_size:,}, learning rate {rate:.3g}")
        most = math.inf if target is None else max(PATIENCE * horizon, PATIENT_EPOCHS * workload.training_examples)
        falling = AnytimeRate(horizon)
        result = heat.finish(entrant, lambda: stop.requested, learning_rate=rate, rate=falling, most_examples=most)
        if target is not None and result.outcome == "finished":
            result = replace(result, message=_late(rate, falling.factor, horizon))
    return replace(result, total_seconds=time.perf_counter() - began)


def _late(rate: float, factor: float, horizon: float) -> str:
    return (
        f"the target was not reached: it was expected after {horizon:,.0f} examples, and from there on the learning "
        f"rate fell from {rate:.3g} to {factor * rate:.3g}"
    )
