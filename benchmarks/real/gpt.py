"""A GPT of four layers on characters, with AdamW.

Sizes, batch size and rate are those that nanoGPT's README gives for a CPU (github.com/karpathy/nanoGPT): 4 layers of
4 heads, width 128, context 64, batch 12, rate 1e-3, no dropout.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from batchscope.workload import Workload
from batchscope.workload.scores import accuracy
from batchscope.workload.text import VOCABULARY, encode, next_character_loss
from real.sources import texts
from real.task import RealTask

CONTEXT, WIDTH, HEADS, LAYERS = 64, 128, 4, 4
TRAINING_WINDOWS, VALIDATION_WINDOWS = 40_000, 400


class Block(nn.Module):
    """Causal self-attention and a perceptron, each after a layer norm and added to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH)
        self.attention = nn.Linear(WIDTH, 3 * WIDTH)
        self.projection = nn.Linear(WIDTH, WIDTH)
        self.norm2 = nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """Features N×L×128."""
        n, length, _ = x.shape
        heads = self.attention(self.norm1(x)).view(n, length, 3, HEADS, WIDTH // HEADS)
        q, k, v = heads.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.projection(mixed.transpose(1, 2).reshape(n, length, WIDTH))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class GPT(nn.Module):
    """Embeddings of characters and places, four blocks, and a head that shares the characters' weights."""

    def __init__(self) -> None:
        super().__init__()
        self.characters = nn.Embedding(VOCABULARY, WIDTH)
        self.places = nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits N×L×V of characters N×L."""
        h = self.characters(x) + self.places(torch.arange(x.shape[1], device=x.device))
        return F.linear(self.norm(self.blocks(h)), self.characters.weight)


def adamw(parameters: Iterable[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    """AdamW with betas 0.9 and 0.95 and weight decay 0.1."""
    return torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.1)


def make() -> Workload:
    """Characters of the standard library, whole files put aside for validation."""
    files = texts()
    order = torch.randperm(len(files), generator=torch.Generator().manual_seed(0)).tolist()
    wanted = (TRAINING_WINDOWS + VALIDATION_WINDOWS) * CONTEXT + 1
    parts: list[str] = []
    while sum(map(len, parts)) < wanted:
        parts.append(files[order[len(parts)]][1])
    codes = encode("".join(parts))[:wanted]
    x, y = codes[:-1].view(-1, CONTEXT), codes[1:].view(-1, CONTEXT)
    n = VALIDATION_WINDOWS
    return Workload(
        model=GPT,
        train=(x[:-n].clone(), y[:-n].clone()),
        validation=(x[-n:].clone(), y[-n:].clone()),
        loss=next_character_loss,
        score=accuracy,
        optimizer=adamw,
        learning_rate=1e-3,
        batch_size=12,
        tokens_per_example=CONTEXT,
        name="gpt",
    )


TASK = RealTask(
    name="gpt",
    make=make,
    target=0.47,
    batch_size=12,
    learning_rate=1e-3,
    batch_sizes=(4, 8, 12, 24, 48, 96, 192),
    expected_examples=10_000,
    expected_seconds=80.0,
)
