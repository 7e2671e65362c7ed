"""Tables in text files: columns in anybody's spelling, censored runs, and errors that name the line."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchscope.errors import ArgumentError
from batchscope.fit import fit_tradeoff
from batchscope.study.table_file import Table, read_table

# MLPerf's reference convergence points (mlcommons/logging): ResNet-50 in epochs, BERT in millions of samples.
RESNET = """
# LARS
Global batch size\tExamples
1632\t35\n3264\t35.2\n4096\t40\n8192\t42\n13056\t45.4\n32768\t56\n49152\t68\n58880\t79.9\n65536\t84.5\n67840\t85.9
"""
BERT = """
batch,samples_to_target
256,2.553e6\n448,2.411e6\n1536,2.778e6\n3072,2.768e6\n4096,2.843e6\n4608,2.795e6\n6144,3.321e6
6912,3.596e6\n8192,4.191e6\n8704,4.278e6\n12288,4.470e6\n13056,4.633e6\n16384,5.504e6
"""

Read = Callable[[str], Table]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def written(text: str) -> Table:
        path = tmp_path / "runs.csv"
        path.write_text(text, encoding="utf-8")
        return read_table(path)

    return written


@pytest.mark.parametrize(("text", "critical"), [(RESNET, 47_000), (BERT, 12_800)])
def test_published_curves_give_their_critical_batch_size(read: Read, text: str, critical: float) -> None:
    law = read(text).fit()
    assert law.critical_batch_size.value == pytest.approx(critical, rel=0.1)
    assert law.follows


@pytest.mark.parametrize(
    "batch", ["batch_size", "Batch Size", "BATCH-SIZE", "batchSize", "batch", " B ", '"batch size"']
)
@pytest.mark.parametrize(
    ("needs", "factor"),
    [
        ("examples_to_target", 1),
        ("Examples to target", 1),
        ("examples", 1),
        ("Steps", 8),
        ("updates", 8),
        ("ITERATIONS", 8),
        ("steps_to_target", 8),
    ],
)
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_columns_are_found_by_name(read: Read, batch: str, needs: str, factor: int, separator: str) -> None:
    rows = [["note, if any" if separator != "," else "note", batch, needs], ["x", "8", "125"], ["", "8.0", "1.3e2"]]
    table = read("\ufeff# a comment\n\n" + "\n".join(separator.join(row) for row in rows) + "\r\n")
    assert table.batch_sizes == (8,)
    assert table.examples_to_target == ((125.0 * factor, 130.0 * factor),)
    assert table.learning_rates == (None,)


@pytest.mark.parametrize("nothing", ["", "inf", "Inf", "nan", "NaN", "None", "-", "∞", "n/a"])
def test_a_number_that_is_missing_is_a_run_that_missed(read: Read, nothing: str) -> None:
    table = read(f"batch,examples\n8,1000\n8,{nothing}\n")
    assert table.examples_to_target == ((1000.0, math.inf),)
    assert table.spent == ((None, None),)


def test_bounds_of_missed_runs(read: Read) -> None:
    table = read("batch,steps,spent,censored\n8,>50,,\n16,40,,true\n32,,30,no\n64,>= 20,25,1\n128,10,99,false\n")
    assert [runs[0] for runs in table.examples_to_target] == [*[math.inf] * 4, 1280.0]
    assert [bounds[0] for bounds in table.spent] == [400.0, 640.0, 960.0, 1600.0, 12672.0]


def test_an_exported_sweep_is_read_as_it_was_meant(tmp_path: Path) -> None:
    """Columns of the export, fields with commas, quotes and line breaks in them, rates of which one is the best."""
    columns = ["batch_size", "learning_rate", "seed", "outcome", "examples_to_target", "examples", "iterations"]
    rows: list[list[object]] = [
        [8, 0.01, 0, "reached", 9000, 9000, 1125, ""],
        [8, 0.02, 0, "reached", 5000, 5000, 625, ""],
        [8, 0.02, 1, "reached", 6000, 6000, 750, ""],
        [8, 0.04, 0, "diverged", "", 160, 20, 'loss was "nan",\nat update 20'],
        [8, 0.005, 0, "pruned", "", 6400, 800, "could not win"],
        [64, 0.02, 0, "finished", "", 20000, 313, ""],
        [64, 0.2, 0, "out of memory", "", 64, 1, "# not a comment"],
        [64, 0.05, 0, "timed out", "", 30000, 469, ""],
        [64, 0.05, 1, "crashed", "", 25600, 400, ""],
    ]
    path = tmp_path / "trials.csv"
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([[*columns, "message"], *rows])
    table = read_table(path)
    assert table.batch_sizes == (8, 64)
    assert table.learning_rates == (0.02, 0.05)
    assert table.examples_to_target == ((5000.0, 6000.0), (math.inf, math.inf))
    assert table.spent == ((5000.0, 6000.0), (30000.0, 25600.0))


def test_a_rate_that_fails_cheaply_is_not_the_best(read: Read) -> None:
    table = read("B,lr,examples,outcome\n8,0.1,900,reached\n8,0.1,2000,reached\n8,1,500,reached\n8,1,10,diverged\n")
    # √(500 · 2000) = 1000 against √(900 · 2000) = 1342: what diverged after 10 counts as the slowest that reached.
    assert table.learning_rates == (1.0,)
    table = read("B,lr,examples,outcome\n8,0.1,900,reached\n8,0.1,1000,reached\n8,1,950,reached\n8,1,10,diverged\n")
    assert table.learning_rates == (0.1,)
    assert table.examples_to_target == ((900.0, 1000.0),)


def test_the_law_of_a_table_is_that_of_its_runs(read: Read) -> None:
    sizes = [8, 32, 128, 512]
    generator = np.random.default_rng(0)
    runs = [[round(1e4 * (1 + b / 90) * math.exp(e)) for e in generator.normal(0, 0.05, 3)] for b in sizes]
    text = "batch,examples,seed\n" + "".join(
        f"{b},{e},{seed}\n" for b, several in zip(sizes, runs, strict=True) for seed, e in enumerate(several)
    )
    assert read(text).fit() == fit_tradeoff(sizes, runs)
    assert read(text).fit(level=0.8) == fit_tradeoff(sizes, runs, level=0.8)
    missed = [[*several, math.inf] for several in runs]
    text += "".join(f"{b},,3\n" for b in sizes)
    assert read(text).fit() == fit_tradeoff(sizes, missed)
    # One bound is known: that run counts with it, the others as at least what the slowest of their size took.
    bounds = [[max(several)] * 4 for several in runs]
    bounds[0][3] = 50_000
    assert read(text.replace("8,,3\n", "8,>50000,3\n", 1)).fit() == fit_tradeoff(sizes, missed, spent=bounds)


def test_a_size_without_any_number_says_next_to_nothing(read: Read) -> None:
    text = "batch,examples\n8,1000\n16,1100\n32,1300\n64,1900\n128,3000\n256,>4000\n"
    law, with_nothing = read(text).fit(), read(f"{text}512,\n").fit()
    assert with_nothing.critical_batch_size.value == pytest.approx(law.critical_batch_size.value, rel=1e-3)
    assert with_nothing.points[-1].at_least == pytest.approx(512.0)


rates = st.sampled_from([0.01, 0.1, 1.0])
runs = st.lists(st.tuples(st.integers(1, 6), rates, st.integers(1, 10**9), st.booleans()), min_size=1, max_size=20)


@settings(max_examples=60)
@given(rows=runs, separator=st.sampled_from([",", ";", "\t"]))
def test_every_batch_size_keeps_the_runs_of_one_rate(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, float, int, bool]], separator: str
) -> None:
    lines = [["learning rate", "B", "Examples", "censored"]]
    lines += [[f"{rate}", f"{size}", f"{examples}", f"{missed}"] for size, rate, examples, missed in rows]
    path = tmp_path_factory.getbasetemp() / "rows.csv"
    path.write_text("\n".join(separator.join(line) for line in lines))
    table = read_table(path)
    assert table.batch_sizes == tuple(sorted({size for size, *_ in rows}))
    for size, rate, examples, spent in zip(
        table.batch_sizes, table.learning_rates, table.examples_to_target, table.spent, strict=True
    ):
        own = [row for row in rows if row[:2] == (size, rate)]
        assert list(examples) == [math.inf if missed else float(e) for _, _, e, missed in own]
        assert [s for s, e in zip(spent, examples, strict=True) if math.isinf(e)] == [e for *_, e, m in own if m]
        # Wherever a run reached the target, so did one of those kept.
        assert any(map(math.isfinite, examples)) == any(not missed for s, _, _, missed in rows if s == size)
    table.fit()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ("names", "empty")),
        ("# only\n\n", ("empty",)),
        ("batch,examples\n", ("a line for each run",)),
        ("size,examples\n8,1\n", ("batch_size", "size, examples", "line 1")),
        ("batch,epochs\n8,1\n", ("examples_to_target", "epochs", "multiplied")),
        ("8,1000\n16,1200\n", ("batch_size", "'8, 1000' in line 1", "first line")),
        ("batch,Batch,examples\n8,8,1\n", ("differ",)),
        ("# x\n\nbatch,examples\n8,100\neight,100\n", ("whole number", "'eight' in line 5")),
        ("batch,examples\n0,100\n", ("whole number of at least 1", "'0' in line 2")),
        ("batch,examples\n8.5,100\n", ("'8.5'",)),
        ("batch,examples\n1e30,100\n", ("'1e30'",)),
        ("batch,examples\n8,-5\n", ("examples must be a number above 0", "'-5' in line 2")),
        ("batch,examples\n8,31k\n", ("'31k'",)),
        ("batch,examples\n8,31,200\n", ("2 columns", "31, 200", "thousands")),
        ("batch;examples\n8;31,2\n", ("'31,2'", "31200 or 0.02")),
        ("batch,examples\n8,>much\n", ("'much'",)),
        ("batch,examples\n8,>inf\n", ("'inf'",)),
        ("batch,examples,lr\n8,5,\n", ("lr must be a number above 0", "''")),
        ("batch,examples,censored\n8,5,perhaps\n", ("true or false", "'perhaps'")),
        ("batch,examples,outcome\n8,5,great\n", ("an outcome is one of reached", "'great'")),
        ("batch,examples,outcome\n8,,reached\n", ("must say what it took",)),
        ("batch,examples_to_target,outcome\n8,5,diverged\n", ("has no examples to it", "line 2")),
        ('batch,examples,note\n8,5,"open\n', ("spreadsheet",)),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_line(read: Read, text: str, parts: tuple[str, ...]) -> None:
    with pytest.raises(ArgumentError) as caught:
        read(text)
    said = str(caught.value)
    assert "runs.csv" in said
    for part in parts:
        assert part in said


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="No such file"):
        read_table(tmp_path / "nowhere.csv")
    with pytest.raises(ArgumentError, match="directory"):
        read_table(tmp_path)
    (tmp_path / "old.csv").write_bytes("größe,batch\n".encode("latin-1"))
    with pytest.raises(ArgumentError, match="UTF-8"):
        read_table(tmp_path / "old.csv")


def test_a_run_that_was_stopped_before_it_began_says_nothing(read: Read) -> None:
    table = read(
        "batch_size,learning_rate,outcome,examples_to_target,examples\n8,0.1,reached,900,900\n8,0.2,pruned,,0\n"
    )
    assert table.batch_sizes == (8,)
    assert table.examples_to_target == ((900.0,),)
