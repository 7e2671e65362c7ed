"""Runs for Weights & Biases."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from batchscope.errors import require


class WeightsAndBiases:
    """A tracker that makes one run of Weights & Biases, offline unless WANDB_MODE is set.

    An offline run is in ``wandb/offline-run-…`` of the folder; ``wandb sync`` uploads it later.

    Args:
        project: The project's name.
        folder: Folder of runs; None: WANDB_DIR, or the current folder.

    Raises:
        MissingPackageError: wandb is not installed.
    """

    def __init__(self, project: str, *, folder: str | os.PathLike[str] | None = None) -> None:
        wandb: Any = require("wandb", "keep a run for Weights & Biases", "batchscope[wandb]")
        self._run: Any = wandb.init(
            project=project,
            dir=None if folder is None else os.fspath(folder),
            mode=os.environ.get("WANDB_MODE", "offline"),
            reinit="create_new",  # do not finish the user's own run
            settings=wandb.Settings(console="off", silent=True),
        )
        self._run.define_metric("examples")
        self._run.define_metric("*", step_metric="examples")

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log these values over examples."""
        self._run.log({**values, "examples": step})

    def artifact(self, path: Path) -> None:
        """Copy a file into the run's folder, which is synchronised with the run."""
        shutil.copy(path, Path(self._run.dir) / path.name)

    def end(self) -> None:
        """Finish the run."""
        self._run.finish()

    def fail(self) -> None:
        """Finish the run as failed."""
        self._run.finish(exit_code=1)
