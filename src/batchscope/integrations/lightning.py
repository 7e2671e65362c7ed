"""Lightning: a callback for the noise scale and schedules, and a Workload from a module and its data."""

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
from batchscope.integrations.loaders import reference_batch_size, source_of, workload_of
from batchscope.integrations.monitor import TrainingMonitor
from batchscope.integrations.optimizers import OptimizerLike
from batchscope.integrations.watching import Calls, span
from batchscope.records import Schedule
from batchscope.seeding import current_device, isolated
from batchscope.workload import Workload
from batchscope.workload.batches import to_device

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer
else:
    _PACKAGE = lightning()
    Callback = _PACKAGE.Callback

Score = Callable[[Any, Any], "float | Tensor"]


class BatchscopeCallback(TrainingMonitor, Callback):
    """Measure the gradient noise scale of a Lightning run, and follow a batch-size schedule.

    ::

        callback = BatchscopeCallback()
        Trainer(callbacks=[callback], ...).fit(module, datamodule)
        print(callback.noise)

    Arguments and attributes are those of :class:`batchscope.integrations.monitor.TrainingMonitor`. The noise scale is
    logged every ``trainer.log_every_n_steps`` updates, to the trainer's loggers and to ``trainer.callback_metrics``.
    Gradient accumulation, clipping, precision plugins with a scaler and ``DistributedDataParallel`` are supported, and
    so are training steps that call parts of the module, such as an encoder and a decoder, instead of the module.

    A schedule sets ``trainer.accumulate_grad_batches``. The last update of an epoch takes the remaining batches.
    """

    _own_stopping = "Lightning's EarlyStopping and ModelCheckpoint"
    _updates = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prepare to measure and to follow the schedule.

        Args:
            trainer: The trainer.
            pl_module: The module.

        Raises:
            ArgumentError: Several optimisers.
            PlanError: A schedule that this trainer cannot follow.
        """
        if len(trainer.optimizers) != 1:
            raise ArgumentError(
                "the noise scale needs exactly one optimiser",
                got=f"{len(trainer.optimizers)} of them",
                mend="train with one, or use a bs.GradientNoise for each in the module itself",
            )
        self._updates = trainer.global_step
        wrapped = trainer.strategy.model
        if isinstance(wrapped, DistributedDataParallel):
            self._begin(trainer, wrapped)
        else:
            self._calls = Calls(pl_module)
        if self.schedule is not None:
            self._following = self._follow(trainer, pl_module, self.schedule)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Set the number of accumulated batches."""
        if self._following is not None:
            trainer.accumulate_grad_batches = self._following.before(batch_idx)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Begin to measure after the first batch, and log."""
        if self._calls is not None:
            self._calls.close()
            self._begin(trainer, span(pl_module, self._calls.called))
            self._calls = None
        if trainer.global_step == self._updates:
            return
        self._updates = trainer.global_step
        if self._following is not None:
            self._following.updated_with(self.noise)
        if trainer.log_every_n_steps and self._updates % trainer.log_every_n_steps == 0:
            if not (values := self._values(self._updates)):
                return
            trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})
            for logger in trainer.loggers:
                logger.log_metrics(values, step=self._updates)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop if the monitored metric says so."""
        if self.stopping is None or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        if self.stopping.should_stop(trainer.callback_metrics, pl_module, trainer.global_step):
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove every hook, and restore the best weights of a monitored metric."""
        if self.stopping is not None:
            self.stopping.restore(pl_module)
        self.on_exception(trainer, pl_module, None)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException | None) -> None:
        """Remove every hook."""
        self._release()
        if self._following is not None:
            trainer.accumulate_grad_batches = 1

    def state_dict(self) -> dict[str, Any]:
        """State for Lightning's checkpoints."""
        parts = {"noise": self.noise, "following": self._following, "stopping": self.stopping}
        return {name: None if part is None else part.state_dict() for name, part in parts.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the state in a checkpoint."""
        self._loaded = dict(state_dict)
        if (state := self._loaded.pop("stopping", None)) is not None and self.stopping is not None:
            self.stopping.load_state_dict(state)

    def _begin(self, trainer: Trainer, model: nn.Module) -> None:
        self._watch(model, trainer.optimizers[0], getattr(trainer.precision_plugin, "scaler", None))

    def _follow(self, trainer: Trainer, module: LightningModule, schedule: Schedule) -> Accumulation:
        if not module.automatic_optimization:
            raise PlanError("a schedule needs automatic optimisation", got="a module with manual optimisation")
        if trainer.accumulate_grad_batches != 1:
            raise PlanError(
                "the schedule sets the number of accumulated batches",
                got=f"accumulate_grad_batches={trainer.accumulate_grad_batches}",
                mend="leave it at 1",
            )
        if trainer.lr_scheduler_configs:
            raise PlanError(
                "the schedule sets the learning rate",
                got="a learning-rate scheduler too",
                mend="remove it from configure_optimizers, and put its steps into the phases of the schedule",
            )
        source = source_of(trainer.train_dataloader, "the training data")
        examples = source.examples
        micro = reference_batch_size(None, source.batch_size, examples) * trainer.world_size
        following = Accumulation(schedule, trainer.optimizers[0], micro_batch_size=micro, training_examples=examples)
        if (state := self._loaded.pop("following", None)) is not None:
            following.load_state_dict(state)
        return following


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
    """Make a Workload from a LightningModule and its data.

    The workload reads the data module's Datasets with its loaders' ``collate_fn``. The optimiser and its learning rate
    are those of ``configure_optimizers``; a learning-rate scheduler is ignored with a warning, since a plan has a shape
    instead. Without ``loss``, the loss comes from ``training_step(batch, 0)``, in validation too, without logging.
    Weights keep their names, so that ``module.load_state_dict(result.state)`` loads the result of
    :func:`batchscope.train`. The Gauss–Newton matrix needs ``loss``.

    Args:
        module_factory: Returns a fresh module at each call, with weights drawn from torch's global generator.
        datamodule: A LightningDataModule.
        score: ``score(output, target)``, higher is better; None: minus the loss.
        loss: ``loss(output, target)``, the mean over a batch; None: the module's own training step.
        forward: ``forward(module, batch)`` returns ``(output, target)``, for ``score`` and ``loss``; None:
            ``(module(x), y)``.
        batch_size: The present batch size, with accumulation; None: that of the training loader.
        gradient_clip_val: The Trainer's argument, by norm; None: no clipping.
        name: Name for tables and reports; None: the module's class.

    Returns:
        The workload.

    Raises:
        WorkloadError: Unsupported, for example an iterable dataset, manual optimisation or several optimisers.
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
    step = _OwnStep(output_of, score) if loss is None else None
    if step is not None:
        step.check(module_factory, train.few())
    return workload_of(
        train,
        validation,
        like,
        module,
        batch_size=batch_size,
        name=name,
        model=module_factory if step is None else step.model_of(module_factory),
        loss=loss if loss is not None else _first_of,
        score=score if step is None else step.score,
        forward=forward if step is None else step,
    )


class _Whole:
    """A batch for the training step instead of ``forward``."""

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
        """Make the modules' ``forward`` run the training step if it is given a whole batch.

        This also works with ``torch.func.functional_call`` and vmap.
        """

        def make() -> nn.Module:
            module = factory()
            module.__class__ = _stepping(type(module))
            for method in ("log", "log_dict"):
                object.__setattr__(module, method, _silent)
            return module

        return make

    def check(self, factory: Callable[[], nn.Module], batch: Any) -> None:
        """Refuse a training step that needs a Trainer."""
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
            mend="return the loss from training_step, and leave backward and updates to Lightning",
        )
    for owner in (module, datamodule):
        for hook in ("on_before_batch_transfer", "on_after_batch_transfer"):
            here = getattr(type(owner), hook, None)
            if here is not None and not here.__module__.startswith(("lightning", "pytorch_lightning")):
                raise WorkloadError(
                    "batches must be ready when the loader's collate_fn returns",
                    got=f"{type(owner).__name__}.{hook}",
                    mend="move it to the Dataset or the collate_fn, or give augment= to bs.Workload",
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
            mend="train with one optimiser, which may have several parameter groups",
        )
    [one] = several
    if isinstance(one, dict):
        one, schedulers = one["optimizer"], schedulers or one.get("lr_scheduler")
    if schedulers:
        warnings.warn(
            "The learning-rate scheduler of configure_optimizers is ignored: the shape of a plan replaces it.",
            stacklevel=3,
        )
    optimizer: torch.optim.Optimizer = one
    return optimizer
