"""What the tests of comparisons share: a workload of milliseconds, and comparisons made of numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from batchscope.workload import Workload

TIMES = ("seconds", "memory", "created", "conclusion", "examples_per_second", "cores", "threads")


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
