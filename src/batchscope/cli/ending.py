"""How a verb ends: with an exit status, and with one message if something went wrong."""

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


def with_exit_status(function: Callable[..., int | None]) -> Callable[..., None]:
    """Turn a verb's result and its errors into an exit status, and an error into one message."""

    @functools.wraps(function)
    def guarded(*arguments: Any, **options: Any) -> None:
        try:
            status = function(*arguments, **options)
        except BatchscopeError as error:
            fail(str(error), error.exit_status, debug=options["debug"])
        except KeyboardInterrupt:
            fail("Interrupted.", INTERRUPTED, debug=False)
        except BrokenPipeError:
            ignore_closed_pipe()
            raise typer.Exit(0) from None
        except Exception as error:
            text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            fail(f"The run failed: {text}. Run it with --debug to see where.", 1, debug=options["debug"])
        raise typer.Exit(status or 0)

    return guarded


def ignore_closed_pipe() -> None:
    """Discard the rest of the output: a reader such as ``head`` has closed the pipe, which is no failure."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def fail(message: str, status: int, *, debug: bool) -> NoReturn:
    """Print what went wrong, and end with that status."""
    if debug:
        traceback.print_exc()
    print(f"batchscope: {message}", file=sys.stderr)
    raise typer.Exit(status) from None
