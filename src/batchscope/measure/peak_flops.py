"""What devices can compute at most, as their makers publish it."""

from __future__ import annotations

import torch

# Dense operations a second, from NVIDIA's data sheets of each product (where those are given "with sparsity", half of
# them): single precision; TF32 on tensor cores; half precision (bfloat16 or float16) on tensor cores.
_PEAKS: dict[str, tuple[float, float, float]] = {
    "H200": (67e12, 494.5e12, 989e12),
    "H100 PCIe": (51e12, 378e12, 756e12),
    "H100": (67e12, 494.5e12, 989e12),
    "A100": (19.5e12, 156e12, 312e12),
    "L40S": (91.6e12, 183e12, 362e12),
    "L4": (30.3e12, 60e12, 121e12),
    "V100": (15.7e12, 15.7e12, 125e12),
    "T4": (8.1e12, 8.1e12, 65e12),
}


def peak_flops_per_second(device: torch.device, dtype: torch.dtype) -> float | None:
    """Most floating-point operations a second that a device is said to compute at a precision.

    Args:
        device: Where a model computes.
        dtype: Of its parameters. In single precision TF32 counts where torch is allowed to use it.

    Returns:
        The published figure; None for CPUs, whose clock depends on what they do, and for devices not in the table.

    Examples:
        >>> peak_flops_per_second(torch.device("cpu"), torch.float32) is None
        True
    """
    if device.type != "cuda":
        return None
    return peak_of(torch.cuda.get_device_name(device), dtype, tf32=torch.backends.cuda.matmul.allow_tf32)


def peak_of(name: str, dtype: torch.dtype, *, tf32: bool) -> float | None:
    """The figure by a device's name, as torch tells it.

    Args:
        name: Of the device.
        dtype: Of the parameters.
        tf32: Whether single precision may be rounded for tensor cores.

    Examples:
        >>> peak_of("NVIDIA A100-SXM4-80GB", torch.bfloat16, tf32=False)
        312000000000000.0
        >>> peak_of("NVIDIA L40S", torch.float32, tf32=True), peak_of("Tesla T4", torch.float64, tf32=False)
        (183000000000000.0, None)
    """
    words = name.replace("-", " ").split()
    known = next((peaks for product, peaks in _PEAKS.items() if set(product.split()) <= set(words)), None)
    if known is None:
        return None
    single, tensor, half = known
    if dtype == torch.float32:
        return tensor if tf32 else single
    return half if dtype in (torch.bfloat16, torch.float16) else None
