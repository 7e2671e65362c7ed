"""Training with ``DistributedDataParallel``, so that several ranks compute what one process would.

The gradient of a batch of B examples, m_r of them on rank r, is Σ_r (m_r/B)·∇L_r. DistributedDataParallel averages over
N ranks, so each rank scales its loss by m_r·N/B. It also waits for a gradient of every parameter from every rank. After
its backward pass, therefore, a rank sends zeros for the parameters that got none: it had no examples, they did not take
that branch of the model, or the pass failed. The loss and a squared norm are the gradient of one parameter more.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from batchscope.errors import PlanError, StorageError, WorkloadError
from batchscope.records import Interval, Plan
from batchscope.records.training import Outcome
from batchscope.seeding import derive, isolated, random_state, set_random_state
from batchscope.training.evaluation import EvaluationData
from batchscope.training.interruption import StopRequest
from batchscope.training.loop import Prepared, Run
from batchscope.training.memory import is_out_of_memory
from batchscope.training.micro_batching import MicroBatchingStep, least_batch_size
from batchscope.training.observer import MakeObserver, Observer, SharedObserver
from batchscope.training.ranks import RankLost, Ranks, share
from batchscope.workload.workload import Batch, Workload

# An idle device is done at once; one that waits for a lost rank never is.
SETTLED_SECONDS = 5.0


class _Shared(nn.Module):
    """What DistributedDataParallel wraps: a loss, its model's parameters, and one that carries numbers.

    The model is no part of it, or its buffers would be copied before every forward pass.
    """

    def __init__(self, model: nn.Module, loss: Callable[[Batch], Tensor]) -> None:
        super().__init__()
        self.parameters_held = nn.ParameterList(model.parameters())
        double = all(p.dtype in (torch.float64, torch.complex128) for p in self.parameters_held)
        numbers = torch.zeros(2, dtype=torch.float64 if double else torch.float32)
        self.numbers = nn.Parameter(numbers.to(self.parameters_held[0].device))
        self.loss = loss

    def forward(self, batch: Batch | None) -> Tensor | None:
        return None if batch is None else self.loss(batch)


class DataParallelStep(MicroBatchingStep):
    """A training step whose batch is shared among ranks.

    All micro-batches of a share but the last are accumulated without communication; the sum over ranks overlaps with
    the backward pass of the last one. Then one small all-reduce through gloo, which waits for no device, has all ranks
    do the same: stop, fail, or repeat the update in smaller pieces where memory ran out on one of them.

    Attributes:
        agreed: Set, on all ranks at the same update, once one was asked to stop.
    """

    def __init__(
        self,
        workload: Workload,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        ranks: Ranks,
        asked: StopRequest,
        observer: SharedObserver | None = None,
        **options: Any,
    ) -> None:
        shared = _Shared(model, self.loss)
        self.parallel = DistributedDataParallel(shared, process_group=ranks.group)  # overwrites weights with rank 0's
        super().__init__(workload, model, optimizer, **options)
        self.ranks, self.asked, self.agreed, self.observer = ranks, asked, StopRequest(), observer
        self._numbers = shared.numbers
        self._summed = [p for p in model.parameters() if p.requires_grad]
        self._used: set[int] = set()
        self._used_by_any: set[int] = set()
        self._arrived: set[Tensor] = set()
        for parameter in self._summed:
            parameter.register_post_accumulate_grad_hook(self._arrived.add)  # type: ignore[no-untyped-call]
        # After its first pass DistributedDataParallel lays out its buckets anew, in the order in which gradients came,
        # and last bits depend on that. This is the first pass, so that a resumed run sums as the unbroken one did.
        self.parallel(None)
        for parameter in reversed(self._summed):
            parameter.backward(torch.zeros_like(parameter))  # type: ignore[no-untyped-call]
        self._sum(torch.zeros_like(self._numbers))

    def __call__(self, micro_batches: list[Batch], examples: int) -> Tensor:
        """Make one update of a batch of so many examples, from this rank's share; returns the batch's mean loss.

        Raises:
            MemoryError: Memory ran out on a rank, and the update cannot be repeated in smaller pieces.
            RankLost: A rank has gone; the weights are those before the update.
        """
        observer = self.observer if self.observer is not None and self.observer.is_due() else None
        self._random.mark()
        try:
            while (sums := self._try(micro_batches, examples, observed=observer is not None)) is None:
                self._random.rewind()
        except RankLost:
            self._random.rewind()
            raise
        self._random.see()
        if observer is not None:
            shares = [self._share(examples, rank) for rank in range(self.ranks.size)]
            observer.see(float(sums[1]), float(self._norm_squared()), shares=shares)
        self.update()
        return sums[0]

    def _share(self, examples: int, rank: int) -> int:
        return len(share(range(examples), rank, self.ranks.size))

    def _try(self, micro_batches: list[Batch], examples: int, *, observed: bool) -> Tensor | None:
        """Leave the whole batch's gradient in the parameters; the summed numbers, or None to repeat it."""
        ranks, own = self.ranks, self._share(examples, self.ranks.rank)
        numbers, sizes, failure = self._backward_share(micro_batches, own, examples)
        short = failure is not None and is_out_of_memory(failure) and max(sizes, default=1) > 1
        if observed and own and failure is None:
            # Of the share's mean gradient, its weight taken out; a part of the mean over the ranks that have examples.
            numbers[1] = self._norm_squared() * (examples / (own * ranks.size)) ** 2 / min(ranks.size, examples)
        used = {i for i, p in enumerate(self._summed) if p.grad is not None} if failure is None else self._used
        flags = [self.asked.requested, failure is not None and not short, short, used != self._used]
        counts = torch.tensor(flags, dtype=torch.float32)
        ranks.add_up(counts)
        asked, failed, cut, changed = counts.tolist()
        sums = self._sum(numbers)
        if failed:
            ranks.agree(failure)
        if cut:
            at_once = min(size for size in ranks.exchange(max(sizes) if short else None) if size is not None)
            ranks.alike(lambda: self._check_repeatable(at_once, failure or MemoryError("on another rank")))
            self.cut_to = -(-at_once // 2)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            return None
        if changed:
            self._used = used
            self._used_by_any = set().union(*ranks.exchange(used))
        for i, parameter in enumerate(self._summed):
            if i not in self._used_by_any:
                parameter.grad = None
        self.agreed.requested |= asked > 0
        return sums

    def _backward_share(
        self, micro_batches: list[Batch], own: int, examples: int
    ) -> tuple[Tensor, list[int], Exception | None]:
        """Forward and backward pass of this rank's share: its loss, the sizes of its pieces, and what went wrong."""
        for parameter in self._summed:
            parameter.grad = None
        numbers = torch.zeros_like(self._numbers)
        failure: Exception | None = None
        sizes: list[int] = []
        begun = False  # the sum
        try:
            pieces, sizes = self._cut(micro_batches, own) if own else ([], [])
            for left, piece, size in zip(reversed(range(len(pieces))), pieces, sizes, strict=True):
                self._arrived.clear()
                with self.parallel.no_sync() if left else contextlib.nullcontext():
                    loss = self.parallel(piece) * (size / examples)
                begun = not left
                numbers[0] += loss.detach()
                weighted = loss * self.ranks.size
                self._spent = weighted if self.scaler is None else self.scaler.scale(weighted)
                self._spent.backward()
        except Exception as error:  # whatever it is, the others must not wait for this rank
            # Its traceback holds activations, for which there was no room.
            failure = error.with_traceback(None) if is_out_of_memory(error) else error
        if failure is not None:
            self._spent = None
            numbers = torch.zeros_like(self._numbers)
        if not begun:
            self._arrived.clear()
            self.parallel(None)
        return numbers, sizes, failure

    def _sum(self, numbers: Tensor) -> Tensor:
        """Send the numbers, and zeros for parameters that had no gradient, and wait for the sums."""
        missing = [p for p in self._summed if p not in self._arrived]
        zeros = [torch.zeros_like(p) for p in missing]
        with self.ranks.connected():
            torch.autograd.backward([self._numbers, *missing], [numbers, *zeros])
        sums = cast(Tensor, self._numbers.grad) * self.ranks.size
        self._numbers.grad = None
        return sums

    def _norm_squared(self) -> Tensor:
        """The squared length of the gradients that the parameters hold, the scale of the loss taken out."""
        held = [p.grad for p in self.parameters if p.grad is not None]
        norms = torch._foreach_norm([g.float() if g.dtype.itemsize < 4 else g for g in held])
        if not norms:
            return torch.zeros(())
        return torch.stack([norm.double() for norm in norms]).square().sum() / self.loss_scale**2


class DataParallelRun(Run):
    """A run whose every batch is shared among ranks.

    Each rank holds the model, the optimiser and the course of the run, and makes every update. Rank 0 evaluates and
    tells the others; it alone writes. Buffers that a forward pass changes, as batch norm's running averages, are rank
    0's at each evaluation. What training draws, as dropout does, each rank draws for itself. Any number of ranks can go
    on from a checkpoint, at the same place in the stream of examples.

    Raises:
        PlanError: A plan that this workload cannot follow on so many ranks.
        WorkloadError: The ranks were given different things to train, or gradients are sparse.
    """

    def __init__(self, ranks: Ranks, prepared: Prepared, plan: Plan, **options: Any) -> None:
        self.ranks, self.part = ranks, (ranks.rank, ranks.size)
        begin = super().__init__
        ranks.alike(lambda: begin(prepared, plan, **options))
        identities = ranks.exchange(self._identity())
        ranks.alike(lambda: self._check(identities))

    def _check(self, identities: Sequence[dict[str, Any]]) -> None:
        """Refuse what several ranks cannot train."""
        least, ranks = least_batch_size(self.model), self.ranks.size
        sizes = (self.plan.batch_size, self.budget - self.course.schedule.examples(self.iterations - 1))
        if least > 1 and any(0 < len(share(range(n), r, ranks)) < least for n in sizes for r in range(ranks)):
            raise PlanError(
                f"batch norm needs {least} examples in each rank's share of a batch",
                got=f"a first batch of {sizes[0]} and a last one of {sizes[1]} on {ranks} ranks",
                mend="give larger batches, and a budget that they divide, or start fewer ranks",
            )
        if self.plan.inner_steps > 1:
            raise PlanError(
                "conservative training is for one process", got=f"inner_steps={self.plan.inner_steps} on several ranks"
            )
        if any(getattr(module, "sparse", False) is True for module in self.model.modules()):
            raise WorkloadError(
                "gradients that ranks sum must be dense", got="a sparse one", mend="use nn.Embedding(sparse=False)"
            )
        for rank, identity in enumerate(identities):
            if differing := ", ".join(key for key, value in identity.items() if value != identities[0][key]):
                raise WorkloadError(
                    "all ranks must be given the same workload, plan and seed",
                    got=f"another {differing} on rank {rank} than on rank 0",
                    mend="seed whatever is drawn before training",
                )

    # What one process does otherwise

    def _stream(self) -> int:
        # Rank 0's is that of a run by itself. Ranks that join a resumed run draw what nobody has drawn.
        number = self.ranks.rank
        return derive(self.seed, "training", number, self.progress.iterations) if number else super()._stream()

    def _make_step(self) -> MicroBatchingStep:
        if self.observer is not None and not isinstance(self.observer, SharedObserver):
            raise PlanError(
                "what watches a run of several ranks must take what they share",
                got=type(self.observer).__name__,
                mend="give observer=batchscope.measure.shared_noise.SharedNoise",
            )
        step = DataParallelStep(
            self.workload,
            self.model,
            self.optimizer,
            ranks=self.ranks,
            asked=self._stop,
            observer=self.observer,
            micro_batch_size=self.plan.micro_batch_size,
            cut_to=self.progress.micro_batch_size,
            scaler=self.scaler,
        )
        self._stop = step.agreed
        return step

    def _made_observer(self, make: MakeObserver) -> Observer:
        return make(self.model, self.optimizer)  # it is told of gradients whose scale is taken out

    def _noise(self, observer: Observer) -> Interval:
        # The same sums stand on all ranks; what unlike processors work out from them may differ in the last bit.
        return self.ranks.first(lambda: super(DataParallelRun, self)._noise(observer))

    def _loss_and_score(self, data: EvaluationData) -> tuple[float, float]:
        self.ranks.copy_first(self.model.buffers())
        return self.ranks.first(lambda: super(DataParallelRun, self)._loss_and_score(data))

    def _is_outcome(self, error: Exception) -> bool:
        return super()._is_outcome(error) and self.ranks.is_shared(error)

    def _save_is_due(self, last_saved: float) -> bool:
        return self.ranks.first(lambda: super(DataParallelRun, self)._save_is_due(last_saved))

    def _save(self) -> None:
        if (file := self.checkpoint) is not None:
            states = self.ranks.exchange(random_state(self.device))
            self.ranks.first(lambda: self._write(file, states[1:]))

    def _resume(self) -> None:
        checkpoint, number = self.checkpoint, self.ranks.rank
        if checkpoint is None or not self.ranks.first(checkpoint.exists):
            return

        def read() -> None:
            if not checkpoint.exists():
                raise StorageError("every rank must see the checkpoint", got=f"none at {checkpoint} on rank {number}")
            if not self._read(checkpoint, rank=number):
                with isolated(self._stream(), self.device):
                    own = random_state(self.device)
                set_random_state(own, self.device)

        self.ranks.alike(read)

    # Losing a rank

    def _until_next_evaluation(self) -> Outcome | None:
        try:
            return super()._until_next_evaluation()
        except RankLost as lost:
            raise self._left_behind(lost) from lost

    def _left_behind(self, lost: RankLost) -> RankLost:
        """Save what is complete, and say what became of it."""
        if self.checkpoint is None:
            return lost.mended("give a checkpoint, and a run can go on after this with any number of ranks")
        file, how = self.checkpoint, "the same command goes on from there, with any number of ranks"
        if not lost.speaks:
            return lost.mended(f"the first rank that noticed saves {file}")
        if self.step is None or not self._settled():
            stands = f"{file} stands as it was: {how}" if file.exists() else f"nothing was saved in {file} before"
            return lost.mended(f"no update was complete then; {stands}")
        try:
            if self.unread:
                self.progress.losses.extend(torch.stack(self.unread).tolist())
                self.unread.clear()
            self.clock.stop()
            self.progress.seconds = self.clock.seconds
            self._write(file)
        except StorageError as error:
            return lost.mended(f"what is complete could not be saved: {error}")
        return lost.mended(f"the run after update {self.progress.iterations:,} is saved in {file}: {how}")

    def _settled(self) -> bool:
        """Whether the device has done all that it was told."""
        if self.device.type != "cuda":
            return True
        event, until = torch.cuda.Event(), time.monotonic() + SETTLED_SECONDS  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self.device))
        while not event.query() and time.monotonic() < until:  # type: ignore[no-untyped-call]
            time.sleep(0.01)
        return bool(event.query())  # type: ignore[no-untyped-call]
