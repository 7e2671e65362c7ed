"""Mishkin et al. 2016, Systematic evaluation of CNN advances on the ImageNet, arXiv 1606.02228.

Figure 8: accuracy against batch size for the same number of examples, with one learning rate and with rates ∝ B.
"""

from __future__ import annotations

from batchscope.folklore.papers.bench import Bench, Findings, over_seeds, tally
from batchscope.folklore.verdicts import paired
from batchscope.records import Interval, Plan
from batchscope.records.claims import Finding, Picture, Series
from batchscope.records.paper import PaperRow
from batchscope.workload import load_workload

REFERENCE = (
    "D. Mishkin, N. Sergievskiy, J. Matas: Systematic Evaluation of Convolution Neural Network Advances on the "
    "ImageNet. Computer Vision and Image Understanding 2017, arXiv 1606.02228"
)
# Accuracy at learning rate 0.01 for all, and at learning rates ∝ B that are 0.01 at 256.
PUBLISHED: dict[int, tuple[float | None, float | None]] = {
    1024: (0.419, 0.465),
    512: (0.455, 0.469),
    256: (0.471, None),
    128: (0.472, 0.470),
    64: (0.471, 0.475),
    32: (0.463, 0.470),
}
REFERENCE_SIZE, RATE = 256, 0.01
MOST_EPOCHS, EXAMPLES = 10, 20_000


def reproduce(bench: Bench) -> Findings:
    """Train a small convolutional network with momentum at six batch sizes, twice."""
    findings = Findings()
    workload = findings.workload = bench.fashion(load_workload, EXAMPLES)
    here = workload.training_examples
    sizes = sorted(PUBLISHED)
    runs = 2 * len(sizes) * len(bench.seeds)
    epochs = bench.epochs(workload, 64, RATE, runs, MOST_EPOCHS)
    examples = epochs * here
    scores: dict[tuple[int, bool], list[float | None]] = {}
    for size in sizes:
        for scaled in (False, True):
            rate = RATE * size / REFERENCE_SIZE if scaled else RATE
            if size == REFERENCE_SIZE and scaled:
                scores[size, scaled] = scores[size, False]
                continue
            found = bench.train(workload, Plan(size, rate, examples=examples, shape="linear"))
            scores[size, scaled] = [run.result.final_score for run in found]
    for size in sizes:
        for scaled, how in ((False, "one learning rate"), (True, "learning rate ∝ B")):
            published = PUBLISHED[size][scaled]
            findings.rows.append(
                PaperRow(f"batch {size:,}, {how}", "accuracy", published, over_seeds(scores[size, scaled]))
            )
    small, large = sizes[0], sizes[-1]
    for scaled, how in ((False, "one learning rate"), (True, "learning rates ∝ B")):
        findings.effects.append(
            Finding(f"accuracy of {small} minus {large:,}, {how}", paired(scores[small, scaled], scores[large, scaled]))
        )
    findings.effects.append(
        Finding(
            f"gain from the larger learning rate at batch size {large:,}",
            paired(scores[large, True], scores[large, False]),
        )
    )
    findings.lead = tally([effect.value for effect in findings.effects])
    across = tuple(map(float, sizes))
    findings.pictures = [
        Picture(
            "batch size",
            "accuracy here",
            tuple(
                Series(how, across, tuple(over_seeds(scores[size, scaled]) for size in sizes))
                for scaled, how in ((False, "one learning rate"), (True, "learning rate ∝ B"))
            ),
        ),
        Picture(
            "batch size",
            "accuracy in the paper",
            tuple(
                Series(how, tuple(float(s) for s, _ in known), tuple(Interval(v, None, None) for _, v in known))
                for scaled, how in ((0, "one learning rate"), (1, "learning rate ∝ B"))
                if (known := [(s, v) for s in sizes if (v := PUBLISHED[s][scaled]) is not None])
            ),
        ),
    ]
    findings.deviations = [
        f"a small convolutional network on {here:,} images of Fashion-MNIST, not CaffeNet on ImageNet",
        f"{examples:,} examples per run, not 81.92 million, with linear learning-rate decay",
        "without the paper's batch size 1 at learning rate 4e-5",
    ]
    return findings
