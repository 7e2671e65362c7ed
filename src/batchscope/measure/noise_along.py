"""Gradient noise at several points of a short training run: it grows as the loss falls."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch.utils.data import Subset

from batchscope.errors import ArgumentError
from batchscope.measure.noise import gradient_noise
from batchscope.measure.optimizer_state import preconditioner_of
from batchscope.progress import Reporter, reporter
from batchscope.records import CurvePoint, NoiseMeasurement, NoisePoint, Outcome, Plan
from batchscope.seeding import derive
from batchscope.training.loop import Prepared, Run
from batchscope.training.start import Start
from batchscope.training.train import checked_seed, chosen_device
from batchscope.workload.batches import as_tensors
from batchscope.workload.workload import Workload

# Sixteenths of the run after which noise is measured.
MEASURED_AFTER = (0, 1, 2, 4, 8, 16)
# The loss along the run needs no more validation examples than this.
VALIDATED_ON = 2048
# An unresolved last point is measured anew on up to this many times the examples.
MOST_TIMES = 4


@dataclass(frozen=True)
class NoiseAlong:
    """Noise along a run, and where the run ended.

    Attributes:
        points: Ascending.
        last: The last measurement in full.
        end: The weights and the optimiser's state at the end.
        outcome: How the run ended; "finished" unless it broke off.
        examples: Examples trained on.
    """

    points: tuple[NoisePoint, ...]
    last: NoiseMeasurement
    end: Start
    outcome: Outcome
    examples: int


def noise_along_training(
    workload: Workload,
    *,
    examples: int,
    measured_on: int = 1024,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool | Reporter = False,
) -> NoiseAlong:
    """Train with the workload's own settings, and measure gradient noise at the start, 1/16, 1/8, 1/4, 1/2 and the end.

    Args:
        workload: What is trained, with its own batch size and learning rate.
        examples: How many to train on.
        measured_on: Training examples whose gradients are taken at each point; at the last one up to four times as
            many where the noise scale needs them.
        seed: Of everything random.
        device: "cpu", "cuda" …; None: CUDA where there is one.
        progress: True shows progress on stderr; or a function called with every step.

    Returns:
        The points, as far as training went: divergence ends them.

    Raises:
        ArgumentError: Fewer examples than sixteen updates take.

    Examples:
        >>> import batchscope as bs
        >>> along = noise_along_training(bs.load_workload("digits"), examples=1024, measured_on=128)
        >>> [point.examples for point in along.points]
        [0, 64, 128, 256, 512, 1024]
    """
    seed = checked_seed(seed)
    chosen = chosen_device(device)
    step = workload.batch_size * -(-examples // (16 * workload.batch_size))
    if not isinstance(examples, int) or examples < 16 * workload.batch_size:
        raise ArgumentError(
            "examples must be enough for sixteen updates", got=f"{examples} at batch size {workload.batch_size}"
        )
    run = Run(
        Prepared(lightly_validated(workload), chosen),
        Plan(workload.batch_size, workload.learning_rate, examples=16 * step, shape="constant"),
        seed=seed,
        evaluate_every=step,
        keep_best_weights=False,
        measure_memory=False,
    )
    points: list[NoisePoint] = []
    measured: list[NoiseMeasurement] = []

    def measure(count: int) -> NoiseMeasurement:
        return gradient_noise(
            workload,
            run.model.state_dict(),
            examples=min(count, workload.training_examples),
            preconditioner=preconditioner_of(run.optimizer, run.model),
            seed=derive(seed, "noise along training"),
            device=chosen,
        )

    with reporter(progress, "training and measuring noise") as report:

        def on_evaluation(point: CurvePoint, seconds_left: float | None) -> None:
            report.update(label="", done=point.examples, total=16 * step, score=point.score, seconds_left=seconds_left)
            if point.examples // step not in MEASURED_AFTER:
                return
            found = measure(measured_on)
            wanted = found.examples_needed
            if point.examples == 16 * step and wanted is not None and wanted > found.examples:
                found = measure(min(wanted, MOST_TIMES * measured_on))
            measured.append(found)
            points.append(_point(point, found))

        run.on_evaluation = on_evaluation
        result = run()
    return NoiseAlong(
        points=tuple(points),
        last=measured[-1],
        end=Start.of(run.model, run.optimizer),
        outcome=result.outcome,
        examples=result.examples,
    )


def _point(point: CurvePoint, found: NoiseMeasurement) -> NoisePoint:
    return NoisePoint(
        examples=point.examples,
        iterations=point.iterations,
        validation_loss=point.validation_loss,
        score=point.score,
        measured_on=found.examples,
        trace_covariance=found.trace_covariance,
        gradient_norm_squared=found.gradient_norm_squared,
        noise_scale=found.noise_scale,
        preconditioned_noise_scale=found.preconditioned_noise_scale,
        examples_needed=found.examples_needed,
    )


def lightly_validated(workload: Workload) -> Workload:
    """The workload with a part of its validation set, as large as a loss on the way needs.

    Args:
        workload: Any workload.

    Returns:
        The same one where its validation set is small.
    """
    count = workload.validation_examples
    if count <= VALIDATED_ON:
        return workload
    generator = torch.Generator().manual_seed(derive(0, "validation examples of a probe"))
    chosen = torch.randperm(count, generator=generator)[:VALIDATED_ON].sort().values
    tensors = as_tensors(workload.validation)
    part = (
        Subset(workload.validation, chosen.tolist())  # type: ignore[arg-type]
        if tensors is None
        else tuple(tensor[chosen.to(tensor.device)] for tensor in tensors)
    )
    return dataclasses.replace(workload, validation=part)
