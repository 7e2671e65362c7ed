"""Scores of the built-in workloads: ``score(output, target)``, higher is better."""

from __future__ import annotations

from torch import Tensor


def accuracy(output: Tensor, target: Tensor) -> Tensor:
    """Fraction of targets whose class has the largest output.

    Args:
        output: Logits, N×C, or N×L×C for one class at each of L places.
        target: Classes, int64, N or N×L.

    Returns:
        A scalar tensor between 0 and 1, left on its device so that nothing waits for it.

    Examples:
        >>> import torch
        >>> accuracy(torch.eye(4), torch.tensor([0, 1, 2, 0])).item()
        0.75
    """
    return (output.argmax(-1) == target).double().mean()
