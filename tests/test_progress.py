"""The live view of a sweep, in a terminal of any width and in a log."""

from __future__ import annotations

import io
import itertools
import re
import sys
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from batchscope import progress
from batchscope.progress import ProgressEvent, SizeProgress, SweepProgress

SMALL = SizeProgress(8, done=9, running=1, pruned=3, best_rate=0.02, best_examples=31_234.0, best_score=0.95)
LARGE = SizeProgress(1024, done=2, waiting=4, best_rate=0.64, best_score=0.9, at_edge=True)
SETTLED = replace(SMALL, batch_size=64, running=0, settled=True)
UNTRIED = SizeProgress(2048, waiting=6)
SWEEP = SweepProgress((SMALL, SETTLED, LARGE, UNTRIED), 20, 1, 6, 1_234_567, 70.0, 2)
HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"

rates = st.one_of(st.none(), st.floats(1e-9, 1e3))
sizes = st.builds(
    SizeProgress,
    st.integers(1, 10**6),
    *[st.integers(0, 10**5)] * 4,
    rates,
    st.one_of(st.none(), st.floats(1, 1e12)),
    st.one_of(st.none(), st.floats(-1e6, 1e6)),
    st.booleans(),
    st.booleans(),
)
sweeps = st.builds(
    SweepProgress,
    st.lists(sizes, max_size=12).map(tuple),
    *[st.integers(0, 10**7)] * 3,
    st.integers(0, 10**12),
    st.one_of(st.none(), st.floats(0, 1e6)),
    st.integers(1, 512),
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal in place of stderr; called in a test itself, since pytest sets stderr anew after its fixtures."""
    screen = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "90")
    monkeypatch.setattr(sys, "stderr", screen)
    return screen


def tell(report: progress.Report, sweep: SweepProgress | None = SWEEP) -> None:
    report.update(label="batch 8 at 0.02", done=20, total=30, sweep=sweep)


def shown(sweep: SweepProgress, width: int) -> list[str]:
    stream = io.StringIO()
    Console(file=stream, width=width, color_system=None).print(progress._SweepTable("sweep", "batch 8", sweep))
    return stream.getvalue().splitlines()


def test_a_sweep_is_told_with_its_event() -> None:
    heard: list[ProgressEvent] = []
    with progress.reporter(heard.append, "sweep") as report:
        tell(report)
        report.update(label="x", done=1, total=None)
    assert [event.sweep for event in heard] == [SWEEP, None]


def test_a_wide_terminal_shows_every_number_of_a_line() -> None:
    lines = shown(SWEEP, 100)
    assert lines[0] == "sweep: 20 trials done (6 pruned), 1 running"
    assert lines[1] == "1:10 min left · 1.23M examples · 2 workers · batch 8"
    cells = {line.split()[0]: line.split() for line in lines[3:] if line.strip()}
    assert cells["8"] == ["8", "9", "3", "1", "0.02", "31,234", "0.9500"]
    assert cells["64"][-1] == "settled"
    assert cells["1,024"] == ["1,024", "2", "4", "0.64", "0.9000", "at", "the", "edge"]
    assert cells["2,048"] == ["2,048", "0", "6"]


def test_without_a_target_there_is_no_column_of_examples() -> None:
    rows = tuple(replace(row, best_examples=None) for row in SWEEP.rows)
    assert not any("examples " in line for line in shown(replace(SWEEP, rows=rows), 100)[2:])


def test_columns_go_where_there_is_no_room_and_the_best_rate_stays() -> None:
    for width in range(20, 101):
        lines = shown(SWEEP, width)
        table = next(line for line in lines if line.strip().startswith("batch") and "·" not in line)
        assert "best rate" in table, width
        assert ("examples" in table) >= (width >= 40), width
        assert ("waiting" in table) >= (width >= 90), width


@given(sweep=sweeps, width=st.integers(12, 140))
def test_no_line_is_wider_than_the_terminal(sweep: SweepProgress, width: int) -> None:
    assert all(len(line) <= width for line in shown(sweep, width))


def test_a_terminal_shows_the_table_and_is_left_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)
    with progress.reporter(True, "sweep") as report:
        report.update(label="timing updates", done=1, total=4)
        tell(report)
    text = screen.getvalue()
    assert "31,234" in text
    assert "at the edge" in text
    # Hidden while the table is redrawn, and erased line by line at the end.
    assert text.rindex(SHOW) > text.rindex(HIDE)
    assert "\x1b[2K" in text[text.rindex("31,234") :]


def test_an_interruption_leaves_the_terminal_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)
    with pytest.raises(KeyboardInterrupt), progress.reporter(True, "sweep") as report:  # noqa: PT012
        tell(report)
        raise KeyboardInterrupt
    text = screen.getvalue()
    assert text.rindex(SHOW) > text.rindex(HIDE)
    assert "\x1b[2K" in text


def test_the_bar_comes_back_after_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)
    with progress.reporter(True, "sweep") as report:
        tell(report)
        tell(report, None)
    assert "batch 8 at 0.02" in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue())


def test_logs_get_a_line_ever_more_seldom(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    came = []
    with progress.reporter(True, "sweep") as report:
        for _ in range(7200):
            tell(report)
            came += [now[0] - 1000.0] * bool(capsys.readouterr().err)
            now[0] += 1
    gaps = [b - a for a, b in itertools.pairwise(came)]
    assert (came[0], gaps[0], gaps[-1]) == (0.0, 5.0, 60.0)
    assert gaps == sorted(gaps)


def test_a_line_in_a_log_names_each_best_so_far(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.reporter(True, "sweep") as report:
        tell(report)
    assert capsys.readouterr().err == (
        "sweep: 20 trials done (6 pruned), 1 running · batch 8: 0.02 → 31.2k examples · "
        "batch 64: 0.02 → 31.2k examples · batch 1024: 0.64 → score 0.9 · 1:10 min left\n"
    )


def test_the_last_line_comes_when_nothing_runs_any_more(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.reporter(True, "sweep") as report:
        tell(report)
        for running in (1, 0):
            report.update(label="", done=30, total=30, sweep=replace(SWEEP, running=running))
    assert len(capsys.readouterr().err.splitlines()) == 2
