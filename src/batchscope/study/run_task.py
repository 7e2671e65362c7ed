"""Running a task: its trials together as replicas, side by side, or one after the other, and word of each at once."""

from __future__ import annotations

import gc
import math
import os
import socket
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import torch

from batchscope.errors import StorageError, first_line
from batchscope.records import TrainResult
from batchscope.study.tasks import Began, Conditions, Evaluated, Event, Finished, Task, TaskDone, Trial, trial_of
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
    stopped: Callable[[], Collection[Trial]] = tuple,
    stop: StopRequest | None = None,
) -> None:
    """Train the trials of a task.

    Args:
        prepared: The workload, with its data on the device.
        task: Trials of one batch size, and how to train them.
        conditions: What all trials of the sweep have in common.
        emit: Told at once: that the task has begun, of every evaluation, of every trial that ends, and in the end that
            all have.
        stopped: Asked at evaluations which trials are to end as "pruned".
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
    _Running(prepared, task, conditions, emit=emit, stopped=stopped, stop=stop or StopRequest())()


def worker_name() -> str:
    """This process, as progress and errors call it: ``host:pid``."""
    return f"{socket.gethostname()}:{os.getpid()}"


class _Failure(NamedTuple):
    """Why trials could not be trained together."""

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
        stopped: Callable[[], Collection[Trial]],
        stop: StopRequest,
    ) -> None:
        self.prepared, self.task, self.conditions = prepared, task, conditions
        self.emit, self.stopped, self.stop = emit, stopped, stop
        self.left = list(task.trials)

    def __call__(self) -> None:
        self.emit(Began(self.task.number, worker_name()))
        ways, plan = ways_of(self.prepared), self.conditions.plan(self.task.trials[0])
        chosen = first = ways.choose(self.prepared, plan, len(self.left), self.task.way)
        # Trials that may be stopped keep one pace, so that none is trained for long that others would have stopped.
        side_by_side = self.conditions.pruning
        while self.left and not self.stop.requested:
            if chosen.replicas:
                # In as few parts of equal size as it takes, the most promising first.
                parts = math.ceil(len(self.left) / chosen.stack_size)
                part = self.left[: math.ceil(len(self.left) / parts)]
                failure = self._together(part, in_turn=chosen.in_turn)
                if failure is not None:
                    # A single run says whose fault it is; where memory ran out, a smaller stack may do.
                    most = len(part) // 2 if failure.out_of_memory else 0
                    chosen = ways.limit(plan.batch_size, first, most, failure.said)
            else:
                side_by_side = self._separately(self.left if side_by_side else self.left[:1])
        if not self.stop.requested:
            self.emit(TaskDone(self.task.number, str(chosen)))

    def _together(self, trials: Sequence[Trial], *, in_turn: bool) -> _Failure | None:
        """Train trials as one stack; what came in between, if anything did."""
        try:
            Replicas(
                self.prepared,
                [self.conditions.plan(trial) for trial in trials],
                [trial.seed for trial in trials],
                evaluate_every=self.conditions.evaluate_every,
                in_turn=in_turn,
                on_evaluation=lambda place, point: self.emit(Evaluated(self.task.number, trials[place], point)),
                prune=lambda: [place for place, trial in enumerate(trials) if trial in self.stopped()],
                on_finished=lambda place, result: self._finished(trials[place], result),
            )()
            return None
        except StorageError:
            raise
        except Exception as error:
            failure = _Failure(is_out_of_memory(error), first_line(error))
        if failure.out_of_memory:  # with the error what the stack held is gone
            self._free_memory()
        return failure

    def _separately(self, trials: Sequence[Trial]) -> bool:
        """Train trials by themselves, in turns from evaluation to evaluation; whether memory could hold them all."""
        trials = list(trials)
        runs = {trial: self._run(trial) for trial in trials[:1]}
        while trials and not self.stop.requested:
            for trial in list(trials):
                if trial not in runs:
                    runs[trial] = self._run(trial)
                result = runs[trial].advance()
                if result is None:
                    continue
                if result.outcome == "out of memory" and len(runs) > 1:
                    runs.clear()
                    self._free_memory()
                    return False
                del runs[trial]
                trials.remove(trial)
                self._finished(trial, result)
        return True

    def _run(self, trial: Trial) -> Run:
        return Run(
            self.prepared,
            self.conditions.plan(trial),
            seed=trial.seed,
            evaluate_every=self.conditions.evaluate_every,
            keep_best_weights=False,
            evaluate_training=False,
            measure_memory=False,
            on_evaluation=lambda point, _: self.emit(Evaluated(self.task.number, trial, point)),
            keep_going=lambda _: trial not in self.stopped(),
        )

    def _finished(self, trial: Trial, result: TrainResult) -> None:
        if result.outcome == "interrupted":
            self.stop.requested = True  # by somebody who asked this run alone
            return
        self.left.remove(trial)
        self.emit(Finished(self.task.number, trial_of(trial, result)))

    def _free_memory(self) -> None:
        gc.collect()
        if self.prepared.device.type == "cuda":
            torch.cuda.empty_cache()
