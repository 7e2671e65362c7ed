"""Recognising that memory ran out, in every form in which torch says so."""

from __future__ import annotations

import errno

import torch

# In lower case. Left out on purpose, since they mean other things as often: cuDNN's NOT_SUPPORTED and oneDNN's "could
# not create a primitive", a worker "out of shared memory", and Triton's "out of resource".
_PHRASES = (
    "out of memory",  # CUDA, HIP, MPS, XPU: "CUDA out of memory", "CUDA error: out of memory" …
    "erroroutofmemory",  # hipErrorOutOfMemory
    "errormemoryallocation",  # cudaErrorMemoryAllocation
    "out_of_device_memory",  # XPU: UR_RESULT_ERROR_…
    "out_of_host_memory",
    "alloc_failed",  # CUBLAS_STATUS_…, CUDNN_STATUS_…, CUFFT_, CUSOLVER_STATUS_…, HIPBLAS_STATUS_…
    "statusallocfailed",  # miopenStatusAllocFailed
    "rocblas_status_memory_error",
    "unable to find an engine to execute",  # cuDNN, when no algorithm's work space fits
    "unable to find a valid cudnn algorithm",
    "not_initialized when calling `cublascreate",  # cuBLAS finds no room for its handle
    "invalid buffer size",  # MPS
    "defaultcpuallocator",
    "can't allocate memory",
    "cannot allocate memory",
    "could not create a memory",  # oneDNN
    "mkldnn_memory",
    "std::bad_alloc",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on a GPU or on the host.

    Args:
        error: Anything raised by a training step.

    Returns:
        True for torch's own type, Python's MemoryError (numpy's is one), the system's ENOMEM, and the messages of CUDA,
        cuBLAS, cuDNN, HIP, MPS, XPU, oneDNN and torch's CPU allocator, which come as plain RuntimeErrors; and for an
        error that was raised from one of these, or while one was handled.

    Examples:
        >>> is_out_of_memory(RuntimeError("CUDA error: out of memory")), is_out_of_memory(RuntimeError("shape"))
        (True, False)
    """
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        if isinstance(link, (MemoryError, torch.OutOfMemoryError)):
            return True
        if isinstance(link, OSError) and link.errno == errno.ENOMEM:
            return True
        if isinstance(link, RuntimeError) and any(phrase in str(link).lower() for phrase in _PHRASES):
            return True
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return False
