"""Runs the blocks of a page: a process that has imported everything once, and forks for each of them.

Started by test_examples.py. It reads a JSON object a line, with "folder", "log", "limit_seconds" and either "words" or
"file", and answers each with the exit status of what it ran. Importing torch and the package anew for each block would
take longer than most of the blocks do.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

IMPORTED = (
    "altair",
    "sklearn.datasets",
    "sklearn.model_selection",
    "torch",
    "torch._dynamo",
    "batchscope.cli",
    "batchscope.folklore",
    "batchscope.measure",
    "batchscope.report.images",
    "batchscope.search",
    "batchscope.study",
)
RECORD = Path(__file__).parents[2] / "benchmarks" / "results" / "claims-digits.json"
TOO_LATE = 124


def main() -> None:
    """Serve until there is nothing more to read."""
    warm_up()
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if not child:
            run(order)
        print(status_of(child, float(order["limit_seconds"])), flush=True)


def warm_up() -> None:
    """Import everything, and write one page, since the library of the pages is kept once it has been put together."""
    for name in IMPORTED:
        importlib.import_module(name)
    with tempfile.TemporaryDirectory() as folder:
        importlib.import_module("batchscope").load(RECORD).report(Path(folder) / "page.html")


def run(order: dict[str, Any]) -> NoReturn:
    """Become one block, with its output in the log."""
    os.setsid()
    os.chdir(order["folder"])
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for here, wanted in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(here, wanted)
    status = 0
    try:
        if "file" in order:
            sys.argv = [order["file"]]
            runpy.run_path(order["file"], run_name="__main__")
        else:
            sys.argv = order["words"]
            importlib.import_module("batchscope.cli").main()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def status_of(child: int, limit_seconds: float) -> int:
    """Wait for a child, and end it with all that it has started where it takes too long."""
    deadline = time.monotonic() + limit_seconds
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return TOO_LATE


if __name__ == "__main__":
    main()
