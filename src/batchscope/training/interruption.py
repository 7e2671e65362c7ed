"""Ctrl-C as a request that is honoured between two updates, so that what is finished is kept."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class StopRequest:
    """Whether somebody asked to stop.

    Attributes:
        requested: True from the first SIGINT or SIGTERM on.
    """

    def __init__(self) -> None:
        self.requested = False


_current: list[StopRequest] = []


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Turn the first SIGINT or SIGTERM inside the block into a request; a second one interrupts at once.

    Inside another such block the outer one's request is shared, so one Ctrl-C ends a training run and the comparison
    that it is part of. Outside the main thread, where Python delivers no signals, nothing is ever requested.

    Yields:
        The request.

    Examples:
        >>> with stop_requests() as stop:
        ...     stop.requested
        False
    """
    if _current:
        yield _current[-1]
        return
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if request.requested:
            raise KeyboardInterrupt
        request.requested = True

    previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    _current.append(request)
    try:
        yield request
    finally:
        _current.pop()
        for number, handler in previous.items():
            signal.signal(number, handler)
