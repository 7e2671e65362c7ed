"""Packed rows: nothing lost, hardly any padding, and sequences that know nothing of each other."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import batchscope as bs
from batchscope.errors import ArgumentError, WorkloadError
from batchscope.workload import PackedSequences, attention_within, tokens_filled
from batchscope.workload.packing import fill_rows

LENGTH = 16


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(1, LENGTH), min_size=1, max_size=80))
def test_every_sequence_has_its_place_in_few_rows(lengths: list[int]) -> None:
    rows = fill_rows(lengths, LENGTH)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in row) <= LENGTH for row in rows)
    assert len(rows) <= 11 / 9 * math.ceil(sum(lengths) / LENGTH) + 4


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(st.integers(1, 99), max_size=40), min_size=1, max_size=20).filter(any))
def test_every_token_is_there_once_with_its_label_and_its_position(sequences: list[list[int]]) -> None:
    rows = PackedSequences(sequences, LENGTH)
    pieces = [tuple(own[i : i + LENGTH]) for own in sequences for i in range(0, len(own), LENGTH)]
    found = []
    for row in (rows[i] for i in range(len(rows))):
        for number in range(int(row["sequence_ids"].max()) + 1):
            own = row["sequence_ids"] == number
            found.append(tuple(row["input_ids"][own].tolist()))
            assert row["labels"][own].tolist() == [-100, *found[-1][1:]]
            assert row["position_ids"][own].tolist() == list(range(len(found[-1])))
        padding = row["sequence_ids"] == -1
        assert row["input_ids"][padding].eq(0).all()
        assert row["labels"][padding].eq(-100).all()
    assert sorted(found) == sorted(pieces)
    filled = sum(map(len, pieces))
    assert rows.share_filled == pytest.approx(filled / (LENGTH * len(rows)))
    assert sum(tokens_filled(rows[i]) for i in range(len(rows))) == filled


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.letters, self.places = nn.Embedding(32, 8), nn.Embedding(LENGTH, 8)
        self.looks, self.out = nn.Linear(8, 24), nn.Linear(8, 32)

    def forward(self, x: torch.Tensor, places: torch.Tensor, among: torch.Tensor) -> torch.Tensor:
        x = self.letters(x) + self.places(places)
        q, k, v = self.looks(x).unsqueeze(1).chunk(3, dim=-1)
        out: torch.Tensor = self.out(x + F.scaled_dot_product_attention(q, k, v, attn_mask=among).squeeze(1))
        return out


def test_packed_or_alone_a_sequence_has_the_same_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    sequences = [torch.randint(1, 32, (n,), generator=generator) for n in (3, 9, 16, 5, 2, 11, 7)]
    torch.manual_seed(0)
    model = Reader().double()
    rows = PackedSequences(sequences, LENGTH)
    batch = {key: torch.stack([rows[i][key] for i in range(len(rows))]) for key in rows[0]}
    output = model(batch["input_ids"], batch["position_ids"], attention_within(batch["sequence_ids"]))
    packed = F.cross_entropy(output[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum")

    alone = torch.tensor(0.0, dtype=torch.float64)
    for own in sequences:
        n = len(own)
        causal = torch.ones(1, 1, n, n, dtype=torch.bool).tril()
        output = model(own[None], torch.arange(n)[None], causal)
        alone = alone + F.cross_entropy(output[0, :-1], own[1:], reduction="sum")
    torch.testing.assert_close(packed, alone, rtol=1e-12, atol=1e-12)


def test_a_packed_workload_trains_and_counts_its_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    sequences = [torch.arange(n) % 4 + 1 for n in torch.randint(2, LENGTH, (300,), generator=generator).tolist()]
    train, held_out = PackedSequences(sequences[:240], LENGTH), PackedSequences(sequences[240:], LENGTH)

    def step(model: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        output = model(batch["input_ids"], batch["position_ids"], attention_within(batch["sequence_ids"]))
        return output[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()

    workload = bs.Workload(
        model=Reader,
        train=train,
        validation=held_out,
        loss=F.cross_entropy,
        forward=step,
        optimizer=lambda params, lr: torch.optim.AdamW(params, lr=lr),
        learning_rate=1e-2,
        batch_size=8,
        tokens_per_example=tokens_filled,
    )
    result = bs.train(workload, bs.Plan(batch_size=8, learning_rate=1e-2, examples=2_000))
    assert result.curve[0].validation_loss > 3.0
    assert result.final_loss is not None
    assert result.final_loss < 0.5  # what comes next is settled by the letter before it
    times = bs.step_times(workload, batch_sizes=[4, 16], seconds=0.2)
    assert times.tokens_per_example == pytest.approx(LENGTH * train.share_filled, rel=0.05)


def test_what_cannot_be_packed_is_refused() -> None:
    with pytest.raises(ArgumentError, match="at least 1"):
        PackedSequences([[1]], 0)
    with pytest.raises(WorkloadError, match="none with a token"):
        PackedSequences([[], []], 4)
    with pytest.raises(WorkloadError, match="at position 1"):
        PackedSequences([{"input_ids": [1, 2]}, {"input_ids": [1, 2], "labels": [1]}], 4)
    wanted = PackedSequences([{"input_ids": [1, 2, 3], "labels": [-100, -100, 3]}], 4)[0]["labels"].tolist()
    assert wanted == [-100, -100, 3, -100]


def test_causal_or_not_a_token_looks_within_its_sequence() -> None:
    ids = torch.tensor([[0, 0, 1, -1, -1]])
    both = attention_within(ids, causal=False)[0, 0]
    assert both.int().tolist() == [[1, 1, 0, 0, 0]] * 2 + [[0, 0, 1, 0, 0]] + [[0, 0, 0, 1, 1]] * 2
    assert torch.equal(attention_within(ids)[0, 0], both.tril())
