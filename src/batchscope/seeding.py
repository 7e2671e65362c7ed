"""Random streams: named, derived from one seed, and never leaking into the person's own random state."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


def derive(seed: int, *names: object) -> int:
    """A seed for one named stream, independent of the streams of every other name.

    Args:
        seed: The seed that a person chose.
        *names: What the stream is for, as in ``derive(0, "order", epoch)``.

    Returns:
        A whole number below 2**63, the same on every machine.

    Examples:
        >>> derive(0, "order", 1) == derive(0, "order", 1), derive(0, "order", 1) == derive(0, "order", 2)
        (True, False)
    """
    digest = hashlib.blake2b(repr((seed, *names)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def current_device() -> torch.device | None:
    """The CUDA device whose generator a person's own code may draw from; None where there is no CUDA."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else None


def random_state(device: torch.device | None = None) -> dict[str, Any]:
    """The state of every generator that a model or a Dataset may draw from: torch's, CUDA's, Python's and numpy's."""
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002 — it is the person's global state that has to be kept
    }
    if device is not None and device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Any], device: torch.device | None = None) -> None:
    """Put back what :func:`random_state` returned."""
    torch.set_rng_state(state["torch"])
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    if device is not None and device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


@contextlib.contextmanager
def isolated(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Seed every global generator inside the block, and put the person's state back after it.

    Args:
        seed: Seed for torch (and CUDA, where the device is one), Python and numpy.
        device: The device whose generator is used besides the CPU's.

    Yields:
        Nothing.

    Examples:
        >>> before = torch.get_rng_state()
        >>> with isolated(0):
        ...     x = torch.rand(1)
        >>> bool((torch.get_rng_state() == before).all())
        True
    """
    state = random_state(device)
    torch.default_generator.manual_seed(seed)
    if device is not None and device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    try:
        yield
    finally:
        set_random_state(state, device)
