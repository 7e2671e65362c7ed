"""Data-parallel ranks: the processes that torchrun started, and what they tell each other beside their gradients.

Gradients go through ``DistributedDataParallel`` (:mod:`batchscope.training.data_parallel`). Decisions go through a gloo
group of their own, whatever the device. No connection is made where there is one process.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor

from batchscope.errors import ArgumentError, BatchscopeError, RunError, first_line
from batchscope.training.interruption import stop_requests
from batchscope.training.memory import is_out_of_memory

T = TypeVar("T")

CONNECT_TIMEOUT = timedelta(minutes=5)
# How long a rank waits for the others, which may be waiting for rank 0 to evaluate. A process that ends is noticed at
# once, as its connections close; this is for a machine that vanishes without a word. torch's own default.
TIMEOUT = timedelta(minutes=30)
ALL_RANKS = "a run goes on only with all of its ranks"


class RankLost(RunError):  # noqa: N818 — as RankLostError it would say no more
    """A rank has gone, and the others cannot go on without it.

    Attributes:
        speaks: Whether this process was the first to notice: it saves, and says what happened.
    """

    speaks = True

    def mended(self, mend: str) -> RankLost:
        """The same error with a mend."""
        other = type(self)(self.rule, got=self.got, mend=mend)
        other.speaks = self.speaks
        return other


def rank_here() -> int:
    """The rank of this process among those that were started together; 0 where it was started by itself."""
    return places_here()[0]


def places_here() -> tuple[int, int]:
    """The rank of this process and the number of ranks, by torchrun's environment variables; 0 of 1 without them.

    Raises:
        ArgumentError: They make no sense.
    """
    if "RANK" not in os.environ:
        return 0, 1
    values = [os.environ["RANK"], os.environ.get("WORLD_SIZE", "1")]
    try:
        rank, size = map(int, values)
    except ValueError:
        rank, size = -1, 0
    if not 0 <= rank < size:
        raise ArgumentError(
            "RANK and WORLD_SIZE must be whole numbers, the first below the second",
            got=" and ".join(values),
            mend="start the ranks with torchrun, or unset both",
        )
    return rank, size


def share(positions: range, rank: int, size: int) -> range:
    """The part of an update's positions that a rank trains on: parts follow each other, the first ones larger by one.

    Examples:
        >>> [share(range(10, 17), rank, 3) for rank in range(3)]
        [range(10, 13), range(13, 15), range(15, 17)]
        >>> [len(share(range(2), rank, 3)) for rank in range(3)]
        [1, 1, 0]
    """
    least, more = divmod(len(positions), size)
    start = positions.start + rank * least + min(rank, more)
    return range(start, start + least + (rank < more))


@contextlib.contextmanager
def together() -> Iterator[Ranks | None]:
    """The ranks that this process is one of, while the block lasts; None where it was started by itself.

    At the end each rank waits for all, since torchrun ends the others once one has ended badly. When an error that not
    all ranks share ends the block, the others raise :class:`RankLost` with its message. An inner block is part of the
    outer one.

    Examples:
        >>> with together() as ranks:
        ...     print(ranks)
        None
    """
    global _here  # noqa: PLW0603 — one process is one rank
    rank, size = places_here()
    if size == 1 or (_here is not None and _here.open):
        yield _here
        return
    if _here is None:
        _here = Ranks(rank, size)
        atexit.register(_here.close)  # gloo's threads must not outlive the interpreter
    if _here.lost is not None:
        raise _here.lost
    # torchrun sends SIGTERM once a rank has ended badly: what is to be saved and said comes first.
    with stop_requests():
        _here.open = True
        try:
            yield _here
        except BaseException as error:
            _here.leave(error)
            raise
        else:
            _here.leave(None)
        finally:
            _here.open = False


class Ranks:
    """This process's place among the ranks, and how they talk. All ranks make every call, in the same order.

    Attributes:
        rank: Which one this process is; 0 evaluates, writes and decides.
        size: The number of ranks.
        group: The process group of tensors on the device: NCCL for CUDA devices that are all different, gloo elsewhere.
        open: Whether a :func:`together` block is open.
        lost: Why the ranks can work together no more; None: they can.
    """

    def __init__(self, rank: int, size: int) -> None:
        import torch.distributed as dist
        from torch.distributed.distributed_c10d import PrefixStore
        from torch.distributed.rendezvous import rendezvous

        self.rank, self.size, self.open = rank, size, False
        self.lost: RankLost | None = None
        self.group: Any = None
        self._dist = dist
        self._place: torch.device | None = None
        self._shared: BaseException | None = None
        self._began_here = not dist.is_initialized()
        try:
            store, *_ = next(iter(rendezvous("env://", timeout=CONNECT_TIMEOUT)))
            # torchrun's store outlives the ranks: those that it starts once more must not find what the last ones left.
            store = PrefixStore(f"batchscope/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
            if self._began_here:
                dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=TIMEOUT)
            self._control: Any = dist.new_group(backend="gloo", timeout=TIMEOUT)
        except (RuntimeError, ValueError, OSError) as error:
            raise RankLost(
                "the ranks of a run must find each other", got=first_line(error), mend="start them with torchrun"
            ) from error
        self._notes = PrefixStore("notes", store)

    def device(self) -> torch.device:
        """The CUDA device of this rank's number on its machine, where there are any; an ArgumentError for too few."""
        if not torch.cuda.is_available():
            return torch.device("cpu")
        number, devices = int(os.environ.get("LOCAL_RANK", self.rank)), torch.cuda.device_count()
        if number >= devices:
            raise ArgumentError(
                "every rank needs a CUDA device of its own",
                got=f"{devices} for rank {number} of this machine",
                mend="start fewer ranks, or give device='cpu'",
            )
        return torch.device("cuda", number)

    def use(self, device: torch.device) -> None:
        """Make the group for tensors on this rank's device; an ArgumentError where kinds of devices are mixed."""
        if device == self._place:
            return
        places = self.exchange((device.type, socket.gethostname(), device.index))
        if len({kind for kind, _, _ in places}) > 1:
            self._shared = ArgumentError(
                "all ranks must compute on one kind of device", got=", ".join(kind for kind, _, _ in places)
            )
            raise self._shared
        nccl = device.type == "cuda" and len(set(places)) == self.size and self._dist.is_nccl_available()
        with torch.cuda.device(device) if nccl else contextlib.nullcontext():
            self.group = self._dist.new_group(backend="nccl" if nccl else "gloo", timeout=TIMEOUT)
        self._place = device

    @property
    def backend(self) -> str:
        """What tensors on this rank's device are passed through."""
        return str(self._dist.get_backend(self.group))

    @contextlib.contextmanager
    def connected(self) -> Iterator[None]:
        """Raise RankLost where a call to the other ranks fails."""
        try:
            yield
        except RuntimeError as error:
            raise self._lose(error) from error

    def add_up(self, tensor: Tensor) -> None:
        """Sum a tensor over the ranks, in place."""
        with self.connected():
            self._dist.all_reduce(tensor, group=self.group if tensor.is_cuda else self._control)

    def copy_first(self, tensors: Iterator[Tensor]) -> None:
        """Overwrite tensors with those of rank 0, where they differ."""
        for tensor in tensors:
            own = torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor.detach()
            first = own.clone(memory_format=torch.contiguous_format)
            with self.connected():
                self._dist.broadcast(first, src=0, group=self.group)
            if self.rank and not torch.equal(first, own):
                own.copy_(first)

    def exchange(self, value: T) -> list[T]:
        """Give each rank the value of all, by rank; a value is anything that can be pickled."""
        values: list[Any] = [None] * self.size
        with self.connected():
            self._dist.all_gather_object(values, value, group=self._control)
        return values

    def first(self, function: Callable[[], T]) -> T:
        """Call a function on rank 0 alone; what it returns or raises there is returned or raised on all."""
        value: T | None = None
        error: Exception | None = None
        if self.rank == 0:
            try:
                value = function()
            except Exception as raised:
                error = raised
        value, found = self.exchange((value, None if error is None else _portable(error, 0)))[0]
        if found is not None:
            self._shared = error or found
            raise self._shared
        return value  # type: ignore[return-value]

    def alike(self, function: Callable[[], T]) -> T:
        """Call a function on every rank, which calls no other; what it raises on one is raised on all."""
        try:
            value = function()
        except Exception as error:
            self.agree(error)
            raise
        self.agree(None)
        return value

    def agree(self, error: Exception | None) -> None:
        """Raise on all ranks what went wrong on one, or return where nothing did."""
        found = [e for e in self.exchange(None if error is None else _portable(error, self.rank)) if e is not None]
        if found:
            self._shared = error or found[0]
            raise self._shared

    def is_shared(self, error: BaseException) -> bool:
        """Whether an error was raised on all ranks."""
        return error is self._shared

    def _lose(self, error: BaseException) -> RankLost:
        if self.lost is None:
            reason, speaks = f"rank {self.rank} of {self.size} lost a connection ({first_line(error)})", True
            with contextlib.suppress(RuntimeError):  # the store went with its host
                if self._notes.check(["reason"]):
                    reason = self._notes.get("reason").decode()
                speaks = self._notes.add("lost", 1) == 1
            self.lost = RankLost(ALL_RANKS, got=reason)
            self.lost.speaks = speaks
            self.close()
        return self.lost

    def leave(self, error: BaseException | None) -> None:
        """End the work together: in step where all have come to the same end, at once where only this rank has."""
        if self.lost is not None:
            return
        if error is None or self.is_shared(error):
            with contextlib.suppress(RankLost):  # there is nothing more to do that needs it
                self.exchange(None)
            return
        reason = f"rank {self.rank} of {self.size} ended with {first_line(error).rstrip('.')}"
        with contextlib.suppress(RuntimeError):
            self._notes.set("reason", reason)
        self.lost = RankLost(ALL_RANKS, got=reason)
        self.close()

    def close(self) -> None:
        """Close the connections, which the others notice."""
        groups, self.group, self._control = (self.group, self._control), None, None
        with contextlib.suppress(Exception):  # closed before, or of a rank that is gone
            for group in (None,) if self._began_here else groups:
                self._dist.destroy_process_group(group)


_here: Ranks | None = None


def _portable(error: Exception, rank: int) -> Exception:
    """An error as the other ranks raise it."""
    if is_out_of_memory(error):
        return MemoryError((str(error) or "no memory left").splitlines()[0])
    if isinstance(error, BatchscopeError):
        return error
    return RunError(f"rank {rank} cannot go on", got=first_line(error))
