"""The workloads that the benchmarks run on, and the tables that they print."""

from __future__ import annotations

import dataclasses
import json
import math
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from batchscope.workload import Workload, load_workload

RESULTS = Path(__file__).parent / "results"
BUILD = Path(__file__).parents[1] / "build"


def case(name: str) -> Workload:
    """A built-in workload with at least 4,096 training examples: digits has 1,437, so its own are repeated."""
    workload = load_workload(name)
    tensors = workload.train
    if not isinstance(tensors, tuple):
        raise TypeError(f"{name} does not hold tensors")
    repeats = -(-4096 // len(tensors[0]))
    if repeats == 1:
        return workload
    repeated: tuple[Tensor, ...] = tuple(torch.cat([tensor] * repeats)[:4096] for tensor in tensors)
    return dataclasses.replace(workload, train=repeated)


def median_and_spread(values: Sequence[float]) -> str:
    """Median, with the least and the largest in brackets."""
    return f"{statistics.median(values):.3f} ({min(values):.3f}–{max(values):.3f})"


def finite(number: float) -> float | None:
    """What JSON can hold: None where there is no end."""
    return number if math.isfinite(number) else None


def known(value: float | None) -> float:
    """A number again, infinite where it is None."""
    return math.inf if value is None else value


def machine() -> dict[str, Any]:
    """What a figure was measured on."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    processor = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    return {
        "processor": processor,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def keep(name: str, rows: Sequence[dict[str, Any]]) -> Path:
    """Keep a benchmark's figures, with the machine that they were measured on."""
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), "rows": list(rows)}, indent=1) + "\n", encoding="utf-8")
    return path


class RowByRow:
    """The rows of a benchmark that takes long, kept as they come, so that one that was stopped can be gone on with.

    Args:
        name: The benchmark's.
        resume: Whether to begin with the rows that are there; otherwise they are thrown away.

    Attributes:
        rows: All so far.
    """

    def __init__(self, name: str, *, resume: bool) -> None:
        self.path = BUILD / f"bench-{name}.jsonl"
        self.path.parent.mkdir(exist_ok=True)
        if not resume:
            self.path.unlink(missing_ok=True)
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        self.rows: list[dict[str, Any]] = [json.loads(line) for line in lines]

    def add(self, row: dict[str, Any]) -> None:
        """Keep one more."""
        text = json.dumps(row)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(text + "\n")
        self.rows.append(json.loads(text))
