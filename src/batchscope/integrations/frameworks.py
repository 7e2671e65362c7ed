"""Import of frameworks, with an error that says what to install."""

from __future__ import annotations

import importlib.metadata
import re
import sys
from types import ModuleType

from batchscope.errors import MissingPackageError, require

# Oldest supported releases, as in pyproject.toml.
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
        package: Name of the package.
        purpose: What it is needed for, for example "follow a Trainer".
        module: Module to import; None: the package's name.
        extra: Extra of batchscope that installs it; None: the package's name.
        at_least: Oldest release; None: the oldest supported one.

    Returns:
        The module.

    Raises:
        MissingPackageError: It is not installed, or too old.

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
    """Import Lightning under that of its two names which is imported already.

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
    """The first two numbers of a version."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])
