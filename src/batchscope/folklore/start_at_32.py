"""Start at 32; 64, 128 and 256 are worth trying; below 32 wastes the hardware."""

from __future__ import annotations

from batchscope.folklore.claim import Claim, Outcome
from batchscope.folklore.lab import Lab
from batchscope.folklore.time_to_score import common_score, mean_seconds, seconds_to
from batchscope.folklore.verdicts import FAILS, HOLDS, log_of, of_effect, paired_ratio
from batchscope.records.claims import Finding, Picture, Series

ADVISED = (32, 128, 256)


def test(lab: Lab) -> Outcome:
    """Compare the time to a score below 32, at the advised sizes, and above them."""
    n = lab.workload.training_examples
    sizes = sorted({size for size in (lab.smallest, 8, *ADVISED, 1024, lab.large) if lab.smallest <= size <= n})
    runs = {size: lab.train(lab.plan(size)) for size in sizes}
    target = common_score(list(runs.values()))
    taken = {size: [seconds_to(lab, run, target) for run in own] for size, own in runs.items()}
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
        HOLDS: f"Batch {inside}, one of the advised sizes, is there sooner than any other that was tried.",
        FAILS: f"Batch {rival:,} is there no later than the best of the advised sizes, {inside}.",
    }.get(verdict, f"Batch {rival:,} and {inside} are too close to tell.")
    series = Series(f"to {target:.4g}", tuple(map(float, sizes)), tuple(means[size] for size in sizes))
    return Outcome(
        f"Batch {', '.join(f'{size:,}' for size in sizes)}, each at its best rate, to a score of {target:.4g}, by the "
        f"time measured for an update. The advised ones are 32 to 256.",
        verdict,
        explanation,
        (
            Finding(f"time of {rival:,}, the best other size, over {inside}, the best advised one", ratio),
            Finding(f"time of {below}, the best below 32, over {inside}", wasted),
        ),
        Picture("batch size", "seconds to the score", (series,), log_upward=True),
    )


CLAIM = Claim(
    "start-at-32",
    "Start at 32; 64, 128 and 256 are worth trying; below 32 wastes the hardware.",
    "the third answer to the question; Bengio 2012",
    test,
)
