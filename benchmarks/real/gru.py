"""A GRU that says which package of the standard library up to 40 words come from; SGD with Nesterov's momentum."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from batchscope.workload import Workload
from batchscope.workload.scores import accuracy
from real.sources import texts, vocabulary, words
from real.task import RealTask

LENGTH, SHORTEST = 40, 10
CLASSES = 20
VOCABULARY = 5_000  # with 0 for padding and 1 for every rarer word
EMBEDDING, WIDTH = 64, 128
TRAINING_SNIPPETS, VALIDATION_SNIPPETS = 60_000, 1_000
PIECE = 200  # words; a package's text is cut into such, and a tenth of them validate
VALIDATION_SHARE = 0.1


class Classifier(nn.Module):
    """Embedding of 64, a GRU of 128, dropout, and a linear layer on the state after the last word."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, EMBEDDING, padding_idx=0)
        self.gru = nn.GRU(EMBEDDING, WIDTH, batch_first=True)
        self.dropout = nn.Dropout(0.2)
        self.output = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits N×20 of words N×40, padded with 0 at the end."""
        states, _ = self.gru(self.embedding(x))
        last = (x != 0).sum(1) - 1
        out: Tensor = self.output(self.dropout(states[torch.arange(len(x), device=x.device), last]))
        return out


def nesterov(parameters: Iterable[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    """SGD with Nesterov's momentum, 0.9."""
    return torch.optim.SGD(parameters, lr=learning_rate, momentum=0.9, nesterov=True)


def make() -> Workload:
    """Snippets of the 20 largest packages and modules, as many of each, some pieces put aside for validation."""
    by_package: defaultdict[str, list[str]] = defaultdict(list)
    for path, text in texts():
        by_package[path.partition("/")[0]] += words(text)
    packages = sorted(by_package, key=lambda name: (-len(by_package[name]), name))[:CLASSES]
    numbers = vocabulary((word for name in packages for word in by_package[name]), VOCABULARY - 2, first=2)
    generator = torch.Generator().manual_seed(0)
    train, validation = [], []
    for label, name in enumerate(packages):
        codes = torch.tensor([numbers.get(word, 1) for word in by_package[name]])
        pieces = codes[: len(codes) // PIECE * PIECE].view(-1, PIECE)
        pieces = pieces[torch.randperm(len(pieces), generator=generator)]
        cut = int(len(pieces) * (1 - VALIDATION_SHARE))
        train.append(_snippets(pieces[:cut], TRAINING_SNIPPETS // CLASSES, label, generator))
        validation.append(_snippets(pieces[cut:], VALIDATION_SNIPPETS // CLASSES, label, generator))
    return Workload(
        model=Classifier,
        train=(torch.cat([x for x, _ in train]), torch.cat([y for _, y in train])),
        validation=(torch.cat([x for x, _ in validation]), torch.cat([y for _, y in validation])),
        loss=F.cross_entropy,
        score=accuracy,
        optimizer=nesterov,
        learning_rate=0.1,
        batch_size=32,
        name="gru",
    )


def _snippets(pieces: Tensor, count: int, label: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Runs of 10 to 40 words from random places within the pieces, padded with 0."""
    rows = torch.randint(len(pieces), (count, 1), generator=generator)
    starts = torch.randint(PIECE - LENGTH, (count, 1), generator=generator)
    lengths = torch.randint(SHORTEST, LENGTH + 1, (count, 1), generator=generator)
    places = torch.arange(LENGTH)
    return pieces[rows, starts + places] * (places < lengths), torch.full((count,), label)


TASK = RealTask(
    name="gru",
    make=make,
    target=0.57,
    batch_size=32,
    learning_rate=0.1,
    batch_sizes=(8, 16, 32, 64, 128, 256, 512, 1024),
    expected_examples=60_000,
    expected_seconds=32.0,
)
