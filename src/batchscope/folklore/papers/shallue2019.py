"""Shallue et al. 2019, Measuring the effects of data parallelism on neural network training, arXiv 1811.03600.

Figure 1: steps to a target against the batch size, in three regimes: perfect scaling, diminishing returns, no benefit.
"""

from __future__ import annotations

from batchscope.folklore.papers.bench import Bench, Findings
from batchscope.folklore.papers.tradeoff import SIZES, TARGET, picture_of, slope_of, swept, updates_of
from batchscope.records import Interval
from batchscope.records.claims import Finding
from batchscope.records.paper import PaperRow

REFERENCE = (
    "C. J. Shallue, J. Lee, J. Antognini, J. Sohl-Dickstein, R. Frostig, G. E. Dahl: Measuring the Effects of Data "
    "Parallelism on Neural Network Training. JMLR 20, 2019, arXiv 1811.03600"
)


def reproduce(bench: Bench) -> Findings:
    """Sweep digits over batch sizes and learning rates, and compute the slopes at both ends."""
    found = swept(bench)
    lines = updates_of(found)
    findings = Findings()
    if len(lines) >= 4:
        for name, published, first, last in (
            ("slope at the smallest batches", -1.0, 0, 2),
            ("slope at the largest batches", 0.0, -3, -1),
        ):
            sizes = f"{lines[first][0]:,} to {lines[last][0]:,}"
            measured = Interval(slope_of(lines, first, last), None, None)
            findings.rows.append(PaperRow(f"batch {sizes}", f"{name} of log updates over log B", published, measured))
        findings.pictures = [picture_of(lines)]
    for size, updates in lines:
        findings.rows.append(PaperRow(f"batch {size:,}", f"updates to {TARGET:g}", None, updates))
    if found.law is not None:
        findings.effects.append(Finding("critical batch size of the law", found.law.critical_batch_size))
    findings.deviations = [
        f"a perceptron with SGD on scikit-learn's digits, batch {SIZES[0]} to {SIZES[-1]:,}; the paper has networks "
        f"from MNIST to ImageNet and LM1B, and batches up to 2¹⁶",
        "only the learning rate is tuned, not momentum and its schedule",
    ]
    return findings
