"""One clock: sentence, row, plan, JSON, table, slider and cards of an advice give one number for one thing."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

import batchscope as bs
from batchscope.records import Advice, FrontierRow, PresentSetting
from batchscope.report.view import Card
from batchscope.report.views import advice as advice_view
from batchscope.report.views import goals, view

UNITS = {"µs": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
TIME = r"([\d.,]+(?:e[+-]\d+)?) (µs|ms|s|min|h)\b"
# What is shown has three digits.
ROUNDED = 0.006


def seconds_in(text: str) -> list[float]:
    """Every time in a text, in seconds."""
    return [float(number.replace(",", "")) * UNITS[unit] for number, unit in re.findall(TIME, text)]


@pytest.fixture(scope="module", params=["target", "examples", "seconds"])
def advice(request: pytest.FixtureRequest) -> Advice:
    goals: dict[str, dict[str, Any]] = {
        "target": {"target": 0.9},
        "examples": {"examples": 15_000},
        "seconds": {"seconds": 0.5},
    }
    digits = dataclasses.replace(bs.load_workload("digits"), batch_size=8, learning_rate=0.005)
    # A price and a power, so that money and energy have to agree as well.
    found = bs.advise(digits, **goals[request.param], budget_seconds=3.0, price_per_hour=3.6, power_watts=100.0)
    assert found.batch_size is not None
    return found


@pytest.fixture
def row(advice: Advice) -> FrontierRow:
    """The advised batch size's."""
    return next(row for row in advice.frontier if row.batch_size == advice.batch_size)


@pytest.fixture
def cards(advice: Advice) -> dict[str, Card]:
    return {card.title: card for section in view(advice).sections for card in section.cards}


def test_the_row_is_what_is_predicted(advice: Advice, row: FrontierRow) -> None:
    assert row.seconds == advice.predicted_seconds
    assert row.score == advice.predicted_score
    assert row.iterations == advice.iterations
    assert row.learning_rate.value == advice.learning_rate
    assert row.cost == advice.predicted_cost
    assert row.joules == advice.predicted_joules
    assert row.peak_memory_bytes == advice.peak_memory_bytes
    assert (row.micro_batch_size, row.accumulation_steps) == (advice.micro_batch_size, advice.accumulation_steps)


def test_updates_examples_and_seconds_belong_together(advice: Advice) -> None:
    for row in advice.frontier:
        if row.iterations is None:
            assert row.seconds.value is None
            continue
        assert row.step_seconds.value is not None
        assert row.examples.value is not None
        assert row.seconds.value is not None
        # Of a time the last update that fits counts, of anything else the last one begun.
        rounded = math.floor if advice.goal.kind == "seconds" else math.ceil
        assert row.iterations == max(1, rounded(row.examples.value / row.batch_size + 0.0))
        assert row.seconds.value == pytest.approx(
            row.examples.value / row.batch_size * row.step_seconds.value, rel=0.01, abs=row.step_seconds.value
        )
        assert row.examples_per_second.value == pytest.approx(row.batch_size / row.step_seconds.value)
    assert advice.iterations is not None
    assert advice.examples is not None
    assert math.ceil(advice.examples / (advice.batch_size or 1)) == advice.iterations


def test_the_plan_is_what_is_advised(advice: Advice, row: FrontierRow) -> None:
    plan = advice.plan
    assert plan is not None
    assert (plan.batch_size, plan.learning_rate) == (advice.batch_size, advice.learning_rate)
    if advice.goal.kind == "target":
        assert plan.target == advice.goal.value
        assert plan.examples is None or plan.examples >= (row.examples.high or 0)
    else:
        assert plan.target is None
        assert plan.examples == advice.examples


def test_the_sentence_says_the_same(advice: Advice, row: FrontierRow) -> None:
    said = advice.conclusion
    assert f"batch size {advice.batch_size:,}" in said
    assert f"learning rate {advice.learning_rate:.3g}" in said
    own = said.partition(" Today's setting")[0]
    if advice.goal.kind == "target":
        assert f"({advice.iterations:,} updates)" in own
        assert seconds_in(own)[:3] == pytest.approx([row.seconds.value, row.seconds.low, row.seconds.high], rel=ROUNDED)
    elif advice.goal.kind == "examples":
        assert seconds_in(own)[0] == pytest.approx(row.seconds.value, rel=ROUNDED)
    if advice.goal.kind != "target" and row.score.value is not None:
        assert f"about {row.score.value:.4g}" in own


def test_todays_setting_has_one_time_and_a_ratio_with_an_interval(advice: Advice, row: FrontierRow) -> None:
    present = advice.present
    assert present is not None
    assert (present.batch_size, present.learning_rate) == (8, 0.005)
    twin = next((r for r in advice.frontier if r.batch_size == 8 and r.learning_rate.value == 0.005), None)
    if twin is not None:
        assert present.seconds == twin.seconds
        assert present.score == twin.score
    if advice.goal.kind != "target" or (advice.batch_size, advice.learning_rate) == (8, 0.005):
        return
    assert present.sentence in advice.conclusion
    assert present.seconds.value is not None
    assert row.seconds.value is not None
    assert seconds_in(present.sentence)[0] == pytest.approx(present.seconds.value, rel=ROUNDED)
    times = re.search(r"([\d.e+]+) times as long \(([\d.e+]+) to ([\d.e+]+)\)", present.sentence)
    assert times is not None
    ratio, low, high = map(float, times.groups())
    assert ratio == pytest.approx(present.seconds.value / row.seconds.value, rel=0.06)  # of two digits
    assert low <= ratio <= high
    assert low < high


def test_the_json_says_the_same(advice: Advice, tmp_path: Path) -> None:
    text = json.loads(advice.to_json(tmp_path / "a.json").read_text())
    own = next(row for row in text["frontier"] if row["batch_size"] == advice.batch_size)
    assert text["predicted_seconds"] == own["seconds"]
    assert text["iterations"] == own["iterations"] == advice.iterations
    assert text["plan"]["learning_rate"] == own["learning_rate"]["value"] == advice.learning_rate
    assert bs.load(tmp_path / "a.json") == advice


def test_the_cards_say_the_same(advice: Advice, row: FrontierRow, cards: dict[str, Card]) -> None:
    assert cards["Batch size"].value == f"{advice.batch_size:,}"
    assert float(cards["Learning rate"].value) == pytest.approx(advice.learning_rate, rel=ROUNDED)
    assert cards["Updates"].value == f"{advice.iterations:,}"
    assert f"{advice.examples:,} examples" in cards["Updates"].detail
    if advice.goal.kind == "target":
        card = cards["Time to the target"]
        assert seconds_in(card.value)[0] == pytest.approx(row.seconds.value, rel=ROUNDED)
        assert card.text == (advice.present.sentence if advice.present else "")
    elif row.score.value is not None:
        assert float(cards["Score then"].value) == pytest.approx(row.score.value, abs=0.006)


def test_the_table_and_the_slider_say_the_same(advice: Advice, row: FrontierRow) -> None:
    sheet = advice_view.frontier(advice)
    names = [column.heading for column in sheet.columns]
    [line] = [line for line in sheet.lines if "advised" in line[0]]
    cells = dict(zip(names, line, strict=True))
    assert cells["updates"] == f"{advice.iterations:,}"
    assert float(cells["rate"]) == pytest.approx(advice.learning_rate, rel=ROUNDED)
    if "time" in cells:
        unit = next(c.detail for c in sheet.columns if c.heading == "time").split(",")[0].split(" ")[0]
        shown = float(cells["time"].split(" ")[0].replace(",", ""))
        assert shown * UNITS[unit] == pytest.approx(row.seconds.value, rel=ROUNDED)
    found = goals.stops(advice)
    stop = found[goals.asked(advice, found)]
    standing = stop.of(advice.batch_size)
    assert standing is not None
    assert (standing.seconds, standing.examples, standing.score) == (row.seconds, row.examples, row.score)


def test_the_forecast_leads_to_the_prediction(advice: Advice, row: FrontierRow) -> None:
    if not row.forecast or row.seconds.value is None or row.score.value is None:
        pytest.skip("too few scores were seen for a curve")
    at_goal = goals.reached(row, row.seconds.value, lambda point: point.seconds)
    assert at_goal.value is not None
    spread = (at_goal.high or 0) - (at_goal.low or 0)
    assert at_goal.value == pytest.approx(row.score.value, abs=max(0.03, spread))


def test_reasons_take_their_numbers_from_the_rows(advice: Advice, row: FrontierRow) -> None:
    said = " ".join(advice.reasons)
    if advice.goal.kind == "target" and (double := _of(advice, 2 * row.batch_size)) and double.seconds.value:
        ratio = double.seconds.value / (row.seconds.value or math.nan)
        match = re.search(r"Twice the batch size \([\d,]+\) would take (.*?)\.(?: |$)", said)
        assert match is not None
        wanted = ratio if ratio >= 2 else abs(ratio - 1) * 100
        if abs(ratio - 1) >= 0.005:
            number = re.match(r"[\d.]+", match[1])
            assert number is not None
            assert float(number[0]) == pytest.approx(wanted, abs=0.6 if ratio < 2 else 0.06 * ratio)
    assert advice.predicted_cost is not None
    if advice.predicted_cost.value is not None:
        assert f"{advice.predicted_cost.value:.3g} at 3.6 per device and hour" in said
    present: PresentSetting | None = advice.present
    assert present is None or present.batch_size == advice.workload.batch_size


def _of(advice: Advice, batch_size: int) -> FrontierRow | None:
    return next((row for row in advice.frontier if row.batch_size == batch_size), None)
