"""Training from nothing: the race, and its winner trained on from where it stands."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from batchscope.advice.contest import contest
from batchscope.advice.reasons import no_answer
from batchscope.errors import RunError
from batchscope.progress import Reporter
from batchscope.records import Plan, TrainResult
from batchscope.training.averaging import POWER
from batchscope.training.interruption import stop_requests
from batchscope.training.loop import Run
from batchscope.training.start import Start
from batchscope.workload.workload import Workload

# A target that stays out of reach at one learning rate is tried at half of it, so many times.
MOST_HALVINGS = 4


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
    average of its weights. Where a target is not reached in three times the examples that were predicted, and three
    passes over the data, training goes on from the averaged weights at half the learning rate, up to four times.

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
        held.tell(f"training with batch size {heat.batch_size:,}, learning rate {entrant.learning_rate:.3g}")
        most = race.patience_examples(heat.batch_size)
        result = heat.finish(entrant, lambda: stop.requested, most_examples=most)
        rates = [entrant.learning_rate]
        while target is not None and result.outcome == "finished" and len(rates) <= MOST_HALVINGS:
            rates.append(rates[-1] / 2)
            held.tell(f"the target is late: on with learning rate {rates[-1]:.3g}")
            plan = Plan(heat.batch_size, rates[-1], examples=round(most), target=target, averaging=POWER)
            start = Start(result.state, {}) if result.state else None
            result = replace(
                Run(race.prepared, plan, seed=seed, start=start, evaluate_training=False, measure_memory=False)(),
                message=_late(rates),
            )
    return replace(result, total_seconds=time.perf_counter() - began)


def _late(rates: Sequence[float]) -> str:
    tried = ", ".join(f"{rate:.3g}" for rate in rates[:-1])
    return (
        f"the target was late at learning rate {tried}; it went on from those weights at {rates[-1]:.3g}, and what is "
        f"counted here, time in all apart, is that last part"
    )
