"""Bias of tr Σ, ‖G‖² and the noise scale, and how often their 95% intervals hold the truth, where the truth is known.

python benchmarks/noise.py [--repetitions 1000] [--cases isotropic linear]

Every case is a law of single examples' gradients whose Σ and G are known. "Quadratic" is the built-in workload's and
"linear" that of least squares on Gaussian inputs: for both, bs.gradient_noise must give the same numbers on the same
examples. "B pooled" divides the means over all repetitions; the median of the resolved estimates, and gns-pytorch's
mean (and median), are in units of the true B. "As asked": the share of unresolved measurements that are resolved with
the examples that they asked for. An unresolved interval is one-sided and holds the truth where the truth lies within
it. gns-pytorch is given the same gradients, all of them, at most GNS_GRADIENTS of each setting; it has no interval.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gns_pytorch import compute_gns
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn

import batchscope as bs
from batchscope.fit.noise import NoiseEstimate, estimate_noise, moments_of
from batchscope.seeding import derive
from batchscope.workload import quadratic
from cases import keep, machine

SCALES, EXAMPLES = (10, 100, 1_000, 10_000), (64, 256, 1_024, 4_096)
DIMENSIONS, INPUTS = 32, 8
GNS_GRADIENTS = 1 << 15
# Measured anew with the examples that an unresolved measurement asks for.
ASKED, MOST_ASKED = 50, 4_096
QUANTITIES = ("trace_covariance", "gradient_norm_squared", "noise_scale")

Matrix = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int, float], Matrix]


def gaussian(eigenvalues: Matrix, direction: Matrix, *, factor: float = 0.0) -> Draw:
    """Gradients with tr Σ = 1 and ‖G‖² = 1/B; with a factor, each one's noise is scaled by a log-normal number."""
    root = np.sqrt(eigenvalues / eigenvalues.sum())
    direction = direction / np.linalg.norm(direction)

    def draw(rng: np.random.Generator, n: int, scale: float) -> Matrix:
        noise = rng.standard_normal((n, len(root))) * root
        if factor:
            noise *= np.exp(factor * rng.standard_normal((n, 1)) - factor**2)  # mean square 1
        return np.asarray(noise + direction / math.sqrt(scale))

    return draw


def linear(rng: np.random.Generator, n: int, scale: float) -> Matrix:
    """Gradients (xᵀd − σe)·x of least squares, ‖d‖ = 1: Σ = (1 + σ²)I + d·dᵀ, so tr Σ = B = P(1 + σ²) + 1, ‖G‖² = 1."""
    x, e = linear_examples(rng, n, scale)
    return np.asarray((x[:, 0] - e)[:, None] * x)


def linear_examples(rng: np.random.Generator, n: int, scale: float) -> tuple[Matrix, Matrix]:
    x, e = rng.standard_normal((n, INPUTS)), rng.standard_normal(n)
    return x, e * math.sqrt((scale - 1) / INPUTS - 1)


FIRST = np.eye(DIMENSIONS)[0]
ONE_DIRECTION = np.where(FIRST == 1, 0.99, 0.01 / (DIMENSIONS - 1))
BUILT_IN = quadratic.quadratic(dtype=torch.float64)
CURVATURE = np.array(quadratic.law_of(BUILT_IN).curvature)
CASES: dict[str, Draw] = {
    "isotropic": gaussian(np.ones(DIMENSIONS), np.ones(DIMENSIONS)),
    "one direction, G along it": gaussian(ONE_DIRECTION, FIRST),
    "one direction, G across it": gaussian(ONE_DIRECTION, np.eye(DIMENSIONS)[1]),
    "quadratic": gaussian(CURVATURE, CURVATURE),  # Σ = noise²·H, and G = Hθ with all of θ alike
    "linear": linear,
    "log-normal": gaussian(np.ones(DIMENSIONS), np.ones(DIMENSIONS), factor=1.0),
}


def truths(case: str, scale: float) -> tuple[float, float, float]:
    """The true tr Σ, ‖G‖² and B."""
    return (scale, 1.0, scale) if case == "linear" else (1.0, 1 / scale, scale)


def model_and_gradients(case: str, n: int, scale: float) -> tuple[bs.Workload, dict[str, Tensor], Matrix]:
    """A workload with its weights, and the gradients of its examples, in the order that the measurement draws them."""
    rng = np.random.default_rng(derive(0, "model", case, n, scale))
    order = torch.randperm(n, generator=torch.Generator().manual_seed(derive(0, "noise examples"))).numpy()
    if case == "linear":
        x, e = linear_examples(rng, n, scale)
        workload = dataclasses.replace(
            BUILT_IN,
            model=lambda: nn.Linear(INPUTS, 1, bias=False, dtype=torch.float64),
            train=(torch.from_numpy(x), torch.from_numpy(e)[:, None]),
            validation=(torch.from_numpy(x[:8]), torch.from_numpy(e[:8])[:, None]),
            loss=lambda output, target: 0.5 * (output - target).square().mean(),
        )
        weights = torch.eye(INPUTS, dtype=torch.float64)[:1]
        return workload, {"weight": weights}, ((x[:, 0] - e)[:, None] * x)[order]
    gradients = CASES[case](rng, n, scale)
    x = -gradients / CURVATURE  # H(θ − x) at θ = 0
    workload = dataclasses.replace(BUILT_IN, train=(torch.from_numpy(x), torch.from_numpy(np.sqrt(CURVATURE) * x)))
    return workload, {"theta": torch.zeros(DIMENSIONS, dtype=torch.float64)}, gradients[order]


def checked_against_the_model(case: str, n: int, scale: float) -> None:
    """``bs.gradient_noise`` must give what the arithmetic gives."""
    workload, state, gradients = model_and_gradients(case, n, scale)
    measured = bs.gradient_noise(workload, state, examples=n, device="cpu")
    expected = estimate_noise(moments_of(gradients))
    for name in QUANTITIES:
        one, other = (np.array(dataclasses.astuple(getattr(of, name)), dtype=float) for of in (measured, expected))
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-12, err_msg=f"{case}, {n} examples, B = {scale}")


def by_gns(gradients: Matrix) -> float:
    """gns-pytorch's number from the same gradients, those of losses gᵢ·θ."""
    model = nn.Linear(gradients.shape[1], 1, bias=False)
    losses = model(torch.from_numpy(gradients).float())[:, 0]
    return float(compute_gns(losses, model, param_percentage=1.0, batch_percentage=1.0, use_vmap=True))


def resolved_when_asked(case: str, scale: float, estimates: list[NoiseEstimate]) -> float | None:
    """The share of unresolved measurements that are resolved with the examples that they asked for."""
    rng = np.random.default_rng(derive(2, "noise", case, scale))
    asked = [e.examples_needed for e in estimates if e.examples_needed is not None][:ASKED]
    if len(asked) < ASKED or max(asked) > MOST_ASKED:
        return None
    return float(np.mean([estimate_noise(moments_of(CASES[case](rng, n, scale))).noise_scale.resolved for n in asked]))


def measured(case: str, n: int, scale: float, repetitions: int) -> dict[str, Any]:
    """All figures of one setting."""
    rng = np.random.default_rng(derive(1, "noise", case, n, scale))
    estimates, others, pairs = [], [], []
    for repetition in range(repetitions):
        gradients = CASES[case](rng, n, scale)
        moments = moments_of(gradients)
        estimates.append(estimate_noise(moments))
        pairs.append((moments.trace, moments.mean_norm_squared - moments.trace / n))
        if repetition < GNS_GRADIENTS // n:
            others.append(by_gns(gradients))
    row: dict[str, Any] = {"case": case, "noise_scale": scale, "examples": n, "repetitions": repetitions}
    true = truths(case, scale)
    for name, truth, values in zip(QUANTITIES, true, np.array(pairs).T, strict=False):
        row[f"{name}_bias"] = float(values.mean() / truth - 1)
        row[f"{name}_bias_standard_errors"] = float((values.mean() - truth) / values.std() * math.sqrt(repetitions))
    trace, norm = np.mean(pairs, axis=0)
    row["noise_scale_pooled_bias"] = float(trace / norm / scale - 1)
    found = [e.noise_scale.value for e in estimates if e.noise_scale.value is not None]
    row["noise_scale_median_where_resolved"] = float(np.median(found)) if found else None
    for name, truth in zip(QUANTITIES, true, strict=True):
        intervals = [getattr(e, name) for e in estimates]
        row[f"{name}_cover"] = float(np.mean([i.low <= truth <= i.high for i in intervals]))
    row["resolved"] = len(found) / repetitions
    row["resolved_when_asked"] = resolved_when_asked(case, scale, estimates)
    row["gns_pytorch"] = {"mean": float(np.mean(others)), "median": float(np.median(others)), "draws": len(others)}
    return row


def shown(row: dict[str, Any]) -> list[str]:
    """One line of the table."""
    scale, asked, median = row["noise_scale"], row["resolved_when_asked"], row["noise_scale_median_where_resolved"]
    covers = [row[f"{name}_cover"] for name in QUANTITIES]
    pooled = row["noise_scale_pooled_bias"]
    return [
        f"{scale:,}",
        f"{row['examples']:,}",
        *(f"{row[f'{n}_bias']:+.1%} ({row[f'{n}_bias_standard_errors']:+.1f})" for n in QUANTITIES[:2]),
        f"{pooled:+.0%}" if -1 < pooled < 9.995 else "none",
        "" if median is None or row["resolved"] < 0.01 else f"{median / scale:.2f}",
        *(f"{c:.1%}" if 0.93 <= c <= 0.97 else f"[red]{c:.1%}[/red]" for c in covers),
        f"{row['resolved']:.0%}",
        "" if asked is None else f"{asked:.0%}",
        f"{row['gns_pytorch']['mean'] / scale:.2f} ({row['gns_pytorch']['median'] / scale:.2f})",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=1_000)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    gc.freeze()  # gns-pytorch collects garbage at every call
    console = Console(width=176)
    settings = [(case, scale, n) for case in arguments.cases for scale in SCALES for n in EXAMPLES]
    rows = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for case, scale, n in progress.track(settings, description="simulating"):
            if case in ("quadratic", "linear"):
                checked_against_the_model(case, n, scale)
            rows.append(measured(case, n, scale, arguments.repetitions))
    for case in arguments.cases:
        table = Table(title=f"Noise: {case}, {arguments.repetitions:,} repetitions; biases with their standard errors")
        for column in ("B", "examples", "tr Σ, bias", "‖G‖², bias", "B pooled, bias", "median B, resolved"):
            table.add_column(column, justify="right")
        for column in ("95%: tr Σ", "‖G‖²", "B", "resolved", "as asked", "gns-pytorch"):
            table.add_column(column, justify="right")
        for row in rows:
            if row["case"] == case:
                table.add_row(*shown(row))
        console.print(table)
    console.print(machine())
    if set(arguments.cases) == set(CASES):
        console.print(f"Kept in {keep('noise', rows)}")


if __name__ == "__main__":
    main()
