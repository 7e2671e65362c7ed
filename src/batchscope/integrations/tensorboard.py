"""Curves for TensorBoard."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from batchscope.errors import MissingPackageError, require


class TensorBoard:
    """A tracker that writes TensorBoard's event files, with torch's writer or tensorboardX, whichever is installed.

    Args:
        folder: Folder for ``tensorboard --logdir``; artifacts are copied there too.

    Raises:
        MissingPackageError: Neither tensorboard nor tensorboardX is installed.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._folder = Path(folder)
        try:
            writers: Any = require("torch.utils.tensorboard", "write for TensorBoard", "tensorboard")
        except MissingPackageError:
            writers = require("tensorboardX", "write for TensorBoard", "batchscope[tensorboard]")
        self._writer = writers.SummaryWriter(str(self._folder))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log these values as scalars over examples."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, global_step=step)

    def artifact(self, path: Path) -> None:
        """Copy a file into the folder."""
        shutil.copy(path, self._folder / path.name)

    def end(self) -> None:
        """Flush and close."""
        self._writer.close()
