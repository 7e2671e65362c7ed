"""One parameter update of several ranks, each with its share of the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from batchscope.errors import WorkloadError
from batchscope.training.interruption import StopRequest
from batchscope.training.micro_batching import MicroBatchingStep
from batchscope.training.observer import SharedObserver
from batchscope.training.rank_places import RankLost, share
from batchscope.training.ranks import Ranks
from batchscope.workload.workload import Batch, Workload

# Gradients are summed in pieces of about this size: the copy that is summed takes no more memory than that.
BUCKET_BYTES = 32 << 20
# The loss, a squared norm, and what the ranks tell each other.
TAIL = 5


@dataclass(frozen=True)
class _Bucket:
    """Parameters whose gradients are summed in one call.

    Attributes:
        dtype: Of the sum.
        members: Positions of the parameters.
        sizes: Numbers in each of them.
    """

    dtype: torch.dtype
    members: tuple[int, ...]
    sizes: tuple[int, ...]


class RankedStep(MicroBatchingStep):
    """A training step whose batch is shared among ranks, and whose gradient is that of the whole batch.

    With m_r of the B examples on rank r the gradient is Σ_r (m_r/B)·∇L_r, and the loss likewise: that of one process,
    since the loss is a mean over examples. (Batch norm sees each share by itself, as it sees each micro-batch.) A rank
    without examples adds nothing, and makes the update all the same.

    Gradients are summed in flat buffers of 32 MiB, each a copy of many. With the first go the loss, the ‖∇L_r‖² that an
    observer wants to see, and three numbers more, so that all ranks do the same after each update: whether one was
    asked to stop, whether one failed, and whether one has gradients for other parameters than before. On CUDA these go
    through gloo beside it, and no rank waits for its device. Numbers of 16 bits are summed as 32 bits; a parameter that
    no rank has a gradient for keeps none.

    A rank whose memory ends cuts its own share; where that can't be done all end.

    Args:
        workload: What is trained.
        model: Its model, on the device.
        optimizer: Its optimiser.
        ranks: Who shares the batches.
        asked: What asks this rank to stop.
        observer: What wants to see some of the updates; None: nothing does.
        micro_batch_size: Examples in every micro-batch of the share; None: shares come whole.
        cut_to: Examples at once where memory ran out before, when a run is resumed.
        scaler: As in :class:`batchscope.training.step.TrainingStep`; the ranks' stay alike, since they unscale the sum.

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
        micro_batch_size: int | None,
        cut_to: int | None = None,
        scaler: GradScaler | None = None,
    ) -> None:
        super().__init__(workload, model, optimizer, micro_batch_size=micro_batch_size, cut_to=cut_to, scaler=scaler)
        self.ranks, self.asked, self.agreed, self.observer = ranks, asked, StopRequest(), observer
        self._own: tuple[int, ...] = ()
        self._anyone: tuple[int, ...] = ()
        self._buckets: list[_Bucket] = []
        self._flat: dict[torch.dtype, Tensor] = {}
        self._lay_out()

    def __call__(self, micro_batches: list[Batch], examples: int) -> Tensor:
        """Make one update, together with the other ranks.

        Args:
            micro_batches: This rank's share as it came; empty where there are fewer examples than ranks.
            examples: Examples in the whole batch.

        Returns:
            The whole batch's mean loss before the update, detached and on the device.

        Raises:
            MemoryError: Memory ran out on a rank, and its share cannot be repeated in smaller pieces.
            RankLost: A rank has gone; the weights are those before the update.
        """
        own = self._share(examples, self.ranks.rank)
        observer = self.observer if self.observer is not None and self.observer.is_due() else None
        # Only where somebody looks: it takes longer the more ranks there are.
        shares = [] if observer is None else [self._share(examples, rank) for rank in range(self.ranks.size)]
        told: list[Tensor] = []
        failure: Exception | None = None
        if own:
            try:
                told = [self.repeatable_gradient(micro_batches, own) * (own / examples)]
                self._check_dense()
                if observer is not None:
                    told.append(self._norm_squared() / sum(count > 0 for count in shares))
            except Exception as error:  # whatever it is, the others must not wait for this rank
                failure = error
        else:
            for parameter in self.parameters:
                parameter.grad = None
        try:
            mean, norm = self._sum(told, own / examples, failure)
        except RankLost:
            if own:
                self._random.rewind()
            raise
        if observer is not None:
            observer.see(float(norm), float(self._norm_squared()), shares=shares)
        self.update()
        return mean

    def _share(self, examples: int, rank: int) -> int:
        """Examples of a rank, of so many in the batch."""
        return len(share(range(examples), rank, self.ranks.size))

    def _norm_squared(self) -> Tensor:
        """The squared length of the gradients that the parameters hold, the scale of the loss taken out."""
        held = [_real(p.grad).reshape(-1) for p in self.parameters if p.grad is not None]
        norms = torch._foreach_norm([g.float() if g.dtype.itemsize < 4 else g for g in held])
        if not norms:
            return torch.zeros(())
        return torch.stack([norm.double() for norm in norms]).square().sum() / self.loss_scale**2

    def agree_on_cut(self) -> int | None:
        """The fewest examples at once that memory called for on any rank, from now on on all of them."""
        cuts = [cut for cut in self.ranks.exchange(self.cut_to) if cut is not None]
        self.cut_to = min(cuts, default=None)
        return self.cut_to

    def _check_dense(self) -> None:
        if any(parameter.grad is not None and parameter.grad.is_sparse for parameter in self.parameters):
            raise WorkloadError(
                "gradients that ranks sum must be dense", got="a sparse one", mend="use nn.Embedding(sparse=False)"
            )

    def _sum(self, told: Sequence[Tensor], weight: float, failure: Exception | None) -> tuple[Tensor, Tensor]:
        """Leave the whole batch's gradient in the parameters; the sums of the numbers that ranks tell, two at most."""
        device = self.device
        while True:
            own = self._own if failure else tuple(i for i, p in enumerate(self.parameters) if p.grad is not None)
            flags = torch.tensor([self.asked.requested, failure is not None, own != self._own], dtype=torch.float32)
            sums = torch.zeros(2, dtype=self._buckets[0].dtype, device=device)
            if told and failure is None:
                sums[: len(told)] = torch.stack([number.to(sums) for number in told])
            if device.type == "cuda":
                self.ranks.add_up(flags)
                flat = None
            else:
                flat = self._summed(self._buckets[0], weight, failure, torch.cat([sums, flags.to(sums.dtype)]))
                flags = flat[-len(flags) :]
            asked, failed, changed = flags.tolist()
            if failed:
                self.ranks.agree(failure)
            if not changed:
                break
            self._own = own
            self._anyone = tuple(sorted(set().union(*self.ranks.exchange(own))))
            self._lay_out()
        if asked:
            self.agreed.requested = True
        for k, bucket in enumerate(self._buckets):
            if flat is None or k > 0:
                flat = self._summed(bucket, weight, None, sums if k == 0 else None)
            if k == 0:
                numbers = sum(bucket.sizes)
                sums = flat[numbers : numbers + 2].clone()
            self._spread(bucket, flat)
        return sums[0], sums[1]

    def _summed(self, bucket: _Bucket, weight: float, failure: Exception | None, tail: Tensor | None) -> Tensor:
        """The weighted sum of a bucket's gradients over the ranks, with numbers more that are added as they are."""
        numbers = sum(bucket.sizes)
        flat = self._flat[bucket.dtype][: numbers + (0 if tail is None else len(tail))]
        if failure is not None:
            flat.zero_()
        elif numbers:
            parts = []
            for i, size in zip(bucket.members, bucket.sizes, strict=True):
                gradient = self.parameters[i].grad
                if gradient is None:
                    parts.append(torch.zeros(size, dtype=bucket.dtype, device=flat.device))
                else:
                    parts.append(_real(gradient).reshape(-1).to(bucket.dtype))
            torch.cat(parts, out=flat[:numbers])
            flat[:numbers] *= weight
        if tail is not None:
            flat[numbers:] = tail
        self.ranks.add_up(flat)
        return flat

    def _spread(self, bucket: _Bucket, flat: Tensor) -> None:
        held, sums = [], []
        parts = torch.split(flat[: sum(bucket.sizes)], list(bucket.sizes)) if bucket.sizes else ()
        for i, part in zip(bucket.members, parts, strict=True):
            parameter = self.parameters[i]
            if parameter.grad is None:
                parameter.grad = torch.empty_like(parameter)
            real = _real(parameter.grad)
            held.append(real)
            sums.append(part.view(real.shape))
        if held:
            torch._foreach_copy_(held, sums)

    def _lay_out(self) -> None:
        """Put the parameters that anyone has a gradient for into buckets, in their order."""
        # The first also holds the loss, for which 32 bits are enough where gradients have no more.
        double = bool(self.parameters) and all(_sum_type(p) == torch.float64 for p in self.parameters)
        first = torch.float64 if double else torch.float32
        buckets: list[_Bucket] = []
        for dtype in (first, torch.float32 if double else torch.float64):
            members: list[int] = []
            sizes: list[int] = []
            for i in self._anyone:
                parameter = self.parameters[i]
                if _sum_type(parameter) != dtype:
                    continue
                if sizes and sum(sizes) * dtype.itemsize >= BUCKET_BYTES:
                    buckets.append(_Bucket(dtype, tuple(members), tuple(sizes)))
                    members, sizes = [], []
                members.append(i)
                sizes.append(_real(parameter.detach()).numel())
            if members or dtype == first:
                buckets.append(_Bucket(dtype, tuple(members), tuple(sizes)))
        self._buckets = buckets
        most = {dtype: max(sum(b.sizes) for b in buckets if b.dtype == dtype) for dtype in {b.dtype for b in buckets}}
        self._flat = {
            dtype: torch.empty(numbers + TAIL, dtype=dtype, device=self.device) for dtype, numbers in most.items()
        }


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _sum_type(parameter: Tensor) -> torch.dtype:
    """The type that gradients of a parameter are summed in: that of their real numbers, of 32 bits at least."""
    return torch.float64 if parameter.dtype in (torch.float64, torch.complex128) else torch.float32
