"""A schedule in the words of Megatron-LM."""

from __future__ import annotations

from batchscope.errors import PlanError
from batchscope.records.schedule import Schedule, checked_count


def to_megatron(schedule: Schedule, *, sequence_length: int | None = None) -> str:
    """The value of Megatron-LM's ``--step-batch-size-schedule`` that makes updates of the same sizes.

    Megatron takes ``"THRESHOLD:BATCH THRESHOLD:BATCH …"``, and changes at the first update that begins at or after a
    threshold. Thresholds are therefore where the phases really begin, after rounding to whole updates, and so come out
    exactly. Give it together with ``--train-samples``; the learning rate is the trainer's own affair there.

    Args:
        schedule: The schedule.
        sequence_length: Tokens per example, where Megatron runs with ``--seq-length``: its thresholds are tokens then.
            None: they are examples.

    Returns:
        The string.

    Raises:
        PlanError: A schedule that is measured, and so not known beforehand.

    Examples:
        >>> from batchscope.schedule import smith
        >>> to_megatron(smith(256, at=(1_000_000, 2_000_000), factor=2))
        '0:256 999936:512 1999872:1024'
        >>> to_megatron(smith(256, at=(1_000_000, 2_000_000), factor=2), sequence_length=2048)
        '0:256 2047868928:512 4095737856:1024'
    """
    if schedule.measured is not None:
        raise PlanError(
            "only a schedule that is known beforehand can be exported",
            got="a measured one",
            mend="export the phases that a run ended with",
        )
    tokens = 1
    if sequence_length is not None:
        checked_count("sequence_length", sequence_length, 1)
        tokens = sequence_length
    told: list[tuple[int, int]] = []
    for segment in schedule.segments:
        if not told or told[-1][1] != segment.phase.batch_size:
            told.append((segment.first_example * tokens, segment.phase.batch_size))
    return " ".join(f"{threshold}:{size}" for threshold, size in told)
