"""The loop of a sweep: ask each batch size's search what to try next, have it tried, take in how it ended."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from batchscope.progress import Report, SizeProgress, SweepProgress
from batchscope.study.rate_search import RateSearch
from batchscope.study.tasks import Began, Engine, Evaluated, Event, Finished, Lost, Standing, Task, TaskDone, Trial
from batchscope.study.trial_store import TrialStore, standing_of
from batchscope.training.interruption import StopRequest

# How long an event is waited for before the store is looked at, and a request to stop is heard.
WAIT_SECONDS = 0.2
LOOK_SECONDS = 1.0
TELL_SECONDS = 0.2
# A task whose worker vanished through no fault of its own is run again this often before it is held responsible.
MOST_BLAMELESS = 2
# An update costs about what this many examples cost beside its batch: good enough to share work out.
FIXED_COST_EXAMPLES = 256
# Rates that a search tries as a rule; for the time left, nothing else.
SEARCHED_RATES = 9


@dataclass
class _Size:
    """One batch size: its search, and what is under way for it."""

    search: RateSearch
    outstanding: set[Trial] = field(default_factory=set)  # ours, or being trained by another sweep on this store
    foreign: set[Trial] = field(default_factory=set)
    settled: bool = False
    trained_as: str = ""
    seconds: float = 0.0
    ended: int = 0


@dataclass
class _Open:
    """A task submitted whose trials have not all ended."""

    task: Task
    left: set[Trial]
    running: bool = False
    blameless: int = 0


class Driver:
    """Drives one sweep over an engine and a store.

    Args:
        searches: By batch size.
        store: Where finished trials are, those of earlier sittings among them.
        engine: What runs tasks; entered by the caller.
        owner: Claims trials in the store, so that two sweeps on one store share the work.
        report: Told how it stands.
    """

    def __init__(
        self,
        searches: Mapping[int, RateSearch],
        store: TrialStore,
        engine: Engine,
        *,
        owner: str,
        report: Report,
    ) -> None:
        self.store, self.engine, self.owner, self.report = store, engine, owner, report
        self.sizes = {batch_size: _Size(search) for batch_size, search in sorted(searches.items())}
        self.standings: dict[Trial, Standing] = {standing.trial: standing for standing in store.standings()}
        self.open: dict[int, _Open] = {}
        self._numbers = itertools.count()
        self._told = self._looked = -math.inf

    def __call__(self, stop: StopRequest) -> bool:
        """Run until every search is content.

        Returns:
            False where it was asked to stop before.
        """
        self._plan()
        while self.open or any(size.foreign for size in self.sizes.values()):
            if stop.requested:
                return False
            event = self.engine.next_event(WAIT_SECONDS)
            if event is not None:
                self._take(event)
            self.store.heartbeat(self.owner)
            if any(size.foreign for size in self.sizes.values()):
                self._look()
            self._plan()
            self._tell()
        self._tell(last=True)
        return True

    def trained_as(self, batch_size: int) -> str:
        """How a batch size's trials were trained, in words; empty where none was in this sitting."""
        return self.sizes[batch_size].trained_as

    def of(self, batch_size: int) -> list[Standing]:
        """How the trials of a batch size stand."""
        return [standing for trial, standing in self.standings.items() if trial.batch_size == batch_size]

    # --- what to do next ----------------------------------------------------------------------------------------------

    def _plan(self) -> None:
        """Submit the next wave of every batch size that has nothing under way."""
        waves: dict[int, tuple[Trial, ...]] = {}
        for batch_size, size in self.sizes.items():
            if size.outstanding or size.settled:
                continue
            wave = size.search.next_wave(self.of(batch_size))
            size.settled = not wave
            if wave:
                ours = set(self.store.claim(wave, self.owner))
                size.outstanding, size.foreign = set(wave), set(wave) - ours
                waves[batch_size] = tuple(trial for trial in wave if trial in ours)
        self._share_out({batch_size: wave for batch_size, wave in waves.items() if wave})

    def _share_out(self, waves: dict[int, tuple[Trial, ...]]) -> None:
        """Cut waves into tasks: one for each, more where a wave is so large that one worker would be the last to end.

        A cut costs: trials of one stack share what an update costs besides its examples, and what is found out in one
        task reaches another a little later. The longest go first.
        """
        cost = {b: len(wave) * (1 / b + 1 / FIXED_COST_EXAMPLES) for b, wave in waves.items()}
        whole = sum(cost.values()) + sum(self._cost(entry) for entry in self.open.values())
        spare = self.engine.workers - len(self.open) - len(waves)
        for batch_size in sorted(waves, key=lambda b: -cost[b]):
            wave = waves[batch_size]
            share = round(self.engine.workers * cost[batch_size] / whole)
            parts = max(1, min(len(wave) // 2, self.engine.workers, max(share, 1 + max(0, spare))))
            spare -= parts - 1
            for part in range(parts):
                # Dealt out like cards, so that each part holds promising trials.
                self._submit(wave[part::parts])

    def _cost(self, entry: _Open) -> float:
        return len(entry.left) * (1 / entry.task.trials[0].batch_size + 1 / FIXED_COST_EXAMPLES)

    def _submit(self, trials: Sequence[Trial], *, blameless: int = 0) -> None:
        ended = [standing for standing in self.of(trials[0].batch_size) if standing.ended != "running"]
        task = Task(next(self._numbers), tuple(trials), tuple(ended))
        self.open[task.number] = _Open(task, set(trials), blameless=blameless)
        self.engine.submit(task)

    # --- what happened ------------------------------------------------------------------------------------------------

    def _take(self, event: Event) -> None:
        entry = self.open.get(event.task)
        if entry is None:  # the last word of a task that was lost
            return
        match event:
            case Began():
                entry.running = True
            case Evaluated(trial=trial, point=point):
                before = self.standings.get(trial)
                if before is None or before.ended != "running":
                    before = Standing.at_start(trial)
                self.standings[trial] = before.after(point)
            case Finished(trial=trial, result=result):
                if not self.engine.stores:
                    self.store.finish(trial, result)
                size = self.sizes[trial.batch_size]
                size.seconds += result.total_seconds
                size.ended += 1
                self._ended([standing_of(trial, result)], entry)
            case TaskDone(trained_as=trained_as):
                batch_size = entry.task.trials[0].batch_size
                self.sizes[batch_size].trained_as = trained_as
                self.open.pop(event.task, None)
                if entry.left:  # which no engine should do
                    self._try_again(entry, Lost(event.task, "crashed", "the worker ended without a result"))
            case Lost():
                self.open.pop(event.task, None)
                if entry.left:
                    self._try_again(entry, event)

    def _ended(self, standings: Sequence[Standing], entry: _Open | None = None) -> None:
        for standing in standings:
            trial = standing.trial
            self.standings[trial] = standing
            self.sizes[trial.batch_size].outstanding.discard(trial)
            if entry is not None:
                entry.left.discard(trial)
        self.engine.tell(standings)

    def _try_again(self, entry: _Open, lost: Lost) -> None:
        """Run what is left of a lost task: whole where it is not to blame, in halves where it may be, or not at all."""
        left = [trial for trial in entry.task.trials if trial in entry.left]
        for trial in left:
            self.standings.pop(trial, None)
        if lost.blameless and entry.blameless < MOST_BLAMELESS:
            self._submit(left, blameless=entry.blameless + 1)
        elif len(left) > 1:
            for half in (left[: len(left) // 2], left[len(left) // 2 :]):
                self._submit(half)
        else:
            self.store.fail(left[0], lost.outcome, lost.reason)
            self._ended([Standing(left[0], "failed", 0, None, None)])

    def _look(self) -> None:
        """Take in what another sweep on this store has finished, and take over what it has left behind."""
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        known = {standing.trial: standing for standing in self.store.standings()}
        for size in self.sizes.values():
            found = [known[trial] for trial in size.foreign if trial in known]
            size.foreign -= set(known)
            self._ended(found)
            ours = self.store.claim(sorted(size.foreign), self.owner) if size.foreign else ()
            size.foreign -= set(ours)
            if ours:
                self._submit(tuple(ours))

    # --- how it stands ------------------------------------------------------------------------------------------------

    def _tell(self, *, last: bool = False) -> None:
        now = time.monotonic()
        if now - self._told < TELL_SECONDS and not last:
            return
        self._told = now
        running = {trial for entry in self.open.values() if entry.running for trial in entry.left}
        rows = tuple(self._row(batch_size, size, running) for batch_size, size in self.sizes.items())
        done, waiting = sum(row.done for row in rows), sum(row.waiting + row.running for row in rows)
        standing = SweepProgress(
            rows=rows,
            done=done,
            running=len(running),
            pruned=sum(row.pruned for row in rows),
            examples=sum(standing.examples for standing in self.standings.values()),
            seconds_left=self._seconds_left(rows),
            workers=self.engine.workers,
        )
        self.report.update(label="trials", done=done, total=done + waiting, sweep=standing)

    def _row(self, batch_size: int, size: _Size, running: Iterable[Trial]) -> SizeProgress:
        standings = self.of(batch_size)
        ended = [standing for standing in standings if standing.ended != "running"]
        choice = size.search.choice(ended)
        best_rate = choice.learning_rate
        if best_rate is None:  # none has ended yet: what leads so far
            scored = [s for s in standings if s.score is not None]
            best_rate = max(scored, key=lambda s: s.score or 0.0).trial.learning_rate if scored else None
        of_best = [s for s in standings if s.trial.learning_rate == best_rate]
        reached = [math.log(s.examples) for s in of_best if s.ended == "reached"]
        scores = [s.score for s in of_best if s.score is not None]
        here = sum(trial.batch_size == batch_size for trial in running)
        return SizeProgress(
            batch_size=batch_size,
            done=len(ended),
            running=here,
            pruned=sum(s.ended == "pruned" for s in ended),
            waiting=len(size.outstanding) - here,
            best_rate=best_rate,
            best_examples=math.exp(sum(reached) / len(reached)) if reached else None,
            best_score=max(scores, default=None),
            at_edge=choice.edge is not None,
            settled=size.settled,
        )

    def _seconds_left(self, rows: Sequence[SizeProgress]) -> float | None:
        """What the trials to come cost at what those of their batch size, or of the nearest one, cost on average."""
        known = {b: size.seconds / size.ended for b, size in self.sizes.items() if size.ended}
        if not known or any(not row.settled and not row.done and not row.running for row in rows):
            return None
        left = 0.0
        for row in rows:
            if not row.settled:
                nearest = min(known, key=lambda b: abs(math.log(b / row.batch_size)))
                mean = known[nearest] * max(1.0, nearest / row.batch_size)
                left += mean * max(
                    row.running / 2 + row.waiting, _expected(self.sizes[row.batch_size].search) - row.done
                )
        return left / self.engine.workers


def _expected(search: RateSearch) -> int:
    """About how many trials a search makes: all, where rates are given; else a coarse wave and seeds for the best."""
    return len(search.given) * len(search.seeds) if search.given else SEARCHED_RATES + 3 * (len(search.seeds) - 1)
