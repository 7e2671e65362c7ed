"""The built-in workloads, and the sources of their data."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType

from batchscope.errors import WorkloadError
from batchscope.workload import cifar10, digits, fashion, files, quadratic, text
from batchscope.workload.workload import Workload


@dataclass(frozen=True)
class _Facts:
    """What is known of a built-in workload without its data.

    Attributes:
        description: Description in one line.
        source: Source of the data.
        training_examples: Number of training examples; None if it depends on this machine.
        validation_examples: Number of validation examples; None if it depends on this machine.
        parameters: Number of parameters of the model.
        optimizer: The optimiser, with the reference batch size and learning rate.
    """

    description: str
    source: str
    training_examples: int | None
    validation_examples: int | None
    parameters: int
    optimizer: str


@dataclass(frozen=True)
class Builtin(_Facts):
    """A built-in workload: a function that makes it, with the ``--data`` folder or file if ``takes_data``."""

    make: Callable[..., Workload]
    takes_data: bool


@dataclass(frozen=True)
class Description(_Facts):
    """A row of ``batchscope workloads``, with the folder of the data or the address to download them from."""

    name: str
    available: bool
    location: str


_FASHION = "Fashion-MNIST: --data, Debian's dataset-fashion-mnist, or a download of 31 MB"

BUILTINS: Mapping[str, Builtin] = MappingProxyType(
    {
        "digits": Builtin(
            "handwritten digits of 8×8 pixels, perceptron 64-128-10",
            "shipped with scikit-learn",
            digits.TRAINING_EXAMPLES,
            digits.VALIDATION_EXAMPLES,
            9_610,
            "SGD with momentum, batch size 64, learning rate 0.2",
            digits.digits,
            takes_data=False,
        ),
        "fashion": Builtin(
            "clothes of 28×28 pixels, small convolutional network",
            _FASHION,
            fashion.TRAINING_EXAMPLES,
            fashion.VALIDATION_EXAMPLES,
            105_866,
            "SGD with momentum, batch size 64, learning rate 0.02",
            fashion.fashion,
            takes_data=True,
        ),
        "fashion-mlp": Builtin(
            "clothes of 28×28 pixels, perceptron 784-256-128-10",
            _FASHION,
            fashion.TRAINING_EXAMPLES,
            fashion.VALIDATION_EXAMPLES,
            235_146,
            "Adam, batch size 64, learning rate 0.001",
            fashion.fashion_mlp,
            takes_data=True,
        ),
        "cifar10": Builtin(
            "colour photographs of 32×32 pixels, residual network of 8 layers",
            "CIFAR-10, binary version: --data, or a download of 170 MB",
            cifar10.TRAINING_EXAMPLES,
            cifar10.VALIDATION_EXAMPLES,
            77_850,
            "SGD with momentum and weight decay, batch size 128, learning rate 0.1",
            cifar10.cifar10,
            takes_data=True,
        ),
        "text": Builtin(
            "the next character of text in windows of 64, transformer of 2 layers",
            "--data FILE or FOLDER, or the Python standard library's sources",
            None,
            None,
            116_705,
            "AdamW, batch size 32, learning rate 0.004",
            text.text,
            takes_data=True,
        ),
        "quadratic": Builtin(
            "noisy quadratic in 32 dimensions, every answer known in closed form",
            "drawn from a seed",
            quadratic.EXAMPLES,
            quadratic.VALIDATION_EXAMPLES,
            quadratic.DIMENSIONS,
            "SGD, batch size 32, learning rate 0.1",
            quadratic.quadratic,
            takes_data=False,
        ),
    }
)


def load_builtin(name: str, data: str | os.PathLike[str] | None = None) -> Workload:
    """Make a built-in workload.

    Args:
        name: One of ``BUILTINS``.
        data: Folder or file of its data; None: the default one.

    Returns:
        The workload.

    Raises:
        WorkloadError: An unknown name, or data for a workload that takes none.
        DataError: Data that cannot be found, downloaded or read.

    Examples:
        >>> load_builtin("quadratic").title
        'quadratic'
    """
    builtin = BUILTINS.get(name)
    if builtin is None:
        close = difflib.get_close_matches(name, BUILTINS, n=1)
        raise WorkloadError(
            f"a built-in workload is one of {', '.join(BUILTINS)}",
            got=name,
            mend=f"did you mean {close[0]}?" if close else "choose one of these",
        )
    if data is None:
        return builtin.make()
    if not builtin.takes_data:
        raise WorkloadError(f"{name} takes no data of your own", got=f"--data {data}", mend="leave --data out")
    return builtin.make(data)


def describe() -> tuple[Description, ...]:
    """Describe every built-in workload, without loading or downloading data.

    Examples:
        >>> [description.name for description in describe()]
        ['digits', 'fashion', 'fashion-mlp', 'cifar10', 'text', 'quadratic']
    """
    return tuple(_describe(name, builtin) for name, builtin in BUILTINS.items())


def _describe(name: str, builtin: Builtin) -> Description:
    available, location = _LOCATIONS[name]()
    facts = {field.name: getattr(builtin, field.name) for field in fields(_Facts)}
    return Description(**facts, name=name, available=available, location=location)


def _published(*wanted: files.PublishedFile) -> tuple[bool, str]:
    found = [files.locate(file) for file in wanted]
    here = [str(path.parent) for path in found if path is not None]
    if len(here) == len(wanted):
        return True, ", ".join(dict.fromkeys(here))
    return False, wanted[0].url.rpartition("/")[0] + "/"


def _standard_library() -> tuple[bool, str]:
    folder = text.standard_library()
    return (folder / "abc.py").is_file(), str(folder)


def _scikit_learn() -> tuple[bool, str]:
    import importlib.util

    spec = importlib.util.find_spec("sklearn")
    if spec is None or spec.origin is None:
        return False, "scikit-learn"
    return True, str(Path(spec.origin).parent / "datasets" / "data")


_LOCATIONS: Mapping[str, Callable[[], tuple[bool, str]]] = {
    "digits": _scikit_learn,
    "fashion": lambda: _published(*fashion.FILES),
    "fashion-mlp": lambda: _published(*fashion.FILES),
    "cifar10": lambda: _published(cifar10.ARCHIVE),
    "text": _standard_library,
    "quadratic": lambda: (True, "generated"),
}
