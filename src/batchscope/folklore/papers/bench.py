"""What the papers' experiments share: runs over seeds, and the time they may take."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from batchscope.fit import mean_interval
from batchscope.folklore.lab import StoppedError
from batchscope.folklore.verdicts import HOLDS, of_effect
from batchscope.records import Interval, Plan, TrainResult
from batchscope.records.claims import Finding, Picture
from batchscope.records.landscape import Landscape
from batchscope.records.paper import PaperRow
from batchscope.training.loop import Prepared, Run
from batchscope.workload.workload import Workload


@dataclass
class Findings:
    """What an experiment has come to so far.

    Attributes:
        rows: The paper's numbers and ours.
        effects: Its effects here.
        pictures: Charts.
        deviations: From its set-up.
        against: Published evidence against it.
        lead: What comes first in the conclusion.
        line: Between two solutions.
        workload: What was trained, the last of them.
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
    """Where an experiment is made.

    Attributes:
        device: Where to train.
        seeds: What to repeat it with.
        budget_seconds: About what all of it may take.
        data: Folder of the data; None: where it usually lies.
        tell: Told what goes on.
        stopped: Asked between two runs whether to end.
    """

    device: torch.device
    seeds: tuple[int, ...]
    budget_seconds: float
    data: str | None
    tell: Callable[[str], None]
    stopped: Callable[[], bool]

    @property
    def large(self) -> bool:
        """Whether the larger form is made, all of the data and networks as wide as the paper's: on a GPU."""
        return self.device.type == "cuda"

    def fashion(self, load: Callable[..., Workload], examples: int) -> Workload:
        """Fashion-MNIST with its first so many training examples, or all of them in the larger form.

        Args:
            load: Loads a workload by name.
            examples: How many.
        """
        whole = load("fashion", data=self.data)
        if self.large:
            return whole
        if not isinstance(whole.train, tuple):
            raise TypeError("fashion must hold tensors")
        return dataclasses.replace(whole, train=tuple(tensor[:examples] for tensor in whole.train))

    def epochs(self, workload: Workload, batch_size: int, learning_rate: float, runs: int, most: int) -> int:
        """Passes over the data that so many runs can have, by a short one at this batch size.

        Args:
            workload: What is trained.
            batch_size: Examples per update.
            learning_rate: The rate.
            runs: How many runs share the budget.
            most: No more than so many passes.
        """
        prepared = Prepared(workload, self.device)
        updates = max(2, min(32, workload.training_examples // batch_size))
        began = time.perf_counter()
        self._run(prepared, Plan(batch_size, learning_rate, iterations=updates), self.seeds[0])
        per_example = (time.perf_counter() - began) / (updates * batch_size)
        return max(1, min(most, int(self.budget_seconds / (runs * per_example * workload.training_examples))))

    def train(self, workload: Workload, plan: Plan) -> list[tuple[TrainResult, Mapping[str, Any]]]:
        """Runs of a plan, one for each seed, with the weights that each ended with.

        Raises:
            StoppedError: The person asked to stop.
        """
        prepared = Prepared(workload, self.device)
        found = []
        for seed in self.seeds:
            self.tell(f"{workload.title}, batch size {plan.batch_size:,}, seed {seed}")
            found.append(self._run(prepared, plan, seed))
        return found

    def _run(self, prepared: Prepared, plan: Plan, seed: int) -> tuple[TrainResult, Mapping[str, Any]]:
        if self.stopped():
            raise StoppedError("the person must let it finish", got="a request to stop")
        # Evaluated at its end alone, since nothing else is looked at.
        run = Run(
            prepared,
            plan,
            seed=seed,
            evaluate_every=plan.budget_examples,
            keep_best_weights=False,
            evaluate_training=False,
            measure_memory=False,
        )
        result = run()
        if result.outcome == "interrupted":
            raise StoppedError("the person must let it finish", got="a request to stop")
        return result, run.state()


def over_seeds(values: Sequence[float | None]) -> Interval:
    """The mean with its interval; missing ones are left out."""
    return mean_interval([value for value in values if value is not None])


def tally(effects: Sequence[Interval]) -> str:
    """How many of a paper's effects, each positive there, come out alike.

    Examples:
        >>> tally([Interval(2.0, 1.0, 3.0), Interval(-1.0, -2.0, 0.5), Interval(-1.0, -2.0, -0.5)])
        'Of 3 effects in the paper, 1 has the same sign here, 1 has the other, 1 cannot be told from none.'
    """
    verdicts = [of_effect(effect) for effect in effects]
    alike, other = verdicts.count(HOLDS), sum(effect.high is not None and effect.high < 0 for effect in effects)
    have = ["has" if count == 1 else "have" for count in (alike, other)]
    return (
        f"Of {len(effects)} effects in the paper, {alike} {have[0]} the same sign here, {other} {have[1]} the other, "
        f"{len(effects) - alike - other} cannot be told from none."
    )
