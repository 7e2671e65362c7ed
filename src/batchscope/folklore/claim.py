"""A claim about batch size, and the outcome of the experiment that tests it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from batchscope.folklore.runner import ExperimentRunner
from batchscope.records.claims import Finding, Picture, Verdict


@dataclass(frozen=True)
class Outcome:
    """The outcome of an experiment.

    Attributes:
        experiment: Description of the experiment, with its numbers.
        verdict: Whether the claim holds on this workload.
        explanation: The reason for the verdict.
        findings: The measured effects; the first one decides the verdict.
        picture: The chart, if any.
    """

    experiment: str
    verdict: Verdict
    explanation: str
    findings: tuple[Finding, ...]
    picture: Picture | None = None


@dataclass(frozen=True)
class Claim:
    """A claim and its experiment.

    Attributes:
        name: Its name on the command line.
        statement: The claim as a sentence.
        source: Who makes it.
        test: The experiment.
    """

    name: str
    statement: str
    source: str
    test: Callable[[ExperimentRunner], Outcome]
