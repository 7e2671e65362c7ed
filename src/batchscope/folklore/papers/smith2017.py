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
class _Setting:
    """One of the five schedules.

    Attributes:
        name: Its name.
        batch_size: The first batch size.
        faster: Learning rate relative to the first schedule.
        momentum: Momentum; None: the optimiser's own.
        growths: Milestones at which the batch size grows; None: all; 0: none.
        updates: Published updates, with 50,000 examples and 200 epochs.
        accuracy: Published accuracy in per cent, if given.
    """

    name: str
    batch_size: int
    faster: float
    momentum: float | None
    growths: int | None
    updates: int
    accuracy: float | None

    def schedule(self, examples: int, cap: int) -> Schedule:
        """The schedule over so many examples."""
        at = tuple(round(share * examples) for share in SHARES)
        if self.growths == 0:
            return stepped(self.batch_size, at=at, factor=FACTOR)
        cap = max(cap, self.batch_size)
        return smith(self.batch_size, at=at, factor=FACTOR, cap=cap, growths=self.growths, momentum=self.momentum)


SETTINGS = (
    _Setting("learning-rate decay", 128, 1.0, None, 0, 78_125, 94.3),
    _Setting("batch-size growth once, then learning-rate decay", 128, 1.0, None, 1, 34_375, None),
    _Setting("batch-size growth", 128, 1.0, None, None, 29_141, 94.4),
    _Setting("batch-size growth, learning rate and batch size × 5", 640, 5.0, None, None, 6_406, 94.5),
    _Setting("batch-size growth, learning rate × 5, momentum 0.98", 3200, 5.0, 0.98, None, 2_305, 93.3),
)


def reproduce(bench: Bench) -> Findings:
    """Count the updates of the paper's schedules, and train with the same schedules over fewer examples."""
    findings = Findings()
    workload = findings.workload = bench.fashion(load_workload, EXAMPLES)
    here = workload.training_examples
    epochs = bench.epochs(workload, 128, RATE, len(SETTINGS) * len(bench.seeds), MOST_EPOCHS)
    examples, cap = epochs * here, here // 10
    scores: dict[str, list[float | None]] = {}
    updates: dict[str, int] = {}
    for setting in SETTINGS:
        theirs = setting.schedule(THEIR_EPOCHS * THEIR_EXAMPLES, 5120).updates(THEIR_EPOCHS * THEIR_EXAMPLES)
        findings.rows.append(
            PaperRow(
                setting.name,
                "updates on CIFAR-10, from the schedule",
                float(setting.updates),
                Interval(float(theirs), None, None),
            )
        )
        schedule = setting.schedule(examples, cap)
        plan = Plan(setting.batch_size, RATE * setting.faster, examples=examples, schedule=schedule)
        found = bench.train(workload, plan)
        scores[setting.name] = [100 * (run.result.final_score or 0.0) for run in found]
        updates[setting.name] = found[0].result.iterations
        findings.rows.append(PaperRow(setting.name, "accuracy, %", setting.accuracy, over_seeds(scores[setting.name])))
    first = SETTINGS[0].name
    for setting in SETTINGS[1:]:
        findings.effects.append(
            Finding(
                f"accuracy, {setting.name} minus {first}, points; {updates[setting.name]:,} updates against "
                f"{updates[first]:,}",
                paired(scores[setting.name], scores[first]),
            )
        )
    known = [setting for setting in SETTINGS if setting.accuracy is not None]
    findings.pictures = [
        Picture(
            "updates",
            "accuracy here, %",
            tuple(
                Series(setting.name, (float(updates[setting.name]),), (over_seeds(scores[setting.name]),), line=False)
                for setting in known
            ),
        ),
        Picture(
            "updates",
            "accuracy in the paper, %",
            tuple(
                Series(setting.name, (float(setting.updates),), (Interval(setting.accuracy, None, None),), line=False)
                for setting in known
            ),
        ),
    ]
    findings.deviations = [
        f"a small convolutional network on {here:,} images of Fashion-MNIST, not WRN-16-4 on CIFAR-10",
        f"{epochs} epochs, not {THEIR_EPOCHS}, with milestones at the same shares, and batch sizes up to {cap:,}",
        f"learning rate {RATE:g}, momentum 0.9 and no weight decay",
    ]
    return findings
