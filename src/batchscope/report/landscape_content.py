"""What a landscape says, and its page."""

from __future__ import annotations

from collections.abc import Iterable

from batchscope.records import Landscape, LandscapePoint
from batchscope.report import formatting as f
from batchscope.report.content import Content, Facts, Figure, Section, drawn, of_one_measurement
from batchscope.report.sheets import Column, Line, Sheet

_QUESTIONS = {
    "line": "What lies between the two solutions?",
    "direction": "How does the loss rise along a random direction?",
    "plane": "What does the loss look like about these weights?",
    "path": "Which way did training go?",
}


def answer(record: Landscape) -> str:
    """What it says, in a sentence or two."""
    lowest = min(record.points, key=lambda point: point.training_loss if f.known(point.training_loss) else float("inf"))
    if record.shape == "line":
        first, second = record.labels
        ends = [_nearest(record, along) for along in (0.0, 1.0)]
        between = [p.training_loss for p in record.points if 0 <= p.along <= 1 and f.known(p.training_loss)]
        height = max(between, default=float("nan")) - max(end.training_loss for end in ends)
        wall = (
            f"Between them it rises by {f.number(height, 3)} above the higher one."
            if height > 0.01 * max(abs(ends[0].training_loss), 1e-12)
            else "Between them it does not rise above the higher one."
        )
        return (
            f"The training loss is {f.number(ends[0].training_loss)} at {first} and {f.number(ends[1].training_loss)} "
            f"at {second}, {f.number(record.length[0], 3)} away. {wall}"
        )
    if record.shape == "path":
        left = 1 - sum(record.explained)
        return (
            f"Of the squared distances of {len(record.path) - 1} states from the last one, these two directions hold "
            f"{f.share(sum(record.explained), 1)}; {f.share(max(0.0, left), 1)} lies outside the picture."
        )
    here = min(record.points, key=lambda point: point.along**2 + point.across**2)
    return (
        f"The training loss is {f.number(here.training_loss)} at the weights, and {f.number(lowest.training_loss)} at "
        f"the lowest place looked at. Random directions show what most directions are like, and not the sharpest."
    )


def sheet(record: Landscape) -> Sheet:
    """Every place of a line; of a plane, the states."""
    if record.shape in ("line", "direction"):
        columns = (
            Column("α" if record.shape == "line" else "steps", align="left"),
            Column("training", "loss"),
            Column("training", "score", minor=True),
            Column("validation", "loss"),
            Column("validation", "score"),
        )
        lines = tuple(
            Line(
                (
                    f.number(p.along, 3),
                    f.number(p.training_loss),
                    f.number(p.training_score),
                    f.number(p.validation_loss),
                    f.number(p.validation_score),
                )
            )
            for p in record.points
        )
        return Sheet("Along the line", columns, lines)
    places = (Column("state", align="left"), Column("first"), Column("second"), Column("distance", "from the plane"))
    lines = tuple(
        Line((label, f.number(p.along, 3), f.number(p.across, 3), f.number(p.distance, 3)))
        for label, p in zip(record.labels, record.path, strict=True)
    )
    return Sheet("The states", places, lines)


def facts(record: Landscape) -> Facts:
    """What it rests on."""
    norm = (
        f"taken anew from {f.count(record.statistics_from)} training examples at every place"
        if record.statistics_from
        else "none in the model"
    )
    found = [
        ("parameters", f.count(record.parameters)),
        ("places", f.count(len(record.points))),
        ("examples", f"{f.count(record.training_examples)} training, {f.count(record.validation_examples)} validation"),
        ("batch norm's statistics", norm),
    ]
    if record.shape in ("direction", "plane"):
        found.append(("directions", "every filter as long as the weights' own; biases and norms held still"))
    return (*found, ("took", f.seconds(record.seconds)))


def of_landscape(record: Landscape, available: Iterable[str]) -> Content:
    """The page of a landscape.

    Args:
        record: The record.
        available: Names of the charts that have something to show.

    Returns:
        The answer, the charts, the table and what they rest on.
    """
    lowered = "Losses far above the rest are drawn at the height of the edge."
    measured = Section(
        "What was measured",
        "In evaluation mode, at weights that nobody trained: pictures, and not evidence of how one generalises.",
        figures=drawn(
            available,
            Figure("loss_along_line", "Loss and score along the line", note="Dashed: scores, on the right axis."),
            Figure("loss_map", "Training loss", note=f"White: lines of equal loss, and the way of training. {lowered}"),
            Figure("loss_surface", "The same as a surface", note=f"Turn and tilt it below. {lowered}"),
        ),
        sheets=(sheet(record),),
        facts=(("It rests on", facts(record)),),
    )
    return of_one_measurement(record, title=_QUESTIONS[record.shape], answer=answer(record), measured=measured)


def _nearest(record: Landscape, along: float) -> LandscapePoint:
    return min(record.points, key=lambda point: abs(point.along - along))
