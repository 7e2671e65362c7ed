"""One paper's table, measured again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from batchscope.errors import ArgumentError
from batchscope.folklore.lab import StoppedError
from batchscope.folklore.papers import keskar2016, mccandlish2018, mishkin2016, shallue2019, smith2017
from batchscope.folklore.papers.bench import Bench, Findings
from batchscope.progress import Reporter, reporter
from batchscope.provenance import provenance
from batchscope.records.claims import Finding
from batchscope.records.paper import PaperStudy
from batchscope.study.arguments import checked_seeds
from batchscope.training.interruption import stop_requests
from batchscope.training.train import checked_seed, chosen_device
from batchscope.workload import load_workload

BUDGET_SECONDS, LEAST_BUDGET = 600.0, 5.0


@dataclass(frozen=True)
class Paper:
    """A paper.

    Attributes:
        reference: Its authors, title and place.
        reproduce: The experiment.
    """

    reference: str
    reproduce: Callable[[Bench], Findings]


PAPERS = {
    "keskar2016": Paper(keskar2016.REFERENCE, keskar2016.reproduce),
    "smith2017": Paper(smith2017.REFERENCE, smith2017.reproduce),
    "mishkin2016": Paper(mishkin2016.REFERENCE, mishkin2016.reproduce),
    "shallue2019": Paper(shallue2019.REFERENCE, shallue2019.reproduce),
    "mccandlish2018": Paper(mccandlish2018.REFERENCE, mccandlish2018.reproduce),
}
"""By short name."""


def paper(
    name: str,
    *,
    seeds: int | Sequence[int] = 5,
    budget_seconds: float = BUDGET_SECONDS,
    data: str | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool | Reporter = False,
) -> PaperStudy:
    """Measure what a paper reports, at a size that this machine can run.

    Args:
        name: One of :data:`PAPERS`.
        seeds: How many, or which: at least two.
        budget_seconds: What training may take, about; it decides how many passes over the data there are.
        data: Folder of the data set; None: where it usually lies.
        seed: The first seed, where ``seeds`` is a number.
        device: "cpu", "cuda" …; None: CUDA where there is one.
        progress: True shows progress on stderr; or a function that is told of every step.

    Returns:
        The paper's numbers beside ours, its effects with intervals, and in what the set-ups differ.

    Raises:
        ArgumentError: There is no such paper, or a setting that makes no sense.
        DataError: The data set is not there.

    Examples:
        >>> found = paper("shallue2019", seeds=2)
        >>> [row.published for row in found.rows[:2]]
        [-1.0, 0.0]
    """
    if name not in PAPERS:
        raise ArgumentError(f"a paper is one of {', '.join(PAPERS)}", got=name)
    chosen_seeds = checked_seeds(seeds, checked_seed(seed))
    if len(chosen_seeds) < 2:
        raise ArgumentError("an interval needs at least two seeds", got=len(chosen_seeds), mend="five are usual")
    if not isinstance(budget_seconds, (int, float)) or not budget_seconds >= LEAST_BUDGET:
        raise ArgumentError(f"a budget must be at least {LEAST_BUDGET:g} seconds", got=budget_seconds)
    began = time.perf_counter()
    chosen = chosen_device(device)
    interrupted = False
    found = Findings()
    with stop_requests() as stop, reporter(progress, name) as report:
        bench = Bench(
            device=chosen,
            seeds=chosen_seeds,
            budget_seconds=float(budget_seconds),
            data=data,
            tell=lambda label: report.update(label=label, done=0, total=None),
            stopped=lambda: stop.requested,
        )
        try:
            found = PAPERS[name].reproduce(bench)
        except StoppedError:
            interrupted = True
    return PaperStudy(
        paper=name,
        reference=PAPERS[name].reference,
        conclusion="It was stopped before its end." if interrupted else conclude(found.effects, found.lead),
        rows=tuple(found.rows),
        effects=tuple(found.effects),
        deviations=tuple(found.deviations),
        against=tuple(found.against),
        pictures=tuple(found.pictures),
        line=found.line,
        seeds=chosen_seeds,
        seconds=time.perf_counter() - began,
        interrupted=interrupted,
        provenance=provenance(found.workload or load_workload("digits"), device=chosen, seed=seed),
    )


def conclude(effects: Sequence[Finding], lead: str = "") -> str:
    """The effects in words, each with its sign as far as that can be told.

    Examples:
        >>> from batchscope.records import Interval
        >>> conclude([Finding("small minus large", Interval(2.0, 1.0, 3.0))])
        'Small minus large: 2 (1 to 3).'
    """
    said = [f"{effect.what[0].upper()}{effect.what[1:]}: {effect.value}" for effect in effects]
    return " ".join([*([lead] if lead else []), ". ".join(said) + "."]) if said else "Nothing was measured."
