"""What a shell offers for a word that has been begun."""

from __future__ import annotations

# As in workload/catalogue.py, which imports torch: too slow to be asked for at each press of a key.
WORKLOADS = ("digits", "fashion", "fashion-mlp", "cifar10", "text", "quadratic")


def workloads(incomplete: str) -> list[str]:
    """The built-in workloads that begin so; with none, shells go on to offer files.

    Examples:
        >>> workloads("fash"), workloads("my/file.py")
        (['fashion', 'fashion-mlp'], [])
    """
    return [name for name in WORKLOADS if name.startswith(incomplete)]
