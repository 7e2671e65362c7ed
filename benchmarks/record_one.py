"""Record one learning curve, or the times of single updates: what record_curves.py runs in a process of its own.

The loop is written by hand and shares nothing with batchscope's but the workload. Weights depend on the seed alone and
so does the order of the examples, whatever the batch size. Seconds are CPU seconds of this one thread, evaluating left
out.
"""

from __future__ import annotations

import argparse
import bisect
import gc
import json
import math
import os
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from batchscope.workload import Workload
from batchscope.workload.batches import take
from curves_schedule import Setting
from curves_table import LIMIT, points_at
from real import TASKS, RealTask

CHUNK = 100  # examples evaluated at a time, so that activations stay small
CAN_WIN = 0.5  # a run behind the best curve slowed down by 1/0.5 reaches the target after the limit of 2 times
JUDGED_FROM = 0.5  # of the best time
LEAST_RECORDED = 0.4  # of the best time, unless weights are no longer finite
FAR_ABOVE = 3.0  # times the loss of fresh weights
PAST_TARGET = 1.3  # times the examples to the target, after which a run ends


class Ended(Exception):  # noqa: N818
    """A run's outcome."""


class Trial:
    """One run: its model, its clock, and what it has recorded.

    Args:
        task: The network.
        batch_size: Examples of each update.
        learning_rate: Constant.
        seed: Seed of weights, order and dropout.
    """

    def __init__(self, task: RealTask, workload: Workload, batch_size: int, learning_rate: float, seed: int) -> None:
        self.task, self.workload = task, workload
        self.batch_size = batch_size
        torch.manual_seed(seed)
        self.model = workload.model()
        self.optimizer = workload.optimizer(self.model.parameters(), learning_rate)
        self.order = _order(workload.training_examples, seed)
        self.examples = 0
        self.seconds = self.reading = 0.0

    def update(self) -> float:
        """Train on the next batch; return its loss before the update."""
        began = time.process_time()
        batch = take(self.workload.train, [next(self.order) for _ in range(self.batch_size)], self.workload.collate)
        read = time.process_time()
        output, target = self.workload.output_and_target(self.model, batch)
        loss = self.workload.loss(output, target)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if self.task.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.task.clip_norm)
        self.optimizer.step()
        value = float(loss.detach())
        self.seconds += time.process_time() - began
        self.reading += read - began
        self.examples += self.batch_size
        return value

    def evaluate(self) -> tuple[float, float]:
        """Validation loss and score; the random state is left as it was."""
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            self.model.eval()
            outputs: list[Any] = []
            targets: list[Tensor] = []
            losses: list[float] = []
            count = self.workload.validation_examples
            for start in range(0, count, CHUNK):
                part = list(range(start, min(start + CHUNK, count)))
                batch = take(self.workload.validation, part, self.workload.collate)
                output, target = self.workload.output_and_target(self.model, batch)
                losses.append(float(self.workload.loss(output, target)) * len(part))
                if self.workload.score is not None:
                    outputs.append(output)
                    targets.append(target)
            self.model.train()
            loss = sum(losses) / count
            if self.workload.score is None:
                return loss, -loss
            return loss, float(self.workload.score(torch.cat(outputs), torch.cat(targets)))


def _order(examples: int, seed: int) -> Iterator[int]:
    """Examples without end, each epoch in an order that depends on the seed and its number."""
    epoch = 0
    while True:
        generator = torch.Generator().manual_seed(1_000 * seed + epoch)
        yield from torch.randperm(examples, generator=generator).tolist()
        epoch += 1


def record(
    task: RealTask,
    setting: Setting,
    best: dict[str, Any] | None = None,
    best_seconds: float | None = None,
    *,
    until: float = LIMIT,
) -> dict[str, Any]:
    """Train to the target, or until it is clear that this cannot be the best run.

    Args:
        task: The network.
        setting: Batch size, rate and seed.
        best: The best curve so far. None: there is none.
        best_seconds: Its CPU seconds to the target.
        until: Times the best seconds, after which it ends in any case.

    Returns:
        The curve, as it is kept.
    """
    batch_size, step, seed = setting
    rate = task.learning_rate * 2.0**step
    trial = Trial(task, task.make(), batch_size, rate, seed)
    initial_loss, initial_score = trial.evaluate()
    points: dict[str, list[float]] = {
        key: [] for key in ("examples", "seconds", "reading_seconds", "loss", "score", "training_loss")
    }
    blocks: dict[str, list[float]] = {"examples": [], "training_loss": []}
    evaluate_at = points_at(task.expected_examples, batch_size, first=1 / 500, dense=1 / 8, factor=1.2, every=0.025)
    block_at = points_at(task.expected_examples, batch_size, first=1 / 500, dense=1 / 8, factor=1.1, every=0.01)
    next_point, next_block = next(evaluate_at), next(block_at)
    point_loss, block_loss = _Mean(), _Mean()
    unit = best_seconds or task.expected_seconds
    limit = until * unit
    parent = os.getppid()
    outcome = None
    while outcome is None:
        value = trial.update()
        point_loss.add(value)
        block_loss.add(value)
        if trial.examples >= next_block:
            blocks["examples"].append(trial.examples)
            blocks["training_loss"].append(block_loss.take())
            next_block = next(block_at)
        broken = not math.isfinite(value)
        if trial.examples >= next_point or broken or trial.seconds > limit:
            loss, score = trial.evaluate()
            row = (trial.examples, trial.seconds, trial.reading, loss, score, point_loss.take())
            for key, number in zip(points, row, strict=True):
                points[key].append(number)
            while next_point <= trial.examples:
                next_point = next(evaluate_at)
            if os.getppid() != parent:  # the recorder was killed
                sys.exit(1)
            if broken or not math.isfinite(loss):
                outcome = "diverged"
            else:
                outcome = verdict(points, task.target, initial_loss, unit, best)
            if outcome is None and trial.seconds > limit:
                outcome = "missed" if until >= 1 else "begun"
    return {
        "network": task.name,
        "batch_size": batch_size,
        "learning_rate": rate,
        "step": step,
        "seed": seed,
        "target": task.target,
        "outcome": outcome,
        "initial": {"loss": initial_loss, "score": initial_score},
        "points": points,
        "blocks": blocks,
        "limit_seconds": limit,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def verdict(
    points: dict[str, list[float]], target: float, initial_loss: float, unit: float, best: dict[str, Any] | None
) -> str | None:
    """The outcome of a run after its newest point, or None where it goes on.

    Args:
        points: What it recorded.
        target: The score to reach.
        initial_loss: Validation loss of fresh weights.
        unit: CPU seconds of the best run so far.
        best: The best curve so far. None: there is none to compare with.

    Returns:
        "reached", "diverged" or "cut".
    """
    examples, seconds, scores = points["examples"], points["seconds"], points["score"]
    above = [score >= target for score in scores]
    if any(above):
        enough = examples[-1] >= PAST_TARGET * examples[above.index(True)]
        return "reached" if enough or (all(above[-2:]) and len(above) > 1) else None
    if seconds[-1] < LEAST_RECORDED * unit:
        return None
    if points["training_loss"][-1] > FAR_ABOVE * max(initial_loss, 0.0) and points["loss"][-1] > initial_loss:
        return "diverged"
    if best is None or seconds[-1] < JUDGED_FROM * unit:
        return None
    recent = max(scores[-3:])
    place = bisect.bisect_right(best["points"]["seconds"], CAN_WIN * seconds[-1])
    behind = max(best["points"]["score"][: min(place, len(best["points"]["score"]))], default=-math.inf)
    return "cut" if recent < min(behind, target) else None


class _Mean:
    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def add(self, value: float) -> None:
        self.total += value
        self.count += 1

    def take(self) -> float:
        mean = self.total / max(self.count, 1)
        self.total, self.count = 0.0, 0
        return mean


UPDATES = (5, 60)  # least and most that are timed at a batch size
SECONDS = 3.0  # spent on each batch size, about


def timing(task: RealTask) -> dict[str, Any]:
    """CPU seconds of an update at every batch size, and of an evaluation: medians of one thread."""
    workload = task.make()
    sizes: list[int] = []
    seconds: list[float] = []
    reading: list[float] = []
    peaks: list[float] = []
    evaluations: list[float] = []
    asked = sorted({2**k for k in range(0, 30) if 2**k <= 2 * task.batch_sizes[-1]} | set(task.batch_sizes))
    for size in asked:
        trial = Trial(task, workload, size, task.learning_rate * 0.01, 0)
        for _ in range(2):
            trial.update()
        each: list[float] = []
        read: list[float] = []
        while len(each) < UPDATES[0] or (sum(each) < SECONDS and len(each) < UPDATES[1]):
            before, before_reading = trial.seconds, trial.reading
            trial.update()
            each.append(trial.seconds - before)
            read.append(trial.reading - before_reading)
        sizes.append(size)
        seconds.append(statistics.median(each))
        reading.append(statistics.median(read))
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)  # sizes rise, so this is the size's own
        if len(evaluations) < 3:
            began = time.process_time()
            trial.evaluate()
            evaluations.append(time.process_time() - began)
        del trial
        gc.collect()
    return {
        "network": task.name,
        "batch_sizes": sizes,
        "seconds": seconds,
        "reading_seconds": reading,
        "peak_mib": peaks,
        "evaluation_seconds": statistics.median(evaluations),
        "training_examples": workload.training_examples,
        "validation_examples": workload.validation_examples,
        "parameters": sum(p.numel() for p in workload.model().parameters()),
        "torch": torch.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=TASKS)
    parser.add_argument("batch_size", nargs="?", type=int)
    parser.add_argument("step", nargs="?", type=int)
    parser.add_argument("seed", nargs="?", type=int)
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("--best", type=Path)
    parser.add_argument("--best-seconds", type=float)
    parser.add_argument("--until", type=float, default=LIMIT)
    parser.add_argument("--timing", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    task = TASKS[arguments.network]
    if arguments.timing is not None:
        path, made = arguments.timing, timing(task)
    else:
        best = json.loads(arguments.best.read_text()) if arguments.best is not None else None
        path = arguments.out
        setting = Setting(arguments.batch_size, arguments.step, arguments.seed)
        made = record(task, setting, best, arguments.best_seconds, until=arguments.until)
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps(made))
    part.replace(path)  # a file is whole or not there


if __name__ == "__main__":
    main()
