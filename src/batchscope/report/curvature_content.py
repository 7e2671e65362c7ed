"""What records of curvature and sharpness say: an answer, a table, facts, and their page."""

from __future__ import annotations

from collections.abc import Iterable

from batchscope.records import HessianEigenvalues, HessianTrace, Sharpness, SpectralDensity
from batchscope.report import formatting as f
from batchscope.report.content import Content, Facts, Figure, Section, drawn, of_one_measurement
from batchscope.report.sheets import Column, Line, Sheet

Curvature = HessianEigenvalues | HessianTrace | SpectralDensity | Sharpness
"""The records of curvature and sharpness."""

_MATRIX = {"hessian": "Hessian", "gauss-newton": "Gauss–Newton matrix"}
_QUESTIONS: dict[type[Curvature], str] = {
    HessianEigenvalues: "How sharply does the loss bend?",
    HessianTrace: "How much does the loss bend in all?",
    SpectralDensity: "How are the curvatures spread?",
    Sharpness: "How far can the loss rise close by?",
}
_POLICY = "In evaluation mode: dropout is off, and batch norm uses its running statistics."


def answer(record: Curvature) -> str:
    """What a record says, in a sentence or two."""
    over = f"over {f.count(record.examples)} training examples"
    if isinstance(record, Sharpness):
        where = "all of weight space" if record.subspace is None else f"{len(record.runs)} random subspaces"
        return (
            f"The training loss, {f.number(record.loss)} here, rises by up to {f.number(record.value)}% of one plus "
            f"itself within the box of ε = {f.number(record.epsilon)} in {where}."
        )
    name = _MATRIX[record.matrix]
    if isinstance(record, HessianEigenvalues):
        first = f"The largest eigenvalue of the {name} {over} is {f.number(record.values[0])}."
        stable = record.stable_learning_rate
        if stable is None:
            return f"{first} The optimiser scales its steps by itself, so that it bounds no learning rate."
        side = "below" if record.learning_rate < stable else "above"
        return (
            f"{first} On a quadratic of that curvature learning rates up to {f.number(stable, 3)} are stable; the one "
            f"in use, {f.number(record.learning_rate)}, lies {side}."
        )
    if isinstance(record, HessianTrace):
        return f"The trace of the {name} {over} is {f.sized(record.trace)}, a mean eigenvalue of " + (
            f"{f.sized(record.mean_eigenvalue)}."
        )
    return (
        f"The {f.count(record.parameters)} eigenvalues of the {name} {over} reach from {f.number(record.nodes[0], 3)} "
        f"to {f.number(record.nodes[-1], 3)}; {f.sized(record.share_negative)} of them lie below zero."
    )


def sheet(record: Curvature) -> Sheet | None:
    """Its table; None where there is none."""
    if isinstance(record, HessianEigenvalues):
        lines = tuple(
            Line((str(i + 1), f.number(value), f.number(residual, 2), "yes" if apart else "no", "" if done else "no"))
            for i, (value, residual, apart, done) in enumerate(
                zip(record.values, record.residuals, record.told_apart, record.converged, strict=True)
            )
        )
        columns = (
            Column("", align="left"),
            Column("eigenvalue"),
            Column("residual", "‖Hv − λv‖"),
            Column("told apart", "from the next"),
            Column("converged", minor=True),
        )
        return Sheet(f"Eigenvalues of the {_MATRIX[record.matrix]}", columns, lines, _POLICY)
    if isinstance(record, Sharpness):
        lines = tuple(
            Line(
                (
                    str(i + 1),
                    f"{f.number(run.value)}%",
                    f.number(run.loss),
                    f.count(run.evaluations),
                    f.share(run.at_bounds, 1),
                )
            )
            for i, run in enumerate(record.runs)
        )
        columns = (
            Column("search", align="left"),
            Column("φ"),
            Column("largest loss"),
            Column("evaluations", minor=True),
            Column("at the sides", "of the box"),
        )
        return Sheet("Searches for the largest loss", columns, lines, _POLICY)
    return None


def facts(record: Curvature) -> Facts:
    """What it rests on."""
    found = [("parameters", f.count(record.parameters)), ("examples", f.count(record.examples))]
    if isinstance(record, Sharpness):
        box = "|z| ≤ ε(|A⁺x| + 1)" if record.box == "keskar" else "each weight by ε times the size of its filter"
        found += [("box", box), ("ε", f.number(record.epsilon)), ("iterations of L-BFGS-B", f.count(record.iterations))]
        if record.subspace is not None:
            found += [("dimensions of a subspace", f.count(record.subspace)), ("φ, mean", f.sized(record.over_runs))]
        return (*found, ("loss at the centre", f.number(record.loss)), ("took", f.seconds(record.seconds)))
    found.append(("products", f.count(record.products)))
    if isinstance(record, HessianTrace):
        found += [("trace", f.sized(record.trace)), ("random vectors", f.count(record.samples))]
        found.append(("eigenvectors taken out first", f.count(record.projected_out)))
    if isinstance(record, SpectralDensity):
        found += [("Lanczos steps", f"{record.steps} from each of {record.runs} vectors")]
        found += [("below zero", f.sized(record.share_negative)), ("smoothed by", f.number(record.width, 3))]
    return (*found, ("took", f.seconds(record.seconds)))


def of_curvature(record: Curvature, available: Iterable[str]) -> Content:
    """The page of a record of curvature.

    Args:
        record: The record.
        available: Names of the charts that have something to show.

    Returns:
        The answer, the chart, the table and what they rest on.
    """
    note = "A share of a hundred-thousandth is about where the quadrature's own errors lie."
    table = sheet(record)
    measured = Section(
        "What was measured",
        _POLICY,
        figures=drawn(
            available, Figure("spectral_density", "Density of the eigenvalues, log scale", alone=True, note=note)
        ),
        sheets=() if table is None else (table,),
        facts=(("It rests on", facts(record)),),
    )
    return of_one_measurement(record, title=_QUESTIONS[type(record)], answer=answer(record), measured=measured)
