"""Data-parallel ranks: processes that train one model together, each on its share of every batch.

torchrun starts them and says which is which; whatever else starts processes with its environment variables does too.
Not ``DistributedDataParallel``, since that averages over ranks, which is wrong where their shares differ; waits for
ever for a rank that has no examples; and wraps the model, whose names and hooks are the person's. Without it, what a
rank computes is an update's part, and their sum is what one process would have computed.

Nothing here is imported, and no connection made, where there is one process.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from batchscope.errors import ArgumentError, BatchscopeError, RunError, first_line
from batchscope.training.interruption import stop_requests
from batchscope.training.memory import is_out_of_memory
from batchscope.training.rank_places import ALL, RankLost, places_here
from batchscope.training.rank_watch import Watch

T = TypeVar("T")

CONNECT = timedelta(seconds=300)
# Rank 0 may evaluate for as long as it likes while the others wait: what ends their wait is not a limit of time but a
# closed connection, or the watch.
PATIENCE = timedelta(days=7)
STORE_SECONDS = 10
# The survivors of a lost rank have so long to say that they are there.
ROLL_CALL_SECONDS = 3.0
# A rank that the watch has found gone, and whose connections do not close, is waited for this long.
GRACE_SECONDS = 5.0


@contextlib.contextmanager
def together() -> Iterator[Ranks | None]:
    """The ranks that this process is one of, for as long as the block lasts; None where it was started by itself.

    At the end each waits for all, so that none ends, and has the others ended by torchrun, before rank 0 has written
    what there is to write. When an error that not all share ends the block, the others are told and their calls raise.
    Inside another such block it is part of that.

    Yields:
        The ranks.

    Raises:
        ArgumentError: Environment variables that make no sense.
        RankLost: Not all could be connected.

    Examples:
        >>> with together() as ranks:
        ...     print(ranks)
        None
    """
    ranks = _ranks_here()
    if ranks is None or ranks.met:
        yield ranks
    else:
        # torchrun ends all ranks once one has ended badly: what is to be saved and said comes first.
        with stop_requests(), ranks:
            yield ranks


class Ranks:
    """This process's place among the ranks, and how they talk: gloo, and NCCL for what lies on CUDA devices.

    Every call is made by all of them, in the same order.

    Attributes:
        rank: Which one this process is; 0 evaluates, writes and decides.
        size: How many there are.
        met: Whether a :func:`together` block is open.
        at_loss: Called with the loss of a rank, where this process has to end at once; says what to do about it.
    """

    def __init__(self, rank: int, size: int) -> None:
        import torch.distributed as dist
        from torch.distributed.distributed_c10d import PrefixStore
        from torch.distributed.rendezvous import rendezvous

        self.rank, self.size, self.met = rank, size, False
        self.at_loss: Callable[[RankLost], RankLost] | None = None
        self._dist = dist
        self._agreed: BaseException | None = None
        self._gone: RankLost | None = None
        self._watch: Watch | None = None
        self._began_here = not dist.is_initialized()
        try:
            if self._began_here:
                store, *_ = next(iter(rendezvous("env://", timeout=CONNECT)))
                dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=PATIENCE)
                self._control: Any = dist.group.WORLD
            else:
                self._control = dist.new_group(backend="gloo", timeout=PATIENCE)
            # A connection of its own: the groups' would be closed with them.
            store, *_ = next(iter(rendezvous("env://", timeout=CONNECT)))
            store.set_timeout(timedelta(seconds=STORE_SECONDS))
        except (RuntimeError, ValueError, OSError) as error:
            raise RankLost(
                "the ranks of a run must find each other", got=first_line(error), mend="start them with torchrun"
            ) from error
        self._data: Any = self._control
        self._notes = PrefixStore(f"batchscope/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        self._place: torch.device | None = None

    def __enter__(self) -> Self:
        if self._gone is not None:
            raise self._gone
        self.met, self._agreed = True, None
        self._watch = Watch(self._notes, self.rank, self.size, self._silent)
        self._watch.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.leave(error)

    def leave(self, error: BaseException | None) -> None:
        """Stop working together: in step where all have come to the same end, at once where only this rank has.

        Args:
            error: What it ended with here; None where the work is done. The others are told, unless they know.
        """
        if not self.met:
            return
        if self._gone is None and (error is None or self.is_shared(error)):
            with contextlib.suppress(RankLost):  # there is nothing more to do that needs it
                self.wait()
        elif self._gone is None and error is not None:
            reason = first_line(error).rstrip(".")
            with contextlib.suppress(RuntimeError):
                self._notes.set(f"reason/{self.rank}", reason)
            self._gone = RankLost(ALL, got=f"rank {self.rank} of {self.size} ended with {reason}")
            self.close()
        self.met = False
        if self._watch is not None:
            self._watch.stop()

    def is_shared(self, error: BaseException) -> bool:
        """Whether an error was raised on all ranks."""
        return error is self._agreed

    # Talking

    def device(self) -> torch.device:
        """The device of this rank: the CUDA device of its number on its machine, where there are any.

        Raises:
            ArgumentError: There are fewer than ranks on this machine.
        """
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
        """Say where this rank's tensors lie.

        CUDA devices that are all different talk through NCCL; ranks that share one, as for a trial, through gloo.

        Args:
            device: The device.

        Raises:
            ArgumentError: Some ranks compute on a GPU and others on the CPU.
        """
        if device == self._place:
            return
        places = self.exchange((device.type, socket.gethostname(), device.index))
        if len({kind for kind, _, _ in places}) > 1:
            raise self._together_raised(
                ArgumentError("all ranks must compute on one kind of device", got=", ".join(p[0] for p in places))
            )
        self._data = self._control
        if device.type == "cuda" and len(set(places)) == self.size and self._dist.is_nccl_available():
            with torch.cuda.device(device):
                self._data = self._dist.new_group(backend="nccl")
        self._place = device

    @property
    def backend(self) -> str:
        """What tensors on this rank's device are passed through."""
        return str(self._dist.get_backend(self._data))

    def add_up(self, tensor: Tensor) -> None:
        """Sum a tensor over the ranks, in place and with the same bits on all of them.

        Args:
            tensor: Contiguous, of one shape and type everywhere.

        Raises:
            RankLost: Not all are there any more.
        """
        try:
            self._dist.all_reduce(tensor, group=self._data if tensor.is_cuda else self._control)
        except RuntimeError as error:
            raise self._lost(error) from error

    def exchange(self, value: T) -> list[T]:
        """Give each rank the value of all.

        Args:
            value: This rank's; anything that can be pickled.

        Returns:
            The values, by rank.

        Raises:
            RankLost: Not all are there any more.
        """
        values: list[Any] = [None] * self.size
        try:
            self._dist.all_gather_object(values, value, group=self._control)
        except RuntimeError as error:
            raise self._lost(error) from error
        return values

    def first(self, function: Callable[[], T]) -> T:
        """Have rank 0 do something and give all of them its result.

        Args:
            function: Called on rank 0 alone.

        Returns:
            What it returned there; what it raised there is raised everywhere.

        Raises:
            RankLost: Not all are there any more.
        """
        box: list[Any] = [None, None]
        raised: BaseException | None = None
        if self.rank == 0:
            try:
                box[0] = function()
            except Exception as error:
                raised, box[1] = error, _portable(error, 0)
        try:
            self._dist.broadcast_object_list(box, group=self._control, src=self._first_of(self._control))
        except RuntimeError as error:
            raise self._lost(error) from error
        if box[1] is not None:
            raise self._together_raised(raised or box[1])
        result: T = box[0]
        return result

    def agree(self, error: Exception | None) -> None:
        """Raise on all what went wrong on one.

        Args:
            error: What went wrong here, or None.

        Raises:
            BatchscopeError: Something went wrong on a rank: its own error, or one that says which.
            MemoryError: Memory ran out on a rank.
            RankLost: Not all are there any more.
        """
        found = [e for e in self.exchange(None if error is None else _portable(error, self.rank)) if e is not None]
        if found:
            raise self._together_raised(error or found[0])

    def alike(self, function: Callable[[], T]) -> T:
        """Have all do something by themselves, and raise on all what goes wrong on one.

        Args:
            function: Called on every rank; calls no other rank.

        Returns:
            What it returned on this rank.
        """
        try:
            value = function()
        except Exception as error:
            self.agree(error)
            raise
        self.agree(None)
        return value

    def copy_first(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite tensors with those of rank 0, bit for bit.

        Args:
            tensors: On one device; of the same shapes and types everywhere.

        Raises:
            RankLost: Not all are there any more.
        """
        held = [tensor.detach() for tensor in tensors if tensor.numel()]
        if not held:
            return
        flat = torch.cat([tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in held])
        group = self._data if flat.is_cuda else self._control
        try:
            self._dist.broadcast(flat, group=group, src=self._first_of(group))
        except RuntimeError as error:
            raise self._lost(error) from error
        if self.rank:
            sizes = [tensor.numel() * tensor.element_size() for tensor in held]
            for tensor, part in zip(held, torch.split(flat, sizes), strict=True):
                # Copied, since a part may begin where numbers of this type must not.
                tensor.copy_(part.clone().view(tensor.dtype).view(tensor.shape))

    def wait(self) -> None:
        """Wait until every rank is here.

        Raises:
            RankLost: Not all are there any more.
        """
        self.exchange(None)

    def _first_of(self, group: Any) -> int:
        return int(self._dist.get_global_rank(group, 0))

    def _together_raised(self, error: BaseException) -> BaseException:
        self._agreed = error
        return error

    # Losing one

    def _lost(self, error: BaseException) -> RankLost:
        """What to raise, once those that are left have found out which of them they are."""
        if self._gone is None:
            # First of all, so that those who wait for this rank, and not for the lost one, notice too.
            self.close()
            here, reasons = self._roll_call()
            missing = [rank for rank in range(self.size) if rank not in here and rank not in reasons]
            said = [f"rank {rank} of {self.size} ended with {reason}" for rank, reason in sorted(reasons.items())]
            if missing:
                named = ", ".join(map(str, missing))
                said.append(f"no word from rank{'s' * (len(missing) > 1)} {named} of {self.size}")
            self._gone = RankLost(ALL, got="; ".join(said) or f"a broken link: {first_line(error)}")
            self._gone.speaks = self.rank == min(here)
        return self._gone

    def _roll_call(self) -> tuple[list[int], dict[int, str]]:
        """The ranks that are left, and what others ended with."""
        ranks = range(self.size)
        here, reasons = [self.rank], dict[int, str]()
        with contextlib.suppress(RuntimeError):  # the store went with its host
            self._notes.set(f"here/{self.rank}", "")
            until = time.monotonic() + ROLL_CALL_SECONDS
            while True:
                reasons = {r: self._notes.get(f"reason/{r}").decode() for r in ranks if self._has(f"reason/{r}")}
                here = [r for r in ranks if self._has(f"here/{r}") and r not in reasons]
                if len(here) + max(1, len(reasons)) >= self.size or time.monotonic() > until:
                    break
                time.sleep(0.05)
        return here, reasons

    def _has(self, key: str) -> bool:
        return bool(self._notes.check([key]))

    def _silent(self, rank: int) -> None:
        """The watch's call: a rank is gone, and the call to it that this process waits in may never end."""
        if self._data is not self._control:
            self._abort_data()
        time.sleep(GRACE_SECONDS)
        if self.met and self._gone is None:
            who = "the ranks' meeting point" if rank == self.rank else f"rank {rank} of {self.size}"
            lost = RankLost(ALL, got=f"no word from {who}")
            with contextlib.suppress(Exception):
                lost = lost if self.at_loss is None else self.at_loss(lost)
            print(f"batchscope: {lost}", file=sys.__stderr__, flush=True)
            os._exit(1)

    def _abort_data(self) -> None:
        with contextlib.suppress(Exception):  # it may not be there any more
            self._data._get_backend(torch.device("cuda")).abort()

    def close_for_good(self) -> None:
        """Close the connections and end gloo's threads, which an interpreter that is ending would trip over."""
        self.close()
        self._control = self._data = None  # they end with the last reference

    def close(self) -> None:
        """Close the connections, which the others notice."""
        if self._data is not self._control:  # or a kernel that waits for a lost rank would be waited for
            self._abort_data()
        with contextlib.suppress(Exception):
            if self._began_here:
                self._dist.destroy_process_group()
            else:
                for group in {self._control, self._data}:
                    self._dist.destroy_process_group(group)


_here: Ranks | None = None


def _ranks_here() -> Ranks | None:
    global _here  # noqa: PLW0603 — one process is one rank
    rank, size = places_here()
    if size > 1 and _here is None:
        _here = Ranks(rank, size)
        atexit.register(_here.close_for_good)
    return _here


def _portable(error: Exception, rank: int) -> Exception:
    """An error as the other ranks raise it."""
    if is_out_of_memory(error):
        return MemoryError((str(error) or "no memory left").splitlines()[0])
    if isinstance(error, BatchscopeError):
        return error
    return RunError(f"rank {rank} cannot go on", got=first_line(error))
