"""A word language model: two LSTM layers with dropout, SGD with a large rate and clipped gradients.

Layers, clipping, optimiser, batch size, rate and length of a sequence are those of PyTorch's word language model
(github.com/pytorch/examples, word_language_model). Each sequence starts from hidden states of zero.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from batchscope.workload import Workload
from batchscope.workload.optimizers import sgd
from real.sources import texts, vocabulary, words
from real.task import RealTask

LENGTH = 35
CLIP_NORM = 0.25
VOCABULARY = 4_000  # with one number for every rarer word
WIDTH = 200
TRAINING_SEQUENCES, VALIDATION_SEQUENCES = 30_000, 400


class WordModel(nn.Module):
    """Embedding, two LSTM layers of 200 with dropout 0.2, and a linear decoder: 2,247,200 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.2)
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.lstm = nn.LSTM(WIDTH, WIDTH, num_layers=2, dropout=0.2, batch_first=True)
        self.decoder = nn.Linear(WIDTH, VOCABULARY)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        nn.init.uniform_(self.decoder.weight, -0.1, 0.1)
        nn.init.zeros_(self.decoder.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits N×L×V of words N×L."""
        h, _ = self.lstm(self.dropout(self.embedding(x)))
        out: Tensor = self.decoder(self.dropout(h))
        return out


def next_word_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy of the next word, in nats, over every place of every sequence."""
    return F.cross_entropy(output.flatten(0, 1), target.flatten())


def make() -> Workload:
    """Words of the standard library, whole files put aside for validation."""
    files = texts()
    order = torch.randperm(len(files), generator=torch.Generator().manual_seed(0)).tolist()
    wanted = (TRAINING_SEQUENCES + VALIDATION_SEQUENCES) * LENGTH + 1
    stream: list[str] = []
    for place in order:
        stream += words(files[place][1])
        if len(stream) >= wanted:
            break
    numbers = vocabulary(stream, VOCABULARY - 1)
    codes = torch.tensor([numbers.get(word, 0) for word in stream[:wanted]])
    x, y = codes[:-1].view(-1, LENGTH), codes[1:].view(-1, LENGTH)
    n = VALIDATION_SEQUENCES
    return Workload(
        model=WordModel,
        train=(x[:-n].clone(), y[:-n].clone()),
        validation=(x[-n:].clone(), y[-n:].clone()),
        loss=next_word_loss,
        optimizer=sgd,
        learning_rate=20.0,
        batch_size=20,
        clip_norm=CLIP_NORM,
        tokens_per_example=LENGTH,
        name="lstm",
    )


TASK = RealTask(
    name="lstm",
    make=make,
    target=-3.65,
    batch_size=20,
    learning_rate=20.0,
    batch_sizes=(4, 8, 20, 40, 80, 160, 320),
    expected_examples=12_000,
    expected_seconds=75.0,
    clip_norm=CLIP_NORM,
)
