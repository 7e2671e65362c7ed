"""Text, character by character, on a small transformer: by default the Python standard library's own sources."""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from batchscope.errors import DataError
from batchscope.workload import optimizers
from batchscope.workload.scores import accuracy
from batchscope.workload.workload import Workload

CONTEXT = 64
VOCABULARY = 97  # newline, the 95 printable characters of ASCII, and one for every other
MAX_CHARACTERS = 4_000_000
VALIDATION_WINDOWS = 1_024
MIN_CHARACTERS = 5_000  # one batch to train on, and a few windows to validate

_VALIDATION_SHARE = 0.1
# Tests, packages that are not the library, and modules that are tables rather than programs.
_SKIPPED_FOLDERS = frozenset(
    ["test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "__pycache__", "encodings", "pydoc_data"]
)


class CharacterTransformer(nn.Module):
    """A causal transformer: 2 layers of width 64 with 4 heads, learned positions: 116,705 parameters.

    Blocks normalise before attention and before the perceptron (Radford et al. 2019); there is no dropout.
    """

    def __init__(self) -> None:
        super().__init__()
        self.characters = nn.Embedding(VOCABULARY, 64)
        self.positions = nn.Parameter(0.02 * torch.randn(CONTEXT, 64))
        self.blocks = nn.Sequential(TransformerBlock(64, 4), TransformerBlock(64, 4))
        self.norm = nn.LayerNorm(64)
        self.output = nn.Linear(64, VOCABULARY)
        nn.init.normal_(self.characters.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Logits N×L×97 for the character after each of N×L."""
        h = self.characters(x) + self.positions[: x.shape[1]]
        out: Tensor = self.output(self.norm(self.blocks(h)))
        return out


class TransformerBlock(nn.Module):
    """Causal self-attention and a perceptron of four times the width, each added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.attention = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Features N×L×width, each from its own place and those before."""
        n, length, width = x.shape
        qkv = self.attention(self.norm1(x)).view(n, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.projection(mixed.transpose(1, 2).reshape(n, length, width))
        out: Tensor = x + self.contract(F.gelu(self.expand(self.norm2(x))))
        return out


def next_character_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy of the next character, in nats, over every place of every window.

    Args:
        output: Logits, N×L×V.
        target: Characters, int64, N×L.

    Returns:
        A scalar.
    """
    return F.cross_entropy(output.flatten(0, 1), target.flatten())


def text(path: str | os.PathLike[str] | None = None) -> Workload:
    """Text in windows of 64 characters, the next character to be predicted at each place, by a transformer.

    Of a folder, whole files are put aside for validation, a tenth of the characters, in an order that depends on
    their names alone; of a single file, its last tenth. At most 4 million characters are read, and at most 1,024
    windows validate. By default it is the standard library's sources without its tests: every machine has them, but
    they differ from one version of Python to the next, and so do the losses. The learning rate is the best of a
    factor-2 grid at batch size 32 and 1,000 updates, by validation loss.

    Args:
        path: A text file, or a folder (files in it that are not UTF-8 text are left out). None: the Python standard
            library.

    Returns:
        The workload, named "text" or after the path, with next-character accuracy as its score.

    Raises:
        DataError: There is no such path, or it holds fewer than 5,000 characters of text.
    """
    (x, y), validation = _windows(path)
    return Workload(
        model=CharacterTransformer,
        train=(x, y),
        validation=validation,
        loss=next_character_loss,
        score=accuracy,
        optimizer=optimizers.adamw,
        learning_rate=4e-3,
        batch_size=32,
        tokens_per_example=CONTEXT,
        name="text" if path is None else f"text ({Path(path).expanduser().resolve().name})",
    )


def encode(characters: str) -> Tensor:
    r"""Characters as numbers: 0 for newline, 1 to 95 for the printable ASCII in order, 96 for every other.

    Args:
        characters: Any text.

    Returns:
        int64, one number a character.

    Examples:
        >>> encode("\n ~é").tolist()
        [0, 1, 95, 96]
    """
    codes = np.frombuffer(characters.encode("utf-32-le", "surrogatepass"), "<u4")
    table = np.full(128, VOCABULARY - 1, np.int64)
    table[10] = 0
    table[32:127] = np.arange(1, 96)
    return torch.from_numpy(np.where(codes < 128, table[np.minimum(codes, 127)], VOCABULARY - 1))


def standard_library() -> Path:
    """The folder of the running Python's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def _windows(path: str | os.PathLike[str] | None) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    source = standard_library() if path is None else Path(path).expanduser()
    suffix = ".py" if path is None else ""
    texts = _folder_texts(source, suffix) if source.is_dir() else [_file_text(source)]
    total = sum(map(len, texts))
    if total < MIN_CHARACTERS:
        raise DataError(
            f"text must hold at least {MIN_CHARACTERS:,} characters",
            got=f"{total:,} in {source}",
            mend="give a longer text file, or a folder of them",
        )
    aside: list[str] = []
    kept: list[str] = []
    for content in texts:
        fits = sum(map(len, aside)) + len(content) <= _VALIDATION_SHARE * total
        (aside if fits else kept).append(content)
    training, validation = "\n".join(kept), "\n".join(aside)
    if len(validation) < _VALIDATION_SHARE * total / 2:  # a single file, or one that outweighs the others
        whole = "\n".join(texts)
        cut = int(len(whole) * (1 - _VALIDATION_SHARE))
        training, validation = whole[:cut], whole[cut:]
    x, y = _cut(encode(validation))
    every = max(1, len(x) // VALIDATION_WINDOWS)
    return _cut(encode(training)), (x[::every][:VALIDATION_WINDOWS].clone(), y[::every][:VALIDATION_WINDOWS].clone())


def _cut(codes: Tensor) -> tuple[Tensor, Tensor]:
    """Windows that do not overlap, and the same moved on by one character."""
    n = (len(codes) - 1) // CONTEXT
    return codes[: n * CONTEXT].view(n, CONTEXT).clone(), codes[1 : n * CONTEXT + 1].view(n, CONTEXT).clone()


def _folder_texts(folder: Path, suffix: str) -> list[str]:
    """The texts of a folder's files, in the order of their names' hashes, so that the first ones are a fair sample."""
    found: list[str] = []
    room = MAX_CHARACTERS
    for path in sorted(_files(folder, suffix), key=lambda p: _hash(p.relative_to(folder).as_posix())):
        try:
            content = _read(path, room, "strict")
        except (OSError, UnicodeDecodeError):
            continue
        if content and "\0" not in content:
            found.append(content)
            room -= len(content)
            if room <= 0:
                break
    return found


def _files(folder: Path, suffix: str) -> Iterator[Path]:
    for where, folders, names in os.walk(folder):
        folders[:] = [f for f in folders if not f.startswith(".") and not (suffix and f in _SKIPPED_FOLDERS)]
        for name in names:
            if name.endswith(suffix) and not name.startswith(".") and (Path(where) / name).is_file():
                yield Path(where) / name


def _hash(name: str) -> str:
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def _file_text(path: Path) -> str:
    try:
        content = _read(path, MAX_CHARACTERS, "replace")
    except OSError as error:
        raise DataError(
            "the text must be a file or a folder that can be read",
            got=f"{path} ({error.strerror or error})",
            mend="check the path, or leave it out for the Python standard library",
        ) from error
    if "\0" in content:
        raise DataError("the text must be a text file", got=f"{path}, which holds zero bytes", mend="give plain text")
    return content


def _read(path: Path, characters: int, errors: str) -> str:
    with open(path, encoding="utf-8", errors=errors) as stream:
        return stream.read(characters)
