"""An advice's table, charts and page: what they say is what the record says, at every stop of the slider."""

from __future__ import annotations

import html
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.report import samples
from tests.report.reading import Page, drawn, printed
from tests.report.reading import points as data

from batchscope.records import Advice, ForecastPoint, FrontierRow, Interval, Plan, Record, load
from batchscope.report import formatting as f
from batchscope.report import images, page
from batchscope.report.views import advice as advice_view
from batchscope.report.views import goals, view

ENDS = st.one_of(st.none(), st.floats(1e-3, 1e12), st.just(math.inf), st.just(0.0))
SCORES = st.lists(st.floats(-2.0, 2.0), min_size=1, max_size=12)
OTHERS = ("advice interrupted", "advice hostile", "advice long name")
"""Those whose charts are the plain one's."""


@pytest.fixture(scope="module")
def advices() -> dict[str, Record]:
    return samples.group("advice")


def of(advices: dict[str, Record], name: str) -> Advice:
    found = advices[name]
    assert isinstance(found, Advice)
    return found


def curve(*scores: float | None, half: float = 0.0, start: float = 100.0) -> FrontierRow:
    """A row whose forecast doubles its examples from point to point, at ten examples a second and batch size 4."""
    forecast = tuple(
        ForecastPoint(
            round(start * 2**i),
            start * 2**i / 10,
            Interval.unresolved() if s is None else Interval(s, s - half, s + half, 0.9),
        )
        for i, s in enumerate(scores)
    )
    unknown = Interval.unresolved()
    speed = Interval(10.0, 9.0, 11.0)
    step = Interval(0.4, 0.36, 0.44)
    return FrontierRow(4, 4, 1, unknown, step, speed, 0, None, unknown, unknown, unknown, True, forecast)


# The stops of the slider


def test_a_crossing_lies_between_two_points_on_a_log_scale() -> None:
    examples, seconds = goals.crossing(curve(0.5, 0.6, 0.8, half=0.05), 0.7)
    assert examples.value == pytest.approx(200 * math.sqrt(2))
    assert seconds.value == pytest.approx(20 * math.sqrt(2))
    # The upper end crosses 0.7 where the score is 0.65, the lower one where it is 0.75.
    assert [examples.low, examples.high] == pytest.approx([200 * 2**0.25, 200 * 2**0.75])
    assert examples.level == 0.9
    assert goals.crossing(curve(0.5, 0.6, 0.8), 0.6)[0].value == pytest.approx(200)
    # A dip afterwards changes nothing: it was there.
    assert goals.crossing(curve(0.5, 0.8, 0.6, 0.9), 0.8)[0].value == pytest.approx(200)


def test_beyond_a_forecast_only_a_bound_is_known() -> None:
    never = goals.crossing(curve(0.5, 0.6, half=0.01), 0.9)[0]
    assert (never.value, never.low, never.high, never.resolved) == (None, 200, None, False)
    perhaps = goals.crossing(curve(0.5, 0.6, half=0.1), 0.65)[0]
    assert perhaps.value is None
    assert perhaps.low == pytest.approx(100 * math.sqrt(2))
    late = goals.crossing(curve(0.5, 0.6, half=0.1), 0.55)[0]
    assert late.value == pytest.approx(100 * math.sqrt(2))
    assert (late.low, late.high) == (0.0, math.inf)
    at_once = goals.crossing(curve(0.5, 0.6), 0.4)[0]
    assert (at_once.value, at_once.low, at_once.high) == (None, None, 100)
    for row in (curve(), curve(None, None)):
        assert [i.resolved for i in goals.crossing(row, 0.5)] == [False, False]
        assert not goals.reached(row, 150.0, lambda point: point.examples).resolved


def test_a_budget_reaches_what_lies_between_two_points() -> None:
    row = curve(0.5, 0.6, 0.8, half=0.05)
    score = goals.reached(row, 100 * math.sqrt(2), lambda point: point.examples)
    assert [score.value, score.low, score.high] == pytest.approx([0.55, 0.5, 0.6])
    assert goals.reached(row, 40.0, lambda point: point.seconds).value == pytest.approx(0.8)
    assert goals.reached(row, 10.0, lambda point: point.seconds).value == pytest.approx(0.5)
    assert not goals.reached(row, 41.0, lambda point: point.seconds).resolved
    assert not goals.reached(row, 9.0, lambda point: point.seconds).resolved


@given(scores=SCORES, half=st.floats(0, 0.5), target=st.floats(-2.5, 2.5))
def test_a_crossing_lies_inside_its_interval_and_the_forecast(scores: list[float], half: float, target: float) -> None:
    row = curve(*scores, half=half)
    found, _ = goals.crossing(row, target)
    if found.value is not None:
        assert found.low is not None
        assert found.high is not None
        assert found.low <= found.value * (1 + 1e-9)
        assert found.value <= found.high * (1 + 1e-9)
        assert 100 <= found.value <= row.forecast[-1].examples
        again = goals.reached(row, found.value, lambda point: point.examples).value
        assert again == pytest.approx(target, abs=1e-6)
    else:
        assert target > max(scores) or target <= scores[0]


@given(scores=SCORES, targets=st.tuples(st.floats(-2.5, 2.5), st.floats(-2.5, 2.5)).map(sorted))
def test_more_is_never_reached_sooner(scores: list[float], targets: list[float]) -> None:
    easy, hard = (goals.crossing(curve(*scores), target)[0].value for target in targets)
    if easy is not None and hard is not None:
        assert easy <= hard * (1 + 1e-9)


def test_the_asked_stop_is_the_record_s_own(advices: dict[str, Record]) -> None:
    for name in ("advice", "advice examples", "advice seconds", "advice far", "advice none", "advice unforecast"):
        record = of(advices, name)
        found = goals.stops(record)
        stop = found[goals.asked(record, found)]
        assert stop.goal == record.goal
        assert (stop.best, stop.close) == (record.batch_size, record.alternatives)
        assert [(s.examples, s.seconds, s.score) for s in stop.standings] == [
            (row.examples, row.seconds, row.score) for row in record.frontier
        ]
        values = [stop.goal.value for stop in found]
        assert values == sorted(set(values))
        assert len(found) <= goals.MOST_STOPS + 2


def test_the_best_batch_size_is_that_of_the_law(advices: dict[str, Record], advice_maker: ModuleType) -> None:
    """Against the closed forms that the sample was made of."""
    record = of(advices, "advice")
    seen = set()
    for stop in goals.stops(record):
        standing = stop.of(stop.best)
        assert standing is not None, stop.goal
        assert standing.seconds.value is not None
        seconds = {
            row.batch_size: advice_maker.examples_to(row.batch_size, stop.goal.value)
            / row.batch_size
            * advice_maker.step_seconds(row.batch_size)
            for row in record.frontier
        }
        # Beyond some target, the forecast of the one that is best ends too soon to know it.
        least = min(seconds, key=lambda size: seconds[size])
        assert stop.best == least or (stop.goal.value > 0.91 and least in stop.close)
        assert standing.seconds.value == pytest.approx(seconds[standing.batch_size], rel=0.02)
        seen.add(stop.goal.value)
    assert {0.7, 0.8, 0.89, 0.9} <= seen
    # Of a law in examples over 1 + B/B_crit, the best one for a time is the same for every time, and for examples 8.
    for name, size in (("advice seconds", 128), ("advice examples", 8)):
        stops = goals.stops(of(advices, name))
        assert len(stops) > 30
        assert {stop.best for stop in stops} == {size}


def test_those_that_cannot_be_told_apart_are_named(advices: dict[str, Record]) -> None:
    for name in ("advice", "advice seconds"):
        record = of(advices, name)
        for stop in goals.stops(record):
            best = stop.of(stop.best)
            if best is None or stop.goal == record.goal:
                continue
            for standing in stop.standings:
                if standing is best:
                    continue
                if name == "advice":
                    low = standing.seconds.low
                    near = low is not None and low <= (best.seconds.value or 0.0)
                else:
                    near = (standing.score.high or 0.0) >= (best.score.value or 0.0)
                assert (standing.batch_size in stop.close) == near


# Charts


Specs = dict[str, dict[str, dict[str, Any]]]


@pytest.fixture(scope="module")
def specs(advices: dict[str, Record]) -> Specs:
    return {name: images.every(record) for name, record in advices.items() if name not in OTHERS}


def test_what_there_is_to_show(specs: Specs) -> None:
    shown = {name: tuple(found) for name, found in specs.items()}
    ways = ("forecast", "race")
    assert shown["advice"] == ("frontier_seconds", "frontier_examples", *ways)
    assert shown["advice examples"] == ("frontier_score", "frontier_seconds", *ways)
    assert shown["advice seconds"] == ("frontier_score", "frontier_examples", *ways)
    assert shown["advice none"] == ("race",)
    assert shown["advice unforecast"] == ("frontier_seconds", "frontier_examples")


@pytest.mark.parametrize("name", ["advice", "advice examples", "advice seconds", "advice far", "advice vague"])
def test_points_of_every_stop_are_its_standings_inside_the_plot(
    specs: Specs, advices: dict[str, Record], name: str
) -> None:
    record = of(advices, name)
    stops = goals.stops(record)
    for chart in (found for found in specs[name] if found.startswith("frontier")):
        spec = specs[name][chart]
        params = {p["name"]: p["value"] for p in spec["params"]}
        assert params["stop"] == goals.asked(record, stops)
        quantity = chart.removeprefix("frontier_")
        own = stops[params["stop"]]
        size = f.time_unit(goals.known_of(s.seconds) for s in own.standings).size if quantity == "seconds" else 1.0
        for point in data(spec, "stop"):
            low, high = params["ends"][point["stop"]]
            stop = stops[point["stop"]]
            assert all(low <= point[end] <= high for end in ("value", "low", "high") if end in point)
            standing = stop.of(point["batch"])
            if point["kind"] == "today’s setting" or standing is None:
                assert stop.goal == record.goal
                continue
            interval: Interval = getattr(standing, quantity)
            assert (point["kind"] == "advised") == (stop.best == standing.batch_size)
            assert ("value" in point) == (interval.value is not None)
            if interval.value is not None:
                assert point["value"] * size == pytest.approx(interval.value, rel=1e-5)


def test_what_was_not_trained_is_told_by_its_colour(specs: Specs) -> None:
    kinds = {p["batch"]: p["kind"] for p in data(specs["advice"]["frontier_examples"], "stop")}
    assert kinds[2048] == "derived"
    assert kinds[8] == "trained"


def test_the_race_has_every_candidate_and_its_end(specs: Specs, advices: dict[str, Record]) -> None:
    record = of(advices, "advice")
    found = data(specs["advice"]["race"], "run", "value")
    assert {point["run"] for point in found} == set(range(len(record.race)))
    for run, each in enumerate(record.race):
        own = [point for point in found if point["run"] == run]
        assert {(p["batch"], p["rate"], p["ended"], p["reason"]) for p in own} == {
            (each.batch_size, each.learning_rate, each.ended, each.reason)
        }
    by_loss = replace(
        record, race=tuple(replace(c, points=tuple(replace(p, score=0.1) for p in c.points)) for c in record.race)
    )
    assert "validation loss" in json.dumps(drawn(by_loss, "race"))


def seldom_evaluated(record: Advice, scores: int) -> Advice:
    """The same, with the last few scores of each candidate alone."""
    race = tuple(
        replace(
            c, points=tuple(replace(p, score=None) for p in c.points[:-scores]) + c.points[len(c.points) - scores :]
        )
        for c in record.race
    )
    return replace(record, race=race)


def test_a_race_is_drawn_by_score_where_most_candidates_have_a_curve_of_them(advices: dict[str, Record]) -> None:
    record = of(advices, "advice")
    by_loss, by_score = (json.dumps(drawn(seldom_evaluated(record, scores), "race")) for scores in (1, 2))
    assert "loss of each batch before its update" in by_loss
    assert "accuracy on validation data" not in by_loss
    assert "accuracy on validation data" in by_score
    shown = {point["run"] for point in data(drawn(seldom_evaluated(record, 2), "race"), "run", "value")}
    assert shown == set(range(len(record.race)))


def test_the_table_of_candidates_has_the_last_score_there_is(advices: dict[str, Record]) -> None:
    record = of(advices, "advice")
    each = record.race[0]
    late = replace(each, points=(*each.points, replace(each.points[-1], score=None)))
    never = replace(each, points=tuple(replace(p, score=None) for p in each.points))
    known, unknown = (line[4] for line in advice_view.race(replace(record, race=(late, never))).lines)
    assert known == f.number(each.points[-1].score)
    assert unknown == f.UNKNOWN


def test_the_way_to_the_goal_is_the_advised_forecast(specs: Specs, advices: dict[str, Record]) -> None:
    record = of(advices, "advice")
    spec = specs["advice"]["forecast"]
    [row] = [row for row in record.frontier if row.batch_size == record.batch_size]
    size = f.time_unit(point.seconds for point in row.forecast).size
    line = [point for point in data(spec, "at", "value", "low") if point["kind"] == "forecast"]
    assert [(p["at"] * size, p["value"], p["low"], p["high"]) for p in line] == [
        (pytest.approx(p.seconds), p.score.value, p.score.low, p.score.high) for p in row.forecast
    ]
    seen = [point for point in data(spec, "at", "value") if point["kind"] == "measured"]
    assert len(seen) == sum(len(each.points) for each in record.race if each.ended == "advised")
    [upright] = data(spec, "x", "text")
    predicted = record.predicted_seconds
    assert [upright[key] * size for key in ("x", "low", "high")] == pytest.approx(
        [predicted.value, predicted.low, predicted.high]
    )


# Words


def test_the_terminal_says_the_answer_then_the_frontier_then_why(advices: dict[str, Record]) -> None:
    record = of(advices, "advice")
    said = printed(record, 80)
    assert said.startswith("Use batch 128, learning rate 0.12, 2,583 iterations.\n")
    lines = [line.split() for line in said.splitlines()]
    order = [
        lines.index(next(line for line in lines if line[:2] == start))
        for start in (["What", "each"], ["128", "advised"])
    ]
    assert order == sorted(order)
    assert said.index("128 advised") < said.index(record.reasons[0][:40]) < said.index("batchscope 0.1.0")
    [advised] = [line for line in lines if line[:2] == ["128", "advised"]]
    assert advised[2:] == ["0.117", "2,583", "331", "(282–388)", "6.48", "(5.47–7.68)", "2.51"]
    [today] = [line for line in lines if line[:2] == ["32", "today"]]
    assert today[2:] == ["0.002", "–", "–", "15.5", "(12.7–19.0)", "1.45"]
    assert "2,048* " in said
    assert "* Not trained" in " ".join(said.split())
    assert "MiB" in printed(record, 140)


def test_today_s_setting_is_marked_where_it_is_on_the_frontier(advices: dict[str, Record]) -> None:
    record = of(advices, "advice seconds")
    assert "128 advised, today" in printed(record)
    assert len(advice_view.frontier(record).lines) == len(record.frontier)
    alone = of(advices, "advice alone")
    assert "today" not in " ".join(advice_view.frontier(alone).column("batch"))


def test_what_is_out_of_reach_is_said(advices: dict[str, Record]) -> None:
    said = printed(advices["advice far"])
    assert re.search(r"128 advised\s+0\.117\s+–\s+> 60\.0\s+> 1\.18", said)
    assert printed(advices["advice none"]).startswith("No setting was found: every rate diverged.\n")
    assert "! Interrupted before its budget was spent" in printed(advices["advice interrupted"])


def test_a_stop_is_a_sentence(advices: dict[str, Record]) -> None:
    said = {
        name: goals.at_stop(found[goals.asked(record, found)])
        for name in ("advice", "advice examples", "advice seconds", "advice far", "advice none")
        if (record := of(advices, name)) and (found := goals.stops(record))
    }
    near = "The forecasts do not distinguish it from 64 or 256."
    assert said["advice"] == f"Batch size 128: 6.48 s (5.47–7.68), 331,000 examples (282,000–388,000). {near}"
    assert said["advice examples"].startswith("Batch size 8: a score of 0.9063 ± 0.0040, 89.1 s (87.3–90.9).")
    assert said["advice seconds"].startswith("Batch size 128: a score of 0.9114 ± 0.0040, 1,530,000 examples")
    assert said["advice far"].startswith("Batch size 128: more than 1.18 s, more than 60,000 examples.")
    assert said["advice none"] == "No batch size is forecast to get there."


@given(value=st.one_of(st.none(), st.floats(1e-3, 1e12)), low=ENDS, high=ENDS)
def test_no_interval_is_printed_with_what_is_not_a_number(
    value: float | None, low: float | None, high: float | None
) -> None:
    interval = Interval(value, low, high, resolved=value is not None)
    for said in (
        goals.reaching(interval, f.Unit("s", 1.0)),
        goals.spoken_seconds(interval),
        goals.spoken_count(interval),
    ):
        assert said
        assert not re.search(r"None|nan|inf|∞", said)


# The page


def test_the_answer_comes_first_and_the_cost_last(pages: dict[str, str], advices: dict[str, Record]) -> None:
    record = of(advices, "advice")
    said = Page(pages["advice"]).words
    order = [
        "Which setting reaches a score of 0.89 soonest?",
        "Use batch 128",
        "Time to the target 6.48 s 5.47 to 7.68, 90% interval",
        "Your present setting, batch size 32, needs about 2.4 times as long.",
        "The trade-off",
        "Batch size 128: 6.48 s (5.47–7.68)",
        "What each batch size takes to a score of 0.89",
        "Critical batch size 200",
        record.reasons[-1],
        "judged by the validation loss after a linear cooldown",
        "Candidates: all 36",
        "batchscope train fashion-mlp --plan advice.json",
        "The advice took 11.4 s: step times 2.2 s, learning rates 4.1 s, race 5.1 s.",
        "Provenance",
    ]
    places = [said.index(part) for part in order]
    assert places == sorted(places)
    assert "best score with 600,000 examples?" in Page(pages["advice examples"]).words


def test_what_is_not_known_is_said_on_the_cards(pages: dict[str, str], advices: dict[str, Record]) -> None:
    assert "Time to the target not resolved more than 1.18 s" in Page(pages["advice far"]).words
    grown = Page(pages["advice interrupted"]).words
    assert "Batch size 128 on 4 devices It grows: batch 128, 512 from 51,200 examples." in grown
    record = of(advices, "advice")
    open_ended = replace(record, predicted_seconds=Interval(6.48, 5.47, math.inf, 0.9))
    cards = view(open_ended).sections[0].cards
    assert (cards[0].value, cards[0].detail) == ("6.48 s", "5.47 or more, 90% interval")


def test_the_slider_without_a_script_says_the_asked_goal(pages: dict[str, str]) -> None:
    found = Page(pages["advice"])
    [slider] = [given for given in found.inputs if given["type"] == "range"]
    assert "hidden" in slider
    assert slider["aria-valuetext"] == "0.89"
    data = json.loads(found.scripts["charts"])["slider"]
    assert data["stops"][data["asked"]][0] == "0.89"
    assert slider["value"] == str(data["asked"])
    assert slider["max"] == str(len(data["stops"]) - 1)
    assert not [given for given in Page(pages["advice none"]).inputs if given["type"] == "range"]


def test_the_plan_in_the_page_can_be_loaded(pages: dict[str, str], advices: dict[str, Record], tmp_path: Path) -> None:
    text = pages["advice"]
    listings = re.findall(r"<pre [^>]*><code>(.*?)</code></pre>", text, flags=re.S)
    path = tmp_path / "plan.json"
    path.write_text(html.unescape(listings[2]), encoding="utf-8")
    plan = load(path)
    assert isinstance(plan, Plan)
    assert plan == of(advices, "advice").plan
    assert "Train with it" not in Page(pages["advice none"]).words


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.5, "below that"), (1.0, "within that"), (5.0, "above that"), (None, "did not reach it")]
)
def test_a_training_run_is_held_against_the_prediction(
    advices: dict[str, Record], makers: ModuleType, seconds: float | None, said: str
) -> None:
    advice = replace(of(advices, "advice"), predicted_seconds=Interval(1.0, 0.8, 1.3, 0.9))
    run = replace(makers.train_result(), reached=seconds is not None, step_seconds=seconds or 9.0)
    sentence = advice_view.held(advice, run)
    assert sentence.startswith("The advice predicted 1")
    assert said in sentence


def test_a_score_is_held_against_the_prediction(advices: dict[str, Record], makers: ModuleType) -> None:
    advice = replace(of(advices, "advice examples"), predicted_score=Interval(0.9, 0.88, 0.91, 0.9))
    run = replace(makers.train_result(), final_score=0.905)
    assert advice_view.held(advice, run).endswith("this run reached 0.905, within that.")
    assert "did not get there" in advice_view.held(advice, replace(run, final_score=None))


def test_cost_and_energy_stand_in_the_frontier_where_they_are_known(advices: dict[str, Record]) -> None:
    plain, record = of(advices, "advice"), of(advices, "advice priced")
    headings = [column.heading for column in advice_view.frontier(plain).columns]
    assert "cost" not in headings
    assert "energy" not in headings
    sheet = advice_view.frontier(record)
    names = [column.heading for column in sheet.columns]
    assert all(len(line) == len(sheet.columns) for line in sheet.lines)
    advised = next(line for line in sheet.lines if goals.ADVISED in line[0])
    row = next(row for row in record.frontier if row.batch_size == record.batch_size)
    assert row.cost is not None
    assert row.joules is not None
    assert advised[names.index("cost")] == f.number(row.cost.value, 3)
    assert advised[names.index("energy")] == f.energy_unit([row.joules.value]).of(row.joules.value)
    assert "Energy: by NVML." in sheet.note
    facts = dict(advice_view.settings(record))
    assert facts["power of a device"] == "120 W at 8, 410 W at 2,048 (NVML)"
    assert facts["minimised"] == "50% energy, 50% time at the most power"
    assert "2.5 for a device and hour" in facts["price"]
    assert "energy" in printed(record, 160)
    text = Page(page.render(record)).text
    assert "energy" in " ".join(text)


def test_tokens_stand_beside_examples_where_an_example_has_some(advices: dict[str, Record]) -> None:
    plain = of(advices, "advice")
    record = replace(plain, workload=replace(plain.workload, tokens_per_example=64.0))
    size = record.batch_size or 0
    assert "tokens" not in [column.heading for column in advice_view.frontier(plain).columns]
    sheet = advice_view.frontier(record)
    assert [column.heading for column in sheet.columns][-3:] == ["tokens", "tokens", "memory"]
    assert all(len(line) == len(sheet.columns) for line in sheet.lines)
    advised = next(line for line in sheet.lines if goals.ADVISED in line[0])
    row = next(row for row in record.frontier if row.batch_size == size)
    assert advised[-3:-1] == (f.count(64 * size), f.number(64 * (row.examples_per_second.value or 0.0), 3))
    text = " ".join(Page(page.render(record)).text)
    assert f"{f.count(64 * size)} tokens" in text
    assert f"{f.count(64 * (record.examples or 0))} tokens" in text
