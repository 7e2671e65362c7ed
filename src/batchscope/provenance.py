"""Where a number comes from: versions, machine, seed, and a fingerprint of the workload."""

from __future__ import annotations

import datetime
import functools
import hashlib
import importlib.metadata
import os
import platform
import re
import types
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from batchscope.records import Provenance
from batchscope.seeding import current_device, isolated
from batchscope.workload.batches import as_tensors, take
from batchscope.workload.workload import Examples, length

if TYPE_CHECKING:
    from batchscope.workload.workload import Workload

_fingerprints: weakref.WeakKeyDictionary[Workload, tuple[str, str]] = weakref.WeakKeyDictionary()
SAMPLE = 256
_PLAIN = (str, int, float, tuple, type(None))


def version() -> str:
    """This package's version; "unknown" where it runs from its sources without being installed."""
    try:
        return importlib.metadata.version("batchscope")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def available_cores() -> int:
    """Processor cores that this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def provenance(workload: Workload, *, device: torch.device, seed: int) -> Provenance:
    """Describe the software, the machine and the seed behind a result.

    Args:
        workload: What was trained.
        device: Where.
        seed: The seed.

    Returns:
        The description, to be stored with the result.
    """
    fingerprint_, dtype = _identify(workload)
    return Provenance(
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        batchscope=version(),
        python=platform.python_version(),
        torch=torch.__version__,
        numpy=importlib.metadata.version("numpy"),
        platform=platform.platform(),
        processor=processor(),
        cores=available_cores(),
        threads=torch.get_num_threads(),
        memory_bytes=memory_bytes(),
        device=_device(device),
        dtype=dtype,
        seed=seed,
        workload_fingerprint=fingerprint_,
    )


def fingerprint(workload: Workload) -> str:
    """A hash of what makes results comparable: model, data, loss, score, optimiser and reference.

    Two workloads of one fingerprint train to the same numbers on the same machine and software. Of the data, the
    shapes and 256 examples spread over each set are hashed; of the model, its initial weights, its modules, their
    settings and the compiled code of their ``forward``; of functions, their compiled code, but not that of what they
    call. What resumes asks :func:`data_fingerprint` too.

    Args:
        workload: What is trained.

    Returns:
        16 hexadecimal digits.
    """
    return _identify(workload)[0]


def data_fingerprint(workload: Workload) -> str:
    """A hash of the training and the validation examples, to tell whether they have changed.

    Of tensors every byte counts, at about a gigabyte a second. Of a Dataset, whose examples may take their time, its
    length and 256 examples spread over it do: a change of the others is not seen.

    Args:
        workload: Whose data.

    Returns:
        16 hexadecimal digits.
    """
    digest = hashlib.blake2b(digest_size=8)
    for examples in (workload.train, workload.validation):
        tensors = as_tensors(examples)
        if tensors is None:
            _add_examples(digest, examples, workload, SAMPLE)
        for tensor in tensors or ():
            _add(digest, tensor)
    return digest.hexdigest()


def _identify(workload: Workload) -> tuple[str, str]:
    if workload in _fingerprints:
        return _fingerprints[workload]
    digest = hashlib.blake2b(digest_size=8)
    with isolated(0, current_device()):
        model = workload.model()
        optimizer = workload.optimizer_for(model, workload.learning_rate)
        for name, value in model.state_dict().items():
            _add(digest, name)
            _add(digest, value)
        for examples in (workload.train, workload.validation):
            _add_examples(digest, examples, workload)
    for part in (
        _repr(model),
        *map(_settings, model.modules()),
        type(model).__qualname__,
        type(optimizer).__qualname__,
    ):
        _add(digest, part)
    for group in optimizer.param_groups:
        plain = {key: value for key, value in group.items() if key != "params"}
        _add(digest, (len(group["params"]), *sorted(map(_repr, plain.items()))))
    kinds = {type(module).__qualname__: type(module) for module in model.modules()}
    forwards = [kind.forward for kind in kinds.values() if not kind.__module__.startswith("torch.")]
    for function in (workload.loss, workload.score, workload.forward, workload.collate, *forwards):
        _add(digest, _code(function))
    _add(digest, (workload.batch_size, float(workload.learning_rate)))
    for option in workload.options.items():  # those that were left out add nothing, so that older fingerprints hold
        _add(digest, option)
    dtypes = sorted({str(parameter.dtype).removeprefix("torch.") for parameter in model.parameters()})
    _fingerprints[workload] = digest.hexdigest(), ", ".join(dtypes)
    return _fingerprints[workload]


def _add_examples(digest: Any, examples: Examples, workload: Workload, most: int | None = None) -> None:
    count = length(examples)
    _add(digest, count)
    tensors = as_tensors(examples)
    # A Dataset may take its time for each example, tensors do not.
    wanted = most or (SAMPLE if tensors is not None else 8)
    indices = sorted({round(i * (count - 1) / max(1, wanted - 1)) for i in range(wanted)})
    with isolated(0, current_device()):
        _add(digest, take(examples, indices, workload.collate))
    for tensor in tensors or ():
        _add(digest, tuple(tensor.shape))


def _add(digest: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        _add(digest, (str(value.dtype), tuple(value.shape)))
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    elif isinstance(value, dict):
        for key, item in value.items():
            _add(digest, key)
            _add(digest, item)
    elif isinstance(value, (tuple, list)) and any(isinstance(item, (torch.Tensor, dict, list)) for item in value):
        for item in value:
            _add(digest, item)
    else:
        digest.update(repr(value).encode() if isinstance(value, (str, int, float, tuple, list)) else b"?")


def _code(function: object) -> str:
    """What a function does, as far as its own compiled code, its defaults and the plain values it closes over tell."""
    if isinstance(function, functools.partial):
        return f"{_code(function.func)} {_repr(function.args)} {_repr(sorted(function.keywords.items()))}"
    if isinstance(function, types.CodeType):
        constants = [
            _code(value)
            if isinstance(value, types.CodeType)
            else sorted(map(_repr, value))
            if isinstance(value, frozenset)
            else _repr(value)
            for value in function.co_consts
        ]
        return f"{function.co_code.hex()} {function.co_names} {constants}"
    code = getattr(function, "__code__", None)
    name = getattr(function, "__qualname__", type(function).__qualname__)
    if code is None:
        methods = [getattr(type(function), method, None) for method in ("__call__", "forward")]
        codes = [_code(method) for method in methods if hasattr(method, "__code__")]
        return f"{name} {_repr(function)} {_settings(function)} {codes}"
    closed = [_cell(cell) for cell in getattr(function, "__closure__", None) or ()]
    return f"{name} {_code(code)} {_repr(getattr(function, '__defaults__', None))} {closed}"


def _cell(cell: types.CellType) -> str:
    try:
        value = cell.cell_contents
    except ValueError:  # empty yet
        return ""
    return _repr(value) if isinstance(value, _PLAIN) else type(value).__qualname__


def _settings(value: object) -> str:
    """The plain attributes of an object, such as a loss module's label smoothing."""
    return _repr(sorted((k, v) for k, v in getattr(value, "__dict__", {}).items() if isinstance(v, _PLAIN)))


def _repr(value: object) -> str:
    """The ``repr`` without addresses, which differ from process to process."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


@functools.cache
def processor() -> str:
    """The processor's name, or else its architecture."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def memory_bytes() -> int | None:
    """Physical memory; None where it cannot be read."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _device(device: torch.device) -> str:
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
