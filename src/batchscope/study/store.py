"""Finished runs on disk, one file each, so that a killed comparison goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from batchscope.errors import RecordError, StorageError
from batchscope.records import Plan, TrainResult, encode, load, write_atomically

SCHEMA = 1


class RunStore:
    """A folder of finished runs of one workload.

    Args:
        folder: The folder; made when missing.
        fingerprint: Which workload, on which software and device, the runs are of.

    Raises:
        StorageError: It cannot be written, or it holds the runs of something else.
    """

    def __init__(self, folder: str | os.PathLike[str], fingerprint: dict[str, str]) -> None:
        self.folder = Path(folder)
        identity = {"batchscope_run_store": SCHEMA, **fingerprint}
        path = self.folder / "store.json"
        if self.folder.exists() and not self.folder.is_dir():
            raise StorageError("a store is a folder", got=f"{self.folder}, which is a file", mend="name another")
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            write_atomically(path, json.dumps(identity, indent=1).encode())
            return
        except (OSError, ValueError) as error:
            raise StorageError(
                "a store's store.json must be readable", got=f"{path} ({error})", mend="name another folder"
            ) from error
        if found != identity:
            differing = [k for k in identity if not isinstance(found, dict) or found.get(k) != identity[k]]
            raise StorageError(
                "a store holds the runs of one workload, on one version of the software and one device",
                got=f"{self.folder}, whose {', '.join(differing) or 'entries'} differ",
                mend="name another folder for this comparison",
            )

    def path(self, plan: Plan, seed: int, evaluate_every: int) -> Path:
        """Where a run is kept: its name is a hash of everything that determines it."""
        key = json.dumps([encode(plan), seed, evaluate_every], sort_keys=True)
        digest = hashlib.blake2b(key.encode(), digest_size=10).hexdigest()
        return self.folder / f"run-b{plan.batch_size}-s{seed % 10**6}-{digest}.json"

    def find(self, path: Path) -> TrainResult | None:
        """The finished run at a path of :meth:`path`; None where there is none, or only half of one."""
        if not path.exists():
            return None
        try:
            run = load(path)
        except RecordError:  # damaged by something else than us: it is made again
            return None
        return run if isinstance(run, TrainResult) else None
