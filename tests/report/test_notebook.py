"""Records in a notebook: what they show, that nothing in it runs, and that the notebook's own look stays."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest

import batchscope as bs
from batchscope.records import Record
from batchscope.report import notebook
from batchscope.report.views import view

CHOSEN = ("plain", "run finished", "law")
HOSTILE = ("hostile", "advice hostile")


@pytest.fixture(scope="module")
def shown(records: dict[str, Record]) -> dict[str, str]:
    return {name: str(records[name]._repr_html_()) for name in (*CHOSEN, *HOSTILE)}


def without_images(html: str) -> str:
    return re.sub(r'src="data:image/svg\+xml;base64,[A-Za-z0-9+/=]*"', "", html)


@pytest.mark.parametrize("name", [*CHOSEN, *HOSTILE])
def test_nothing_runs_and_nothing_is_fetched(shown: dict[str, str], name: str) -> None:
    html = shown[name]
    assert 1 <= html.count("<img ") <= notebook.MOST_FIGURES
    assert html.count('src="') == html.count('src="data:image/svg+xml;base64,')
    rest = without_images(html)
    # What a record says is text: of its own tags there are these alone.
    allowed = (
        "div style p span small b br details summary table caption thead tbody tr th td figure figcaption img ul li"
    )
    tags = {tag.lower() for tag in re.findall(r"<\s*/?\s*([A-Za-z!?][\w:-]*)", rest)}
    assert tags <= {*allowed.split(), "pre"}
    assert not re.search(r"<[^>]*\son\w+\s*=", rest)
    assert "url(" not in rest
    assert "@import" not in rest


def test_every_rule_of_style_stands_inside_the_box(shown: dict[str, str]) -> None:
    [style] = re.findall(r"<style>(.*?)</style>", shown["plain"], re.DOTALL)
    style = re.sub(r"/\*.*?\*/", "", style, flags=re.DOTALL).strip()
    assert style.startswith(".batchscope-record.batchscope-record.batchscope-record {")
    depth = 0
    for place, character in enumerate(style):
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth > 0 or place < style.index("{") or place == len(style) - 1
    assert not re.search(r"#[A-Z_]{3,}", style)  # every colour has its value


@pytest.mark.parametrize("name", CHOSEN)
def test_it_says_what_the_page_says(shown: dict[str, str], records: dict[str, Record], name: str) -> None:
    content = view(records[name])
    said = unescape(without_images(shown[name]))
    for text in (content.title, content.headline[0], *(section.title for section in content.on_page)):
        assert text in said


def test_the_text_beside_it_is_the_table_and_short(records: dict[str, Record]) -> None:
    text = records["sweep large"]._repr_mimebundle_()["text/plain"]
    assert len(text) < 20_000 < len(repr(records["sweep large"]))
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= notebook.COLUMNS


def test_records_without_a_page_of_their_own_are_shown_too() -> None:
    html = bs.Plan(batch_size=64, learning_rate=0.1, iterations=100)._repr_html_()
    assert "batch_size" in html
    assert "<img" not in html


# In a kernel, and in a browser

SOURCES = (
    "import batchscope as bs\nworkload = bs.load_workload('digits')",
    "result = bs.train(workload, bs.Plan(batch_size=64, learning_rate=0.1, iterations=900), evaluate_every=64,"
    " progress=True)",
    "result",
    "bs.sweep(workload, [32, 64], learning_rates=[0.1], seeds=1, examples=6400, progress=True).conclusion[:3]",
)


@pytest.fixture(scope="module")
def executed() -> Any:
    """A notebook that was run by a kernel."""
    import nbformat
    from nbclient import NotebookClient

    v4: Any = nbformat.v4
    book = v4.new_notebook()
    book.cells = [v4.new_code_cell(source) for source in SOURCES]
    NotebookClient(book, timeout=120, kernel_name="python3").execute()
    return book


def test_a_kernel_shows_the_record_and_one_line_of_progress(executed: Any) -> None:
    _, training, result, sweep = executed.cells
    for cell, kinds in ((training, ["display_data"]), (sweep, ["display_data", "execute_result"])):
        # Nothing on stderr, and one output that was rewritten, empty at the end, however often it was told.
        assert [output.output_type for output in cell.outputs] == kinds
        assert cell.outputs[0].data == {"text/plain": ""}
    [output] = result.outputs
    assert set(output.data) == {"text/html", "text/plain"}
    assert output.data["text/html"].lstrip().startswith('<div class="batchscope-record">')
    assert output.data["text/plain"].startswith("Finished its budget")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory, wanted: Callable[[bool, str], None]) -> Iterator[Any]:
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    wanted(chromium is not None and chromedriver is not None, "chromium and chromium-driver")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(chromium)
    profile = f"--user-data-dir={tmp_path_factory.mktemp('profile')}"
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", profile):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=Service(chromedriver))
    yield driver
    driver.quit()


# A notebook's own look, as JupyterLab has it for the tables of an output.
PAGE = """<!doctype html><meta charset="utf-8"><style>
html {{ overflow-y: scroll }} .out table {{ margin: 0 auto; font-size: 20px; table-layout: fixed }}
.out td {{ text-align: left; color: red }} .out tbody tr:nth-child(odd) {{ background: yellow }}
.out p {{ color: green }}
</style><div class="out"><table id="own"><tbody><tr><td id="cell">1</td></tr></tbody></table><p id="text">a</p>
{}</div>"""
LOOK = """return ['own', 'cell', 'text'].map((id) => {
  const style = getComputedStyle(document.getElementById(id));
  return ['color', 'fontSize', 'fontFamily', 'margin', 'textAlign', 'borderBottom'].map((name) => style[name]);
});"""
RECORD = """const box = document.querySelector('.batchscope-record');
const row = box.querySelector('tbody tr'), cell = box.querySelector('td');
return {
  drawn: Array.from(box.querySelectorAll('img'), (image) => image.complete && image.naturalWidth > 200),
  row: getComputedStyle(row).backgroundColor, cell: getComputedStyle(cell).color,
  size: getComputedStyle(cell).fontSize, title: getComputedStyle(box.querySelector('.title')).color,
  fired: window.fired === undefined,
};"""


@pytest.mark.browser
@pytest.mark.parametrize("name", ["plain", "law", "advice hostile"])
def test_in_a_browser_it_has_its_look_and_the_notebook_keeps_its_own(
    browser: Any, shown: dict[str, str], name: str, tmp_path: Path
) -> None:
    looks = []
    for file, inside in (("without", ""), ("with", shown[name])):
        path = tmp_path / f"{file}.html"
        path.write_text(PAGE.format(inside), encoding="utf-8")
        browser.get(path.as_uri())
        looks.append(browser.execute_script(LOOK))
    assert looks[0] == looks[1]
    found = browser.execute_script(RECORD)
    assert found["drawn"]
    assert all(found["drawn"])
    assert found["row"] == "rgba(0, 0, 0, 0)"
    assert found["cell"] == found["title"] == "rgb(28, 30, 33)"
    assert found["size"] == "13px"
    assert found["fired"]
