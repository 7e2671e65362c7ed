"""The reproduction of a paper's results."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from batchscope.errors import ArgumentError
from batchscope.folklore.papers import keskar2016, mccandlish2018, mishkin2016, shallue2019, smith2017
from batchscope.folklore.papers.bench import Bench, Findings
from batchscope.folklore.runner import StoppedError, checked_design
from batchscope.progress import Reporter, reporter
from batchscope.provenance import provenance
from batchscope.records.claims import Finding
from batchscope.records.paper import PaperStudy
from batchscope.training.interruption import stop_requests
from batchscope.training.train import chosen_device
from batchscope.workload import load_workload

BUDGET_SECONDS = 600.0


@dataclass(frozen=True)
class Paper:
    """The reference of a paper, and the experiments that reproduce it."""

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
    """Reproduce the results of a paper at a size that this machine can run.

    Args:
        name: One of :data:`PAPERS`.
        seeds: The number of seeds, or the seeds; at least two.
        budget_seconds: Approximate time for training, which decides the number of epochs.
        data: Folder of the data set; None: the default one.
        seed: The first seed if ``seeds`` is a number.
        device: "cpu", "cuda" …; None: CUDA if it is available.
        progress: True shows progress on stderr; a function is called with every event.

    Returns:
        Published and measured numbers, effects with intervals, and the differences between the set-ups.

    Raises:
        ArgumentError: An unknown paper, or an invalid setting.
        DataError: The data set is missing.

    Examples:
        >>> PAPERS["shallue2019"].reference[:17]
        'C. J. Shallue, J.'
    """
    if name not in PAPERS:
        raise ArgumentError(f"a paper is one of {', '.join(PAPERS)}", got=name)
    chosen_seeds = checked_design(seeds, seed, budget_seconds)
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
            notify=lambda label: report.update(label=label, done=0, total=None),
            should_stop=lambda: stop.requested,
        )
        try:
            found = PAPERS[name].reproduce(bench)
        except StoppedError:
            interrupted = True
    return PaperStudy(
        paper=name,
        reference=PAPERS[name].reference,
        conclusion="The reproduction was stopped before its end."
        if interrupted
        else conclude(found.effects, found.lead),
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
    """State the effects with their intervals.

    Examples:
        >>> from batchscope.records import Interval
        >>> conclude([Finding("small minus large", Interval(2.0, 1.0, 3.0))])
        'Small minus large: 2 (1 to 3).'
    """
    stated = [f"{effect.what[0].upper()}{effect.what[1:]}: {effect.value}" for effect in effects]
    return " ".join([*([lead] if lead else []), ". ".join(stated) + "."]) if stated else "Nothing was measured."
