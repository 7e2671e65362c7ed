"""Training from nothing: the search, and its winner trained on from where it stands."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from batchscope.errors import RunError
from batchscope.progress import Reporter
from batchscope.records import TrainResult
from batchscope.search.answer import find_answer
from batchscope.search.anytime import AnytimeRate
from batchscope.search.arguments import Question
from batchscope.search.sentences import no_answer
from batchscope.search.study import study
from batchscope.search.trained import Trained
from batchscope.training.loop import MOST_EPOCHS
from batchscope.workload.workload import Workload

# A target counts as out of reach after so many times the examples predicted, and so many passes over the data.
PATIENCE, PATIENT_EPOCHS = 4.0, 10
# The rate stays as it is until most forecasts say that the target should have been reached; without a forecast, until
# so many times what the candidate has seen.
LATE, UNSEEN = 0.9, 64.0


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

    The search of :func:`batchscope.advise` ends as soon as looking further costs more than it can save. The best
    candidate goes on from its weights, its optimiser's state, its place in the data and the average of its weights;
    nothing else trains from then on. Where a target is not reached in the examples that were predicted, the rate falls
    with 1/√examples, and by half where the loss stops falling; it is given up after 4 times as many, and 10 passes
    over the data.

    Args:
        workload: What is to be trained.
        target: A validation score to reach in the least time. Exactly one of the three is given.
        examples: A number of examples to train on, for the best score.
        seconds: A time of training, evaluation apart, for the best score.
        budget_seconds: What the search may cost; None: a quarter of the run that it forecasts, at least 10 seconds.
        max_memory_bytes: Memory that training may take; None: what is free here.
        batch_sizes: Batch sizes that may be used; None: powers of two.
        seed: Of everything random.
        device: "cpu", "cuda" …; None: CUDA where there is one.
        workers: Processes that read a Dataset; None: as many as pay.
        progress: True shows progress on stderr; or a function that is told of every step.

    Returns:
        The run of the winner: its ``step_seconds`` are its own, its ``total_seconds`` all that was spent. Its ``state``
        is what was evaluated last.

    Raises:
        ArgumentError: Not exactly one goal, or a setting that makes no sense.
        RunError: Training diverged at every rate; the message says what was found.

    Examples:
        >>> import batchscope as bs
        >>> bs.train_from_nothing(bs.load_workload("digits"), target=0.9, budget_seconds=4).reached
        True
    """
    began = time.perf_counter()
    question = Question(
        workload=workload,
        target=target,
        examples=examples,
        seconds=seconds,
        budget_seconds=budget_seconds,
        max_memory_bytes=max_memory_bytes,
        batch_sizes=batch_sizes,
        seed=seed,
        device=device,
        workers=workers,
        progress=progress,
        trains_winner=True,
    )
    with study(question) as found:
        answer = find_answer(found.race, found.step_seconds, seed=seed)
        winner = None if answer is None else found.race.candidates[answer.best]
        if answer is None or not isinstance(winner, Trained):
            raise RunError("training from nothing needs a setting to train with", got="none", mend=no_answer(found))
        draws = answer.of(answer.best.batch_size).examples
        needed = float(np.quantile(draws, LATE, method="nearest"))
        seen = winner.updates * winner.setting.batch_size
        horizon = max(needed, float(seen)) if math.isfinite(needed) else UNSEEN * seen
        # A run ends after so many passes at the latest: the rate has to fall in time.
        horizon = min(horizon, MOST_EPOCHS * workload.training_examples / PATIENCE)
        found.race.tell(str(winner.setting), 0.0)
        most = horizon
        if target is not None:
            most = max(PATIENCE * horizon, PATIENT_EPOCHS * workload.training_examples)
        falling = AnytimeRate(horizon)
        result = winner.finish(target, falling, most_examples=most)
        if target is not None and result.outcome == "finished":
            message = (
                f"the target was not reached: it was expected after {horizon:,.0f} examples, and from there on the "
                f"learning rate fell to {falling.factor:.3g} of {winner.setting.learning_rate:.3g}"
            )
            result = replace(result, message=message)
    return replace(result, total_seconds=time.perf_counter() - began)
