"""McCandlish et al. 2018, An empirical model of large-batch training, arXiv 1812.06162.

Table 1: the mean gradient noise scale of a run, and the critical batch size fitted to updates to a target.
"""

from __future__ import annotations

import math
import statistics

from batchscope.folklore.papers.bench import Bench, Findings
from batchscope.folklore.papers.tradeoff import TARGET, picture_of, swept, updates_of
from batchscope.measure.noise import gradient_noise
from batchscope.records import Interval, Plan
from batchscope.records.claims import Finding
from batchscope.records.paper import PaperRow
from batchscope.training.loop import Prepared, Run
from batchscope.workload import load_workload

REFERENCE = (
    "S. McCandlish, J. Kaplan, D. Amodei, OpenAI Dota Team: An Empirical Model of Large-Batch Training. 2018, arXiv "
    "1812.06162"
)
# Critical batch size and noise scale, means over a run.
PUBLISHED = {
    "MNIST": (200.0, 900.0),
    "SVHN": (500.0, 4000.0),
    "CIFAR-10": (900.0, 2000.0),
    "ImageNet": (15_000.0, 30_000.0),
    "Billion Word, tokens": (100_000.0, 150_000.0),
}
PLACES, EXAMPLES = 8, 1024


def reproduce(bench: Bench) -> Findings:
    """Measure the noise scale and the critical batch size on digits."""
    found = swept(bench)
    lines = updates_of(found)
    findings = Findings()
    best = next((line for line in found.best if line.batch_size == 32 and line.learning_rate), None)
    scales: list[float] = []
    if best is not None and best.learning_rate is not None and best.examples_to_target.value is not None:
        examples = round(best.examples_to_target.value)
        scales = _along(bench, best.learning_rate, examples)
    critical = found.law.critical_batch_size if found.law is not None else Interval.unresolved(0.95)
    noise = (
        Interval(math.exp(statistics.fmean(map(math.log, scales))), min(scales), max(scales))
        if scales
        else Interval.unresolved(0.95)
    )
    for task, (their_critical, their_noise) in PUBLISHED.items():
        findings.rows.append(
            PaperRow(
                f"the paper, {task}",
                "critical batch size over noise scale",
                their_critical / their_noise,
                Interval.unresolved(0.95),
            )
        )
    ratio = None if not noise.value or not critical.value else critical.value / noise.value
    findings.rows += [
        PaperRow("here, digits", "noise scale, mean and range along the run", None, noise),
        PaperRow("here, digits", "critical batch size", None, critical),
        PaperRow("here, digits", "critical batch size over noise scale", None, Interval(ratio, None, None)),
    ]
    findings.effects = [Finding("critical batch size", critical), Finding("noise scale", noise)]
    findings.pictures = [picture_of(lines)] if lines else []
    findings.deviations = [
        f"a perceptron with SGD on scikit-learn's digits to {TARGET:g}; the paper has tasks from MNIST to Dota",
        "the noise scale is the geometric mean over eight points of one run with batch size 32",
    ]
    return findings


def _along(bench: Bench, learning_rate: float, examples: int) -> list[float]:
    """Noise scales along a run."""
    workload = load_workload("digits")
    run = Run(
        Prepared(workload, bench.device),
        Plan(32, learning_rate, examples=max(examples, PLACES * 32)),
        seed=bench.seeds[0],
        evaluate_every=max(32, examples // PLACES),
        keep_best_weights=False,
        measure_memory=False,
    )
    scales: list[float] = []
    result = None
    while result is None:
        result = run.advance()
        bench.notify("gradient noise along a run")
        scale = gradient_noise(
            workload, run.state(), examples=EXAMPLES, seed=bench.seeds[0], device=bench.device
        ).noise_scale
        if scale.value is not None and scale.value > 0:
            scales.append(scale.value)
    return scales
