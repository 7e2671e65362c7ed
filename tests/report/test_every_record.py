"""What holds for every record: it is shown whole in a terminal, on a page and in its charts, whatever its words are."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
from tests.report import samples
from tests.report.reading import Page, layers, printed, said

from batchscope.records import Record, load
from batchscope.report import formatting as f
from batchscope.report import images, page
from batchscope.report.charts.plot import COLOURS
from batchscope.report.views import view

GROUPS = pytest.mark.parametrize("group", samples.GROUPS)
HOSTILE = ("hostile", "probe hostile", "sweep hostile", "advice hostile", "devices hostile", "hessian eigenvalues")


@GROUPS
def test_a_terminal_shows_all_of_it_within_its_width(group: str) -> None:
    for name, record in samples.group(group).items():
        shown = view(record)
        for width in (60, 80):
            text = printed(record, width)
            assert max(map(len, text.splitlines())) <= width, (name, width)
            # What is not left out for want of room is there to its last digit, though perhaps on two lines.
            squeezed = "".join(text.split())
            for section in shown.sections:
                if section.on == "page" or name in HOSTILE:
                    continue
                for table in section.tables:
                    for column, cells in zip(table.columns, zip(*table.lines, strict=True), strict=False):
                        if not column.minor and width >= 80 and column.align == "right":
                            assert all(part in squeezed for cell in cells for part in cell.split()), (name, cells)
                for _, pairs in section.facts:
                    assert all(word in squeezed for fact, _ in pairs for word in fact.split()), (name, pairs)


@GROUPS
def test_a_terminal_says_the_answer_first(group: str) -> None:
    for name, record in samples.group(group).items():
        shown = view(record)
        if shown.answer and not shown.notice and name not in HOSTILE:
            assert said(record).startswith(" ".join(f.plain(shown.headline[0]).split())), name


@GROUPS
def test_no_control_character_reaches_a_terminal(group: str) -> None:
    for name, record in samples.group(group).items():
        control = {c for c in printed(record) if unicodedata.category(c) == "Cc"} - {"\n", "\t"}
        assert not control, name


@pytest.mark.parametrize("name", HOSTILE)
def test_a_stranger_s_words_are_text_everywhere(records: dict[str, Record], pages: dict[str, str], name: str) -> None:
    shown = said(records[name])
    assert "[bold]x[/bold]" in shown
    assert "\x1b" not in shown
    assert "\ufffd[2J" in shown
    found = Page(pages[name])
    assert "<script>alert" not in found.source
    assert found.tags.count("script") == (4 if found.scripts["charts"].count('"name"') else 3)
    assert "{{ 7*7 }}" in found.words
    for block in ("record", "charts"):
        assert not set("<>&\u2028\u2029") & set(found.scripts[block])


@GROUPS
def test_charts_are_finite_inside_their_axes_and_have_titles(group: str) -> None:
    for name, record in samples.group(group).items():
        shown = view(record)
        names = [figure.name for figure in shown.figures]
        assert len(set(names)) == len(names), name
        for figure in shown.figures:
            assert figure.title, name
            assert figure.spec is not None
            json.dumps(figure.spec, allow_nan=False)
            assert figure.spec["width"] == "container"
            for channel in ("x", "y"):
                for layer in layers(figure.spec):
                    ends = layer["encoding"].get(channel, {}).get("scale", {}).get("domain", [])
                    if len(ends) == 2 and all(isinstance(end, float) for end in ends):
                        low, high = ends
                        assert low != high, (name, figure.name)
        assert shown.colours == (len(shown.rows) or COLOURS)


@GROUPS
def test_charts_are_valid_and_can_be_images(group: str) -> None:
    import altair

    seen: set[str] = set()
    for name, record in samples.group(group).items():
        for chart, spec in images.every(record).items():
            kind = "claim" if chart.startswith("claim-") else chart
            if kind not in seen and name not in HOSTILE:
                seen.add(kind)
                altair.Chart.from_dict(spec, validate=True)
                text = images.svg(record, chart, theme="dark", width=300)
                assert text.startswith("<svg"), (name, chart)
                assert "undefined" not in text, (name, chart)
                assert "NaN" not in text, (name, chart)


@GROUPS
def test_a_page_is_whole_and_points_nowhere(group: str, pages: dict[str, str], tmp_path: Path) -> None:
    plain = samples.group(group)
    for name in [name for i, name in enumerate(plain) if i % 3 == 0 or name in HOSTILE]:
        found = Page(pages[name])
        assert found.source.rstrip().endswith("</html>"), name
        assert [place for place in found.references if not place.startswith(("#", "data:"))] == [], name
        assert found.handlers == [], name
        assert set(found.tags).isdisjoint({"iframe", "img", "object", "embed", "base", "form"}), name
        own = found.source.replace(page._library(), "")
        style = own[own.index("<style>") : own.index("</style>")]
        assert not any(word in style for word in ("url(", "@import")), name
        assert "default-src 'none'" in own, name
        assert "unsafe-eval" not in own, name
        assert "http" not in own.replace("http-equiv", "").replace("\\u003chttp", ""), name
        words = found.words.replace("null", "")
        assert "None" not in words, name
        assert "nan" not in words.lower().split(), name
        path = tmp_path / "record.json"
        path.write_text(found.record, encoding="utf-8")
        kept = load(path)
        # Losses that are not numbers are equal to nothing.
        assert type(kept) is type(plain[name])
        assert kept == plain[name] or str(kept) == str(plain[name]), name
        assert page.is_made_here(found.source)
