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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import batchscope as bs
from batchscope.study.arguments import reference_rate
from batchscope.workload.batches import take
from batchscope.workload.workload import Batch
from ground_truth_table import Setting

# Rates that Optuna draws from: what its users give it who do not know. Where today's rate is not well within, the range
# is stretched to this many times today's; so is that of Lightning's range test, which ends at 1 as well.
LOWEST_RATE, HIGHEST_RATE, BEYOND_TODAY = 1e-5, 1.0, 10.0
# TPE draws ten trials at random before it models any, so a study without pruning gets twice as many. With Hyperband
# most trials are stopped early; those that are not take a fifth of the time.
TPE_TRIAL_SHARE, HYPERBAND_TRIAL_SHARE = 0.05, 0.2
# Hyperband's rungs, in parts of a trial: its default reduction factor of 3, twice.
RUNGS = (1, 3, 9)
# Scoring a trial may take this share of the training before it, on so many validation examples at least and at most.
SCORING_SHARE, LEAST_SCORED, MOST_SCORED = 0.1, 8, 1000
# Updates at the reference before the noise scale is measured, as far as one pass over the data goes, and what with.
SHORT_RUN, NOISE_EXAMPLES = 200, 1024


@dataclass(frozen=True)
class Question:
    """What a picker is given.

    Attributes:
        workload: With the reference as its own batch size and rate.
        step_seconds: Seconds of an update by batch size, up to the largest that may be picked.
        seconds: What the advice took: Optuna's budget.
        seed: Of everything random.
    """

    workload: bs.Workload
    step_seconds: Mapping[int, float]
    seconds: float
    seed: int

    @property
    def largest(self) -> int:
        """The largest batch size that may be picked."""
        return max(self.step_seconds)

    @property
    def rates(self) -> tuple[float, float]:
        """The range of learning rates to search, today's well within."""
        today = self.workload.learning_rate
        return min(LOWEST_RATE, today / BEYOND_TODAY), max(HIGHEST_RATE, today * BEYOND_TODAY)


Picker = Callable[[Question], Setting | None]


def batch_32(question: Question) -> Setting | None:
    """Batch 32 at the rate that is there."""
    return Setting(32, question.workload.learning_rate)


def throughput(question: Question) -> Setting | None:
    """The batch size with the most examples a second, the rate rescaled to it by the optimiser's rule."""
    best = max(question.step_seconds, key=lambda size: size / question.step_seconds[size])
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
    examples = TensorDataset(*workload.train) if isinstance(workload.train, tuple) else workload.train

    class Module(lightning.LightningModule):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.model, self.batch_size, self.learning_rate = workload.model(), 2, workload.learning_rate

        def training_step(self, batch: Any, index: int) -> Any:
            output, target = workload.output_and_target(self.model, batch)
            return workload.loss(output, target)

        def configure_optimizers(self) -> Any:
            return workload.optimizer_for(self.model, self.learning_rate)

        def train_dataloader(self) -> Any:
            return DataLoader(examples, batch_size=self.batch_size, shuffle=True, collate_fn=workload.collate)

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
            gradient_clip_val=workload.clip_norm,
        )
        tuner = Tuner(trainer)
        tuner.scale_batch_size(module, mode="power", max_val=question.largest)
        found = tuner.lr_find(module, max_lr=question.rates[1], update_attr=False)
    rate = None if found is None else found.suggestion()
    return None if rate is None else Setting(min(module.batch_size, question.largest), float(rate))


def optuna_search(question: Question, *, hyperband: bool) -> Setting | None:
    """The best score within the time there is, by TPE: batch sizes are powers of two, rates log-uniform.

    Every trial trains for the same time, so that the best of them is what learns fastest on the clock. With Hyperband,
    those that are behind after a ninth or a third of it are stopped. None where no trial came to a score.
    """
    import optuna
    from optuna.trial import TrialState

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    until = time.perf_counter() + question.seconds
    rungs = RUNGS if hyperband else (1,)
    part = question.seconds * (HYPERBAND_TRIAL_SHARE if hyperband else TPE_TRIAL_SHARE) / rungs[-1]
    stretches = [part * (rung - last) for last, rung in itertools.pairwise((0, *rungs))]
    scored = _examples_to_score(question.workload, stretches)
    sizes = [2**k for k in range(3, int(math.log2(question.largest)) + 1)]

    def objective(trial: Any) -> float:
        setting = Setting(
            trial.suggest_categorical("batch_size", sizes),
            trial.suggest_float("learning_rate", *question.rates, log=True),
        )
        score = math.nan
        scores = scores_of(question.workload, setting, list(zip(stretches, scored, strict=True)), seed=question.seed)
        for rung, score in zip(rungs, scores, strict=True):
            if not math.isfinite(score):
                raise optuna.TrialPruned
            trial.report(score, rung)
            if time.perf_counter() > until:
                break
            if rung < rungs[-1] and trial.should_prune():
                raise optuna.TrialPruned
        return score

    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=question.seed),
        pruner=optuna.pruners.HyperbandPruner(min_resource=1, max_resource=RUNGS[-1], reduction_factor=3)
        if hyperband
        else optuna.pruners.NopPruner(),
    )
    study.optimize(objective, timeout=until - time.perf_counter())
    done = [(trial.value or 0.0, trial.params) for trial in study.get_trials(states=[TrialState.COMPLETE])]
    _, best = max(done, key=lambda pair: pair[0], default=(0.0, None))
    return None if best is None else Setting(best["batch_size"], best["learning_rate"])


optuna_tpe: Picker = partial(optuna_search, hyperband=False)
optuna_hyperband: Picker = partial(optuna_search, hyperband=True)

PICKERS: dict[str, Picker] = {
    "batch 32": batch_32,
    "Lightning": lightning_tuner,
    "throughput": throughput,
    "Optuna": optuna_hyperband,
    "noise scale": noise_scale,
}


def scores_of(
    workload: bs.Workload, setting: Setting, parts: Sequence[tuple[float, int]], *, seed: int
) -> Iterator[float]:
    """Train by a loop written by hand, and score on the way.

    Args:
        workload: What is trained.
        setting: Batch size and constant rate.
        parts: Seconds to train, at least one update, and then the number of validation examples to score on.
        seed: Of weights and order.

    Yields:
        The score after each part.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = workload.model()
    optimizer = workload.optimizer_for(model, setting.learning_rate)
    batches = _batches(workload, setting.batch_size, seed)
    for seconds, examples in parts:
        began = time.perf_counter()
        while True:
            output, target = workload.output_and_target(model, next(batches))
            loss = workload.loss(output, target)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            if workload.clip_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), workload.clip_norm)
            optimizer.step()
            if time.perf_counter() - began > seconds:
                break
        yield _score(workload, model, examples)


def _batches(workload: bs.Workload, batch_size: int, seed: int) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(workload.training_examples, generator=generator)
        for indices in torch.split(order, batch_size)[: len(order) // batch_size]:
            yield take(workload.train, indices.tolist(), workload.collate)


@torch.no_grad()
def _score(workload: bs.Workload, model: nn.Module, examples: int) -> float:
    """The score on the first validation examples."""
    model.eval()
    batch = take(workload.validation, range(examples), workload.collate)
    output, target = workload.output_and_target(model, batch)
    model.train()
    return float(workload.score(output, target) if workload.score is not None else -workload.loss(output, target))


def _examples_to_score(workload: bs.Workload, stretches: Sequence[float]) -> list[int]:
    """Validation examples to score on after each stretch of training, so that scoring takes its share of the time."""
    model = workload.model()
    most = min(MOST_SCORED, workload.validation_examples)
    tried = min(4 * LEAST_SCORED, most)
    _score(workload, model, tried)  # the first takes longer
    began = time.perf_counter()
    _score(workload, model, tried)
    each = (time.perf_counter() - began) / tried
    return [min(max(round(SCORING_SHARE * seconds / each), LEAST_SCORED), most) for seconds in stretches]


def at_reference(workload: bs.Workload, setting: Setting) -> bs.Workload:
    """The workload with another batch size and learning rate of its own."""
    return dataclasses.replace(workload, batch_size=setting.batch_size, learning_rate=setting.learning_rate)
