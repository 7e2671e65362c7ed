"""Schedules as a line of text, for the command line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from batchscope.errors import PlanError
from batchscope.records.schedule import Schedule
from batchscope.schedule.growth import exponential_growth, linear_growth, measured
from batchscope.schedule.milestones import constant, seesaw, smith, stepped


def _milestones(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("/"))


_FORMS: dict[str, tuple[Callable[..., Schedule], dict[str, Callable[[str], Any]], str]] = {
    "constant": (constant, {}, ""),
    "stepped": (stepped, {"at": _milestones, "factor": float}, "at=60000/120000,factor=5"),
    "smith": (
        smith,
        {"at": _milestones, "factor": float, "cap": int, "growths": int, "momentum": float},
        "at=60000/120000,factor=5,cap=5120",
    ),
    "seesaw": (seesaw, {"at": _milestones, "factor": float, "cap": int}, "at=60000/120000,factor=2"),
    "linear": (
        linear_growth,
        {"to": int, "examples": int, "increment": int, "coupling": str},
        "to=1024,examples=100000",
    ),
    "exponential": (
        exponential_growth,
        {"to": int, "examples": int, "factor": float, "multiple_of": int, "coupling": str},
        "to=1024,examples=100000",
    ),
    "measured": (
        measured,
        {"knee": float, "maximum": int, "factor": int, "sustained": int, "every": int},
        "knee=200,maximum=1024",
    ),
}


def parse_schedule(text: str, batch_size: int) -> Schedule:
    """Parse a schedule from a line of text, for example ``smith:at=60000/120000,factor=5,cap=5120``.

    It consists of a name (constant, stepped, smith, seesaw, linear, exponential or measured) and the arguments of the
    function of that name, except the batch size.

    Args:
        text: The line.
        batch_size: The first batch size.

    Returns:
        The schedule.

    Raises:
        PlanError: An unknown schedule, or missing or invalid arguments.

    Examples:
        >>> print(parse_schedule("smith:at=6400/12800,factor=2", 64))
        batch 64, 128 from 6,400 examples, 256 from 12,800 examples
    """
    name, _, rest = text.partition(":")
    if name not in _FORMS:
        raise PlanError(
            f"a schedule is one of {', '.join(_FORMS)}, or a JSON file",
            got=text,
            mend=f"write it as in smith:{_FORMS['smith'][2]}",
        )
    maker, kinds, example = _FORMS[name]
    values: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, _, value = part.partition("=")
        if key not in kinds:
            raise _unlike(name, part, example)
        try:
            values[key] = kinds[key](value)
        except ValueError as error:
            raise _unlike(name, part, example) from error
    try:
        return maker(batch_size, **values)
    except TypeError as error:  # a missing argument
        raise _unlike(name, text, example) from error


def _unlike(name: str, got: str, example: str) -> PlanError:
    return PlanError(f"the schedule {name} is written {name}{example and ':'}{example}", got=got)
