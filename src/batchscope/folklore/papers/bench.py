"""Training runs over seeds within a budget, for the reproduction of papers."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from batchscope.fit import mean_interval
from batchscope.folklore.runner import Trained, train_once
from batchscope.folklore.verdicts import HOLDS, of_effect
from batchscope.records import Interval, Plan
from batchscope.records.claims import Finding, Picture
from batchscope.records.landscape import Landscape
from batchscope.records.paper import PaperRow
from batchscope.training.loop import Prepared
from batchscope.workload.workload import Workload


@dataclass
class Findings:
    """Results of a reproduction.

    Attributes:
        rows: Published numbers and ours.
        effects: The paper's effects, measured here.
        pictures: Charts.
        deviations: Differences from the paper's set-up.
        against: Published evidence against the paper.
        lead: First sentence of the conclusion.
        line: The loss between two solutions.
        workload: The workload that was trained last.
    """

    rows: list[PaperRow] = field(default_factory=list)
    effects: list[Finding] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    deviations: list[str] = field(default_factory=list)
    against: list[str] = field(default_factory=list)
    lead: str = ""
    line: Landscape | None = None
    workload: Workload | None = None


@dataclass(frozen=True)
class Bench:
    """Settings of a reproduction, and training runs with them.

    Attributes:
        device: Device to train on.
        seeds: Seeds of every experiment.
        budget_seconds: Approximate time for all runs.
        data: Folder of the data; None: the default one.
        notify: Called with a description of each step.
        should_stop: Called before each run.
    """

    device: torch.device
    seeds: tuple[int, ...]
    budget_seconds: float
    data: str | None
    notify: Callable[[str], None]
    should_stop: Callable[[], bool]

    @property
    def large(self) -> bool:
        """Whether to use all of the data and networks as wide as the paper's: on a GPU."""
        return self.device.type == "cuda"

    def fashion(self, load: Callable[..., Workload], examples: int) -> Workload:
        """Fashion-MNIST with its first ``examples`` training examples, or all of them on a GPU."""
        whole = load("fashion", data=self.data)
        if self.large:
            return whole
        if not isinstance(whole.train, tuple):
            raise TypeError("fashion must hold tensors")
        return dataclasses.replace(whole, train=tuple(tensor[:examples] for tensor in whole.train))

    def epochs(self, workload: Workload, batch_size: int, learning_rate: float, runs: int, most: int) -> int:
        """Estimate how many epochs each of ``runs`` runs can have within the budget, at most ``most``."""
        prepared = Prepared(workload, self.device)
        updates = max(2, min(32, workload.training_examples // batch_size))
        began = time.perf_counter()
        self._run(prepared, Plan(batch_size, learning_rate, iterations=updates), self.seeds[0])
        per_example = (time.perf_counter() - began) / (updates * batch_size)
        return max(1, min(most, int(self.budget_seconds / (runs * per_example * workload.training_examples))))

    def train(self, workload: Workload, plan: Plan) -> list[Trained]:
        """Train a plan with every seed.

        Raises:
            StoppedError: The user asked to stop.
        """
        prepared = Prepared(workload, self.device)
        found = []
        for seed in self.seeds:
            self.notify(f"{workload.title}, batch size {plan.batch_size:,}, seed {seed}")
            found.append(self._run(prepared, plan, seed))
        return found

    def _run(self, prepared: Prepared, plan: Plan, seed: int) -> Trained:
        # Only the final score is used.
        return train_once(prepared, plan, seed=seed, should_stop=self.should_stop, evaluate_every=plan.budget_examples)


def over_seeds(values: Sequence[float | None]) -> Interval:
    """Mean with its interval, without missing values."""
    return mean_interval([value for value in values if value is not None])


def tally(effects: Sequence[Interval]) -> str:
    """Count the effects of a paper, each positive there, by their sign here.

    Examples:
        >>> tally([Interval(2.0, 1.0, 3.0), Interval(-1.0, -2.0, 0.5), Interval(-1.0, -2.0, -0.5)])
        'Of 3 effects in the paper, 1 has the same sign here, 1 has the opposite sign, 1 is inconclusive.'
    """
    verdicts = [of_effect(effect) for effect in effects]
    alike, other = verdicts.count(HOLDS), sum(effect.high is not None and effect.high < 0 for effect in effects)
    rest = len(effects) - alike - other
    have = ["has" if count == 1 else "have" for count in (alike, other)]
    return (
        f"Of {len(effects)} effects in the paper, {alike} {have[0]} the same sign here, {other} {have[1]} the opposite "
        f"sign, {rest} {'is' if rest == 1 else 'are'} inconclusive."
    )
