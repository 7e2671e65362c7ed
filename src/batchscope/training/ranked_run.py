"""One training run of several ranks, which is that of one process in everything but its speed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch

from batchscope.errors import PlanError, StorageError, WorkloadError
from batchscope.records import CurvePoint, Interval, Plan, TrainResult
from batchscope.records.training import Outcome
from batchscope.seeding import derive, isolated, random_state, set_random_state
from batchscope.training.evaluation import EvaluationData
from batchscope.training.loop import Prepared, Run
from batchscope.training.micro_batching import MicroBatchingStep, least_batch_size
from batchscope.training.observer import MakeObserver, Observer, SharedObserver
from batchscope.training.rank_places import RankLost, share
from batchscope.training.ranked_step import RankedStep
from batchscope.training.ranks import Ranks
from batchscope.training.start import Start

# A device with an update on it that waits for a lost rank never gets there; one without is there at once.
SETTLED_SECONDS = 5.0


class RankedRun(Run):
    """A run whose every batch is shared among ranks.

    Each rank holds the model, the optimiser and the course of the run, and makes every update. Rank 0 evaluates, for
    a score of everything at once can't be shared out, and tells the others; it alone calls back, and writes. Buffers
    that a forward pass changes, as batch norm's running averages, are rank 0's from each evaluation on. What training
    draws, as dropout does, each rank draws for itself.

    When a rank is lost, the first of the others saves the state after the last complete update. A checkpoint has no
    mark of the number of ranks: any number goes on from it, at the same place in the stream of examples.

    Args:
        ranks: Who shares the batches.
        prepared: As for :class:`batchscope.training.loop.Run`, and so are the others.
        plan: Its ``micro_batch_size`` is each rank's.
        seed: The same on all ranks.
        evaluate_every: The same on all ranks.
        start: The same on all ranks.
        checkpoint: Rank 0 writes it, and all read it.
        checkpoint_every_seconds: Least time between two saves.
        on_evaluation: Called on rank 0.
        keep_going: Called on rank 0.
        observer: Makes a :class:`batchscope.training.observer.SharedObserver`, on every rank.

    Raises:
        PlanError: A plan that this workload cannot follow on so many ranks.
        WorkloadError: The ranks were given different things to train.
    """

    def __init__(
        self,
        ranks: Ranks,
        prepared: Prepared,
        plan: Plan,
        *,
        seed: int,
        evaluate_every: int | None = None,
        start: Start | None = None,
        checkpoint: Path | None = None,
        checkpoint_every_seconds: float = 60.0,
        on_evaluation: Callable[[CurvePoint, float | None], None] | None = None,
        keep_going: Callable[[CurvePoint], bool] | None = None,
        observer: MakeObserver | None = None,
    ) -> None:
        self.ranks, self.part = ranks, (ranks.rank, ranks.size)
        begin = super().__init__
        ranks.alike(
            lambda: begin(
                prepared,
                plan,
                seed=seed,
                evaluate_every=evaluate_every,
                start=start,
                checkpoint=checkpoint,
                checkpoint_every_seconds=checkpoint_every_seconds,
                on_evaluation=on_evaluation if ranks.rank == 0 else None,
                keep_going=None if keep_going is None else lambda point: ranks.first(lambda: keep_going(point)),
                observer=observer,
            )
        )
        ranks.alike(self._check_shares)
        self._check_alike()
        self._copy_first()

    def _check_shares(self) -> None:
        """Refuse batches that leave a rank with an example that batch norm has nothing to compare with."""
        least, ranks = least_batch_size(self.model), self.ranks.size
        sizes = (self.plan.batch_size, self.budget - self.course.schedule.examples(self.iterations - 1))
        if least > 1 and any(0 < len(share(range(n), r, ranks)) < least for n in sizes for r in range(ranks)):
            raise PlanError(
                f"batch norm needs {least} examples in each rank's share of a batch",
                got=f"a first batch of {sizes[0]} and a last one of {sizes[1]} on {ranks} ranks",
                mend="give larger batches, and a budget that they divide, or start fewer ranks",
            )

    def _check_alike(self) -> None:
        """Refuse ranks that would not train the same, as where a script splits its data at random."""
        own = self._identity()
        theirs = self.ranks.first(lambda: own)
        differing = ", ".join(key for key in own if own[key] != theirs[key])
        rule, mend = (
            "all ranks must be given the same workload, plan and seed",
            "seed whatever is drawn before training",
        )
        got = f"another {differing} on rank {self.ranks.rank} than on rank 0"
        self.ranks.agree(WorkloadError(rule, got=got, mend=mend) if differing else None)

    def _copy_first(self) -> None:
        self.ranks.copy_first([*self.model.parameters(), *self.model.buffers()])

    # What a run by itself does otherwise

    def _stream(self) -> int:
        # Rank 0's is that of a run by itself. Ranks that join a resumed run draw what nobody has drawn.
        number = self.ranks.rank
        return derive(self.seed, "training", number, self.progress.iterations) if number else super()._stream()

    def _until_next_evaluation(self) -> Outcome | None:
        self.ranks.at_loss = self._left_behind
        try:
            return super()._until_next_evaluation()
        except RankLost as lost:
            raise self._left_behind(lost) from lost
        finally:
            self.ranks.at_loss = None

    def _make_step(self) -> MicroBatchingStep:
        if self.observer is not None and not isinstance(self.observer, SharedObserver):
            raise PlanError(
                "what watches a run of several ranks must take what they share",
                got=type(self.observer).__name__,
                mend="give observer=batchscope.measure.shared_noise.SharedNoise",
            )
        if self.plan.inner_steps > 1:
            raise PlanError(
                "conservative training is for one process", got=f"inner_steps={self.plan.inner_steps} on several ranks"
            )
        step = RankedStep(
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
        return self.ranks.first(lambda: super(RankedRun, self)._noise(observer))

    def _loss_and_score(self, data: EvaluationData) -> tuple[float, float]:
        self.ranks.copy_first(list(self.model.buffers()))
        return self.ranks.first(lambda: super(RankedRun, self)._loss_and_score(data))

    def _save_is_due(self, last_saved: float) -> bool:
        return self.ranks.first(lambda: super(RankedRun, self)._save_is_due(last_saved))

    def _is_outcome(self, error: Exception) -> bool:
        return super()._is_outcome(error) and self.ranks.is_shared(error)

    def _save(self) -> None:
        checkpoint = self.checkpoint
        if checkpoint is None:
            return
        if isinstance(self.step, RankedStep):
            self.step.agree_on_cut()
        states = self.ranks.exchange(random_state(self.device))
        self.ranks.first(lambda: self._write(checkpoint, states[1:]))

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
        self._copy_first()

    def _result(self, outcome: Outcome) -> TrainResult:
        if isinstance(self.step, RankedStep):
            self.step.agree_on_cut()
        return super()._result(outcome)

    # Losing a rank

    def _left_behind(self, lost: RankLost) -> RankLost:
        """Save what is complete, and say what became of it."""
        if self.checkpoint is None:
            return lost.mended("give a checkpoint, and a run can go on after this with any number of ranks")
        file, how = self.checkpoint, "the same command goes on from there, with any number of ranks"
        if not lost.speaks:
            return lost.mended(f"the first rank that is left saves {file}")
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
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self.device))
        until = time.monotonic() + SETTLED_SECONDS
        while not event.query():  # type: ignore[no-untyped-call]
            if time.monotonic() > until:
                return False
            time.sleep(0.01)
        return True
