"""Common claims about batch size, tested on a workload."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from batchscope.cli.options import TrainingOptions, workload_argument
from batchscope.errors import ArgumentError

if TYPE_CHECKING:
    from batchscope.records import Claims, PaperStudy


def claims(
    workload: Annotated[str | None, workload_argument("; leave it out with --paper")] = None,
    paper: Annotated[
        Literal["keskar2016", "smith2017", "mishkin2016", "shallue2019", "mccandlish2018"] | None,
        typer.Option(help="Reproduce a paper's results at a size that this machine can run."),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Name of a claim, as in the table; may be given several times.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Seeds of each setting, the same for all settings.")] = 5,
    budget: Annotated[
        float | None, typer.Option(help="Approximate seconds for all of it; by default 300, or 600 for a paper.")
    ] = None,
    *,
    common: TrainingOptions,
) -> int:
    """Test common claims about batch size: each is an experiment whose confidence interval gives the verdict."""
    from batchscope.folklore import claims as run
    from batchscope.folklore.papers import paper as reproduce

    if (workload is None) == (paper is None):
        raise ArgumentError(
            "exactly one of a workload and --paper is needed", got="neither" if paper is None else "both"
        )
    if paper is not None and only:
        raise ArgumentError("--only selects claims and has no effect on --paper", got="both", mend="leave one out")
    common.check()
    arguments = common.arguments | {"seeds": seeds} | ({} if budget is None else {"budget_seconds": budget})
    record: Claims | PaperStudy
    if workload is None:
        del arguments["workers"]
        record = reproduce(str(paper), data=common.data, **arguments)
    else:
        record = run(common.load(workload), only=only or None, **arguments)
    return common.end(record)
