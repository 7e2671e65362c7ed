"""Every exception that batchscope raises on purpose.

::

    BatchscopeError
    ├── ArgumentError            the caller's words are wrong: nothing was run (exit status 2)
    │   ├── WorkloadError        a workload that cannot be trained as it stands
    │   ├── PlanError            a batch size, a budget or a learning rate that makes no sense here
    │   └── RecordError          a file that is not a record, or one from a newer version
    └── RunError                 the arguments were right, the run failed (exit status 1)
        ├── DataError            data that cannot be found, read or verified
        └── StorageError         results that cannot be written, or a store that belongs to something else
    MissingPackageError          an optional package is needed (a RunError too)

Divergence, running out of memory and an interruption are results, not exceptions: see ``TrainResult.outcome``.
"""

from __future__ import annotations

from types import ModuleType


class BatchscopeError(Exception):
    """An error said in three parts: the rule, the value that was got, and the mend.

    Args:
        rule: What must hold, as a sentence without a full stop.
        got: The value that broke it.
        mend: What the person can do about it.

    Examples:
        >>> print(PlanError("batch_size must be at least 1", got=0, mend="try 32"))
        batch_size must be at least 1; got 0. Try 32.
    """

    exit_status = 1

    def __init__(self, rule: str, *, got: object = None, mend: str = "") -> None:
        self.rule = rule
        self.got = got
        self.mend = mend
        message = rule
        if got is not None:
            message += f"; got {got if isinstance(got, str) else repr(got)}"
        message += "."
        if mend:
            message += f" {mend[0].upper()}{mend[1:]}" + ("" if mend.endswith((".", "?")) else ".")
        super().__init__(message)

    def __reduce__(self) -> tuple[object, ...]:
        """Survive a trip between processes with the three parts intact."""
        return (_rebuild, (type(self), self.rule, self.got, self.mend))


def _rebuild(kind: type[BatchscopeError], rule: str, got: object, mend: str) -> BatchscopeError:
    return kind(rule, got=got, mend=mend)


class ArgumentError(BatchscopeError):
    """The caller's words are wrong; nothing was run."""

    exit_status = 2


class WorkloadError(ArgumentError):
    """A workload that cannot be trained as it stands."""


class PlanError(ArgumentError):
    """A batch size, a budget or a learning rate that makes no sense for this workload."""


class RecordError(ArgumentError):
    """A file that is not a batchscope record, or one written by a newer version."""


class RunError(BatchscopeError):
    """The arguments were right and the run failed."""


class DataError(RunError):
    """Data that cannot be found, read or verified."""


class StorageError(RunError):
    """Results that cannot be written, or a store that belongs to something else."""


class MissingPackageError(RunError):
    """An optional package is needed for what was asked."""


def first_line(error: BaseException) -> str:
    """The kind of an exception and the first line of what it says.

    Examples:
        >>> first_line(ValueError("  not here")), first_line(KeyError())
        ('ValueError: not here', 'KeyError')
    """
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def require(module: str, purpose: str, install: str) -> ModuleType:
    """Import an optional package, or say which one is missing and how to get it.

    Args:
        module: Dotted name to import.
        purpose: What it is needed for, as in "write a checkpoint".
        install: The argument for ``pip install``.

    Returns:
        The imported module.

    Raises:
        MissingPackageError: It is not installed.

    Examples:
        >>> require("json", "read records", "python").__name__
        'json'
    """
    import importlib

    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"{module} is needed to {purpose}",
            got="no such package here",
            mend=f"run: pip install '{install}'",
        ) from error
