"""Running a task: its trials together as replicas, or one after the other, and word of each as it happens."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Callable, Sequence

from batchscope.records import CurvePoint, TrainResult
from batchscope.study.pruning import prunable
from batchscope.study.tasks import Began, Conditions, Evaluated, Event, Finished, Known, Standing, Task, TaskDone, Trial
from batchscope.study.trial_store import standing_of
from batchscope.training import Prepared, Run
from batchscope.training.interruption import StopRequest


def run_task(
    prepared: Prepared,
    task: Task,
    conditions: Conditions,
    *,
    emit: Callable[[Event], None],
    known: Callable[[], Sequence[Standing]] = tuple,
    stop: StopRequest | None = None,
) -> None:
    """Train the trials of a task.

    Args:
        prepared: The workload, with its data on the device.
        task: Trials of one batch size, and how to train them.
        conditions: What all trials of the sweep have in common.
        emit: Told at once: that the task has begun, of every evaluation, of every trial that ends, and in the end that
            all have.
        known: How trials elsewhere stand by now, besides ``task.known``; asked at evaluations.
        stop: A request to stop, which is looked at between two trials too; what is under way is then left unfinished.

    Raises:
        Exception: Whatever the workload raises. Divergence and a lone run out of memory are outcomes instead.

    Examples:
        >>> import torch
        >>> from batchscope.workload.digits import digits
        >>> task = Task(0, (Trial(64, 0.1, 0), Trial(64, 0.1, 1)))
        >>> told = []
        >>> conditions = Conditions(target=0.9, budget_examples=10_000, evaluate_every=500)
        >>> run_task(Prepared(digits(), torch.device("cpu")), task, conditions, emit=told.append)
        >>> [event.result.outcome for event in told if isinstance(event, Finished)]
        ['reached', 'reached']
    """
    _Running(prepared, task, conditions, emit=emit, known=known, stop=stop or StopRequest())()


def worker_name() -> str:
    """This process, as a store and a record call it: ``host:pid``."""
    return f"{socket.gethostname()}:{os.getpid()}"


class _Running:
    """One task under way."""

    def __init__(
        self,
        prepared: Prepared,
        task: Task,
        conditions: Conditions,
        *,
        emit: Callable[[Event], None],
        known: Callable[[], Sequence[Standing]],
        stop: StopRequest,
    ) -> None:
        self.prepared, self.task, self.conditions = prepared, task, conditions
        self.emit, self.known, self.stop = emit, known, stop
        self.elsewhere = Known()
        self.elsewhere.add(task.known)
        # Those that wait are pruned with their rate.
        self.own = {trial: Standing(trial, "running", 0, None, None) for trial in task.trials}

    def __call__(self) -> None:
        self.emit(Began(self.task.number, worker_name()))
        for trial in self.task.trials:
            if self.stop.requested:
                return
            self._separately(trial)
        if not self.stop.requested:
            self.emit(TaskDone(self.task.number, "separate runs"))

    def _separately(self, trial: Trial) -> None:
        result = Run(
            self.prepared,
            self.conditions.plan(trial),
            seed=trial.seed,
            evaluate_every=self.conditions.evaluate_every,
            keep_best_weights=False,
            evaluate_training=False,
            measure_memory=False,
            on_evaluation=lambda point, _: self._evaluated(trial, point),
            keep_going=lambda _: trial not in self._prunable(),
        )()
        self._finished(trial, result)

    def _evaluated(self, trial: Trial, point: CurvePoint) -> None:
        before = self.own[trial]
        self.own[trial] = Standing(
            trial,
            "running",
            point.examples,
            _better(before.score, point.score, max),
            _better(before.loss, point.validation_loss, min),
        )
        self.emit(Evaluated(self.task.number, trial, point))

    def _finished(self, trial: Trial, result: TrainResult) -> None:
        if result.outcome == "interrupted":
            self.stop.requested = True  # by somebody who asked this run alone
            return
        self.own[trial] = standing_of(trial, result)
        self.emit(Finished(self.task.number, trial, result))

    def _prunable(self) -> set[Trial]:
        """Trials of this task that need not go on."""
        if not self.conditions.pruning:
            return set()
        self.elsewhere.add(self.known())
        standings = self.elsewhere.standings | self.own
        batch_size = self.task.trials[0].batch_size
        out = prunable(
            [standing for trial, standing in standings.items() if trial.batch_size == batch_size],
            target=self.conditions.target,
            budget_examples=self.conditions.budget_examples,
        )
        return out & self.own.keys()


def _better(before: float | None, now: float, best: Callable[[float, float], float]) -> float | None:
    """The better of two scores or losses, of which those that are not finite count for nothing."""
    if not math.isfinite(now):
        return before
    return now if before is None else best(before, now)
