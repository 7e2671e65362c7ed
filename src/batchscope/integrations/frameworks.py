"""Frameworks that are there and new enough, or an error that says what to install."""

from __future__ import annotations

import importlib.metadata
import re
import sys
from types import ModuleType

from batchscope.errors import MissingPackageError, require

# The oldest release of each that the tests of its file were written for; pyproject.toml has the same bounds.
AT_LEAST = {
    "accelerate": "1.2",
    "lightning": "2.4",
    "pytorch-lightning": "2.4",
    "skorch": "1.1",
    "transformers": "4.46",
}


def framework(
    package: str, purpose: str, *, module: str | None = None, extra: str | None = None, at_least: str | None = None
) -> ModuleType:
    """Import a framework.

    Args:
        package: What it is called where packages are installed from.
        purpose: What it is needed for, as in "follow a Trainer".
        module: What to import of it; None: the package's own name.
        extra: The extra of ours that installs it; None: the package's own name.
        at_least: The oldest release that will do; None: the oldest that anything here was written for.

    Returns:
        The module.

    Raises:
        MissingPackageError: It is not installed, or older than what is needed.

    Examples:
        >>> framework("skorch", "read a net").__name__
        'skorch'
    """
    needed, install = at_least or AT_LEAST[package], f"batchscope[{extra or package}]"
    version = _installed(package)
    if version is not None and _numbers(version) < _numbers(needed):
        raise MissingPackageError(
            f"{package} {needed} or newer is needed to {purpose}",
            got=version,
            mend=f"run: pip install --upgrade '{install}'",
        )
    return require(module or package, f"{purpose} ({package} {needed} or newer)", install)


def lightning() -> ModuleType:
    """Import Lightning under the name that the person has imported already, of the two that it goes by.

    Returns:
        ``lightning.pytorch``, or ``pytorch_lightning``.

    Raises:
        MissingPackageError: Neither is installed, or it is too old.

    Examples:
        >>> lightning().LightningModule.__name__
        'LightningModule'
    """
    purpose = "follow a Lightning Trainer"
    alone = "pytorch_lightning" in sys.modules and "lightning.pytorch" not in sys.modules
    if alone or (not _installed("lightning") and _installed("pytorch-lightning")):
        return framework("pytorch-lightning", purpose, module="pytorch_lightning", extra="lightning")
    return framework("lightning", purpose, module="lightning.pytorch")


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    """The first two numbers of a version, which is as many as the bounds have."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])
