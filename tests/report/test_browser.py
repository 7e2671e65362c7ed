from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from batchscope.records import Record, load

pytestmark = pytest.mark.browser

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,900",
)
NAMES = ("plain", "diverged", "single seed", "no run finished", "nothing ran", "hostile", "long name", "twelve rows")
RUNS = ("run finished", "run diverged", "run out of memory")
PROBES = ("probe", "probe cnn", "probe transformer", "probe bare", "probe hostile", "probe replanned", "probe extremes")
PARTS = ("part step time", "part memory", "part noise", "part branches", "part branches lost", "part range flat")
SWEEPS = ("sweep", "sweep scores", "sweep hostile", "sweep large", "law missed")
ADVICES = ("advice", "advice examples", "advice far", "advice hostile")
DRAWN = """
return Array.from(document.querySelectorAll('.chart'), (place) => {
  const kinds = '.mark-symbol path, .mark-rect path, .mark-line path, .mark-rule.role-mark line';
  const marks = Array.from(place.querySelectorAll(kinds));
  const boxes = marks.map((mark) => mark.getBoundingClientRect()).filter((box) => box.width + box.height > 0);
  return [place.dataset.chart, place.dataset.drawn !== undefined, boxes.length];
});
"""


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory,
    pages: dict[str, str],
) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    for name in (*NAMES, *RUNS, *PROBES, *PARTS, *SWEEPS, *ADVICES):
        (folder / f"{name}.html").write_text(pages[name], encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory, wanted: Callable[[bool, str], None]) -> Iterator[Any]:
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    wanted(chromium is not None and chromedriver is not None, "chromium and chromium-driver")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(chromium)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(chromedriver))
    yield driver
    driver.quit()


def until(condition: Callable[[], Any], what: str, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.05)


def show(browser: Any, folder: Path, name: str, *, width: int = 1280, theme: str = "light") -> None:
    media = [{"name": "prefers-color-scheme", "value": theme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get_log("browser")  # what an earlier page said
    browser.get((folder / f"{name}.html").as_uri())
    until(lambda: all(drawn for _, drawn, _ in browser.execute_script(DRAWN)), f"the charts of {name}")


def complaints(browser: Any) -> list[str]:
    return [entry["message"] for entry in browser.get_log("browser")]


def curve(browser: Any) -> Any:
    return browser.execute_script("return document.querySelector('#chart-learning_curves').dataset.drawn")


def axis_titles(browser: Any) -> list[str]:
    places = "document.querySelectorAll('#chart-learning_curves .role-axis-title text')"
    titles: list[str] = browser.execute_script(f"return Array.from({places}, place => place.textContent)")
    return titles


@pytest.mark.parametrize("name", [*NAMES, *RUNS, *PROBES, *PARTS, *SWEEPS, *ADVICES])
def test_every_chart_is_drawn_and_nothing_complains(browser: Any, folder: Path, name: str) -> None:
    show(browser, folder, name)
    charts = browser.execute_script(DRAWN)
    assert charts or name == "nothing ran"
    # A run that ended at once has no second point to draw a line to.
    assert [chart for chart, _, marks in charts if marks == 0 and name != "run out of memory"] == []
    assert complaints(browser) == []


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(
    "name", ["plain", "long name", "hostile", "twelve rows", "run finished", *PROBES, *SWEEPS, ADVICES[-1]]
)
def test_a_phone_needs_no_sideways_scrolling(browser: Any, folder: Path, name: str, theme: str) -> None:
    show(browser, folder, name, width=375, theme=theme)
    scroll, inner = browser.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert inner == 375
    assert scroll <= inner
    edges = "Array.from(document.querySelectorAll('.chart svg'), drawing => drawing.getBoundingClientRect().right)"
    assert browser.execute_script(f"return Math.max(...{edges})") <= inner


def test_the_axes_are_switched_by_keyboard(browser: Any, folder: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    show(browser, folder, "plain")
    assert axis_titles(browser) == ["examples seen", "accuracy on validation data"]
    before = curve(browser)
    browser.find_element(By.CSS_SELECTOR, 'input[name="x"]:checked').send_keys(Keys.ARROW_RIGHT)
    until(lambda: curve(browser) != before, "the other x-axis")
    assert axis_titles(browser)[0] == "updates made, log scale"
    before = curve(browser)
    browser.find_element(By.CSS_SELECTOR, 'input[name="y"]:checked').send_keys(Keys.ARROW_RIGHT)
    until(lambda: curve(browser) != before, "the other y-axis")
    assert axis_titles(browser)[1].startswith("validation loss")
    before = curve(browser)
    browser.find_element(By.CSS_SELECTOR, 'input[name="span"]:checked').send_keys(Keys.ARROW_RIGHT)
    until(lambda: curve(browser) != before, "the close-up")
    assert complaints(browser) == []


def test_everything_is_reached_by_tab_and_shows_it(browser: Any, folder: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    show(browser, folder, "plain")
    seen = []
    for _ in range(40):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        element = browser.switch_to.active_element
        shown = "(e => e.type === 'radio' ? e.nextElementSibling : e)(document.activeElement)"
        assert browser.execute_script(f"return getComputedStyle({shown}).outlineStyle") != "none"
        seen.append(element.get_attribute("id") or element.get_attribute("name") or element.get_attribute("class"))
        if seen[-1] == "download":
            break
    assert seen[0] == "skip"
    assert {"theme", "x", "y", "span", "chip", "scroll", "save", "download"} <= set(seen)


def test_the_slider_moves_the_frontier_by_keyboard(browser: Any, folder: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    def words(place: str) -> str:
        return str(browser.find_element(By.ID, place).text)

    def frontier() -> list[str]:
        """What the points of the first chart say to who cannot see them, and its ticks."""
        script = """const chart = document.querySelector('#chart-frontier_seconds');
                    const said = [...chart.querySelectorAll('.mark-symbol path[aria-label]')];
                    const ticks = [...chart.querySelectorAll('.role-axis-label text')];
                    return [...said.map(e => e.getAttribute('aria-label')), ...ticks.map(e => e.textContent)].sort()"""
        found: list[str] = browser.execute_script(script)
        return found

    show(browser, folder, "advice")
    asked = (words("stop-label"), words("stop-answer"), frontier())
    assert asked[0] == "0.89"
    assert asked[1].startswith("Batch size 128: 6.48 s (5.47–7.68)")
    back = browser.find_element(By.ID, "asked")
    assert not back.is_enabled()
    slider = browser.find_element(By.ID, "stop")
    assert slider.is_displayed()
    for _ in range(3):
        slider.send_keys(Keys.ARROW_LEFT)
    until(lambda: frontier() != asked[2], "the frontier at another target")
    assert words("stop-label") == slider.get_attribute("aria-valuetext") == "0.86"
    assert words("stop-answer").startswith("Batch size 128: 2.1 s (1.78–2.56), 107,000 examples")
    assert any("2.1 s (1.78–2.56)" in said for said in frontier())
    moved = frontier()
    # Drawn anew in other colours, it stays where the slider is.
    browser.find_element(By.ID, "theme").click()
    until(lambda: all(drawn for _, drawn, _ in browser.execute_script(DRAWN)), "the charts in dark")
    until(lambda: frontier() == moved, "the same frontier in dark")
    back.click()
    until(lambda: frontier() == asked[2], "the asked goal again")
    assert (words("stop-label"), words("stop-answer")) == asked[:2]
    assert complaints(browser) == []


def test_what_is_to_be_copied_is_copied_or_selected(browser: Any, folder: Path) -> None:
    from selenium.webdriver.common.by import By

    show(browser, folder, "advice")
    copier = browser.find_element(By.CSS_SELECTOR, "[data-copy]")
    copier.click()
    until(lambda: copier.text in ("Copied", "Selected"), "an answer")
    if copier.text == "Selected":
        chosen = browser.execute_script("return getSelection().toString().trim()")
        assert chosen == "batchscope train fashion-mlp --plan advice.json"


def test_rows_are_hidden_by_their_chips(browser: Any, folder: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    show(browser, folder, "plain")
    lines = """return Array.from(document.querySelectorAll('#chart-learning_curves .mark-line path'))
               .filter(p => (p.getAttribute('d') || '').length > 20).length"""
    before = browser.execute_script(lines)
    chip = browser.find_element(By.CSS_SELECTOR, ".chip[aria-pressed]")
    chip.send_keys(Keys.ENTER)
    until(lambda: browser.execute_script(lines) < before, "a row to go")
    assert chip.get_attribute("aria-pressed") == "false"
    chip.send_keys(Keys.ENTER)
    until(lambda: browser.execute_script(lines) == before, "the row to come back")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_theme_is_the_system_s_until_it_is_switched(browser: Any, folder: Path, theme: str) -> None:
    from selenium.webdriver.common.by import By

    def colours() -> list[str]:
        script = """const label = document.querySelector('#chart-final_scores .role-axis-label text');
                    return [getComputedStyle(document.body).backgroundColor, label?.getAttribute('fill')]"""
        found: list[str] = browser.execute_script(script)
        return found

    show(browser, folder, "plain", theme=theme)
    expected = {"light": ["rgb(247, 247, 245)", "#5b6168"], "dark": ["rgb(17, 19, 23)", "#a3a9b1"]}
    assert colours() == expected[theme]
    browser.find_element(By.ID, "theme").click()
    other = "dark" if theme == "light" else "light"
    until(lambda: colours() == expected[other], "the other theme")
    assert browser.find_element(By.ID, "theme").get_attribute("aria-pressed") == (
        "true" if other == "dark" else "false"
    )
    assert complaints(browser) == []


def test_the_record_is_downloaded_whole(browser: Any, folder: Path, records: dict[str, Record], tmp_path: Path) -> None:
    from selenium.webdriver.common.by import By

    browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    show(browser, folder, "hostile")
    browser.find_element(By.ID, "download").click()
    path = tmp_path / "batchscope-comparison.json"
    until(path.exists, "the download")
    assert load(path) == records["hostile"]
    browser.find_element(By.CSS_SELECTOR, '[data-save="final_scores"]').click()
    drawing = tmp_path / "final_scores.svg"
    until(drawing.exists, "the drawing")
    assert drawing.read_text(encoding="utf-8").startswith("<svg")
    assert complaints(browser) == []


def test_a_long_record_is_unpacked_as_it_is_downloaded(
    browser: Any, folder: Path, records: dict[str, Record], tmp_path: Path
) -> None:
    from selenium.webdriver.common.by import By

    browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    show(browser, folder, "sweep large")
    assert browser.find_element(By.ID, "record").get_attribute("data-packed") == "gzip"
    browser.find_element(By.ID, "download").click()
    path = tmp_path / "batchscope-sweep.json"
    until(path.exists, "the download")
    assert load(path) == records["sweep large"]
    assert complaints(browser) == []
