"""Candidates that train in this process, one after the other, each from where it stands."""

from __future__ import annotations

from typing import Any

from batchscope.search.candidates import Candidate, Setting
from batchscope.search.shared import Shared
from batchscope.search.trained import Trained
from batchscope.workload.workload import Workload


class InProcess(Shared):
    """Candidates of one workload in this process: a source of a search.

    Args:
        workload: What is trained.
        device: Where.
        seed: Of the weights and the order of the examples: the same for all candidates.
        arguments: The others of :class:`batchscope.search.shared.Shared`.

    Attributes:
        candidates: All that were opened.
    """

    def __init__(self, workload: Workload, device: Any, *, seed: int, **arguments: Any) -> None:
        super().__init__(workload, device, seed=seed, **arguments)
        self.candidates: list[Trained] = []

    def open(self, setting: Setting) -> Candidate:
        """A new candidate; it is made when it is first advanced."""
        candidate = Trained(self, setting)
        self.candidates.append(candidate)
        return candidate

    def close(self) -> None:
        """Let go of all candidates."""
        for candidate in self.candidates:
            candidate.release()
