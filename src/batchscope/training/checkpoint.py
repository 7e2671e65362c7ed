"""Checkpoints: one safetensors file, with everything that is no tensor as JSON in its header.

One file, so that it is replaced in one step: a crash leaves the old checkpoint or the new one. A checksum over all of
it tells a damaged one. Nothing in it is pickled, so one from a stranger can be read without running anything.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from batchscope.errors import ArgumentError, StorageError, require
from batchscope.records import CurvePoint, Schedule, decode, encode, write_atomically
from batchscope.seeding import random_state
from batchscope.training.averaging import WeightAverage
from batchscope.training.early_stopping import BestSoFar
from batchscope.training.observer import Observer

SCHEMA = 2


@dataclass
class Progress:
    """Where a run stands, apart from weights, optimiser and random state.

    Attributes:
        iterations: Batches trained on, those of skipped updates among them.
        examples: Examples seen.
        seconds: Training time.
        data_seconds: Of which getting batches.
        evaluation_seconds: Time off the clock.
        total_seconds: Everything, until the last save.
        losses: Losses of the updates since the last evaluation.
        curve: Evaluations so far.
        micro_batch_size: Examples at once since memory ran out; None: it has not.
        schedule: The batch sizes so far, where they grow by measurement; None: they are the plan's.
        growth_votes: Decisions in a row for larger batches, or below 0 for smaller ones.
        evaluation_due: Whether it stands before an evaluation that was not made any more.
        skipped: Updates that the scaler of a run in half precision skipped.
        skipped_in_a_row: The latest of them, since the last update that was made.
        compile_seconds: Seconds of compilation, which are in none of the others but the total.
    """

    iterations: int = 0
    examples: int = 0
    seconds: float = 0.0
    data_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    total_seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    curve: list[CurvePoint] = field(default_factory=list)
    micro_batch_size: int | None = None
    schedule: Schedule | None = None
    growth_votes: int = 0
    evaluation_due: bool = False
    skipped: int = 0
    skipped_in_a_row: int = 0
    compile_seconds: float = 0.0

    @property
    def updates(self) -> int:
        """Updates made, which have changed weights."""
        return self.iterations - self.skipped


def save(
    path: Path,
    *,
    identity: dict[str, Any],
    progress: Progress,
    best: BestSoFar,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    observer: Observer | None = None,
    average: WeightAverage | None = None,
    scaler: GradScaler | None = None,
    other_ranks: Sequence[dict[str, Any]] = (),
) -> None:
    """Write a checkpoint, all of it or nothing.

    Args:
        path: The file.
        identity: What makes the run this run: plan, seed, workload. A checkpoint is resumed only where it is equal.
        progress: Where the run stands.
        best: The best evaluation so far.
        model: Its weights and buffers are written.
        optimizer: Its state and settings are written.
        device: Whose random state is written besides the CPU's.
        observer: What watches the run, if anything; its state is written.
        average: Of the weights, if there is one; likewise.
        scaler: Of a run in half precision; likewise.
        other_ranks: The random states of the ranks after the first.

    Raises:
        StorageError: The disk is full, or the place cannot be written.
        MissingPackageError: safetensors is not installed.
    """
    safetensors = require("safetensors.torch", "write a checkpoint", "safetensors")
    tensors: dict[str, Tensor] = {}
    header = {
        "schema": SCHEMA,
        "identity": identity,
        "progress": encode(progress),
        "best": {key: encode(getattr(best, key)) for key in _BEST_FIELDS},
        "model": _flatten(model.state_dict(), "model", tensors),
        "best_state": None if best.state is None else _flatten(best.state, "best", tensors),
        "optimizer": _flatten(optimizer.state_dict(), "optimizer", tensors),
        "random": _flatten(_random_as_plain(random_state(device)), "random", tensors),
        "other_ranks": _flatten([_random_as_plain(state) for state in other_ranks], "other_ranks", tensors),
        "observer": None if observer is None else _flatten(observer.state_dict(), "observer", tensors),
        "average": None if average is None else _flatten(average.state_dict(), "average", tensors),
        "scaler": None if scaler is None else scaler.state_dict(),
    }
    text, owned = json.dumps(header), _owned(tensors)
    metadata = {"batchscope": text, "crc32": str(_checksum(text, owned))}
    write_atomically(path, safetensors.save(owned, metadata=metadata))


def save_weights(path: Path, state: dict[str, Any]) -> None:
    """Write a state dict's tensors as a safetensors file, all of it or nothing.

    Args:
        path: The file.
        state: As ``TrainResult.state``.

    Raises:
        StorageError: The disk is full, or the place cannot be written.
        MissingPackageError: safetensors is not installed.
    """
    safetensors = require("safetensors.torch", "write weights", "safetensors")
    write_atomically(path, safetensors.save(_owned({k: v for k, v in state.items() if isinstance(v, Tensor)})))


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, as :func:`save_weights` writes it.

    Args:
        path: The file.

    Returns:
        A state dict on the CPU.

    Raises:
        ArgumentError: There is no such file, or it is no safetensors file.
        MissingPackageError: safetensors is not installed.
    """
    safetensors = require("safetensors.torch", "read weights", "safetensors")
    try:
        found: dict[str, Tensor] = safetensors.load(path.read_bytes())
    except OSError as error:
        raise ArgumentError("weights must be a file that can be read", got=f"{path}: {error.strerror}") from error
    except Exception as error:
        raise ArgumentError(
            "weights must be a safetensors file", got=str(path), mend="write them with batchscope train --weights"
        ) from error
    return found


def _owned(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU: tied weights share memory, which the format refuses."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def _checksum(text: str, tensors: dict[str, Tensor]) -> int:
    checksum = zlib.crc32(text.encode())
    for name in sorted(tensors):
        checksum = zlib.crc32(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode(), checksum)
        checksum = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, checksum)
    return checksum


_BEST_FIELDS = ("score", "loss", "examples", "waited", "reference")


def restore(
    path: Path,
    *,
    identity: dict[str, Any],
    best: BestSoFar,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    observer: Observer | None = None,
    average: WeightAverage | None = None,
    scaler: GradScaler | None = None,
    rank: int = 0,
) -> tuple[Progress, dict[str, Any] | None]:
    """Read a checkpoint into a run's own model, optimiser and best evaluation.

    Args:
        path: The file.
        identity: As for :func:`save`.
        best: Filled in.
        model: Filled in.
        optimizer: Filled in.
        observer: Filled in, where the checkpoint has one's state.
        average: Filled in likewise.
        scaler: Filled in likewise.
        rank: Whose random state is wanted.

    Returns:
        Where the run stands, and the random state to go on from; None where there was no such rank.

    Raises:
        StorageError: The file is damaged, no checkpoint, or one of another run.
        MissingPackageError: safetensors is not installed.
    """
    safetensors = require("safetensors", "read a checkpoint", "safetensors")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            text = metadata["batchscope"]
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 — it is no dict
        if metadata["crc32"] != str(_checksum(text, tensors)):
            raise ValueError("its checksum is wrong")
        header = json.loads(text)
        if header["schema"] != SCHEMA:
            raise ValueError(f"schema {header['schema']}")
        theirs = dict(header["identity"])
    except Exception as error:
        raise StorageError(
            "the checkpoint must be whole, and one that this release wrote",
            got=f"{path} ({type(error).__name__}: {error})",
            mend="remove it to start afresh",
        ) from error
    if differing := [key for key in identity if identity[key] != theirs.get(key)]:
        raise StorageError(
            "a checkpoint can only be resumed with the workload, plan and seed that it was made with",
            got=f"{path}, whose {', '.join(differing)} differ",
            mend="give those, or another checkpoint path",
        )
    model.load_state_dict(_unflatten(header["model"], tensors))
    state = _unflatten(header["optimizer"], tensors)
    # JSON keys are text and its lists are lists; torch wants whole numbers and, for betas, tuples.
    state["state"] = {int(key): value for key, value in state["state"].items()}
    for group, fresh in zip(state["param_groups"], optimizer.state_dict()["param_groups"], strict=True):
        for key, value in fresh.items():
            if isinstance(value, tuple) and isinstance(group.get(key), list):
                group[key] = tuple(group[key])
    optimizer.load_state_dict(state)
    # torch casts what it loads to the type of the parameter, where the optimiser may have kept another.
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, saved in state["state"].items():
        held = optimizer.state[parameters[index]]
        for key, value in saved.items():
            if isinstance(value, Tensor) and held[key].dtype != value.dtype:
                held[key] = value.to(held[key].device)
    for key in _BEST_FIELDS:
        setattr(best, key, float("-inf") if header["best"][key] == "-Infinity" else header["best"][key])
    if header["best_state"] is not None:
        device = next(model.parameters()).device
        best.state = {
            key: value.to(device) if isinstance(value, Tensor) else value
            for key, value in _unflatten(header["best_state"], tensors).items()
        }
    if observer is not None and header["observer"] is not None:
        observer.load_state_dict(_unflatten(header["observer"], tensors))
    if average is not None and header["average"] is not None:
        average.load_state_dict(_unflatten(header["average"], tensors))
    if scaler is not None and header.get("scaler") is not None:
        scaler.load_state_dict(header["scaler"])
    states = [header["random"], *header.get("other_ranks", ())]
    random = _random_from_plain(_unflatten(states[rank], tensors)) if rank < len(states) else None
    return decode(Progress, header["progress"], str(path)), random


def _flatten(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """A copy of a nested value fit for JSON, each tensor moved to ``tensors`` and its name left in its place."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": {str(key): _flatten(item, f"{name}.{key}", tensors) for key, item in value.items()}}
    if isinstance(value, (list, tuple)):
        return [_flatten(item, f"{name}.{i}", tensors) for i, item in enumerate(value)]
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise StorageError(
        "a checkpoint holds tensors and plain values",
        got=f"{name} of type {type(value).__name__}",
        mend="keep such state out of state_dict()",
    )


def _unflatten(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if "tensor" in value:
            return tensors[value["tensor"]]
        return {key: _unflatten(item, tensors) for key, item in value["dict"].items()}
    if isinstance(value, list):
        return [_unflatten(item, tensors) for item in value]
    return value


def _random_as_plain(state: dict[str, Any]) -> dict[str, Any]:
    name, keys, position, has_gauss, gauss = state["numpy"]
    plain = dict(state)
    plain["numpy"] = [name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss]
    return plain


def _random_from_plain(plain: dict[str, Any]) -> dict[str, Any]:
    version, internal, gauss_next = plain["python"]
    name, keys, position, has_gauss, gauss = plain["numpy"]
    return plain | {
        "python": (version, tuple(internal), gauss_next),
        "numpy": (name, keys.numpy().astype(np.uint32), position, has_gauss, gauss),
    }
