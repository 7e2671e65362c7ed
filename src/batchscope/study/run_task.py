"""Running a task: its trials together as replicas, or one after the other, and word of each as it happens."""

from __future__ import annotations

import gc
import math
import os
import socket
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from batchscope.errors import StorageError, first_line
from batchscope.records import CurvePoint, TrainResult
from batchscope.study.pruning import prunable
from batchscope.study.tasks import Began, Conditions, Evaluated, Event, Finished, Known, Standing, Task, TaskDone, Trial
from batchscope.study.trial_store import standing_of
from batchscope.study.ways import ways_of
from batchscope.training import Prepared, Run
from batchscope.training.interruption import StopRequest
from batchscope.training.memory import is_out_of_memory
from batchscope.training.replicas import Replicas


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
        >>> task = Task(0, (Trial(64, 0.1, 0), Trial(64, 0.1, 1)), way="separate")
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


class _Failure(NamedTuple):
    """Why a stack came to nothing."""

    out_of_memory: bool
    said: str


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
        self.own = {trial: Standing.at_start(trial) for trial in task.trials}

    def __call__(self) -> None:
        self.emit(Began(self.task.number, worker_name()))
        ways, plan = ways_of(self.prepared), self.conditions.plan(self.task.trials[0])
        chosen = first = ways.choose(self.prepared, plan, len(self.task.trials), self.task.way)
        left = list(self.task.trials)
        while left and not self.stop.requested:
            if not chosen.replicas:
                self._separately(left.pop(0))
                continue
            # In as few parts of equal size as it takes, the most promising first.
            parts = math.ceil(len(left) / chosen.stack_size)
            part = left[: math.ceil(len(left) / parts)]
            failure = self._together(part, in_turn=chosen.in_turn)
            left = [trial for trial in left if self.own[trial].ended == "running"]
            if failure is not None:
                # A single run says whose fault it is; where memory ran out, a smaller stack may do.
                most = len(part) // 2 if failure.out_of_memory else 0
                chosen = ways.limit(plan.batch_size, first, most, failure.said)
        if not self.stop.requested:
            self.emit(TaskDone(self.task.number, str(chosen)))

    def _together(self, trials: Sequence[Trial], *, in_turn: bool) -> _Failure | None:
        """Train trials as one stack; what came in between, if anything did."""

        def prune() -> list[int]:
            out = self._prunable()
            return [place for place, trial in enumerate(trials) if trial in out]

        try:
            Replicas(
                self.prepared,
                [self.conditions.plan(trial) for trial in trials],
                [trial.seed for trial in trials],
                evaluate_every=self.conditions.evaluate_every,
                in_turn=in_turn,
                on_evaluation=lambda place, point: self._evaluated(trials[place], point),
                prune=prune,
                on_finished=lambda place, result: self._finished(trials[place], result),
            )()
            return None
        except StorageError:
            raise
        except Exception as error:
            failure = _Failure(is_out_of_memory(error), first_line(error))
        if failure.out_of_memory:  # with the error what the stack held is gone
            gc.collect()
            if self.prepared.device.type == "cuda":
                torch.cuda.empty_cache()
        for trial in trials:
            if self.own[trial].ended == "running":
                self.own[trial] = Standing.at_start(trial)
        return failure

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
        self.own[trial] = self.own[trial].after(point)
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
