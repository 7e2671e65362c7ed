"""Lightning: the noise scale and batch-size schedules as a callback, and a Workload from a module and its data."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from batchscope.errors import ArgumentError, PlanError, WorkloadError, first_line
from batchscope.integrations.accumulation import Accumulation
from batchscope.integrations.frameworks import lightning
from batchscope.integrations.loaders import reference_batch_size, source_of
from batchscope.integrations.optimizers import OptimizerLike
from batchscope.integrations.stopping import Stopping
from batchscope.integrations.watching import Calls, interval_of, span, values_of
from batchscope.measure import GradientNoise
from batchscope.records import Interval, Schedule
from batchscope.seeding import current_device, isolated
from batchscope.workload import Workload
from batchscope.workload.batches import take, to_device

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer
else:
    _PACKAGE = lightning()
    Callback = _PACKAGE.Callback

Score = Callable[[Any, Any], "float | Tensor"]


class BatchscopeCallback(Callback):
    """Follow the gradient noise scale of a Lightning run, and a batch-size schedule where there is one.

    ::

        callback = BatchscopeCallback()
        Trainer(callbacks=[callback], ...).fit(module, datamodule)
        print(callback.noise)

    Every ``trainer.log_every_n_steps`` updates the noise scale and the ends of its interval go to the trainer's loggers
    and to ``trainer.callback_metrics`` as ``noise_scale``, ``noise_scale_low`` and ``noise_scale_high``; where it is
    not resolved yet, what is known of its lower end. How it is measured, from what, and where it is refused:
    :class:`batchscope.GradientNoise`. Gradient accumulation, clipping, precision plugins with a scaler and
    ``DistributedDataParallel`` are honoured, and so is a training step that calls parts of the module, an encoder and
    a decoder say, rather than the module. Measuring takes no more than ``overhead`` of the time.

    With a schedule, ``trainer.accumulate_grad_batches`` is set at its borders so that the DataLoader's batches make the
    schedule's, and the optimiser's settings as the schedule says. It begins where an update of the old size and one of
    the new size would both begin, which is at most one new batch late where batches double. The last update of an
    epoch is Lightning's: it takes what is left. A measured schedule follows what this callback measures.

    With ``monitor``, the weights at the best value of what the module logs in validation under this name are put back
    when training ends, be it by itself, at ``target``, or after ``patience`` evaluations without a better one.

    Args:
        schedule: Batch sizes, rates and momenta; None: they are the trainer's and the module's own.
        monitor: The name of a validation metric; None: none is watched, and the weights stay as they are in the end.
        higher_is_better: Whether more of it is better; else less is.
        target: Its value that ends training; None: none does.
        patience: Evaluations without a better value that end training; None: any number.
        overhead: The largest share of the time that measuring may take.
        every: Measure each so many updates whatever it costs; None: as often as ``overhead`` permits.
        half_life: Updates after which a measurement counts for half; None: all count alike.
        examples: Most single examples taken from a batch.
        seed: Draws them.

    Attributes:
        noise: The monitor, from the first batch on; it can be read after the run.
        history: (updates, interval) at each logging.
        stopping: What was seen of ``monitor``: its best ``value``, and after how many ``updates``; None without one.

    Raises:
        ArgumentError: ``target`` or ``patience`` without ``monitor``, or one that makes no sense.
    """

    def __init__(
        self,
        *,
        schedule: Schedule | None = None,
        monitor: str | None = None,
        higher_is_better: bool = True,
        target: float | None = None,
        patience: int | None = None,
        overhead: float = 0.03,
        every: int | None = None,
        half_life: float | None = 1000,
        examples: int = 32,
        seed: int = 0,
    ) -> None:
        self._options: dict[str, Any] = {
            "overhead": overhead,
            "every": every,
            "half_life": half_life,
            "examples": examples,
            "seed": seed,
        }
        self.schedule = schedule
        self.stopping = Stopping.of(monitor, higher_is_better=higher_is_better, target=target, patience=patience)
        self.noise: GradientNoise | None = None
        self.history: list[tuple[int, Interval]] = []
        self._following: Accumulation | None = None
        self._calls: Calls | None = None
        self._updates = 0
        self._loaded: dict[str, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at what is trained.

        Args:
            trainer: The trainer.
            pl_module: The module.

        Raises:
            ArgumentError: Several optimisers.
            PlanError: A schedule that this trainer cannot follow.
        """
        if len(trainer.optimizers) != 1:
            raise ArgumentError(
                "the noise scale is that of one optimiser",
                got=f"{len(trainer.optimizers)} of them",
                mend="train with one, or put a bs.GradientNoise on each in the module itself",
            )
        self._updates = trainer.global_step
        wrapped = trainer.strategy.model
        if isinstance(wrapped, DistributedDataParallel):
            self._watch(trainer, wrapped)
        else:
            self._calls = Calls(pl_module)
        if self.schedule is not None:
            self._following = self._follow(trainer, pl_module, self.schedule)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Accumulate as many batches as the schedule says."""
        if self._following is not None:
            trainer.accumulate_grad_batches = self._following.before(batch_idx)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Begin to watch after the first batch, and log."""
        if self._calls is not None:
            self._calls.close()
            self._watch(trainer, span(pl_module, self._calls.called))
            self._calls = None
        if trainer.global_step == self._updates:
            return
        self._updates = trainer.global_step
        if self._following is not None:
            self._following.updated_with(self.noise)
        if trainer.log_every_n_steps and self._updates % trainer.log_every_n_steps == 0:
            self._log(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at what was evaluated, and stop where that says so."""
        if self.stopping is None or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        if self.stopping.saw(trainer.callback_metrics, pl_module, trainer.global_step):
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go back to the best weights, and remove every hook; what was found can still be read."""
        if self.stopping is not None:
            self.stopping.go_back(pl_module)
        self._close(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Likewise."""
        self._close(trainer)

    def state_dict(self) -> dict[str, Any]:
        """What Lightning keeps in its checkpoints."""
        return {
            "noise": None if self.noise is None else self.noise.state_dict(),
            "following": None if self._following is None else self._following.state_dict(),
            "stopping": None if self.stopping is None else self.stopping.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint.

        Args:
            state_dict: From :meth:`state_dict`.
        """
        self._loaded = dict(state_dict)
        if (state := self._loaded.pop("stopping", None)) is not None and self.stopping is not None:
            self.stopping.load_state_dict(state)

    def _watch(self, trainer: Trainer, model: nn.Module) -> None:
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        self.noise = GradientNoise(model, trainer.optimizers[0], scaler=scaler, **self._options)
        if (state := self._loaded.pop("noise", None)) is not None:
            self.noise.load_state_dict(state)

    def _follow(self, trainer: Trainer, module: LightningModule, schedule: Schedule) -> Accumulation:
        if not module.automatic_optimization:
            raise PlanError("a schedule needs automatic optimisation", got="a module with manual optimisation")
        if trainer.accumulate_grad_batches != 1:
            raise PlanError(
                "the schedule sets how many batches are accumulated",
                got=f"accumulate_grad_batches={trainer.accumulate_grad_batches}",
                mend="leave it at 1",
            )
        if trainer.lr_scheduler_configs:
            raise PlanError(
                "the schedule sets the learning rate",
                got="a learning-rate scheduler beside it",
                mend="leave it out of configure_optimizers, and put its steps into the schedule's phases",
            )
        source = source_of(trainer.train_dataloader, "the training data")
        examples = len(source.dataset)  # type: ignore[arg-type]
        micro = reference_batch_size(None, source.batch_size, examples) * trainer.world_size
        following = Accumulation(schedule, trainer.optimizers[0], micro_batch_size=micro, training_examples=examples)
        if (state := self._loaded.pop("following", None)) is not None:
            following.load_state_dict(state)
        return following

    def _log(self, trainer: Trainer) -> None:
        found = None if self.noise is None else interval_of(self.noise)
        if found is None:
            return
        self.history.append((self._updates, found))
        values = values_of(found)
        if self._following is not None:
            values["batch_size"] = float(self._following.batch_size)
        if values:
            trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})
            for logger in trainer.loggers:
                logger.log_metrics(values, step=self._updates)

    def _close(self, trainer: Trainer) -> None:
        if self._calls is not None:
            self._calls.close()
        if self.noise is not None:
            self.noise.close()
        if self._following is not None:
            trainer.accumulate_grad_batches = 1


def workload_from_lightning(
    module_factory: Callable[[], LightningModule],
    datamodule: Any,
    *,
    score: Score | None = None,
    loss: Callable[[Any, Any], Tensor] | None = None,
    forward: Callable[[nn.Module, Any], tuple[Any, Any]] | None = None,
    batch_size: int | None = None,
    gradient_clip_val: float | None = None,
    name: str | None = None,
) -> Workload:
    """Make a Workload of a LightningModule and its data, as they are trained today.

    Examples are read from the data module's Datasets, with its loaders' ``collate_fn``, in batches of every size. The
    optimiser and its learning rate are those of ``configure_optimizers``; a learning-rate scheduler is left out with a
    warning, since a plan's shape says how the rate goes. Without ``loss``, ``training_step(batch, 0)`` gives it, in
    validation too, with ``self.log`` silent; weights keep the names that they have in the module, so that
    ``module.load_state_dict(result.state)`` takes what :func:`batchscope.train` returns. What needs the model's output
    by itself, the Gauss–Newton matrix, asks for ``loss``.

    Args:
        module_factory: Returns a fresh module at each call, weights drawn from torch's global generator.
        datamodule: A LightningDataModule.
        score: ``score(output, target)``, higher is better; None: minus the loss.
        loss: ``loss(output, target)``, the mean over a batch; None: the module's own training step.
        forward: ``forward(module, batch)`` returns ``(output, target)``, for ``score`` and ``loss``; None:
            ``(module(x), y)``.
        batch_size: What is used today; None: the training loader's. (What the Trainer accumulates is not known here.)
        gradient_clip_val: As the Trainer is given it, by norm; None: gradients are not clipped.
        name: A name for tables and pages; None: the module's class.

    Returns:
        The workload.

    Raises:
        WorkloadError: What cannot be trained here, an iterable dataset, manual optimisation or several optimisers say.
    """
    with isolated(0, current_device()):
        module = module_factory()
        datamodule.prepare_data()
        datamodule.setup("fit")
        train = source_of(datamodule.train_dataloader(), "train_dataloader()")
        validation = source_of(datamodule.val_dataloader(), "val_dataloader()")
    _check_module(module, datamodule, own_step=loss is None)
    like = OptimizerLike(_one_optimizer(module), module, max_grad_norm=gradient_clip_val)
    output_of = forward or _output_and_target
    examples = len(train.dataset)  # type: ignore[arg-type]
    step = _OwnStep(output_of, score) if loss is None else None
    if step is not None:
        step.check(module_factory, take(train.dataset, range(min(2, examples)), train.collate))
    return Workload(
        model=module_factory if step is None else step.model_of(module_factory),
        train=train.dataset,
        validation=validation.dataset,
        loss=loss if loss is not None else _first_of,
        score=score if step is None else step.score,
        optimizer=like,
        learning_rate=like.learning_rate,
        batch_size=reference_batch_size(batch_size, train.batch_size, examples),
        forward=forward if step is None else step,
        collate=train.collate,
        name=name or type(module).__name__,
    )


class _Whole:
    """A batch that is meant for the training step and not for ``forward``."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch


class _OwnStep:
    """A module's own training step as a Workload's ``forward``: the loss is the output's first part."""

    def __init__(self, output_of: Callable[[nn.Module, Any], tuple[Any, Any]], score: Score | None) -> None:
        self._output_of = output_of
        self.score = None if score is None else lambda output, target: score(output[1], target)

    def __call__(self, model: nn.Module, batch: Any) -> tuple[Any, Any]:
        loss = model(_Whole(batch)).reshape(1)
        if model.training or self.score is None:
            return (loss,), ()
        output, target = self._output_of(model, batch)
        return (loss, output), target

    def model_of(self, factory: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        """The person's modules, whose ``forward`` makes the training step where it is given a whole batch.

        So the step goes where a module's ``forward`` goes, under other weights and in batched passes too.
        """

        def make() -> nn.Module:
            module = factory()
            module.__class__ = _stepping(type(module))
            for method in ("log", "log_dict"):
                object.__setattr__(module, method, _silent)
            return module

        return make

    def check(self, factory: Callable[[], nn.Module], batch: Any) -> None:
        """Refuse a training step that does not work without a Trainer."""
        with isolated(0, current_device()):
            module = self.model_of(factory)()
            device = next(module.parameters()).device
            try:
                module(_Whole(to_device(batch, device)))
            except WorkloadError:
                raise
            except Exception as error:
                raise WorkloadError(
                    "training_step(batch, 0) must return the loss without a Trainer",
                    got=first_line(error),
                    mend="give loss=lambda output, target: ..., and forward= where a batch is not (x, y)",
                ) from error


def _stepping(kind: type[nn.Module]) -> type[nn.Module]:
    takes_index = len(inspect.signature(kind.training_step).parameters) > 2  # type: ignore[attr-defined]

    class Stepping(kind):  # type: ignore[misc,valid-type]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            if len(args) != 1 or not isinstance(args[0], _Whole):
                return super().forward(*args, **kwargs)
            found = self.training_step(args[0].batch, *([0] if takes_index else []))
            loss = found.get("loss") if isinstance(found, dict) else found
            if not isinstance(loss, Tensor) or loss.numel() != 1:
                raise WorkloadError(
                    "training_step must return the loss",
                    got=type(loss).__name__,
                    mend="return it, or a dict that holds it as 'loss'",
                )
            return loss

    Stepping.__name__, Stepping.__qualname__ = kind.__name__, kind.__qualname__
    return Stepping


def _silent(*args: Any, **kwargs: Any) -> None:
    """``self.log`` of a module without a Trainer."""


def _first_of(output: Any, target: Any) -> Tensor:
    loss: Tensor = output[0].mean()
    return loss


def _output_and_target(model: nn.Module, batch: Any) -> tuple[Any, Any]:
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise WorkloadError(
            "without a forward, a batch must be (x, y)",
            got=f"{len(batch)} parts" if isinstance(batch, (tuple, list)) else type(batch).__name__,
            mend="give forward=lambda module, batch: (output, target)",
        )
    return model(batch[0]), batch[1]


def _check_module(module: Any, datamodule: Any, *, own_step: bool) -> None:
    if not module.automatic_optimization:
        raise WorkloadError(
            "the module must be trained by automatic optimisation",
            got="automatic_optimization=False",
            mend="return the loss from training_step, and leave backward and the updates to Lightning",
        )
    for owner in (module, datamodule):
        for hook in ("on_before_batch_transfer", "on_after_batch_transfer"):
            here = getattr(type(owner), hook, None)
            if here is not None and not here.__module__.startswith(("lightning", "pytorch_lightning")):
                raise WorkloadError(
                    "batches must be ready when the loader's collate_fn returns",
                    got=f"{type(owner).__name__}.{hook}",
                    mend="do it in the Dataset or the collate_fn, or leave it out and give augment= to bs.Workload",
                )
    if own_step and not callable(getattr(module, "training_step", None)):
        raise WorkloadError("the module must have a training_step", got=type(module).__name__, mend="or give loss=")


def _one_optimizer(module: Any) -> torch.optim.Optimizer:
    found = module.configure_optimizers()
    schedulers: Any = None
    if isinstance(found, (tuple, list)) and len(found) == 2 and all(isinstance(p, (list, tuple)) for p in found):
        found, schedulers = found
    several = list(found) if isinstance(found, (tuple, list)) else [found]
    if len(several) != 1 or several[0] is None:
        raise WorkloadError(
            "configure_optimizers must return one optimiser",
            got="none" if several in ([], [None]) else f"{len(several)} of them",
            mend="train with one optimiser; groups of parameters may have settings of their own",
        )
    [one] = several
    if isinstance(one, dict):
        one, schedulers = one["optimizer"], schedulers or one.get("lr_scheduler")
    if schedulers:
        warnings.warn(
            "The learning-rate scheduler of configure_optimizers is left out: a plan's shape says how the rate goes.",
            stacklevel=3,
        )
    optimizer: torch.optim.Optimizer = one
    return optimizer
