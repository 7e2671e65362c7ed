"""Packing of sequences of unequal length into rows, to reduce padding."""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from batchscope.errors import ArgumentError, WorkloadError

# The label that torch's cross_entropy ignores.
IGNORED = -100
# The sequence number of padding.
PADDING = -1


def fill_rows(lengths: Sequence[int], length: int) -> list[list[int]]:
    """Pack sequences into few rows by best fit decreasing.

    It needs at most 11/9·OPT + 4 rows (Johnson et al. 1974, SIAM Journal on Computing 3).

    Args:
        lengths: Lengths of the sequences, at most ``length``.
        length: Length of a row.

    Returns:
        Indices of the sequences in each row.

    Examples:
        >>> fill_rows([3, 7, 5, 2, 4], 10)
        [[1, 0], [2, 4], [3]]
    """
    rows: list[list[int]] = []
    open_rows: list[tuple[int, int]] = []  # room left and row, ascending
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        at = bisect.bisect_left(open_rows, (lengths[index], -1))
        if at < len(open_rows):
            room, row = open_rows.pop(at)
        else:
            room, row = length, len(rows)
            rows.append([])
        rows[row].append(index)
        if left := room - lengths[index]:
            bisect.insort(open_rows, (left, row))
    return rows


class PackedSequences(Dataset[dict[str, Tensor]]):
    """A Dataset of rows of equal length, each with several whole sequences, for language models.

    A row is a dict of four tensors of ``length`` numbers: ``input_ids``; ``labels``, which are ``ignored`` at padding
    and at the first token of each sequence; ``position_ids``, which start at 0 in each sequence; and ``sequence_ids``,
    -1 at padding, from which :func:`attention_within` makes the attention mask. Sequences longer than a row are split.

    Args:
        sequences: Token numbers, or mappings with ``input_ids`` and optional ``labels``.
        length: Tokens of a row.
        padding: The padding token.
        ignored: The label of tokens that are not predicted.

    Raises:
        ArgumentError: A length below 1.
        WorkloadError: No sequences, or labels of another length.

    Examples:
        >>> rows = PackedSequences([[5, 6, 7], [1, 2], [8, 9, 3, 4]], length=6)
        >>> [rows[i]["input_ids"].tolist() for i in range(len(rows))]
        [[8, 9, 3, 4, 1, 2], [5, 6, 7, 0, 0, 0]]
        >>> rows[0]["labels"].tolist(), rows[0]["sequence_ids"].tolist()
        ([-100, 9, 3, 4, -100, 2], [0, 0, 0, 0, 1, 1])
        >>> rows.share_filled
        0.75
    """

    def __init__(self, sequences: Any, length: int, *, padding: int = 0, ignored: int = IGNORED) -> None:
        if type(length) is not int or length < 1:
            raise ArgumentError("a row must have a whole number of tokens, at least 1", got=length)
        self.length, self.padding, self.ignored = length, padding, ignored
        self._pieces: list[tuple[Tensor, Tensor]] = []
        for number in range(len(sequences)):
            tokens, labels = self._read(sequences[number], number)
            pairs = zip(torch.split(tokens, length), torch.split(labels, length), strict=True)
            self._pieces += [(own, wanted) for own, wanted in pairs if len(own)]
        if not self._pieces:
            raise WorkloadError("there must be a sequence to pack", got="none with a token")
        self._rows = fill_rows([len(tokens) for tokens, _ in self._pieces], length)

    def __len__(self) -> int:
        """Rows."""
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """One row."""
        row = {
            "input_ids": torch.full((self.length,), self.padding),
            "labels": torch.full((self.length,), self.ignored),
            "position_ids": torch.zeros(self.length, dtype=torch.long),
            "sequence_ids": torch.full((self.length,), PADDING),
        }
        first = 0
        for number, piece in enumerate(self._rows[index]):
            tokens, labels = self._pieces[piece]
            part = slice(first, first + len(tokens))
            row["input_ids"][part], row["labels"][part] = tokens, labels
            row["labels"][first] = self.ignored
            row["position_ids"][part], row["sequence_ids"][part] = torch.arange(len(tokens)), number
            first += len(tokens)
        return row

    @property
    def share_filled(self) -> float:
        """Share of tokens that are not padding."""
        return sum(len(tokens) for tokens, _ in self._pieces) / (self.length * len(self._rows))

    def _read(self, sequence: Any, number: int) -> tuple[Tensor, Tensor]:
        whole = sequence if isinstance(sequence, Mapping) else {"input_ids": sequence}
        tokens = torch.as_tensor(whole["input_ids"], dtype=torch.long)
        labels = torch.as_tensor(whole.get("labels", tokens), dtype=torch.long)
        if tokens.ndim != 1 or labels.shape != tokens.shape:
            raise WorkloadError(
                "a sequence must be a row of token numbers, with as many labels",
                got=f"shapes {tuple(tokens.shape)} and {tuple(labels.shape)} at position {number}",
            )
        return tokens, labels


def attention_within(sequence_ids: Tensor, *, causal: bool = True) -> Tensor:
    """Make an attention mask that keeps packed sequences apart.

    Args:
        sequence_ids: N×L, from rows of :class:`PackedSequences`.
        causal: Whether tokens attend to earlier tokens only.

    Returns:
        N×1×L×L booleans, the ``attn_mask`` of torch's ``scaled_dot_product_attention``. Padding attends to padding, so
        that no row is empty.

    Examples:
        >>> attention_within(torch.tensor([[0, 0, 1]]))[0, 0].int().tolist()
        [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    """
    same = sequence_ids[:, None, :, None] == sequence_ids[:, None, None, :]
    return same.tril() if causal else same


def tokens_filled(batch: Mapping[str, Tensor]) -> int:
    """Count the tokens in a batch of packed rows without padding, for ``tokens_per_example`` of a Workload."""
    return int((batch["sequence_ids"] != PADDING).sum())
