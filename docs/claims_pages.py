"""Writes docs/claims/: a page and a chart for each claim, from a saved record (a test compares the pages).

batchscope claims digits --json benchmarks/results/claims-digits.json
python docs/claims_pages.py
"""

from __future__ import annotations

from pathlib import Path

from batchscope.folklore import CLAIMS
from batchscope.records import Claims, TestedClaim, load
from batchscope.report import formatting as f
from batchscope.report import images
from batchscope.report.views.claims import PREFIX, in_words

DOCS = Path(__file__).parent
RECORD = DOCS.parent / "benchmarks" / "results" / "claims-digits.json"
MADE = "<!-- Made by docs/claims_pages.py from benchmarks/results/claims-digits.json. -->"


def main() -> None:
    """Write the pages and the charts, and remove those of claims that are gone."""
    folder = DOCS / "claims"
    folder.mkdir(exist_ok=True)
    record = saved()
    wanted = pages(record)
    drawn = {name.removeprefix(PREFIX): images.svg(record, name) for name in images.names(record)}
    for path in folder.iterdir():
        if path.stem not in {"index", *drawn} or path.suffix not in (".md", ".svg"):
            path.unlink()
    for name, text in wanted.items():
        (folder / f"{name}.md").write_text(text, encoding="utf-8")
    for name, image in drawn.items():
        (folder / f"{name}.svg").write_text(image, encoding="utf-8")


def saved() -> Claims:
    """The record that the pages are made from.

    Raises:
        SystemExit: It is not about every claim that there is.
    """
    record = load(RECORD)
    if not isinstance(record, Claims):
        raise SystemExit(f"{RECORD} must be a record of claims; it is one of {record.kind}")
    if tuple(claim.name for claim in record.claims) != tuple(CLAIMS):
        raise SystemExit(f"{RECORD} must be about all claims, in their order: run make bench-claims")
    return record


def pages(record: Claims) -> dict[str, str]:
    """Every page's text by its name."""
    return {"index": _index(record), **{claim.name: _page(claim, record) for claim in record.claims}}


def _index(record: Claims) -> str:
    rows = "".join(
        f"| [{claim.said}]({claim.name}.md) | {claim.verdict} | {claim.source} |\n" for claim in record.claims
    )
    return f"""# Is it true what people say?

{MADE}

{record.conclusion}

Each claim is an experiment with seeds in pairs and an interval at 95%. It holds where the interval lies on the side
that is claimed and reaches what anybody would notice, it does not where the interval lies below that, and can't be told
otherwise ([methods](../methods.md#claims)). Of twenty claims one may be decided by chance.

| what is said | here | by whom |
|---|---|---|
{rows}
("The question" is "Tradeoff batch size vs. number of iterations to train a neural network", on Cross Validated.)

{_circumstances(record)}

These are verdicts on one small network and its data. On your own workload they may be others:

```console
$ batchscope claims digits --only four-beats-four-thousand --seeds 2 --budget 5 --report claims.html
```

with `path/to/file.py:name` in place of `digits`, and without `--only` for all of them.
"""


def _page(claim: TestedClaim, record: Claims) -> str:
    numbers = "".join(f"| {finding.what} | {in_words(finding.value)} |\n" for finding in claim.findings)
    table = f"\n| number | with its 95% interval |\n|---|---|\n{numbers}" if numbers else ""
    picture = claim.picture
    image = "" if picture is None else f"\n![{picture.upward} against {picture.across}]({claim.name}.svg)\n"
    module = CLAIMS[claim.name].test.__module__.rpartition(".")[2]
    return f"""# {claim.said.rstrip(".")}

{MADE}

*{claim.source}*

{claim.experiment}

**{claim.verdict[0].upper()}{claim.verdict[1:]}.** {claim.explanation}
{image}{table}
{_circumstances(record)} This experiment: {f.seconds(claim.seconds)} on top of the runs that others share, in
`src/batchscope/folklore/{module}.py`. On a workload of your own:
`batchscope claims path/to/file.py:name --only {claim.name}`. All claims: [overview](index.md).
"""


def _circumstances(record: Claims) -> str:
    made = record.provenance
    sizes = ", ".join(f"{size:,}" for size in record.batch_sizes[:-1])
    return (
        f"Measured on `{record.workload.name}`: {record.runs:,} runs of {record.examples:,} examples each, "
        f"{len(record.seeds)} seeds, batch sizes {sizes} and {record.batch_sizes[-1]:,} in the main, in "
        f"{f.seconds(record.seconds)} on {made.device}."
    )


if __name__ == "__main__":
    main()
