"""What people use instead of the advice: each picks a batch size and a learning rate, from the same reference.

All know the target and the workload and nothing else. Batch sizes go up to the largest of the ground truth, for all of
them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import logging
import math
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import batchscope as bs
from batchscope.study.arguments import reference_rate
from ground_truth_table import Setting

# Rates that Optuna draws from: what its users give it who do not know.
LOWEST_RATE, HIGHEST_RATE = 1e-5, 1.0
# A trial of Optuna's may take this share of the time there is, in as many parts as Hyperband has resources.
TRIAL_SHARE, PARTS = 0.2, 9
# So many validation examples score a trial, so that training and not evaluating takes its time.
SCORED_ON = 1000
# Updates at the reference before the noise scale is measured, as far as one pass over the data goes, and what with.
SHORT_RUN, NOISE_EXAMPLES = 200, 1024


@dataclass(frozen=True)
class Question:
    """What a picker is given.

    Attributes:
        workload: With the reference as its own batch size and rate.
        step_times: Time of an update over batch sizes up to the largest there may be.
        seconds: What the advice took: Optuna's budget.
        seed: Of everything random.
    """

    workload: bs.Workload
    step_times: bs.StepTimes
    seconds: float
    seed: int

    @property
    def largest(self) -> int:
        """The largest batch size that may be picked."""
        return self.step_times.points[-1].batch_size


Picker = Callable[[Question], Setting | None]


def batch_32(question: Question) -> Setting | None:
    """Batch 32 at the rate that is there."""
    return Setting(32, question.workload.learning_rate)


def throughput(question: Question) -> Setting | None:
    """The batch size with the most examples a second, the rate rescaled to it by the optimiser's rule."""
    best = max(question.step_times.points, key=lambda point: point.examples_per_second.value or 0.0).batch_size
    return Setting(best, reference_rate(question.workload, best))


def noise_scale(question: Question) -> Setting | None:
    """The simple noise scale after a short run at the reference as the batch size, the rate rescaled to it.

    None where the run diverges at once, or the noise scale is not resolved.
    """
    workload = question.workload
    examples = min(workload.training_examples, SHORT_RUN * workload.batch_size)
    plan = bs.Plan(workload.batch_size, workload.learning_rate, examples=examples)
    run = bs.train(workload, plan, seed=question.seed)
    try:
        found = bs.gradient_noise(workload, run.state, examples=NOISE_EXAMPLES, seed=question.seed).noise_scale
    except bs.BatchscopeError:
        return None
    if found.value is None or not found.value > 0:
        return None
    size = round(min(max(found.value, 1.0), question.largest))
    return Setting(size, reference_rate(workload, size))


def lightning_tuner(question: Question) -> Setting | None:
    """The largest batch that Lightning's Tuner finds, then the rate of its range test at it; None where it has none."""
    import lightning
    from lightning.pytorch.tuner.tuning import Tuner

    workload = question.workload
    if not isinstance(workload.train, tuple):
        raise TypeError("a workload that does not hold tensors")
    examples = TensorDataset(*workload.train)

    class Module(lightning.LightningModule):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.model, self.batch_size, self.learning_rate = workload.model(), 2, workload.learning_rate

        def training_step(self, batch: Any, index: int) -> Any:
            output, target = workload.output_and_target(self.model, batch)
            return workload.loss(output, target)

        def configure_optimizers(self) -> Any:
            return workload.optimizer(self.model.parameters(), self.learning_rate)

        def train_dataloader(self) -> Any:
            return DataLoader(examples, batch_size=self.batch_size, shuffle=True)

    logging.getLogger("lightning.pytorch").setLevel(logging.CRITICAL)
    silent = contextlib.redirect_stderr(io.StringIO())  # a progress bar that no setting turns off
    with silent, warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
        warnings.simplefilter("ignore")
        torch.manual_seed(question.seed)
        module = Module()
        trainer = lightning.Trainer(
            max_epochs=-1,
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        tuner = Tuner(trainer)
        tuner.scale_batch_size(module, mode="power", max_val=question.largest)
        found = tuner.lr_find(module, update_attr=False)
    rate = None if found is None else found.suggestion()
    return None if rate is None else Setting(min(module.batch_size, question.largest), float(rate))


def optuna_search(question: Question) -> Setting | None:
    """The best score within the time there is, by TPE with Hyperband: batch sizes are powers of two, rates log-uniform.

    A trial trains for a fifth of the time at most, so that the best of them is what learns fastest on the clock; scores
    are reported nine times on the way. None where no trial came to a score.
    """
    import optuna
    from optuna.trial import TrialState

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    until = time.perf_counter() + question.seconds
    part = question.seconds * TRIAL_SHARE / PARTS
    sizes = [2**k for k in range(3, int(math.log2(question.largest)) + 1)]

    def objective(trial: Any) -> float:
        size = trial.suggest_categorical("batch_size", sizes)
        rate = trial.suggest_float("learning_rate", LOWEST_RATE, HIGHEST_RATE, log=True)
        score = 0.0
        scores = scores_of(question.workload, Setting(size, rate), part_seconds=part, seed=question.seed)
        for number, score in enumerate(itertools.islice(scores, PARTS), start=1):
            if not math.isfinite(score):
                raise optuna.TrialPruned
            trial.report(score, number)
            if time.perf_counter() > until:
                break
            if trial.should_prune():
                raise optuna.TrialPruned
        return score

    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=question.seed),
        pruner=optuna.pruners.HyperbandPruner(min_resource=1, max_resource=PARTS, reduction_factor=3),
    )
    study.optimize(objective, timeout=question.seconds)
    done = [(trial.value or 0.0, trial.params) for trial in study.get_trials(states=[TrialState.COMPLETE])]
    _, best = max(done, key=lambda pair: pair[0], default=(0.0, None))
    return None if best is None else Setting(best["batch_size"], best["learning_rate"])


PICKERS: dict[str, Picker] = {
    "batch 32": batch_32,
    "Lightning": lightning_tuner,
    "throughput": throughput,
    "Optuna": optuna_search,
    "noise scale": noise_scale,
}


def scores_of(workload: bs.Workload, setting: Setting, *, part_seconds: float, seed: int) -> Iterator[float]:
    """Train by a loop written by hand, and yield the score after every so many seconds of updates, at least one."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = workload.model()
    optimizer = workload.optimizer(model.parameters(), setting.learning_rate)
    batches = _batches(workload, setting.batch_size, seed)
    while True:
        began = time.perf_counter()
        while True:
            output, target = workload.output_and_target(model, next(batches))
            loss = workload.loss(output, target)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if time.perf_counter() - began > part_seconds:
                break
        yield _score(workload, model)


def _batches(workload: bs.Workload, batch_size: int, seed: int) -> Iterator[tuple[Tensor, ...]]:
    tensors = workload.train
    if not isinstance(tensors, tuple):
        raise TypeError("a workload that does not hold tensors")
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(tensors[0]), generator=generator)
        for indices in torch.split(order, batch_size)[: len(order) // batch_size]:
            yield tuple(tensor[indices] for tensor in tensors)


@torch.no_grad()
def _score(workload: bs.Workload, model: torch.nn.Module) -> float:
    model.eval()
    if not isinstance(workload.validation, tuple):
        raise TypeError("a workload that does not hold tensors")
    output, target = workload.output_and_target(model, tuple(part[:SCORED_ON] for part in workload.validation))
    model.train()
    return float(workload.score(output, target) if workload.score is not None else -workload.loss(output, target))


def at_reference(workload: bs.Workload, setting: Setting) -> bs.Workload:
    """The workload with another batch size and learning rate of its own."""
    return dataclasses.replace(workload, batch_size=setting.batch_size, learning_rate=setting.learning_rate)
