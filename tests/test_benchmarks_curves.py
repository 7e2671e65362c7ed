"""The pure parts of recording learning curves: what is recorded next, where points lie, when a run ends."""

from __future__ import annotations

import itertools
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from batchscope.workload import Workload
from curves_schedule import NEAR_BEST, Seen, Setting, early_grid, next_setting
from curves_table import Curves, collect, early_table, estimate, is_beginning, points_at, time_to_target
from ground_truth_table import Setting as At
from real import TASKS
from real.task import RealTask
from record_curves import next_command, restore
from record_one import record, verdict

SIZES = (8, 16, 32, 64, 128, 256, 512, 1024)
BEST_STEP, BEST_SIZE = 1, 100.0


@pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
def test_tasks_can_be_recorded(task: RealTask) -> None:
    assert list(task.batch_sizes) == sorted(set(task.batch_sizes))
    assert {8, task.batch_size} <= set(task.batch_sizes)
    assert task.batch_sizes[-1] < task.expected_examples / 10


def law(setting: Setting) -> float:
    """Seconds with one valley; rates eight times the best diverge."""
    away = setting.step - BEST_STEP - 0.5 * math.log2(setting.batch_size / 64)
    if away >= 3:
        return math.inf
    return 10 * (setting.batch_size / BEST_SIZE + BEST_SIZE / setting.batch_size) * math.exp(away**2 / 6)


def schedule() -> list[Seen]:
    seen: list[Seen] = []
    for _ in range(200):
        setting = next_setting(64, SIZES, seen)
        if setting is None:
            return seen
        fastest = min((s.seconds for s in seen), default=math.inf)
        seconds = law(setting)
        seen.append(Seen(setting, seconds, seconds < 3 * fastest))
    raise AssertionError("the schedule does not end")


def test_schedule_starts_at_the_default_and_names_nothing_twice() -> None:
    settings = [s.setting for s in schedule()]
    assert settings[0] == Setting(64, 0)
    assert len(set(settings)) == len(settings) <= 55


def test_schedule_records_the_best_setting_with_its_neighbours_and_more_seeds() -> None:
    seen = schedule()
    recorded = {s.setting for s in seen}
    best = min((Setting(size, step) for size in SIZES for step in range(-8, 9)), key=law)
    assert {best, best._replace(step=best.step + 1), best._replace(step=best.step - 1)} <= recorded
    assert best._replace(seed=1) in recorded
    fastest = law(best)
    for s in seen:
        assert s.setting.seed == 0 or s.seconds <= NEAR_BEST * fastest


def test_schedule_reaches_the_smallest_and_the_largest_batch_size_and_far_rates() -> None:
    first = [s.setting for s in schedule() if s.setting.seed == 0]
    assert {8, 1024} <= {s.batch_size for s in first}
    for size in {s.batch_size for s in first}:
        steps = [s.step for s in first if s.batch_size == size]
        best = min(steps, key=lambda step: law(Setting(size, step)))
        assert min(steps) <= best - 3


def test_points_are_whole_updates_and_the_same_places_for_every_batch_size() -> None:
    spec: dict[str, float] = {"first": 1 / 500, "dense": 1 / 8, "factor": 1.2, "every": 0.025}
    one = list(itertools.takewhile(lambda n: n <= 20_000, points_at(20_000, 1, **spec)))
    assert one[0] == 40
    assert 50 <= len(one) <= 70
    for size in (8, 512):
        places = list(itertools.islice(points_at(20_000, size, **spec), 20))
        assert all(place % size == 0 for place in places)
        assert all(min(abs(place - other) for other in one) <= size / 2 + 1 for place in places if place <= 20_000)


def curve(seconds: list[float], score: list[float], **other: Any) -> dict[str, Any]:
    points = {"examples": [100 * s for s in seconds], "seconds": seconds, "score": score}
    points |= {"loss": [1 - s for s in score], "training_loss": [1 - s for s in score]}
    return {"outcome": "reached", "batch_size": 8, "learning_rate": 0.1, "seed": 0, "points": points, **other}


def test_time_to_target_lies_between_the_evaluations_around_it() -> None:
    found = time_to_target(curve([1.0, 2.0, 4.0], [0.1, 0.5, 0.9]), 0.7)
    assert found == pytest.approx(2 * math.sqrt(2))
    assert time_to_target(curve([1.0, 2.0], [0.1, 0.5]), 0.7) is None
    assert time_to_target(curve([1.0, 2.0], [0.8, 0.9]), 0.7) == 1.0


def test_a_run_that_was_cut_is_estimated_by_its_slowness() -> None:
    best = curve([1.0, 2.0, 4.0], [0.2, 0.4, 0.8])
    slow = curve([1.0, 2.0], [0.1, 0.2], outcome="cut")
    assert estimate(best, [best, slow], 0.8) == 4.0
    assert estimate(slow, [best, slow], 0.8) == pytest.approx(8.0)
    assert estimate({**slow, "outcome": "diverged"}, [best], 0.8) == math.inf


@pytest.mark.parametrize(
    ("seconds", "score", "expected"),
    [
        ([1.0, 2.0], [0.1, 0.9], None),  # above once: goes on
        ([1.0, 2.0, 2.1], [0.1, 0.9, 0.9], "reached"),  # twice in a row
        ([1.0, 2.0, 2.1, 2.7], [0.1, 0.9, 0.7, 0.7], "reached"),  # 1.3 times the examples
        ([1.0, 3.0], [0.1, 0.1], None),  # bad, but less than 0.4 of the best time
        ([1.0, 6.0], [0.1, 0.15], "cut"),  # at 0.6 worse than the best one at 0.18
        ([1.0, 6.0], [0.1, 0.25], None),
    ],
)
def test_verdict(seconds: list[float], score: list[float], expected: str | None) -> None:
    best = curve([0.5, 1.0, 1.5, 5.0, 10.0], [0.1, 0.15, 0.2, 0.5, 0.8])
    assert verdict(curve(seconds, score)["points"], 0.8, 1.0, 10.0, best) == expected


def test_verdict_of_a_loss_far_above_that_of_fresh_weights() -> None:
    points = curve([1.0, 6.0], [-9.0, -9.0])["points"]
    assert verdict(points, 0.8, 1.0, 10.0, None) == "diverged"


def whole(setting: Setting, needed: float, until: float) -> dict[str, Any]:
    """A run whose score rises with the log of its examples and is 0.8 after those that are needed."""
    examples = [size * setting.batch_size for size in range(1, 1000) if size * setting.batch_size <= until]
    score = [0.8 + 0.1 * math.log(n / needed) for n in examples]
    points = {"examples": examples, "seconds": [0.001 * n + n / setting.batch_size / 100 for n in examples]}
    rate = 0.1 * 2.0**setting.step
    outcome = "reached" if score[-1] >= 0.8 else "cut"
    names = {"network": "law", "learning_rate": rate, "outcome": outcome, **setting._asdict()}
    return {
        **names,
        "points": points | {"score": score, "loss": score, "training_loss": score, "reading_seconds": score},
    }


def examples_needed(setting: Setting) -> float:
    return 1_000 * (1 + setting.batch_size / 128) * math.exp((setting.step - 1) ** 2 / 8)


def collected(folder: Path) -> Curves:
    """Curves of a law, as the recorder's files, collected and read again."""
    for size, step, seed in itertools.product((16, 64), range(-2, 4), (0, 1)):
        setting = Setting(size, step, seed)
        needed = examples_needed(setting)
        far = step == -2
        run = whole(setting, needed, (0.5 if far else 1.1) * needed)
        (folder / f"b{size}_r{step:+d}_s{seed}.json").write_text(json.dumps(run))
    sizes = [8, 16, 32, 64, 128]
    timing = {"batch_sizes": sizes, "seconds": [0.01 + 0.001 * size for size in sizes], "training_examples": 9_000}
    (folder / "timing.json").write_text(json.dumps(timing))
    task = RealTask(
        name="law",
        make=lambda: pytest.fail("the data are not needed"),
        target=0.8,
        batch_size=64,
        learning_rate=0.1,
        batch_sizes=(16, 64),
        expected_examples=2_000,
        expected_seconds=1.0,
    )
    collect(task, folder, folder)
    return Curves.load("law", folder)


def test_collected_curves_give_the_law_back(tmp_path: Path) -> None:
    curves = collected(tmp_path)
    assert len(curves.curves) == 24
    for size in (16, 64):
        assert curves.step_seconds(size) == pytest.approx(0.01 + 0.001 * size, rel=1e-3)
        needed = examples_needed(Setting(size, 0))
        assert curves.truth.examples(At(size, 0.1)).value == pytest.approx(needed, rel=0.02)
    assert curves.step_seconds(128) == pytest.approx(0.138, rel=1e-3)
    assert curves.best.batch_size == 64
    assert curves.best.learning_rate == pytest.approx(0.2, rel=0.05)


def test_regret_between_what_was_recorded_and_at_a_run_that_was_cut(tmp_path: Path) -> None:
    curves = collected(tmp_path)
    assert curves.regret(curves.best).value == pytest.approx(1.0)
    between = curves.regret(At(64, 0.1 * 2**-0.5))
    assert between.value == pytest.approx(math.exp(1.5**2 / 8), rel=0.05)
    assert not between.at_least
    far = curves.regret(At(64, 0.025))
    assert far.at_least
    assert far.value == pytest.approx(math.exp(9 / 8), rel=0.1)
    assert curves.regret(At(32, 0.2)).value == pytest.approx(
        examples_needed(Setting(32, 1)) * (0.001 + 0.01 / 32) / (1_500 * (0.001 + 0.01 / 64)), rel=0.1
    )


def test_the_setting_that_is_ahead_late_is_the_best_one_and_none_is_before_the_first_point(tmp_path: Path) -> None:
    curves = collected(tmp_path)
    best = curves.seconds(curves.best).value
    assert curves.ahead_at(best) == curves.best
    assert curves.ahead_at(1e-6) is None
    shown = early_table([curves])
    assert shown.row_count == 4
    assert list(shown.columns[-1].cells)[:3] == ["1.00", "1.00", "1.00"]


def line() -> Workload:
    x = torch.randn(600, 3, generator=torch.Generator().manual_seed(0))
    y = x @ torch.tensor([[1.0], [2.0], [3.0]])
    return Workload(
        model=lambda: torch.nn.Linear(3, 1),
        train=(x[:500], y[:500]),
        validation=(x[500:], y[500:]),
        loss=torch.nn.functional.mse_loss,
        optimizer=lambda parameters, rate: torch.optim.SGD(parameters, lr=rate),
        learning_rate=0.01,
        batch_size=10,
    )


def line_task(**other: Any) -> RealTask:
    sizes: dict[str, Any] = {"batch_size": 10, "learning_rate": 0.01, "batch_sizes": (5, 10, 20)}
    task: dict[str, Any] = {"name": "line", "make": line, "target": -0.01, "expected_seconds": 10.0}
    return RealTask(**{**sizes, **task, "expected_examples": 2_000, **other})


def test_a_recorded_run_reaches_its_target_and_depends_on_its_seed_alone() -> None:
    first, again, other = (record(line_task(), Setting(10, 0, seed)) for seed in (0, 0, 1))
    points = first["points"]
    assert first["outcome"] == "reached"
    assert points["score"][-1] >= -0.01
    assert points["loss"] == again["points"]["loss"] != other["points"]["loss"]
    assert all(a < b for a, b in itertools.pairwise(points["seconds"]))
    assert all(0 < reading < whole for reading, whole in zip(points["reading_seconds"], points["seconds"], strict=True))


def test_blocks_are_means_over_the_same_examples_at_every_batch_size() -> None:
    still = line_task(learning_rate=1e-30, target=1.0, expected_seconds=0.1)  # weights that stay as they are
    runs = [record(still, Setting(size, 0)) for size in (5, 10)]
    assert [run["outcome"] for run in runs] == ["missed", "missed"]
    assert runs[0]["initial"] == runs[1]["initial"]
    sums = []
    for run in runs:
        ends, means = run["blocks"]["examples"], run["blocks"]["training_loss"]
        each = [mean * (end - start) for start, end, mean in zip([0, *ends], ends, means, strict=False)]
        sums.append(dict(zip(ends, itertools.accumulate(each), strict=True)))
    shared = sums[0].keys() & sums[1].keys()
    assert len(shared) > 5
    for end in shared:
        assert sums[0][end] == pytest.approx(sums[1][end], rel=1e-4)


def test_the_beginning_of_a_run_ends_at_its_share_and_is_no_miss() -> None:
    best = record(line_task(), Setting(10, 0))
    begun = record(line_task(learning_rate=1e-6), Setting(10, 0), best, 1.0, until=0.01)
    assert begun["outcome"] == "begun"
    assert begun["points"]["seconds"][-1] >= begun["limit_seconds"] == 0.01
    assert is_beginning(begun)
    assert not is_beginning(best)


def test_the_coarse_grid_has_the_best_setting_first_and_every_other_size() -> None:
    grid = early_grid((8, 16, 32, 64), Setting(32, 1, 0))
    assert grid[0] == Setting(32, 1, 0)
    assert {setting.batch_size for setting in grid} == {8, 32}
    assert len(set(grid)) == len(grid)


def test_clipping_bounds_the_first_step() -> None:
    free = record(line_task(target=1.0, expected_seconds=0.003), Setting(10, 0))
    bound = record(line_task(target=1.0, expected_seconds=0.003, clip_norm=1e-6), Setting(10, 0))
    assert bound["points"]["loss"][0] == pytest.approx(bound["initial"]["loss"], rel=1e-5)
    assert free["points"]["loss"][0] < 0.999 * free["initial"]["loss"]


def test_the_recorder_goes_on_where_it_was(tmp_path: Path) -> None:
    task = TASKS["vae"]
    command = next_command(task, tmp_path)
    assert command is not None
    assert command[:3] == [str(task.batch_size), "0", "0"]
    setting = Setting(task.batch_size, 0)
    run = {**whole(setting, 1_000, 100_000), "target": task.target}
    Path(command[3]).write_text(json.dumps(run))
    timing = next_command(task, tmp_path)
    assert timing is not None
    assert timing[0] == "--timing"
    Path(timing[1]).write_text("{}")
    after = next_command(task, tmp_path)
    assert after is not None
    assert after[:3] == [str(task.batch_size), "1", "0"]
    assert after[after.index("--best") + 1] == command[3]


def test_kept_curves_are_unpacked_for_a_fresh_clone(tmp_path: Path) -> None:
    curve = {"batch_size": 64, "step": -1, "seed": 0, "points": {"examples": [64], "seconds": [1.0], "score": [0.5]}}
    folder = tmp_path / "conv"
    folder.mkdir()
    (folder / "b64_r-1_s0.json").write_text(json.dumps(curve))
    (folder / "timing.json").write_text(json.dumps({"training_examples": 10}))
    collect(TASKS["conv"], folder, tmp_path / "kept")
    fresh = tmp_path / "fresh"
    assert restore("conv", fresh, tmp_path / "kept") == 1
    assert json.loads((fresh / "b64_r-1_s0.json").read_text()) == curve
    assert json.loads((fresh / "timing.json").read_text()) == {"training_examples": 10}
    assert restore("conv", fresh, tmp_path / "kept") == 0
    assert restore("vae", fresh, tmp_path / "kept") == 0
