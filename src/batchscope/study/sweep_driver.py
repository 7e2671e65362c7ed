"""The loop of a sweep: ask each batch size's search what to try next, have it tried, keep it, and see how it ended.

The driver alone writes the store. A search only sees waves that have ended, and a wave ends as :func:`resolve` says by
the curves of its trials. So a sweep that was killed goes through the same waves again, with the curves that the store
has, and trains what is missing: what comes out does not depend on where it was killed, nor on how many trained at once.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from batchscope.progress import Report, SizeProgress, SweepProgress
from batchscope.records import SweepTrial
from batchscope.study.pruning import Curve, hopeless, resolve
from batchscope.study.rate_search import RateSearch
from batchscope.study.store import Store
from batchscope.study.tasks import (
    Began,
    Conditions,
    Engine,
    Evaluated,
    Event,
    Finished,
    Lost,
    Standing,
    Task,
    TaskDone,
    Trial,
    cut,
    failed,
    key_of,
    standing_of,
)
from batchscope.training.interruption import StopRequest

# How long an event is waited for before a request to stop is heard.
WAIT_SECONDS = 0.2
TELL_SECONDS = 0.2
# A task whose worker vanished through no fault of its own is run again this often before it is held responsible.
MOST_BLAMELESS = 2
# An update costs about what this many examples cost beside its batch: good enough to share work out.
FIXED_COST_EXAMPLES = 256
# Rates that a search tries as a rule; for the time left, nothing else.
SEARCHED_RATES = 9


@dataclass
class _Size:
    """One batch size: its search, the trials of the waves that have ended, and the present wave."""

    search: RateSearch
    results: dict[Trial, SweepTrial] = field(default_factory=dict)
    wave: dict[Trial, Curve] = field(default_factory=dict)
    again: set[Trial] = field(default_factory=set)  # stopped too soon: only resolve() may stop them now
    settled: bool = False
    trained_as: str = ""
    seconds: float = 0.0
    ended: int = 0

    @property
    def known(self) -> list[Standing]:
        """How the trials of earlier waves have ended."""
        return [standing_of(result) for result in self.results.values()]

    @property
    def standings(self) -> list[Standing]:
        """How all its trials stand."""
        return [*self.known, *(curve.end or curve.latest for curve in self.wave.values())]


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
        conditions: What all trials have in common.
        store: Where finished trials are, those of earlier sittings among them.
        engine: What runs tasks; entered by the caller.
        report: Told how it stands.
    """

    def __init__(
        self,
        searches: Mapping[int, RateSearch],
        conditions: Conditions,
        store: Store,
        engine: Engine,
        *,
        report: Report,
    ) -> None:
        self.conditions, self.store, self.engine, self.report = conditions, store, engine, report
        self.sizes = {batch_size: _Size(search) for batch_size, search in sorted(searches.items())}
        self.found = {key_of(result): result for result in store.trials()}
        self.open: dict[int, _Open] = {}
        self._heard: dict[Trial, int] = {}  # evaluations of trials under way, in the present attempt
        self._stopped: set[Trial] = set()
        self._numbers = itertools.count()
        self._told = -math.inf

    def __call__(self, stop: StopRequest) -> bool:
        """Run until every search is content.

        Returns:
            False where it was asked to stop before.
        """
        self._plan()
        while self.open or not all(size.settled for size in self.sizes.values()):
            if stop.requested:
                return False
            self.engine.work(self._take, WAIT_SECONDS)
            self._plan()
            self._tell()
        self._tell(last=True)
        return True

    def trained_as(self, batch_size: int) -> str:
        """How a batch size's trials were trained, in words; empty where none was in this sitting."""
        return self.sizes[batch_size].trained_as

    def results(self) -> list[SweepTrial]:
        """The trials that have ended, those of the present waves as far as they were trained."""
        ended = [result for size in self.sizes.values() for result in size.results.values()]
        return ended + [self.found[trial] for size in self.sizes.values() for trial in size.wave if trial in self.found]

    # --- what to do next ----------------------------------------------------------------------------------------------

    def _plan(self) -> None:
        """End the waves that have ended, and submit what is to be trained next."""
        wanted: dict[int, list[Trial]] = {}
        under_way = {trial for entry in self.open.values() for trial in entry.left}
        for batch_size, size in self.sizes.items():
            while not size.settled and under_way.isdisjoint(size.wave):
                found = resolve(list(size.wave.values()), size.known, self.conditions)
                if found.missing:
                    missing = [trial for trial in size.wave if trial in found.missing]
                    size.again.update(trial for trial in missing if size.wave[trial].standings)
                    # Those that nothing is known of come first: they may show that the others need not go on.
                    wanted[batch_size] = [trial for trial in missing if trial not in size.again] or missing
                    break
                for trial, standing in found.standings.items():
                    whole = self.found[trial]
                    pruned = standing.ended == "pruned"
                    size.results[trial] = cut(whole, found.evaluations[trial]) if pruned else whole
                size.wave, size.again = {}, set()
                wave = size.search.next_wave(size.known)
                size.settled = not wave
                # What is pruned may be asked for again, and counts as not known meanwhile.
                for trial in wave:
                    size.results.pop(trial, None)
                size.wave = {trial: self._curve(trial) for trial in wave}
        self._share_out(wanted)

    def _curve(self, trial: Trial) -> Curve:
        """What the store knows of a trial."""
        result = self.found.get(trial)
        if result is None:
            return Curve(trial)
        return Curve.of(trial, result.curve, None if result.outcome == "pruned" else standing_of(result))

    def _share_out(self, waves: Mapping[int, Sequence[Trial]]) -> None:
        """Cut waves into tasks: one for each, more where a wave is so large that one worker would be the last to end.

        A cut costs: trials of one stack share what an update costs besides its examples. The longest go first.
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
        return len(entry.left) * (1 / entry.task.batch_size + 1 / FIXED_COST_EXAMPLES)

    def _submit(self, trials: Sequence[Trial], *, blameless: int = 0) -> None:
        for trial in trials:
            self._heard.pop(trial, None)
        self._stopped.difference_update(trials)
        task = Task(next(self._numbers), tuple(trials))
        self.open[task.number] = _Open(task, set(trials), blameless=blameless)
        self.engine.submit(task)

    # --- what happened ------------------------------------------------------------------------------------------------

    def _take(self, event: Event) -> None:
        entry = self.open.get(event.task)
        if entry is None:  # the last word of a task that was lost
            return
        size = self.sizes[entry.task.batch_size]
        match event:
            case Began():
                entry.running = True
            case Evaluated(trial=trial, point=point):
                # Where a task is run again, its trials are evaluated again.
                self._heard[trial] = 1 if point.examples == 0 else self._heard.get(trial, 0) + 1
                if self._heard[trial] > len(size.wave[trial].standings):
                    size.wave[trial].add(point)
                if self._heard[trial] <= min(self._heard[other] for other in size.wave if other in self._heard):
                    self._stop(size)  # once all have come so far
            case Finished(result=result):
                entry.left.discard(key_of(result))
                size.seconds += result.sweep_seconds
                size.ended += 1
                self._keep(size, result)
                self._stop(size)
            case TaskDone(trained_as=trained_as):
                size.trained_as = trained_as
                self._over(entry, Lost(event.task, "crashed", "the worker ended without a result"))
            case Lost():
                self._over(entry, event)

    def _keep(self, size: _Size, result: SweepTrial) -> None:
        """Store how a trial has ended, unless it was stopped sooner than it had been before."""
        trial = key_of(result)
        before = self.found.get(trial)
        if before is None or result.outcome != "pruned" or len(before.curve) <= len(result.curve):
            self.store.put(result)
            self.found[trial] = result
        self._heard.pop(trial, None)
        size.wave[trial] = self._curve(trial)

    def _stop(self, size: _Size) -> None:
        """Stop those of the trials under way that need not go on."""
        asked = {trial for trial in size.wave if trial in self._heard} - self._stopped
        if not asked or not self.conditions.pruning:
            return
        curves, known = list(size.wave.values()), size.known
        out = hopeless(curves, [size.wave[trial] for trial in asked - size.again], known, self.conditions)
        if asked & size.again:
            found = resolve(curves, known, self.conditions)
            out |= {trial for trial in asked & size.again if found.standings[trial].ended == "pruned"}
        if out:
            self._stopped |= out
            self.engine.stop(out)

    def _over(self, entry: _Open, lost: Lost) -> None:
        """A task is over: run what is left of it again, whole where it is not to blame and in halves where it may be.

        A lone trial that may be to blame is not run again.
        """
        del self.open[entry.task.number]
        left = [trial for trial in entry.task.trials if trial in entry.left]
        if not left:
            return
        if lost.blameless and entry.blameless < MOST_BLAMELESS:
            self._submit(left, blameless=entry.blameless + 1)
        elif len(left) > 1:
            for half in (left[: len(left) // 2], left[len(left) // 2 :]):
                self._submit(half)
        else:
            size = self.sizes[left[0].batch_size]
            self._keep(size, failed(left[0], lost.outcome, lost.reason))
            self._stop(size)

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
            examples=sum(standing.examples for size in self.sizes.values() for standing in size.standings),
            seconds_left=self._seconds_left(rows),
            workers=self.engine.workers,
        )
        self.report.update(label="trials", done=done, total=done + waiting, sweep=standing)

    def _row(self, batch_size: int, size: _Size, running: Iterable[Trial]) -> SizeProgress:
        standings = size.standings
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
            waiting=len(standings) - len(ended) - here,
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
