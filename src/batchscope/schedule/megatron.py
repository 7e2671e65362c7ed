"""Export of a schedule to Megatron-LM."""

from __future__ import annotations

from batchscope.errors import PlanError
from batchscope.records.schedule import Schedule, checked_count


def to_megatron(schedule: Schedule, *, sequence_length: int | None = None) -> str:
    """Convert a schedule to the value of Megatron-LM's ``--step-batch-size-schedule``.

    The format is ``"THRESHOLD:BATCH THRESHOLD:BATCH …"``. Megatron changes the batch size at the first update at or
    after a threshold, so thresholds are the starts of phases after rounding to whole updates. Use it with
    ``--train-samples``. Learning rates are not exported.

    Args:
        schedule: The schedule.
        sequence_length: Tokens per example, for thresholds in tokens as with ``--seq-length``; None: thresholds in
            examples.

    Returns:
        The value.

    Raises:
        PlanError: A measured schedule.

    Examples:
        >>> from batchscope.schedule import smith
        >>> to_megatron(smith(256, at=(1_000_000, 2_000_000), factor=2))
        '0:256 999936:512 1999872:1024'
        >>> to_megatron(smith(256, at=(1_000_000, 2_000_000), factor=2), sequence_length=2048)
        '0:256 2047868928:512 4095737856:1024'
    """
    if schedule.measured is not None:
        raise PlanError(
            "only a schedule with fixed phases can be exported",
            got="a measured one",
            mend="export the final phases of a run",
        )
    tokens = 1
    if sequence_length is not None:
        checked_count("sequence_length", sequence_length, 1)
        tokens = sequence_length
    thresholds: list[tuple[int, int]] = []
    for segment in schedule.segments:
        if not thresholds or thresholds[-1][1] != segment.phase.batch_size:
            thresholds.append((segment.first_example * tokens, segment.phase.batch_size))
    return " ".join(f"{threshold}:{size}" for threshold, size in thresholds)
