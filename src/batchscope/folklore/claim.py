"""What a claim is: something that people say, and an experiment that tells whether it holds on a workload."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from batchscope.folklore.lab import Lab
from batchscope.records.claims import Finding, Picture, Verdict


@dataclass(frozen=True)
class Outcome:
    """What an experiment came to.

    Attributes:
        experiment: What was done, with this workload's numbers.
        verdict: Whether the claim holds here.
        explanation: Why that follows.
        findings: The numbers, the one that decides first.
        picture: The chart; None where there is nothing to draw.
    """

    experiment: str
    verdict: Verdict
    explanation: str
    findings: tuple[Finding, ...]
    picture: Picture | None = None


@dataclass(frozen=True)
class Claim:
    """One thing that people say.

    Attributes:
        name: What it is called on the command line.
        said: What is said.
        source: By whom.
        test: The experiment.
    """

    name: str
    said: str
    source: str
    test: Callable[[Lab], Outcome]
