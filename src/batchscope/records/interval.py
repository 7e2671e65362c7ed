"""A measured quantity with what is known about its uncertainty."""

from __future__ import annotations

from dataclasses import dataclass

from batchscope.errors import ArgumentError


@dataclass(frozen=True)
class Interval:
    """A value with a confidence interval, or the statement that the evidence does not determine it.

    Attributes:
        value: The estimate; None where ``resolved`` is False.
        low: Lower end; may be minus infinity, or None where nothing is known.
        high: Upper end; may be infinity, or None where nothing is known.
        level: How often intervals made this way hold the truth.
        resolved: False where the evidence does not determine the value, which is then None; always False with a value
            of None.

    Raises:
        ArgumentError: A value that is said not to be resolved.

    Examples:
        >>> print(Interval(0.95, 0.94, 0.96))
        0.95 (0.94 to 0.96)
        >>> Interval.unresolved().value is None
        True
        >>> Interval(None, 1.0, None).resolved
        False
    """

    value: float | None
    low: float | None
    high: float | None
    level: float = 0.95
    resolved: bool = True

    def __post_init__(self) -> None:
        if self.value is None:
            object.__setattr__(self, "resolved", False)
        elif not self.resolved:
            raise ArgumentError("an interval that is not resolved must have no value", got=self.value)

    @classmethod
    def unresolved(cls, level: float = 0.95, *, low: float | None = None, high: float | None = None) -> Interval:
        """An interval whose value the evidence does not determine, with one-sided bounds where there are any."""
        return cls(None, low, high, level, resolved=False)

    def excludes(self, point: float) -> bool:
        """Whether the interval is known and lies wholly on one side of ``point``."""
        if not self.resolved or self.low is None or self.high is None:
            return False
        return not self.low <= point <= self.high

    def __str__(self) -> str:
        if self.value is None:
            return "not resolved"
        if self.low is None or self.high is None:
            return f"{self.value:.4g}"
        return f"{self.value:.4g} ({self.low:.4g} to {self.high:.4g})"
