"""Runs in MLflow: in a folder, in a SQLite file, or on a server."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from batchscope.errors import require

EXPERIMENT = "batchscope"
_SQLITE = "sqlite:///"


class MLflow:
    """A tracker that makes one run in an MLflow store, with its own client, without global state.

    Args:
        uri: ``sqlite:///file.db``, ``file:folder``, a server's address, or a folder, in which a SQLite file
            ``mlflow.db`` is used. With SQLite, artifacts go to a folder ``artifacts`` next to the file.
        experiment: The experiment of the run; created if it does not exist.

    Attributes:
        run_id: The run's identifier.

    Raises:
        MissingPackageError: MLflow is not installed.
    """

    def __init__(self, uri: str, *, experiment: str = EXPERIMENT) -> None:
        mlflow: Any = require("mlflow", "keep a run in MLflow", "batchscope[mlflow]")
        if len(urlsplit(uri).scheme) < 2:  # one letter is a drive of Windows
            Path(uri).mkdir(parents=True, exist_ok=True)
            uri = f"{_SQLITE}{Path(uri).absolute() / 'mlflow.db'}"
        if uri.startswith(_SQLITE):
            require("sqlalchemy", "keep a run in a SQLite file of MLflow's", "batchscope[mlflow]")
        self._metric: Any = mlflow.entities.Metric
        self._client: Any = mlflow.MlflowClient(tracking_uri=uri)
        found = self._client.get_experiment_by_name(experiment)
        place = None
        if uri.startswith(_SQLITE):
            place = (Path(uri.removeprefix(_SQLITE)).absolute().parent / "artifacts").as_uri()
        chosen = self._client.create_experiment(experiment, place) if found is None else found.experiment_id
        self.run_id: str = self._client.create_run(chosen).info.run_id

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log these values as metrics over examples."""
        now = round(time.time() * 1000)
        metrics = [self._metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self.run_id, metrics=metrics)

    def artifact(self, path: Path) -> None:
        """Log a file."""
        self._client.log_artifact(self.run_id, str(path))

    def end(self) -> None:
        """Mark the run as finished."""
        self._client.set_terminated(self.run_id)

    def fail(self) -> None:
        """Mark the run as failed."""
        self._client.set_terminated(self.run_id, status="FAILED")
