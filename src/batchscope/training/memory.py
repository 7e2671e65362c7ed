"""Recognising that memory ran out, in every form in which torch says so."""

from __future__ import annotations

import torch

_PHRASES = (
    "out of memory",
    "defaultcpuallocator",
    "can't allocate memory",
    "cannot allocate memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "unable to find an engine to execute",
    "mkldnn_memory",
    "std::bad_alloc",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on a GPU or on the host.

    Args:
        error: Anything raised by a training step.

    Returns:
        True for torch's own type, Python's MemoryError, and the messages of CUDA, cuBLAS, cuDNN, oneDNN and torch's
        CPU allocator, which come as plain RuntimeErrors.

    Examples:
        >>> is_out_of_memory(RuntimeError("CUDA error: out of memory")), is_out_of_memory(RuntimeError("shape"))
        (True, False)
    """
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error).lower() for phrase in _PHRASES)
