"""What the tests of studies share: a workload of milliseconds, comparisons made of numbers, and runs played back."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from batchscope.records import (
    Comparison,
    CurvePoint,
    Outcome,
    Plan,
    Provenance,
    RateHandling,
    RateSearch,
    Record,
    TrainResult,
    WorkloadSummary,
    encode,
)
from batchscope.study import statistics
from batchscope.study.conclusion import conclude
from batchscope.study.pruning import SLACK, prunable
from batchscope.study.rate_search import Choice
from batchscope.study.rate_search import RateSearch as Search
from batchscope.study.tasks import Standing, Trial
from batchscope.workload import Workload

TIMES = ("seconds", "memory", "created", "conclusion", "examples_per_second", "cores", "threads", "contention")


def _agreement(output: Tensor, target: Tensor) -> Tensor:
    return (output.argmax(1) == target).float().mean()


@pytest.fixture
def make_workload() -> Callable[..., Workload]:
    """Three noisy classes in five dimensions: 256 examples to train on, 128 to validate."""

    def make(**changes: Any) -> Workload:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(384, 5, generator=generator)
        y = (x[:, :3] + torch.randn(384, 3, generator=generator)).argmax(1)
        given: dict[str, Any] = {
            "model": lambda: nn.Linear(5, 3),
            "train": (x[:256], y[:256]),
            "validation": (x[256:], y[256:]),
            "loss": F.cross_entropy,
            "score": _agreement,
            "optimizer": lambda params, lr: torch.optim.SGD(params, lr=lr),
            "learning_rate": 0.1,
            "batch_size": 16,
            "name": "three classes",
        }
        return Workload(**(given | changes))

    return make


@pytest.fixture
def workload(make_workload: Callable[..., Workload]) -> Workload:
    return make_workload()


class _CannotHold(nn.Linear):
    """Runs out of memory in training at more than 32 examples at once."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and len(x) > 32:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().forward(x)


@pytest.fixture
def memory_for_32(make_workload: Callable[..., Workload]) -> Workload:
    # Batch norm ties the examples, so that training does not go on in micro-batches by itself.
    return make_workload(model=lambda: nn.Sequential(nn.BatchNorm1d(5), _CannotHold(5, 3)))


@pytest.fixture
def without_times() -> Callable[[Record], Any]:
    """A record's fields, apart from what differs from one execution to the next."""

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: strip(v) for k, v in value.items() if not any(part in k for part in TIMES)}
        return [strip(item) for item in value] if isinstance(value, list) else value

    return lambda record: strip(encode(record))


# Whatever it is, nothing here looks at it.
_WHENCE: dict[str, Any] = {name: "x" if kind == "str" else 1 for name, kind in Provenance.__annotations__.items()}
_PROVENANCE = Provenance(**_WHENCE)


@pytest.fixture
def make_run() -> Callable[..., TrainResult]:
    """A run made of numbers."""

    def make(
        batch_size: int = 8,
        iterations: int = 100,
        seed: int = 0,
        *,
        score: float | None = 0.9,
        loss: float | None = None,
        seconds: float = 1.0,
        outcome: Outcome = "finished",
    ) -> TrainResult:
        ended = outcome in ("finished", "reached", "stopped early")
        final_score = score if ended else None
        final_loss = (loss if loss is not None else -score if score is not None else None) if ended else None
        examples = batch_size * iterations
        curve = tuple(
            CurvePoint(
                examples=part * examples // 4,
                iterations=part * iterations // 4,
                seconds=seconds * part / 4,
                learning_rate=0.1,
                training_loss=None,
                validation_loss=final_loss,
                score=final_score * part / 4,
            )
            for part in range(5)
            if final_score is not None and final_loss is not None
        )
        return TrainResult(
            workload="made of numbers",
            plan=Plan(batch_size=batch_size, learning_rate=0.1, iterations=iterations),
            seed=seed,
            outcome=outcome,
            reached=False,
            examples=examples,
            iterations=iterations,
            data_seconds=seconds / 10,
            compute_seconds=seconds * 9 / 10,
            step_seconds=seconds,
            evaluation_seconds=0.0,
            total_seconds=seconds,
            best_score=final_score,
            best_loss=final_loss,
            best_examples=examples,
            final_score=final_score,
            final_loss=final_loss,
            training_score=final_score,
            training_loss=final_loss,
            generalisation_gap=0.0,
            peak_memory_bytes=1000,
            diverged_at_iteration=None,
            message=None,
            curve=curve,
            provenance=_PROVENANCE,
        )

    return make


@pytest.fixture
def make_comparison() -> Callable[..., Comparison]:
    """The comparison of given runs, a list for each row, with its conclusion."""

    def make(
        runs: Sequence[Sequence[TrainResult]],
        *,
        pairs: Sequence[tuple[int, int]] | None = None,
        learning_rate: RateHandling = "search",
        searches: Sequence[RateSearch] = (),
        seeds: int | None = None,
        interrupted: bool = False,
    ) -> Comparison:
        if pairs is None:
            pairs = [(row[0].plan.batch_size, row[0].plan.iterations or 0) for row in runs]
        everything = [run for row in runs for run in row]
        target = statistics.common_score(everything)
        record = Comparison(
            workload=WorkloadSummary("made of numbers", 1, 10, 10, "SGD", "loss", "score", 16, 0.1),
            learning_rate=learning_rate,
            shape="linear",
            order="shuffled",
            seeds=tuple(range(max(map(len, runs)) if seeds is None else seeds)),
            evaluate_every_examples=1,
            rows=tuple(
                statistics.row(*pair, 0.1, row, target=target, search=None)
                for pair, row in zip(pairs, runs, strict=True)
            ),
            differences=statistics.differences(runs),
            common_score=target,
            conclusion="",
            searches=tuple(searches),
            runs=tuple(everything),
            total_seconds=1.0,
            interrupted=interrupted,
            provenance=_PROVENANCE,
        )
        return Comparison(**{**vars(record), "conclusion": conclude(record)})

    return make


@dataclass(frozen=True)
class Curve:
    """A run to play back: examples, scores and losses of its evaluations, and whether it diverged at the last."""

    examples: tuple[int, ...]
    scores: tuple[float, ...]
    losses: tuple[float, ...] = ()
    diverged: bool = False

    def standing(self, trial: Trial, evaluations: int, target: float | None) -> Standing:
        """How it stands after so many evaluations."""
        scores, losses = self.scores[:evaluations], self.losses[:evaluations]
        standing = Standing(trial, "running", self.examples[evaluations - 1], max(scores), min(losses, default=None))
        if target is not None and scores[-1] >= target:
            return standing._replace(ended="reached")
        if evaluations == len(self.examples):
            return standing._replace(ended="diverged" if self.diverged else "missed")
        return standing


@dataclass(frozen=True)
class Grid:
    """A full grid of recorded runs at one batch size; rates are ``start`` times powers of the root of two."""

    name: str
    batch_size: int
    start: float
    budget: int
    seeds: tuple[int, ...]
    curves: dict[tuple[int, int], Curve]

    @property
    def places(self) -> list[int]:
        return sorted({place for place, _ in self.curves})

    def rate(self, place: int) -> float:
        return float(self.start * 2.0 ** (place / 2))

    def trials(self, places: Sequence[int], seeds: Sequence[int]) -> list[Trial]:
        """The trials at these rates, seed by seed."""
        return [Trial(self.batch_size, self.rate(place), seed) for place in places for seed in seeds]

    def __call__(self, trial: Trial) -> Curve:
        place = next(place for place in self.places if self.rate(place) == trial.learning_rate)
        return self.curves[place, trial.seed]


class Replays:
    """Plays back what a sweep does with curves: stacks at one pace, or runs one after the other, with pruning."""

    curve = Curve

    def run(
        self,
        trials: Sequence[Trial],
        curves: Callable[[Trial], Curve],
        *,
        target: float | None,
        budget: int,
        known: Sequence[Standing] = (),
        prune: bool = True,
        together: bool = True,
        slack: float = SLACK,
    ) -> dict[Trial, Standing]:
        """How the trials end."""
        now = {trial: Standing(trial, "running", 0, None, None) for trial in trials}

        def pruned() -> None:
            everything = [*(s for s in known if s.trial not in now), *now.values()]
            for trial in prunable(everything, target=target, budget_examples=budget, slack=slack) if prune else ():
                now[trial] = now[trial]._replace(ended="pruned")

        pruned()
        for group in [list(trials)] if together else [[trial] for trial in trials]:
            evaluations = 0
            while any(now[trial].ended == "running" for trial in group):
                evaluations += 1
                for trial in group:
                    if now[trial].ended == "running":
                        now[trial] = curves(trial).standing(trial, evaluations, target)
                pruned()
        return now

    def search(
        self, search: Search, curves: Callable[[Trial], Curve], *, prune: bool = True, together: bool = True
    ) -> tuple[Choice, dict[Trial, Standing], int]:
        """What a search ends with, how all its trials stand, and the examples that it took."""
        known: dict[Trial, Standing] = {}
        spent = 0
        for _ in range(60):
            wave = search.next_wave(known.values())
            if not wave:
                return search.choice(known.values()), known, spent
            assert len(set(wave)) == len(wave)
            ended = self.run(
                wave,
                curves,
                target=search.target,
                budget=search.budget_examples,
                known=list(known.values()),
                prune=prune,
                together=together,
                slack=search.slack,
            )
            known |= ended
            spent += sum(standing.examples for standing in ended.values())
        raise AssertionError("the search does not end")

    def grids(self) -> list[Grid]:
        """The recorded grids: see benchmarks/record_grids.py."""
        return [grid for path in sorted((Path(__file__).parents[1] / "data").glob("*.json")) for grid in _grids(path)]


def _grids(path: Path) -> list[Grid]:
    whole = json.loads(path.read_text(encoding="utf-8"))
    grids = []
    for grid in whole["grids"]:
        curves = {}
        for place, runs in grid["runs"].items():
            for seed, run in zip(whole["seeds"], runs, strict=True):
                assert run["outcome"] == "finished"
                scores = [right / whole["validation_examples"] for right in run["right"]]
                losses = [loss / 1000 for loss in run["loss"]]
                # The evaluation before the first update is not one that a sweep can stop at.
                curves[int(place), seed] = Curve(tuple(grid["examples"][1:]), tuple(scores[1:]), tuple(losses[1:]))
        grids.append(Grid(path.stem, grid["batch_size"], grid["start"], whole["budget"], tuple(whole["seeds"]), curves))
    return grids


@pytest.fixture(scope="session")
def replays() -> Replays:
    """Runs played back, without training."""
    return Replays()
