"""Write docs/claims/: a page and a chart for each claim, from a saved record (a test compares the pages).

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
    return f"""# Common claims about batch size, tested

{MADE}

{record.conclusion}

Each claim is an experiment with paired seeds, and its verdict follows from a 95% confidence interval of the effect. A
claim holds if the interval lies on the claimed side and exceeds the smallest effect that matters. It does not hold if
the whole interval lies below that effect. Otherwise the experiment is inconclusive and the verdict reads "can't be
told" ([methods](../methods.md#claims)). Expect one verdict in twenty to be wrong by chance.

| claim | verdict here | source |
|---|---|---|
{rows}
("The question" is "Tradeoff batch size vs. number of iterations to train a neural network" on Cross Validated.)

{_circumstances(record)}

These verdicts are for one small network and its data, and may differ on your own workload. To test one claim, run

```console
$ batchscope claims digits --only four-beats-four-thousand --seeds 2 --budget 5 --report claims.html
```

with `path/to/file.py:name` in place of `digits`; leave out `--only` to test all claims.
"""


def _page(claim: TestedClaim, record: Claims) -> str:
    numbers = "".join(f"| {finding.what} | {in_words(finding.value)} |\n" for finding in claim.findings)
    table = f"\n| effect | value with 95% interval |\n|---|---|\n{numbers}" if numbers else ""
    picture = claim.picture
    image = "" if picture is None else f"\n![{picture.upward} against {picture.across}]({claim.name}.svg)\n"
    module = CLAIMS[claim.name].test.__module__.rpartition(".")[2]
    return f"""# {claim.said.rstrip(".")}

{MADE}

*{claim.source}*

{claim.experiment}

**{claim.verdict[0].upper()}{claim.verdict[1:]}.** {claim.explanation}
{image}{table}
{_circumstances(record)}
This experiment took another {f.seconds(claim.seconds)} beyond shared runs; its code is
`src/batchscope/folklore/{module}.py`. To test the claim on your own workload, run
`batchscope claims path/to/file.py:name --only {claim.name}`. See also [all claims](index.md).
"""


def _circumstances(record: Claims) -> str:
    made = record.provenance
    sizes = ", ".join(f"{size:,}" for size in record.batch_sizes[:-1])
    return (
        f"Measured on `{record.workload.name}`: {record.runs:,} runs of {record.examples:,} examples each, "
        f"{len(record.seeds)} seeds, mainly at batch sizes {sizes} and {record.batch_sizes[-1]:,}, in "
        f"{f.seconds(record.seconds)} on {made.device}."
    )


if __name__ == "__main__":
    main()
