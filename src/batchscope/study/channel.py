"""Python objects both ways between a process and one that it forked."""

from __future__ import annotations

import pickle
import select
import socket
import struct
from typing import Any

HEADER = struct.Struct("<Q")
PIECE = 1 << 16


class Channel:
    """One end of a pair of connected sockets; each message is pickled, with its length before it.

    The end that drives uses :meth:`post` and never waits for the other, whatever state that is in; the end that serves
    uses :meth:`send`, and waits until there is room.

    Args:
        end: A stream socket.

    Attributes:
        closed: Whether the other end is gone; what it had sent before was received.

    Examples:
        >>> one, other = Channel.pair()
        >>> one.post({"rate": 0.1})
        >>> other.receive(), other.receive()
        ([{'rate': 0.1}], [])
        >>> one.close()
        >>> other.receive(), other.closed
        ([], True)
    """

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._received, self._unsent = bytearray(), bytearray()
        self.closed = False

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        """Two ends that are connected to each other."""
        one, other = socket.socketpair()
        return cls(one), cls(other)

    def fileno(self) -> int:
        """Its number, to wait for it together with others."""
        return self._socket.fileno()

    def close(self) -> None:
        """Let go of this end."""
        self._socket.close()
        self.closed = True

    def send(self, message: Any) -> None:
        """Send a message, and wait until all of it is on its way.

        Raises:
            OSError: The other end is gone.
        """
        self._socket.sendall(_framed(message))

    def post(self, message: Any) -> None:
        """Send a message as far as there is room; the rest goes with a later :meth:`flush`."""
        self._unsent += _framed(message)
        self.flush()

    def flush(self) -> None:
        """Send what was posted, as far as there is room."""
        try:
            while self._unsent:
                del self._unsent[: self._socket.send(self._unsent, socket.MSG_DONTWAIT)]
        except BlockingIOError:
            pass
        except OSError:  # gone: its end will be seen when it is read from
            self._unsent.clear()

    def receive(self, *, wait: bool = False) -> list[Any]:
        """The messages that have arrived.

        Args:
            wait: Whether to wait for something to arrive, or for the other end to go.

        Returns:
            Them, in order; half of one is kept for later.
        """
        if wait:
            poll = select.poll()
            poll.register(self._socket, select.POLLIN)
            poll.poll()
        try:
            while piece := self._socket.recv(PIECE, socket.MSG_DONTWAIT):
                self._received += piece
            self.closed = True
        except BlockingIOError:
            pass
        except OSError:
            self.closed = True
        messages, start = [], 0
        while len(self._received) - start >= HEADER.size:
            end = start + HEADER.size + HEADER.unpack_from(self._received, start)[0]
            if len(self._received) < end:
                break
            messages.append(pickle.loads(self._received[start + HEADER.size : end]))  # noqa: S301 — from our own fork
            start = end
        del self._received[:start]
        return messages


def _framed(message: Any) -> bytes:
    content = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return HEADER.pack(len(content)) + content
