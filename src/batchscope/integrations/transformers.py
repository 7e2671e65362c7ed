"""transformers: a callback for the noise scale and schedules, and a Workload from a Trainer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from batchscope.errors import PlanError, WorkloadError, first_line
from batchscope.integrations.accumulation import Accumulation
from batchscope.integrations.frameworks import framework
from batchscope.integrations.loaders import copies_of, source_of, workload_of
from batchscope.integrations.monitor import TrainingMonitor
from batchscope.integrations.optimizers import OptimizerLike, unwrapped
from batchscope.integrations.watching import Calls, span
from batchscope.records import Schedule
from batchscope.seeding import current_device, isolated
from batchscope.workload import Workload
from batchscope.workload.batches import to_device

if TYPE_CHECKING:
    from transformers import Trainer, TrainerCallback
else:
    _PACKAGE = framework("transformers", "follow a Trainer")
    Trainer, TrainerCallback = _PACKAGE.Trainer, _PACKAGE.TrainerCallback


# Earlier releases carry incomplete updates over to the next epoch.
ENDS_EPOCHS = "4.48"


class BatchscopeTrainerCallback(TrainingMonitor, TrainerCallback):
    """Measure the gradient noise scale of a Trainer's run, and follow a batch-size schedule.

    ::

        callback = BatchscopeTrainerCallback()
        trainer = Trainer(..., callbacks=[callback])
        trainer.train()
        print(callback.noise)

    Arguments and attributes are those of :class:`batchscope.integrations.monitor.TrainingMonitor`. The noise scale is
    added to what the Trainer logs: to ``trainer.state.log_history`` and to the logs of every callback after this one.
    The Trainer puts its reporters, such as TensorBoard, first; :meth:`attach` puts this callback before them. Gradient
    accumulation, clipping and mixed precision are supported; on several ranks, each measures its own share of the
    batch. The loss must follow from the model's largest output, as in every model with one head.

    A schedule sets ``args.gradient_accumulation_steps``. ``num_train_epochs`` and ``max_steps`` stand for as many
    examples as without the schedule, since the Trainer computes its number of steps from the DataLoader's batches. For
    the same reason a run with a schedule cannot be resumed. ``monitor`` may have its ``eval_`` or not.
    """

    _metric_prefix = "eval_"
    _own_stopping = "transformers' EarlyStoppingCallback and load_best_model_at_end=True"
    _micro_batch = 0  # of the epoch

    def attach(self, trainer: Trainer) -> BatchscopeTrainerCallback:
        """Put this callback before the Trainer's reporters, so that they receive its values too.

        Args:
            trainer: The Trainer, in place of ``Trainer(callbacks=[...])``.

        Returns:
            This callback.
        """
        trainer.callback_handler.callbacks.insert(0, self)
        return self

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Prepare to measure and to follow the schedule.

        Raises:
            PlanError: A schedule that this Trainer cannot follow.
            MissingPackageError: A schedule, and a transformers that is too old to follow one.
        """
        self._end(args)
        if self.schedule is not None:
            self._following = self._follow(args, state, self.schedule, **kwargs)
        # Mixed precision casts the model's outputs, but the loss is computed before the cast: the forward pass to watch
        # ends with the last submodule.
        self._calls = Calls(kwargs["model"], depth=1) if args.fp16 or args.bf16 else None
        if self._calls is None:
            self._begin(kwargs["model"], kwargs["optimizer"])

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set the number of accumulated batches."""
        self._micro_batch = 0
        self._enter_phase(args, **kwargs)

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count a batch."""
        self._micro_batch += 1
        if self._following is not None:
            self._following.ran()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count an update, enter the next phase if it is due, and begin to measure after the first update."""
        self.on_substep_end(args, state, control, **kwargs)
        if self._following is not None:
            self._following.updated_with(self.noise)
            self._enter_phase(args, **kwargs)
        if self._calls is not None:
            model = kwargs["model"]
            self._calls.close()
            ends = [model, self._calls.called[-1]] if self._calls.called else []
            self._calls = None
            self._begin(span(model, ends), kwargs["optimizer"])

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add the noise scale to what is logged."""
        logs = kwargs.get("logs")
        if logs is None or "loss" not in logs:
            return
        values = self._values(state.global_step)
        logs.update(values)
        if state.log_history:
            state.log_history[-1].update(values)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop if the monitored metric says so."""
        if self.stopping is not None and self.stopping.should_stop(
            kwargs["metrics"], kwargs["model"], state.global_step
        ):
            control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remove every hook, and restore the best weights of a monitored metric."""
        if self.stopping is not None:
            self.stopping.restore(kwargs["model"])
        self._end(args)

    def _begin(self, model: nn.Module, optimizer: Any) -> None:
        self._watch(model, unwrapped(optimizer), getattr(optimizer, "scaler", None))

    def _follow(
        self, args: Any, state: Any, schedule: Schedule, *, optimizer: Any, lr_scheduler: Any, **kwargs: Any
    ) -> Accumulation:
        framework("transformers", "follow a schedule in a Trainer", at_least=ENDS_EPOCHS)
        sizes = [phase.batch_size for phase in schedule.phases]
        refusals = (
            (
                args.gradient_accumulation_steps != 1,
                "the schedule sets the number of accumulated batches",
                f"gradient_accumulation_steps={args.gradient_accumulation_steps}",
                "leave it at 1",
            ),
            (
                args.lr_scheduler_type != "constant",
                "the schedule sets the learning rate",
                f'lr_scheduler_type="{getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)}" beside it',
                'give lr_scheduler_type="constant", and put its steps into the phases of the schedule',
            ),
            (
                args.auto_find_batch_size,
                "the schedule's batch sizes are multiples of the Trainer's",
                "auto_find_batch_size=True, which changes it",
                "leave it out and give per_device_train_batch_size, which bs.find_max_batch_size can find",
            ),
            (
                state.global_step > 0,
                "a run with a schedule cannot be resumed",
                f"a run resumed after {state.global_step:,} updates",
                "train without resume_from_checkpoint",
            ),
            (
                min(sizes) < sizes[0],
                "a Trainer cannot reduce the batch size: it would skip data",
                f"{min(sizes):,} after {sizes[0]:,}",
                "begin with the smallest batch size",
            ),
        )
        for refused, rule, got, mend in refusals:
            if refused:
                raise PlanError(rule, got=got, mend=mend)
        source = source_of(kwargs["train_dataloader"], "the training data")
        micro = args.train_batch_size * args.world_size
        return Accumulation(schedule, unwrapped(optimizer), micro_batch_size=micro, training_examples=source.examples)

    def _enter_phase(self, args: Any, *, lr_scheduler: Any = None, optimizer: Any = None, **kwargs: Any) -> None:
        """Enter the phase that is due before an update that can begin it."""
        if self._following is None or not self._following.begin(self._micro_batch):
            return
        args.gradient_accumulation_steps = self._following.count
        # The Trainer's constant scheduler resets the learning rate to this value at every update.
        inner = getattr(lr_scheduler, "scheduler", lr_scheduler)
        inner.base_lrs = [group["lr"] for group in unwrapped(optimizer).param_groups]

    def _end(self, args: Any) -> None:
        self._release()
        if self._following is not None:
            args.gradient_accumulation_steps = 1
            self._following = None


def workload_from_trainer(
    trainer: Trainer,
    *,
    score: Callable[[Any, Any], float | Tensor] | str | None = None,
    batch_size: int | None = None,
    name: str | None = None,
) -> Workload:
    """Make a Workload from a Trainer.

    The model comes from ``model_init``, or every run begins with a copy of the Trainer's present model. The optimiser
    is the one that the Trainer creates, with its groups, learning rate and ``max_grad_norm``; its learning-rate
    schedule is ignored, since the shape of a plan replaces it. The present batch size is
    ``per_device_train_batch_size × gradient_accumulation_steps × world_size``. The loss is the Trainer's: the model's
    own mean over a batch, or that of ``compute_loss`` and ``label_smoothing_factor``. Sweeps are fastest with
    ``max_grad_norm=0``, since clipping couples all weights.

    Args:
        trainer: The Trainer, which is not changed.
        score: ``score(logits, labels)``, higher is better; or the name of such a metric of ``compute_metrics``; None:
            minus the loss.
        batch_size: The present batch size; None: as above.
        name: Name for tables and reports; None: the model's class.

    Returns:
        The workload. Its outputs are ``{"loss": ..., "logits": ...}``.

    Raises:
        WorkloadError: Unsupported, for example an iterable dataset or ``auto_find_batch_size=True``.
    """
    args = trainer.args
    if args.auto_find_batch_size:
        raise WorkloadError(
            "the batch size in use today must be known",
            got="auto_find_batch_size=True",
            mend="leave it out and give per_device_train_batch_size, which bs.find_max_batch_size can find",
        )
    for which in ("train_dataset", "eval_dataset"):
        dataset = getattr(trainer, which)
        if dataset is None or isinstance(dataset, dict):
            raise WorkloadError(
                f"the Trainer must have one {which}",
                got="none" if dataset is None else "several",
                mend=f"give {which}=",
            )
        if isinstance(dataset, torch.utils.data.IterableDataset) or not hasattr(dataset, "__getitem__"):
            raise WorkloadError(
                f"{which} must be a map-style Dataset, since batches of every size are drawn by index",
                got=f"an iterable {type(dataset).__name__}",
                mend="give a Dataset with __len__ and __getitem__",
            )
    with isolated(0, current_device()):
        train = source_of(trainer.get_train_dataloader(), "the training data")
        validation = source_of(trainer.get_eval_dataloader(), "the evaluation data")
        model = _models(trainer)
        like = _optimizer(trainer, model())
        loss = _Loss(trainer)
        loss.check(model(), train.few())
    return workload_of(
        dataclasses.replace(train, collate=_AsDict(train.collate), batch_size=args.train_batch_size),
        validation,
        like,
        trainer.model,
        batch_size=batch_size,
        times=args.gradient_accumulation_steps * args.world_size,
        name=name,
        model=model,
        loss=_mean_of_loss,
        score=_score(trainer, score),
        forward=loss,
    )


class _AsDict:
    """A collator whose batches are plain dicts."""

    def __init__(self, collate: Callable[[list[Any]], Any] | None) -> None:
        self._collate = collate or torch.utils.data.default_collate

    def __call__(self, examples: list[Any]) -> dict[str, Any]:
        return dict(self._collate(examples))


class _Loss:
    """The Trainer's loss, logits and labels of a batch."""

    def __init__(self, trainer: Any) -> None:
        own = type(trainer).compute_loss is not Trainer.compute_loss
        special = own or trainer.compute_loss_func is not None or trainer.label_smoother is not None
        # Keep the Trainer only if it computes the loss.
        self._trainer = trainer if special else None
        self._labels = list(trainer.label_names) or ["labels"]

    def __call__(self, model: nn.Module, batch: Mapping[str, Any]) -> tuple[Any, Any]:
        if self._trainer is not None:
            loss, outputs = self._trainer.compute_loss(model, dict(batch), return_outputs=True)
        else:
            outputs = model(**batch)
            loss = outputs["loss"] if isinstance(outputs, Mapping) else outputs[0]
        logits = outputs.get("logits") if isinstance(outputs, Mapping) else outputs[-1]
        labels = [batch[label] for label in self._labels if label in batch]
        return {"loss": loss.reshape(1), "logits": logits}, labels[0] if len(labels) == 1 else tuple(labels)

    def check(self, model: nn.Module, batch: Any) -> None:
        """Refuse a model without loss or logits."""
        batch = dict(to_device(batch, next(model.parameters()).device))
        try:
            output, _ = self(model, batch)
        except Exception as error:
            raise WorkloadError(
                "the model must return its loss with each batch",
                got=f"{first_line(error)}, of a batch of {', '.join(batch)}",
                mend="let the collator add labels, or give the Trainer a compute_loss_func",
            ) from error
        if not isinstance(output["logits"], Tensor):
            raise WorkloadError(
                "the model must return its logits as one tensor",
                got=type(output["logits"]).__name__,
                mend="return an output with .loss and .logits",
            )


def _mean_of_loss(output: Any, target: Any) -> Tensor:
    loss: Tensor = output["loss"].mean()
    return loss


def _models(trainer: Any) -> Callable[[], nn.Module]:
    if trainer.model_init is not None:
        return lambda: trainer.call_model_init().train()
    return copies_of(trainer.model)


def _optimizer(trainer: Any, model: nn.Module) -> OptimizerLike:
    """The optimiser that the Trainer creates for another model, without changing the Trainer."""
    most = trainer.args.max_grad_norm or None
    if trainer.optimizer is not None:
        return OptimizerLike(trainer.optimizer, trainer.model, max_grad_norm=most)
    before = trainer.model
    try:
        trainer.model = model
        return OptimizerLike(trainer.create_optimizer() or trainer.optimizer, model, max_grad_norm=most)
    finally:
        trainer.model, trainer.optimizer = before, None


def _score(trainer: Any, score: Any) -> Callable[[Any, Any], Any] | None:
    if score is None:
        return None
    if not isinstance(score, str):
        return lambda output, target: score(output["logits"], target)
    metrics = trainer.compute_metrics
    if metrics is None:
        raise WorkloadError(
            "a score's name must be one of compute_metrics",
            got=f"{score} and a Trainer without compute_metrics",
            mend="give score=lambda logits, labels: ...",
        )
    from transformers import EvalPrediction

    def named(output: Any, target: Any) -> float:
        arrays = [value.detach().cpu().numpy() for value in (output["logits"], target)]
        found = metrics(EvalPrediction(predictions=arrays[0], label_ids=arrays[1]))
        if score not in found:
            raise KeyError(f"compute_metrics returns {', '.join(found)}, and no {score}")
        return float(found[score])

    return named
