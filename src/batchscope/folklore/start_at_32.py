"""Start at 32; 64, 128 and 256 are worth trying; below 32 wastes the hardware."""

from __future__ import annotations

from batchscope.folklore.claim import Claim, Outcome
from batchscope.folklore.runner import ExperimentRunner
from batchscope.folklore.time_to_score import common_score, mean_seconds, seconds_to
from batchscope.folklore.verdicts import FAILS, HOLDS, log_of, of_effect, paired_ratio
from batchscope.records.claims import Finding, Picture, Series

ADVISED = (32, 128, 256)


def test(runner: ExperimentRunner) -> Outcome:
    """Compare the time to a score at the advised batch sizes, below and above them."""
    n = runner.workload.training_examples
    sizes = sorted(
        {size for size in (runner.smallest, 8, *ADVISED, 1024, runner.large) if runner.smallest <= size <= n}
    )
    runs = {size: runner.train(runner.plan(size)) for size in sizes}
    target = common_score(list(runs.values()))
    taken = {size: [seconds_to(runner, run, target) for run in own] for size, own in runs.items()}
    means = {size: mean_seconds(own) for size, own in taken.items()}
    known = {size: mean.value for size, mean in means.items() if mean.value is not None}
    inside = min((s for s in known if s in ADVISED), key=lambda s: known[s])
    below = min((s for s in known if s < ADVISED[0]), key=lambda s: known[s])
    beside = [size for size in known if size not in ADVISED]
    rival = min(beside, key=lambda s: known[s])
    ratio = paired_ratio(taken[rival], taken[inside])
    wasted = paired_ratio(taken[below], taken[inside])
    verdict = of_effect(log_of(ratio))
    explanation = {
        HOLDS: f"Batch size {inside}, one of the advised sizes, is faster than all others.",
        FAILS: f"Batch size {rival:,} is at least as fast as {inside}, the best of the advised sizes.",
    }.get(verdict, f"The difference between batch sizes {rival:,} and {inside} is not resolved.")
    series = Series(f"to {target:.4g}", tuple(map(float, sizes)), tuple(means[size] for size in sizes))
    return Outcome(
        f"Batch sizes {', '.join(f'{size:,}' for size in sizes)}, each at its best learning rate, to a score of "
        f"{target:.4g}. Time is the number of updates times the measured time of one. The advised sizes are 32 to 256.",
        verdict,
        explanation,
        (
            Finding(f"time of {rival:,} (best other size) over {inside} (best advised size)", ratio),
            Finding(f"time of {below} (best below 32) over {inside}", wasted),
        ),
        Picture("batch size", "seconds to the score", (series,), log_upward=True),
    )


CLAIM = Claim(
    "start-at-32",
    "Start at 32; 64, 128 and 256 are worth trying; below 32 wastes the hardware.",
    "the third answer to the question; Bengio 2012",
    test,
)
