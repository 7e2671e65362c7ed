"""How a verb ends: its exit status, and one message where something went wrong."""

from __future__ import annotations

import functools
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

import typer

from batchscope.errors import BatchscopeError

INTERRUPTED = 130


def ending_well(function: Callable[..., int | None]) -> Callable[..., None]:
    """Turn a verb's errors into one clear message and an exit status."""

    @functools.wraps(function)
    def guarded(*arguments: Any, **options: Any) -> None:
        try:
            status = function(*arguments, **options)
        except BatchscopeError as error:
            fail(str(error), error.exit_status, debug=options["debug"])
        except KeyboardInterrupt:
            fail("Interrupted.", INTERRUPTED, debug=False)
        except BrokenPipeError:
            reader_went_away()
            raise typer.Exit(0) from None
        except Exception as error:
            said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            fail(f"The run failed: {said}. Run it with --debug to see where.", 1, debug=options["debug"])
        raise typer.Exit(status or 0)

    return guarded


def reader_went_away() -> None:
    """Let the rest of our output go nowhere: whoever read it, as head does, has enough, which is no failure."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def fail(message: str, status: int, *, debug: bool) -> NoReturn:
    """Say what went wrong, and end with that status."""
    if debug:
        traceback.print_exc()
    print(f"batchscope: {message}", file=sys.stderr)
    raise typer.Exit(status) from None
