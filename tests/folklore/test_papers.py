"""Papers measured again: their own numbers kept apart from ours, and every way to end."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import batchscope as bs
from batchscope.errors import ArgumentError
from batchscope.folklore.papers import PAPERS, keskar2016, mccandlish2018, mishkin2016, paper, smith2017, tradeoff
from batchscope.folklore.papers.bench import Bench
from batchscope.folklore.papers.tradeoff import slope_of
from batchscope.measure.child import in_child
from batchscope.progress import ProgressEvent
from batchscope.records import Interval, PaperStudy
from batchscope.report import images


class Narrow(torch.nn.Module):
    """A network in the place of the paper's, small enough for a test."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layers(x.float() / 255)
        return out


@pytest.fixture(scope="module")
def fashion(wanted: Callable[[bool, str], None]) -> bs.Workload:
    """Fashion-MNIST with few validation examples and a linear model."""
    wanted(DEBIAN.is_dir(), "dataset-fashion-mnist")
    whole = bs.load_workload("fashion")
    assert isinstance(whole.validation, tuple)
    return dataclasses.replace(whole, model=Narrow, validation=tuple(tensor[:500] for tensor in whole.validation))


DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def test_the_updates_of_smith_s_schedules_come_out_as_published() -> None:
    examples = smith2017.THEIR_EPOCHS * smith2017.THEIR_EXAMPLES
    for setting in smith2017.SETTINGS:
        assert setting.schedule(examples, 5120).updates(examples) == setting.updates


def test_the_networks_are_of_the_size_that_is_said() -> None:
    def parameters(network: torch.nn.Module) -> int:
        return sum(p.numel() for p in network.parameters())

    assert parameters(keskar2016.F1()) == 1_462_794
    assert keskar2016.C1()(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    assert keskar2016.F1()(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_on_a_gpu_all_data_and_the_paper_s_width_are_taken(wanted: Callable[[bool, str], None]) -> None:
    wanted(DEBIAN.is_dir(), "dataset-fashion-mnist")
    small, large = (
        Bench(torch.device(device), (0, 1), 60.0, None, lambda text: None, lambda: False) for device in ("cpu", "cuda")
    )
    sizes = [keskar2016.workload_of("F1", keskar2016.F1, bench).training_examples for bench in (small, large)]
    assert sizes == [12_000, 60_000]
    widths = [keskar2016.networks_of(bench)["C1"]().layers[0].out_channels for bench in (small, large)]  # type: ignore[index,union-attr]
    assert widths == [16, 64]


def test_published_ratios_are_those_of_the_table() -> None:
    # Across its tasks the critical batch size is a fifth to two thirds of the noise scale.
    ratios = [critical / noise for critical, noise in mccandlish2018.PUBLISHED.values()]
    assert min(ratios) == pytest.approx(500 / 4000)
    assert max(ratios) == pytest.approx(100 / 150)


def test_a_slope_of_perfect_scaling_is_minus_one() -> None:
    lines = [(size, Interval(1024 / size, None, None)) for size in (4, 8, 16)]
    assert slope_of(lines, 0, 2) == pytest.approx(-1)
    assert slope_of([(4, Interval.unresolved(0.95)), (8, Interval(1.0, None, None))], 0, 1) is None


@pytest.mark.parametrize(("module", "rows"), [(keskar2016, 16), (mishkin2016, 12), (smith2017, 10)])
def test_papers_on_fashion_come_to_their_tables(
    module: Any, rows: int, monkeypatch: pytest.MonkeyPatch, fashion: bs.Workload
) -> None:
    monkeypatch.setattr(module, "load_workload", lambda name, data=None: fashion)
    monkeypatch.setattr(module, "EXAMPLES", 3200)
    monkeypatch.setattr(module, "MOST_EPOCHS", 1)
    if module is keskar2016:
        for name in ("F1", "C1"):
            monkeypatch.setattr(module, name, type(name, (Narrow,), {}))
        for few in ("HESSIAN_EXAMPLES", "SUBSPACE"):
            monkeypatch.setattr(module, few, 8)
    # In a process of its own: the heap that it leaves behind is in the way of tests that measure memory.
    child = in_child(lambda: paper(module.__name__.rpartition(".")[2], seeds=2, budget_seconds=5.0), seconds=300.0)
    found = child.value
    assert isinstance(found, PaperStudy), child.message
    assert not found.interrupted
    assert len(found.rows) == rows
    assert found.effects
    assert found.deviations
    assert images.names(found)[:2] == ("picture-1", "picture-2")
    assert (found.line is not None) == (module is keskar2016)
    for row in found.rows:
        assert row.measured.value is not None, row


@pytest.fixture(scope="module")
def found() -> PaperStudy:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tradeoff, "SIZES", (8, 32, 128, 512, 1024))
        patch.setattr(tradeoff, "TARGET", 0.9)
        return paper("mccandlish2018", seeds=2)


def test_the_trade_off_on_digits_is_measured_beside_the_paper_s(found: PaperStudy, tmp_path: Path) -> None:
    assert [row.published for row in found.rows[:2]] == [200 / 900, 500 / 4000]
    assert all(row.measured.value is None for row in found.rows[:5])
    critical, noise = found.effects[0].value, found.effects[1].value
    assert critical.value is not None
    assert 20 < critical.value < 1000
    assert noise.value is not None
    assert noise.value > 1
    assert found.rows[-1].measured.value == pytest.approx(critical.value / noise.value)
    assert found.deviations
    assert bs.load(found.to_json(tmp_path / "paper.json")) == found
    page = found.report(tmp_path / "paper.html").read_text(encoding="utf-8")
    assert "McCandlish" in page
    assert images.names(found) == ("picture-1",)
    with pytest.raises(ArgumentError, match="a chart must be one that this record has"):
        images.svg(found, "race")


def test_what_was_asked_for_is_checked() -> None:
    with pytest.raises(ArgumentError, match="a paper is one of keskar2016"):
        paper("newton1687")
    with pytest.raises(ArgumentError, match="at least two seeds"):
        paper("smith2017", seeds=1)
    with pytest.raises(ArgumentError, match="a budget"):
        paper("smith2017", budget_seconds=math.nan)
    assert set(PAPERS) == {"keskar2016", "smith2017", "mishkin2016", "shallue2019", "mccandlish2018"}


def test_stopped_on_the_way_it_says_so() -> None:
    def stop(event: ProgressEvent) -> None:
        if event.label:
            os.kill(os.getpid(), signal.SIGINT)

    found = paper("shallue2019", seeds=2, progress=stop)
    assert found.interrupted
    assert "stopped" in found.conclusion
