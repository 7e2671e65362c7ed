"""Trackers by name, as in ``--tracker``."""

from __future__ import annotations

from collections.abc import Callable

from batchscope.errors import ArgumentError, BatchscopeError, StorageError, first_line
from batchscope.training.tracking import Tracker

EXAMPLES = "tensorboard:DIR, mlflow:URI or wandb:PROJECT"


def open_tracker(text: str) -> Tracker:
    """Open the tracker of that name.

    Args:
        text: ``tensorboard:DIR``; ``mlflow:URI``, where the URI is a folder, ``sqlite:///file.db`` or a server's
            address; or ``wandb:PROJECT``, which stays on this machine unless WANDB_MODE is set.

    Returns:
        The tracker; ``end()`` closes it.

    Raises:
        ArgumentError: An unknown tracker.
        MissingPackageError: Its package is not installed.
        StorageError: It cannot write there.

    Examples:
        >>> open_tracker("tensorbord:runs")
        Traceback (most recent call last):
        batchscope.errors.ArgumentError: a tracker is tensorboard:DIR, mlflow:URI or wandb:PROJECT; got tensorbord:runs.
    """
    kind, _, place = text.partition(":")
    makers: dict[str, Callable[[str], Tracker]] = {"tensorboard": _tensorboard, "mlflow": _mlflow, "wandb": _wandb}
    if kind not in makers or not place:
        raise ArgumentError(f"a tracker is {EXAMPLES}", got=text)
    try:
        return makers[kind](place)
    except BatchscopeError:
        raise
    except Exception as error:  # each library has its own
        raise StorageError(
            "a tracker must be able to write to its destination",
            got=f"{text} ({first_line(error)})",
            mend="name another destination, or leave the tracker out",
        ) from error


def _tensorboard(place: str) -> Tracker:
    from batchscope.integrations.tensorboard import TensorBoard

    return TensorBoard(place)


def _mlflow(place: str) -> Tracker:
    from batchscope.integrations.mlflow import MLflow

    return MLflow(place)


def _wandb(place: str) -> Tracker:
    from batchscope.integrations.wandb import WeightsAndBiases

    return WeightsAndBiases(place)
