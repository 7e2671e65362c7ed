"""Keskar et al. 2016, On large-batch training for deep learning: generalisation gap and sharp minima, arXiv 1609.04836.

Tables 2 and 3 and figure 3: test accuracy and sharpness of small and large batches, and the line between solutions.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from batchscope.folklore.papers.bench import Bench, Findings, over_seeds, tally
from batchscope.folklore.verdicts import log_of, paired, paired_ratio
from batchscope.measure.curvature import hessian_eigenvalues
from batchscope.measure.landscape import landscape
from batchscope.measure.sharpness import sharpness
from batchscope.records import Interval, Plan
from batchscope.records.claims import Finding, Picture, Series
from batchscope.records.paper import PaperRow
from batchscope.workload import load_workload, optimizers
from batchscope.workload.workload import Workload

REFERENCE = (
    "N. S. Keskar, D. Mudigere, J. Nocedal, M. Smelyanskiy, P. T. P. Tang: On Large-Batch Training for Deep Learning: "
    "Generalization Gap and Sharp Minima. ICLR 2017, arXiv 1609.04836"
)
SMALL, SHARE, RATE = 256, 0.1, 1e-3
EPSILON, SUBSPACE = 1e-3, 100
THEIR_WIDTH = 64
EXAMPLES, HESSIAN_EXAMPLES, MOST_EPOCHS = 12_000, 1024, 60
# Test accuracy in per cent and φ with ε = 1e-3 in all of weight space, small batch and large.
PUBLISHED = {"F1": ((98.03, 97.81), (1.2, 205.0)), "C1": ((80.04, 77.26), (28.6, 707.0))}


class F1(nn.Module):
    """Five layers of 512 with batch norm and ReLU, as in the paper: 1,462,794 parameters on 28×28 pixels."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        for width in (784, 512, 512, 512, 512):
            layers += [nn.Linear(width, 512), nn.BatchNorm1d(512), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(512, 10))

    def forward(self, x: Tensor) -> Tensor:
        """Logits N×10 of images N×1×28×28, pixels from 0 to 255."""
        out: Tensor = self.layers(x.float() / 255)
        return out


class C1(nn.Module):
    """Two 5×5 convolutions with batch norm and pooling, two hidden layers, dropout: AlexNet, in small.

    Args:
        width: Filters of each convolution; 64 in the paper, with 384 and 192 hidden units.
    """

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, width, 5, padding=2), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1),
            nn.Conv2d(width, width, 5, padding=2), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1),
            nn.Flatten(),
            nn.Linear(width * 7 * 7, 6 * width), nn.BatchNorm1d(6 * width), nn.ReLU(), nn.Dropout(0.5),
            nn.Linear(6 * width, 3 * width), nn.BatchNorm1d(3 * width), nn.ReLU(), nn.Dropout(0.5),
            nn.Linear(3 * width, 10),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Logits N×10 of images N×1×28×28, pixels from 0 to 255."""
        out: Tensor = self.layers(x.float() / 255)
        return out


def networks_of(bench: Bench) -> dict[str, Callable[[], nn.Module]]:
    """The two networks by name; on a GPU, C1 is as wide as in the paper."""
    return {"F1": F1, "C1": functools.partial(C1, THEIR_WIDTH) if bench.large else C1}


def workload_of(name: str, network: Callable[[], nn.Module], bench: Bench) -> Workload:
    """The network on part of Fashion-MNIST, with Adam as in the paper."""
    return dataclasses.replace(
        bench.fashion(load_workload, EXAMPLES),
        model=network,
        optimizer=optimizers.adam,
        learning_rate=RATE,
        batch_size=SMALL,
        name=f"{name} on fashion",
    )


def reproduce(bench: Bench) -> Findings:
    """Train both networks with batch size 256 and with a tenth of the data, at the same learning rate."""
    findings = Findings()
    signs: list[Interval] = []
    networks = networks_of(bench)
    runs = len(networks) * 2 * len(bench.seeds)
    for name, network in networks.items():
        workload = findings.workload = workload_of(name, network, bench)
        large = round(SHARE * workload.training_examples)
        epochs = bench.epochs(workload, SMALL, RATE, 2 * runs, MOST_EPOCHS)
        trained = {
            size: bench.train(workload, Plan(size, RATE, examples=epochs * workload.training_examples))
            for size in (SMALL, large)
        }
        scores = {size: [100 * (run.result.final_score or 0.0) for run in own] for size, own in trained.items()}
        phi: dict[int, list[float | None]] = {}
        inside: dict[int, list[float | None]] = {}
        eigenvalues: dict[int, list[float | None]] = {}
        for size, own in trained.items():
            bench.notify(f"{name}: sharpness after batch size {size:,}")
            states = [run.state for run in own]
            phi[size] = [_phi(bench, workload, state, None) for state in states]
            inside[size] = [_phi(bench, workload, state, SUBSPACE) for state in states]
            eigenvalues[size] = [_eigenvalue(bench, workload, state) for state in states]
        for k, (size, label) in enumerate(((SMALL, "small"), (large, "large"))):
            setting = f"{name}, {label} batch ({size:,})"
            accuracy, published_phi = PUBLISHED[name][0][k], PUBLISHED[name][1][k]
            whole, part = (
                f"φ, ε = {EPSILON:g}, all of weight space",
                f"φ, ε = {EPSILON:g}, {SUBSPACE} random directions",
            )
            findings.rows += [
                PaperRow(setting, "test accuracy, %", accuracy, over_seeds(scores[size])),
                PaperRow(setting, whole, published_phi, over_seeds(phi[size])),
                PaperRow(setting, part, None, over_seeds(inside[size])),
                PaperRow(setting, "largest eigenvalue of the Hessian", None, over_seeds(eigenvalues[size])),
            ]
        gap = paired(scores[SMALL], scores[large])
        sharper, steeper = paired_ratio(phi[large], phi[SMALL]), paired_ratio(eigenvalues[large], eigenvalues[SMALL])
        signs += [gap, log_of(sharper), log_of(steeper)]
        findings.effects += [
            Finding(f"{name}: accuracy of the small minus the large batch, points", gap),
            Finding(f"{name}: φ, large over small batch", sharper),
            Finding(f"{name}: largest eigenvalue, large over small batch", steeper),
        ]
        findings.pictures.append(
            Picture(
                "batch size",
                f"{name}: test accuracy, %",
                (
                    Series("here", (float(SMALL), float(large)), tuple(over_seeds(scores[s]) for s in (SMALL, large))),
                    Series("the paper", (float(SMALL), float(large)), tuple(map(_known, PUBLISHED[name][0]))),
                ),
            )
        )
        findings.deviations.append(
            f"{name} is trained for {epochs} passes over {workload.training_examples:,} images, and not until its loss "
            f"stops improving"
        )
        if findings.line is None:
            bench.notify(f"{name}: the line between the two")
            ends = [trained[size][0].state for size in (SMALL, large)]
            labels = [f"batch {SMALL}", f"batch {large:,}"]
            findings.line = landscape(workload, ends, labels=labels, examples=2048, device=bench.device)
    findings.deviations += [
        f"Fashion-MNIST, {workload.training_examples:,} of its 60,000 training "
        f"images, in place of MNIST (F1) and CIFAR-10 (C1)",
        f"C1 has one input channel{'' if bench.large else ', and a quarter of the paper’s width'}",
        f"sharpness and eigenvalues over {HESSIAN_EXAMPLES:,} training images; one search of φ for each seed",
    ]
    findings.lead = tally(signs)
    findings.against = [
        "Dinh et al. 2017: rescaling layers changes φ, but not the function",
        "Hoffer et al. 2017: tuned learning rates and the same number of updates close the gap",
        "Andriushchenko et al. 2023: sharpness hardly correlates with generalisation",
    ]
    return findings


def _phi(bench: Bench, workload: Workload, state: Mapping[str, Any], subspace: int | None) -> float:
    return sharpness(
        workload,
        state,
        EPSILON,
        subspace,
        repeats=1,
        examples=HESSIAN_EXAMPLES,
        device=bench.device,
    ).value


def _eigenvalue(bench: Bench, workload: Workload, state: Mapping[str, Any]) -> float:
    return hessian_eigenvalues(
        workload, state, 1, tolerance=1e-2, examples=HESSIAN_EXAMPLES, device=bench.device
    ).values[0]


def _known(value: float) -> Interval:
    return Interval(value, None, None)
