"""transformers: the noise scale along a Trainer's run as a callback, and a Workload from a Trainer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from batchscope.errors import PlanError, WorkloadError, first_line
from batchscope.integrations.accumulation import Accumulation
from batchscope.integrations.frameworks import framework
from batchscope.integrations.loaders import reference_batch_size, source_of
from batchscope.integrations.optimizers import OptimizerLike, unwrapped
from batchscope.integrations.stopping import Stopping
from batchscope.integrations.watching import Calls, interval_of, span, values_of
from batchscope.measure import GradientNoise
from batchscope.records import Interval, Schedule
from batchscope.seeding import current_device, isolated
from batchscope.workload import Workload
from batchscope.workload.batches import take, to_device

if TYPE_CHECKING:
    from transformers import Trainer, TrainerCallback
else:
    _PACKAGE = framework("transformers", "follow a Trainer")
    Trainer, TrainerCallback = _PACKAGE.Trainer, _PACKAGE.TrainerCallback


# Earlier ones do not end an update with the epoch, but carry what is left of its batches over to the next one.
ENDS_EPOCHS = "4.48"


class BatchscopeTrainerCallback(TrainerCallback):
    """Follow the gradient noise scale of a Trainer's run, and a batch-size schedule where there is one.

    ::

        callback = BatchscopeTrainerCallback()
        trainer = Trainer(..., callbacks=[callback])
        trainer.train()
        print(callback.noise)

    Whenever the Trainer logs, the noise scale and the ends of its interval go with it as ``noise_scale``,
    ``noise_scale_low`` and ``noise_scale_high``: into ``trainer.state.log_history`` and to every callback after this
    one. The Trainer puts its reporters (TensorBoard and the like) first; :meth:`attach` puts this one before them. How
    it is measured, from what, and where it is refused: :class:`batchscope.GradientNoise`. Accumulation, clipping and
    mixed precision are honoured; where a Trainer runs on several ranks, each measures its own share of the batch. The
    loss must follow from the model's largest output, as that of every model with one head does.

    With a schedule, ``args.gradient_accumulation_steps`` is set at its borders so that the batches of
    ``per_device_train_batch_size`` make the schedule's, and the optimiser's settings as the schedule says. It begins
    where an update of the old size and one of the new size would both begin. ``num_train_epochs`` and ``max_steps``
    mean as many examples as without it: the Trainer counts its steps beforehand, in batches as its DataLoader makes
    them. It cannot resume inside one either, since it works out how many batches lie behind from that count. A measured
    schedule follows what this callback measures.

    With ``monitor``, the weights at the best value of what the Trainer evaluates under this name are put back when
    training ends, be it by itself, at ``target``, or after ``patience`` evaluations without a better one. A resumed run
    looks for the best anew.

    Args:
        schedule: Batch sizes, rates and momenta; None: they are the Trainer's own.
        monitor: The name of an evaluated metric, with or without its ``eval_``; None: none is watched.
        higher_is_better: Whether more of it is better; else less is.
        target: Its value that ends training; None: none does.
        patience: Evaluations without a better value that end training; None: any number.
        overhead: The largest share of the time that measuring may take.
        every: Measure each so many updates whatever it costs; None: as often as ``overhead`` permits.
        half_life: Updates after which a measurement counts for half; None: all count alike.
        examples: Most single examples taken from a batch.
        seed: Draws them.

    Attributes:
        noise: The monitor, from the first update on; it can be read after the run.
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
        name = monitor if monitor is None or monitor.startswith("eval_") else f"eval_{monitor}"
        self.stopping = Stopping.of(name, higher_is_better=higher_is_better, target=target, patience=patience)
        self.noise: GradientNoise | None = None
        self.history: list[tuple[int, Interval]] = []
        self._calls: Calls | None = None
        self._following: Accumulation | None = None
        self._micro_batch = 0  # of the epoch

    def attach(self, trainer: Trainer) -> BatchscopeTrainerCallback:
        """Put this callback before the Trainer's reporters, so that they are given its numbers too.

        Args:
            trainer: The Trainer, in place of ``Trainer(callbacks=[...])``.

        Returns:
            This callback.
        """
        trainer.callback_handler.callbacks.insert(0, self)
        return self

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at what the model calls in its first update.

        Raises:
            PlanError: A schedule that this Trainer cannot follow.
            MissingPackageError: A schedule, and a transformers that is too old to follow one.
        """
        self._close(args)
        if self.schedule is not None:
            self._following = self._follow(args, state, self.schedule, **kwargs)
        # Mixed precision casts what the model returns, and the loss that it returns with that comes from before the
        # cast: there the pass ends with the last of its parts.
        self._calls = Calls(kwargs["model"], depth=1) if args.fp16 or args.bf16 else None
        if self._calls is None:
            self._watch(kwargs["model"], kwargs["optimizer"])

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Accumulate as many batches as the schedule says."""
        self._micro_batch = 0
        self._begin(args, **kwargs)

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count a batch."""
        self._micro_batch += 1
        if self._following is not None:
            self._following.ran()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin to watch after the first update; count a batch, and go on to the next phase where it is time."""
        self.on_substep_end(args, state, control, **kwargs)
        if self._following is not None:
            self._following.updated_with(self.noise)
            self._begin(args, **kwargs)
        if self._calls is not None:
            model = kwargs["model"]
            self._calls.close()
            ends = [model, self._calls.called[-1]] if self._calls.called else []
            self._calls = None
            self._watch(span(model, ends), kwargs["optimizer"])

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add the noise scale to what is logged."""
        found = None if self.noise is None else interval_of(self.noise)
        logs = kwargs.get("logs")
        if found is None or logs is None or "loss" not in logs:
            return
        self.history.append((state.global_step, found))
        values = values_of(found)
        if self._following is not None:
            values["batch_size"] = float(self._following.batch_size)
        logs.update(values)
        if state.log_history:
            state.log_history[-1].update(values)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at what was evaluated, and stop where that says so."""
        if self.stopping is not None and self.stopping.saw(kwargs["metrics"], kwargs["model"], state.global_step):
            control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Go back to the best weights, and remove every hook; what was found can still be read."""
        if self.stopping is not None:
            self.stopping.go_back(kwargs["model"])
        self._close(args)

    def _watch(self, model: nn.Module, optimizer: Any) -> None:
        scaler = getattr(optimizer, "scaler", None)
        self.noise = GradientNoise(model, unwrapped(optimizer), scaler=scaler, **self._options)

    def _follow(
        self, args: Any, state: Any, schedule: Schedule, *, optimizer: Any, lr_scheduler: Any, **kwargs: Any
    ) -> Accumulation:
        framework("transformers", "follow a schedule in a Trainer", at_least=ENDS_EPOCHS)
        sizes = [phase.batch_size for phase in schedule.phases]
        refusals = (
            (
                args.gradient_accumulation_steps != 1,
                "the schedule sets how many batches are accumulated",
                f"gradient_accumulation_steps={args.gradient_accumulation_steps}",
                "leave it at 1",
            ),
            (
                args.lr_scheduler_type != "constant",
                "the schedule sets the learning rate",
                f'lr_scheduler_type="{getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)}" beside it',
                'give lr_scheduler_type="constant", and put its steps into the schedule\'s phases',
            ),
            (
                args.auto_find_batch_size,
                "the schedule's batch sizes are multiples of the Trainer's",
                "auto_find_batch_size=True, which changes it",
                "leave it out and give per_device_train_batch_size, which bs.find_max_batch_size can find",
            ),
            (
                state.global_step > 0,
                "a Trainer that follows a schedule must begin at the beginning",
                f"a run resumed after {state.global_step:,} updates",
                "train without resume_from_checkpoint",
            ),
            (
                min(sizes) < sizes[0],
                "a Trainer cannot make smaller batches than it began with: it would leave data out",
                f"{min(sizes):,} after {sizes[0]:,}",
                "begin with the smallest",
            ),
        )
        for refused, rule, got, mend in refusals:
            if refused:
                raise PlanError(rule, got=got, mend=mend)
        source = source_of(kwargs["train_dataloader"], "the training data")
        micro = args.train_batch_size * args.world_size
        examples = len(source.dataset)  # type: ignore[arg-type]
        return Accumulation(schedule, unwrapped(optimizer), micro_batch_size=micro, training_examples=examples)

    def _begin(self, args: Any, *, lr_scheduler: Any = None, optimizer: Any = None, **kwargs: Any) -> None:
        """Enter the phase that is due before an update that can begin it."""
        if self._following is None or not self._following.begin(self._micro_batch):
            return
        args.gradient_accumulation_steps = self._following.count
        # What a constant rate is put back to at every update.
        inner = getattr(lr_scheduler, "scheduler", lr_scheduler)
        inner.base_lrs = [group["lr"] for group in unwrapped(optimizer).param_groups]

    def _close(self, args: Any) -> None:
        if self._calls is not None:
            self._calls.close()
            self._calls = None
        if self.noise is not None:
            self.noise.close()
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
    """Make a Workload of what a Trainer trains, as it would train it today.

    The model is made by ``model_init`` where the Trainer has one; else every run begins with a copy of the Trainer's
    model as it is now, pretrained weights and all. Examples are those of the Trainer's datasets, made batches of by its
    collator. The optimiser, with its groups, learning rate and ``max_grad_norm``, is the one that the Trainer creates;
    its schedule of learning rates is left out, since a plan's shape says how the rate goes. The batch size of today is
    ``per_device_train_batch_size × gradient_accumulation_steps × world_size``. The loss is the Trainer's: the model's
    own mean over a batch, or that of ``compute_loss`` and ``label_smoothing_factor``. Many runs of a model in one
    batched pass are fastest with ``max_grad_norm=0``, since a clipped update ties all weights together.

    Args:
        trainer: The Trainer; it is left as it is.
        score: ``score(logits, labels)``, higher is better; or the name of a number that ``compute_metrics`` returns, of
            which more is better; None: minus the loss.
        batch_size: What is used today; None: as above.
        name: A name for tables and pages; None: the model's class.

    Returns:
        The workload. Its outputs are ``{"loss": ..., "logits": ...}``.

    Raises:
        WorkloadError: What cannot be trained here, an iterable dataset or ``auto_find_batch_size=True`` say.
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
        loss.check(model(), take(train.dataset, range(min(2, len(train.dataset))), train.collate))  # type: ignore[arg-type]
    examples = len(train.dataset)  # type: ignore[arg-type]
    return Workload(
        model=model,
        train=train.dataset,
        validation=validation.dataset,
        loss=_mean_of_loss,
        score=_score(trainer, score),
        optimizer=like,
        learning_rate=like.learning_rate,
        batch_size=reference_batch_size(
            batch_size, args.train_batch_size, examples, times=args.gradient_accumulation_steps * args.world_size
        ),
        forward=loss,
        collate=_AsDict(train.collate),
        name=name or type(trainer.model).__name__,
    )


class _AsDict:
    """A collator whose batches are plain dicts."""

    def __init__(self, collate: Callable[[list[Any]], Any] | None) -> None:
        self._collate = collate or torch.utils.data.default_collate

    def __call__(self, examples: list[Any]) -> dict[str, Any]:
        return dict(self._collate(examples))


class _Loss:
    """A batch's loss, logits and labels, as the Trainer has them."""

    def __init__(self, trainer: Any) -> None:
        own = type(trainer).compute_loss is not Trainer.compute_loss
        special = own or trainer.compute_loss_func is not None or trainer.label_smoother is not None
        # The Trainer is held where it takes part in the loss, and only there.
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
        """Refuse what gives no loss or no logits."""
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
    kept = copy.deepcopy(trainer.model).cpu()
    kept.zero_grad(set_to_none=True)
    return lambda: copy.deepcopy(kept).train()


def _optimizer(trainer: Any, model: nn.Module) -> OptimizerLike:
    """The optimiser that the Trainer creates for a model of its own, leaving the one that it may have."""
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
