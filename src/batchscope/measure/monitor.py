"""The gradient noise scale of a training run, from inside of a person's own loop."""

from __future__ import annotations

import importlib.metadata
from types import TracebackType
from typing import Any, Protocol, Self

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from batchscope.errors import ArgumentError, WorkloadError
from batchscope.fit.noise import NoiseEstimate
from batchscope.measure.arguments import checked_whole
from batchscope.measure.budget import Budget, Stopwatch
from batchscope.measure.measured_step import MeasuredStep
from batchscope.measure.optimizer_state import trained_by
from batchscope.measure.sample import Sample, Void, Way, Window
from batchscope.provenance import version
from batchscope.records import Interval
from batchscope.records.noise import MonitoredNoise, NoiseSource
from batchscope.training.compiling import is_compiled
from batchscope.training.micro_batching import ties_examples

# Steps that are always left alone at the start: they warm up, and an adaptive optimiser has no state before its first.
FIRST = 2
# Share of the allowed overhead that is aimed at; the rest is for one function at every update, and for what no clock of
# ours sees: with 0.9 of it the wall clock showed 2.5% to 4.3% for 3% in five loops on two cores.
AIM = 0.65
# A step that is longer than so many usual ones beyond what measuring took was held up by something else.
MOST_BEYOND = 2.0
SOURCES: dict[Way, NoiseSource] = {
    "single": "per-example gradients",
    "halves": "half batches",
    "micro-batches": "accumulated micro-batches",
    "ranks": "data-parallel ranks",
}


class Scaler(Protocol):
    """What is wanted of a ``torch.amp.GradScaler``."""

    def get_scale(self) -> float:
        """What the loss is multiplied by."""


class GradientNoise:
    """Measure the gradient noise scale while a model trains, in a plain PyTorch loop, by hooks alone.

    At some of the steps, two squared norms are taken: of the batch's gradient, and of gradients of fewer examples.
    The difference gives tr Σ and ‖G‖² without bias; both are averaged over steps and divided afterwards
    (:mod:`batchscope.fit.noise_series`). How many steps are measured follows from the measured costs, so that measuring
    takes no more than ``overhead`` of the time; at all others one function is called for each update. The first, which
    costs about two steps, waits until it keeps to that as well, 102 steps by default.

    Where the gradients of fewer examples come from, and what it works with:

    | the loop | measured from |
    |---|---|
    | one backward pass for each update | gradients of single examples, of parameters used by linear, convolution, \
embedding, layer, group and RMS norm, matrix product, and sums and products with a batch |
    | the same, other uses of parameters (``nn.MultiheadAttention``, LSTM, own autograd functions) | two halves of the \
batch, by one more backward pass on the measured steps |
    | gradient accumulation | the micro-batches of an update |
    | ``optimizer.step(closure)`` | as above |
    | ``DistributedDataParallel``, with accumulation or not | the ranks: local gradients before they are averaged, \
and one reduction of a few numbers on measured steps; give the wrapped model |
    | ``torch.amp.GradScaler`` | as above, with ``scaler=``; steps of gradients that are not finite are left out |
    | autocast | as above, in single precision |
    | clipping | gradients before clipping |
    | dropout | single examples under the masks of the step |
    | a tied parameter | single examples, its uses summed before the norm is taken |
    | frozen parameters, parameters without a gradient | left out |
    | batch norm in training mode, or anything else that ties the examples of a batch | refused with one backward \
pass an update; micro-batches or ranks do |
    | ``torch.compile`` | refused with one backward pass an update; micro-batches or ranks do |
    | a penalty on the weights within the loss, or a loss of two outputs | refused with one backward pass an update |
    | sharded parameters, sparse gradients, LBFGS | refused |

    Single examples' gradients and halves are held to autograd's own at the first step that is measured; where they
    differ, the next way is tried, and ``note`` says why. Examples must lie along the first dimension of what the model
    takes and returns, and the loss must be a mean (or sum) over them. Where measuring is refused, training goes on, and
    reading a number raises the reason.

    Args:
        model: What the loop calls, on its device.
        optimizer: Trains some or all of its parameters.
        overhead: The largest share of the time that measuring may take.
        examples: Most single examples taken from a batch, drawn at random.
        half_life: Steps after which a measurement counts for half; None: all count alike.
        every: Measure each so many steps whatever it costs; None: as often as ``overhead`` permits.
        reduction: "mean", where the loss is a mean over examples, or "sum".
        scaler: The gradient scaler, where the loop has one.
        seed: Draws the examples.

    Raises:
        ArgumentError: An option that makes no sense, or an optimiser of other parameters.
        WorkloadError: A model or optimiser that cannot be measured in any loop.

    Examples:
        >>> g = torch.Generator().manual_seed(0)
        >>> model = torch.nn.Linear(8, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        >>> noise = GradientNoise(model, optimizer, every=1)
        >>> for _ in range(100):
        ...     x = torch.randn(32, 8, generator=g)
        ...     loss = torch.nn.functional.mse_loss(model(x), x.sum(1, keepdim=True))
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     optimizer.step()
        >>> noise.steps_measured, noise.noise_scale.resolved
        (98, True)
        >>> noise.close()
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        overhead: float = 0.03,
        examples: int = 32,
        half_life: float | None = 1000,
        every: int | None = None,
        reduction: str = "mean",
        scaler: Scaler | None = None,
        seed: int = 0,
    ) -> None:
        _check_options(overhead, examples, half_life, every, reduction)
        self._model = model
        self._optimizer = optimizer
        self._trained = trained_by(optimizer, model)
        self._examples = examples
        self._every = every
        self._sums = reduction == "sum"
        self._scaler = scaler
        self._generator = torch.Generator().manual_seed(seed)
        self._overhead_allowed = overhead
        self._budget = Budget(AIM * overhead)
        self._stopwatch = Stopwatch()
        self._device = self._trained[0].parameter.device
        ranks = isinstance(model, DistributedDataParallel) and torch.distributed.get_world_size(model.process_group) > 1
        self._way: Way = "ranks" if ranks else "single"
        self._checked = ranks
        self._refusal: str | None = None
        self._note: str | None = None
        self._steps = 0
        self._next = self._budget.first() if every is None else FIRST
        self._window = Window(half_life)
        self._step: MeasuredStep | None = None
        self._moment: float | None = None
        self._just_measured = False
        self._hook = optimizer.register_step_post_hook(self._at_update)

    # What was found

    @property
    def noise_scale(self) -> Interval:
        """The ratio tr Σ/‖G‖², in examples; where the steps so far do not determine it, only its lower end."""
        return self.estimate().noise_scale

    @property
    def trace_covariance(self) -> Interval:
        """The trace tr Σ, the summed variance of single examples' gradients."""
        return self.estimate().trace_covariance

    @property
    def gradient_norm_squared(self) -> Interval:
        """The squared length ‖G‖² of the true gradient."""
        return self.estimate().gradient_norm_squared

    @property
    def preconditioned_noise_scale(self) -> Interval | None:
        """The ratio tr(PΣ)/(GᵀPG), with P the factors 1/(√v̂ + ε) of an adaptive optimiser; None where it has none."""
        self.estimate()  # which refuses where nothing can be measured
        found = self._window.scaled_estimate()
        return None if found is None else found.noise_scale

    @property
    def examples_needed(self) -> int | None:
        """Examples in measured steps from which on the noise scale would be resolved; None where it is."""
        return self.estimate().examples_needed

    @property
    def overhead(self) -> float:
        """The share of the time since the start that measuring took."""
        return self._budget.overhead

    @property
    def costs(self) -> tuple[float, ...]:
        """Seconds that each of the last few measured steps took longer."""
        return tuple(self._budget.costs)

    @property
    def steps(self) -> int:
        """Updates of the optimiser so far."""
        return self._steps

    @property
    def steps_measured(self) -> int:
        """Those of them that gave a measurement."""
        return self._window.measured

    @property
    def source(self) -> NoiseSource:
        """Where the gradients of fewer examples come from."""
        return SOURCES[self._way]

    @property
    def note(self) -> str | None:
        """Why that source, or why nothing can be measured; None where there is nothing to say."""
        return self._refusal or self._note

    def estimate(self) -> NoiseEstimate:
        """Estimate tr Σ, ‖G‖² and the noise scale over the window, together.

        Returns:
            The estimates, with 95% intervals.

        Raises:
            WorkloadError: Nothing can be measured in this loop.
        """
        if self._refusal is not None:
            raise WorkloadError(
                "the noise scale of this loop cannot be measured",
                got=self._refusal,
                mend="accumulate over micro-batches, train on several ranks, or use bs.gradient_noise at a state dict",
            )
        return self._window.estimate()

    def measurement(self) -> MonitoredNoise:
        """What was found, as a record that can be saved.

        Returns:
            The record.

        Raises:
            WorkloadError: Nothing can be measured in this loop.
        """
        found = self.estimate()
        return MonitoredNoise(
            steps=self._steps,
            steps_measured=self._window.measured,
            examples=self._window.examples,
            batch_size=self._window.batch_size,
            group_size=self._window.group_size,
            half_life=self._window.half_life,
            source=self.source,
            note=self._note,
            parameters=sum(t.parameter.numel() for t in self._trained if t.parameter.requires_grad),
            trace_covariance=found.trace_covariance,
            gradient_norm_squared=found.gradient_norm_squared,
            noise_scale=found.noise_scale,
            preconditioned_noise_scale=self.preconditioned_noise_scale,
            examples_needed=found.examples_needed,
            overhead=self.overhead,
            overhead_allowed=self._overhead_allowed,
            seconds=self._budget.seconds,
            device=str(self._device),
            batchscope=version(),
            torch=importlib.metadata.version("torch"),
        )

    def __str__(self) -> str:
        if self._refusal is not None:
            return f"gradient noise scale cannot be measured: {self._refusal}"
        found = self.estimate()
        measured = (
            f"{self._window.measured:,} of {self._steps:,} steps measured, {100 * self.overhead:.1f}% of the time"
        )
        if found.noise_scale.resolved:
            return f"gradient noise scale {found.noise_scale} examples; {measured}"
        low = f"above {found.noise_scale.low:.3g}, " if found.noise_scale.low else ""
        needed = f"about {found.examples_needed:,} examples needed, {self._window.examples:,} measured"
        return f"gradient noise scale {low}not resolved ({needed}); {measured}"

    # The loop

    def _at_update(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        """After each update: end a measured step, or begin one where the next is to be measured.

        After it, since a closure that the update is given makes the backward pass inside of it.
        """
        began = self._stopwatch.now()
        gap: float | None = None
        ended = self._step
        if ended is not None:
            gap = self._end_step(ended)
        self._steps += 1
        begins = self._step is None and self._refusal is None and self._steps >= self._next
        if begins:
            self._begin_step()
        now = self._stopwatch.now()
        self._stopwatch.add(now - began)
        spent = self._stopwatch.take()
        if self._moment is not None:
            self._account(now - self._moment, spent, ended, begins=begins)
        self._moment = now
        if gap is not None and self._every is None:
            # Ranks must agree on the next step; the gap that they share was settled with the sample.
            self._next = self._steps + round(gap if self._way == "ranks" else self._budget.gap())

    def _account(self, seconds: float, spent: float, ended: MeasuredStep | None, *, begins: bool) -> None:
        on_a_gpu = self._device.type == "cuda"
        if ended is not None or (not on_a_gpu and (begins or self._just_measured)):
            usual = self._budget.step_seconds
            beyond = max(0.0, seconds - usual) if self._budget.steps else 0.0
            # On a GPU kernels run on after the hooks have returned, and hooks wait for kernels that are not theirs; but
            # a measured step begins and ends with the device idle, so that it can be held against others as a whole.
            # Elsewhere a step with hooks takes longer by itself, and the one after it too, since the memory that
            # measuring took and gave back is asked for anew: no clock of ours sees either.
            spent = beyond if on_a_gpu else max(spent, min(beyond, MOST_BEYOND * max(spent, usual)))
        self._just_measured = ended is not None
        self._budget.step(seconds, min(spent, seconds))
        if ended is not None and not ended.check:
            self._budget.sampled(spent)

    def _begin_step(self) -> None:
        if self._way != "ranks" and any(is_compiled(module) for module in self._model.modules()):
            self._way, self._note = "micro-batches", "a compiled model shows its hooks no single examples"
        if self._way == "single" and not self._checked:
            tied = [name for name, module in self._model.named_modules() if ties_examples(module)]
            if tied:
                self._way = "micro-batches"
                self._note = f"{tied[0]} normalises over the batch, so an example has no gradient of its own"
        if self._device.type == "cuda":
            began = self._stopwatch.now()
            torch.cuda.synchronize(self._device)
            self._stopwatch.add(began - self._stopwatch.now())  # a wait for the training's own kernels
        self._step = MeasuredStep(
            self._model,
            [t for t in self._trained if t.parameter.requires_grad],
            self._optimizer,
            way=self._way,
            check=not self._checked,
            examples=self._examples,
            sums=self._sums,
            loss_scale=lambda: 1.0 if self._scaler is None else self._scaler.get_scale(),
            generator=self._generator,
            stopwatch=self._stopwatch,
        )

    def _end_step(self, step: MeasuredStep) -> float:
        """Take in what a measured step says; returns the steps until the next, as the ranks agree on it."""
        sample, shared = step.result([float(self._budget.gap())])
        step.close()
        self._step = None
        if self._every is not None:
            self._next = self._steps + self._every
        if isinstance(sample, Sample):
            self._window.add(self._steps, sample)
            if step.way in ("single", "halves"):
                self._checked = self._checked or step.backwards == 1
            if step.backwards > 1 and step.way in ("single", "halves"):
                self._way, self._note = "micro-batches", None
        else:
            self._take_void(sample, step)
        return shared[0]

    def _take_void(self, void: Void, step: MeasuredStep) -> None:
        if void.next_way == "single" and self._note is not None:  # from micro-batches, where nothing else will do
            self._refusal = f"{self._note}; and this loop makes one backward pass an update"
        elif void.lasting:
            self._refusal = void.reason
        elif void.next_way is not None:
            self._way, self._checked = void.next_way, False
            self._note = void.reason if void.next_way == "halves" else None

    # Keeping and ending

    def state_dict(self) -> dict[str, Any]:
        """What :meth:`load_state_dict` needs to go on exactly as this would have: plain numbers and one tensor."""
        return {
            "steps": self._steps,
            "next": self._next,
            "window": self._window.state_dict(),
            "way": self._way,
            "checked": self._checked,
            "refusal": self._refusal,
            "note": self._note,
            "generator": self._generator.get_state(),
            "budget": self._budget.state_dict(),
            "begun": self._step is not None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a :meth:`state_dict`, taken between two steps of the same loop.

        Args:
            state: The state; of a run of several ranks, what they had measured.
        """
        if self._step is not None:
            self._step.close()
            self._step = None
        if "next" not in state:
            self._steps = state["steps"]
            self._window.load_state_dict(state["window"])
            self._next = self._steps + (self._budget.first() if self._every is None else self._every)
            return
        self._steps, self._next = state["steps"], state["next"]
        self._window.load_state_dict(state["window"])
        self._way, self._checked = state["way"], state["checked"]
        self._refusal, self._note = state["refusal"], state["note"]
        self._generator.set_state(state["generator"].cpu())
        self._budget.load_state_dict(state["budget"])
        self._stopwatch.take()
        self._moment = None
        if state["begun"]:
            self._begin_step()

    def close(self) -> None:
        """Remove every hook; what was found can still be read."""
        self._hook.remove()
        if self._step is not None:
            self._step.close()
            self._step = None

    def __enter__(self) -> Self:
        """Return the monitor, to be closed at the end of the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()


def _check_options(overhead: float, examples: int, half_life: float | None, every: int | None, reduction: str) -> None:
    if not 0 < overhead < 1:
        raise ArgumentError("overhead must be a share between 0 and 1", got=overhead)
    checked_whole("examples", examples)
    if half_life is not None and not half_life > 0:
        raise ArgumentError("half_life must be a number of steps above 0, or None", got=half_life)
    if every is not None:
        checked_whole("every", every)
    if reduction not in ("mean", "sum"):
        raise ArgumentError("reduction must be 'mean' or 'sum'", got=reduction)
