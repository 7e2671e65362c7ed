"""Runs for Weights & Biases."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from batchscope.errors import require


class WeightsAndBiases:
    """A tracker that makes one run of Weights & Biases, offline unless WANDB_MODE says otherwise.

    Offline, the run lies in ``wandb/offline-run-…`` of the folder, and ``wandb sync`` sends it later.

    Args:
        project: The project's name.
        folder: Where runs lie; None: WANDB_DIR, or the present folder.

    Raises:
        MissingPackageError: wandb is not here.
    """

    def __init__(self, project: str, *, folder: str | os.PathLike[str] | None = None) -> None:
        wandb: Any = require("wandb", "keep a run for Weights & Biases", "batchscope[wandb]")
        self._run: Any = wandb.init(
            project=project,
            dir=None if folder is None else os.fspath(folder),
            mode=os.environ.get("WANDB_MODE", "offline"),
            reinit="create_new",  # a run of the person's own goes on
            settings=wandb.Settings(console="off", silent=True),
        )
        self._run.define_metric("examples")
        self._run.define_metric("*", step_metric="examples")

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Keep these values, over examples seen."""
        self._run.log({**values, "examples": step})

    def artifact(self, path: Path) -> None:
        """Copy a file into the run's folder, all of which is sent with it."""
        shutil.copy(path, Path(self._run.dir) / path.name)

    def end(self) -> None:
        """Write what is not written yet."""
        self._run.finish()

    def fail(self) -> None:
        """Likewise, of a run that an error ended."""
        self._run.finish(exit_code=1)
