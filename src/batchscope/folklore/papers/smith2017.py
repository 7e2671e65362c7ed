"""Smith et al. 2017, Don't decay the learning rate, increase the batch size, arXiv 1711.00489.

Figures 1 to 5: the number of updates and the accuracy of five schedules that keep the noise scale alike.
"""

from __future__ import annotations

from dataclasses import dataclass

from batchscope.folklore.papers.bench import Bench, Findings, over_seeds
from batchscope.folklore.verdicts import paired
from batchscope.records import Interval, Plan, Schedule
from batchscope.records.claims import Finding, Picture, Series
from batchscope.records.paper import PaperRow
from batchscope.schedule import smith, stepped
from batchscope.workload import load_workload

REFERENCE = (
    "S. L. Smith, P.-J. Kindermans, C. Ying, Q. V. Le: Don't Decay the Learning Rate, Increase the Batch Size. "
    "ICLR 2018, arXiv 1711.00489"
)
FACTOR, SHARES = 5.0, (0.3, 0.6, 0.8)
THEIR_EXAMPLES, THEIR_EPOCHS = 50_000, 200
EXAMPLES, MOST_EPOCHS, RATE = 20_000, 20, 0.04


@dataclass(frozen=True)
class _Way:
    """One of the five schedules.

    Attributes:
        name: What it is called.
        batch_size: Its first batch.
        faster: Its rate over the first one's.
        momentum: Set throughout; None: the optimiser's own.
        growths: Milestones at which the batch grows; None: all, as far as the cap allows; 0: none.
        updates: In the paper, with 50,000 examples and 200 passes.
        accuracy: In the paper, in per cent; None where it is not given.
    """

    name: str
    batch_size: int
    faster: float
    momentum: float | None
    growths: int | None
    updates: int
    accuracy: float | None

    def schedule(self, examples: int, cap: int) -> Schedule:
        """It over so many examples."""
        at = tuple(round(share * examples) for share in SHARES)
        if self.growths == 0:
            return stepped(self.batch_size, at=at, factor=FACTOR)
        cap = max(cap, self.batch_size)
        return smith(self.batch_size, at=at, factor=FACTOR, cap=cap, growths=self.growths, momentum=self.momentum)


WAYS = (
    _Way("the rate falls", 128, 1.0, None, 0, 78_125, 94.3),
    _Way("once the batch, then the rate", 128, 1.0, None, 1, 34_375, None),
    _Way("the batch grows", 128, 1.0, None, None, 29_141, 94.4),
    _Way("rate and batch five times as large", 640, 5.0, None, None, 6_406, 94.5),
    _Way("and momentum 0.98", 3200, 5.0, 0.98, None, 2_305, 93.3),
)


def reproduce(bench: Bench) -> Findings:
    """Count the updates of the paper's own schedules, and train with the same ones over fewer examples."""
    findings = Findings()
    workload = findings.workload = bench.fashion(load_workload, EXAMPLES)
    here = workload.training_examples
    epochs = bench.epochs(workload, 128, RATE, len(WAYS) * len(bench.seeds), MOST_EPOCHS)
    examples, cap = epochs * here, here // 10
    scores: dict[str, list[float | None]] = {}
    updates: dict[str, int] = {}
    for way in WAYS:
        theirs = way.schedule(THEIR_EPOCHS * THEIR_EXAMPLES, 5120).updates(THEIR_EPOCHS * THEIR_EXAMPLES)
        findings.rows.append(
            PaperRow(
                way.name,
                "updates on CIFAR-10, from the schedule",
                float(way.updates),
                Interval(float(theirs), None, None),
            )
        )
        schedule = way.schedule(examples, cap)
        plan = Plan(way.batch_size, RATE * way.faster, examples=examples, schedule=schedule)
        found = bench.train(workload, plan)
        scores[way.name] = [100 * (run.result.final_score or 0.0) for run in found]
        updates[way.name] = found[0].result.iterations
        findings.rows.append(PaperRow(way.name, "accuracy, %", way.accuracy, over_seeds(scores[way.name])))
    first = WAYS[0].name
    for way in WAYS[1:]:
        findings.effects.append(
            Finding(
                f"accuracy, {way.name} minus {first}, points; {updates[way.name]:,} updates against {updates[first]:,}",
                paired(scores[way.name], scores[first]),
            )
        )
    known = [way for way in WAYS if way.accuracy is not None]
    findings.pictures = [
        Picture(
            "updates",
            "accuracy here, %",
            tuple(
                Series(way.name, (float(updates[way.name]),), (over_seeds(scores[way.name]),), line=False)
                for way in known
            ),
        ),
        Picture(
            "updates",
            "accuracy in the paper, %",
            tuple(
                Series(way.name, (float(way.updates),), (Interval(way.accuracy, None, None),), line=False)
                for way in known
            ),
        ),
    ]
    findings.deviations = [
        f"a small convolutional network on {here:,} images of Fashion-MNIST, not WRN-16-4 on CIFAR-10",
        f"{epochs} passes over the data, not {THEIR_EPOCHS}, with milestones at the same shares; the cap is {cap:,}",
        f"a rate of {RATE:g}, momentum 0.9 and no weight decay",
    ]
    return findings
