"""The Workload: a model, its data, its loss and its optimiser, with the present settings."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from batchscope.errors import WorkloadError
from batchscope.workload.options import DEFAULTS, DTYPES, LoopShape, Precision, form_of

Examples: TypeAlias = "tuple[Tensor, ...] | Dataset[Any]"
Batch: TypeAlias = Any
Loss: TypeAlias = Callable[[Any, Any], Tensor]
Score: TypeAlias = Callable[[Any, Any], "float | Tensor"]
Forward: TypeAlias = Callable[[nn.Module, Batch], tuple[Any, Any]]
OptimizerFactory: TypeAlias = Callable[[Any, float], torch.optim.Optimizer]


@dataclass(frozen=True, kw_only=True, eq=False)
class Workload:
    """A model, its data, its loss and its optimiser, with the present batch size and learning rate.

    Everything is checked when the workload is made: one forward and backward pass over a few training examples, on
    a model of its own, with the random state put back afterwards.

    Attributes:
        model: Returns a fresh module at each call, its weights drawn from torch's global generator.
        train: Training examples: a tuple of tensors of equal length, or any map-style Dataset.
        validation: Validation examples, of either kind.
        loss: ``loss(output, target)`` returns a scalar, the mean over the batch.
        optimizer: ``optimizer(params, lr)`` returns a torch optimiser over all parameters. A factory whose first
            parameter is named ``named_parameters`` (or ``named_params``) gets ``model.named_parameters()``; one whose
            first parameter is named ``model`` gets the model.
        learning_rate: The present learning rate, as a reference.
        batch_size: The present batch size.
        score: ``score(output, target)`` returns a number, higher is better, computed on the whole validation set at
            once (set by set of about 8 MiB where outputs are larger than that). None: minus the loss.
        forward: ``forward(model, batch)`` returns ``(output, target)``, for batches that are not ``(x, y)``: dicts,
            text and the like. None: ``(model(x), y)``.
        collate: Collates a list of examples of a Dataset. None: torch's default.
        name: Name for tables and reports. None: "workload".
        augment: ``augment(batch)`` returns an augmented batch for training, drawn from torch's global generator. None:
            no augmentation.
        tokens_per_example: Tokens of an example, for language models: a number, or ``tokens_per_example(batch)``, which
            returns those of a batch without padding. None: no count in tokens.
        clip_norm: Largest norm of the gradient. None: no clipping.
        clip_value: Each number of the gradient is clipped to [-clip_value, clip_value]. None: no clipping.
        precision: Forward pass and loss under ``torch.autocast``: "bf16", or "fp16" with a ``GradScaler``. None: in
            the precision of the weights.
        compile: Whether the model is trained through ``torch.compile``.
        warmup_examples: Examples over which the learning rate rises linearly at the start of training.
        shape: The learning rate after that, over the length of training: "constant", "linear" or "cosine", both of
            which fall to zero.

    Raises:
        WorkloadError: A part that cannot be trained.

    Examples:
        >>> import torch, batchscope as bs
        >>> x = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
        >>> w = bs.Workload(
        ...     model=lambda: torch.nn.Linear(3, 1),
        ...     train=(x[:80], x[:80, :1]),
        ...     validation=(x[80:], x[80:, :1]),
        ...     loss=torch.nn.functional.mse_loss,
        ...     optimizer=lambda params, lr: torch.optim.SGD(params, lr=lr),
        ...     learning_rate=0.1,
        ...     batch_size=16,
        ... )
        >>> w.training_examples
        80
    """

    model: Callable[[], nn.Module]
    train: Examples
    validation: Examples
    loss: Loss
    optimizer: OptimizerFactory
    learning_rate: float
    batch_size: int
    score: Score | None = None
    forward: Forward | None = None
    collate: Callable[[list[Any]], Batch] | None = None
    name: str | None = None
    augment: Callable[[Batch], Batch] | None = None
    tokens_per_example: int | Callable[[Batch], int | Tensor] | None = None
    clip_norm: float | None = None
    clip_value: float | None = None
    precision: Precision | None = None
    compile: bool = False
    warmup_examples: int = 0
    shape: LoopShape = "constant"

    def __post_init__(self) -> None:
        from batchscope.workload.checks import check

        check(self)

    @property
    def title(self) -> str:
        """The name, or "workload" where there is none."""
        return self.name or "workload"

    @property
    def training_examples(self) -> int:
        """Number of training examples."""
        return length(self.train)

    @property
    def validation_examples(self) -> int:
        """Number of validation examples."""
        return length(self.validation)

    @property
    def options(self) -> dict[str, Any]:
        """What was said of clipping, precision, compilation, warm-up and shape; empty where nothing was."""
        return {name: getattr(self, name) for name, default in DEFAULTS.items() if getattr(self, name) != default}

    @cached_property
    def _optimizer_form(self) -> str:
        return form_of(self.optimizer)

    def optimizer_for(self, model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
        """Make the optimiser of a model.

        Args:
            model: A module that ``self.model`` made.
            learning_rate: The rate that the factory is given.

        Returns:
            What ``self.optimizer`` returns, given the parameters, the named parameters or the model, as it asks for.
        """
        given: Any = model
        if self._optimizer_form == "parameters":
            given = model.parameters()
        elif self._optimizer_form == "named_parameters":
            given = model.named_parameters()
        return self.optimizer(given, learning_rate)

    def autocast(self, device: torch.device) -> contextlib.AbstractContextManager[Any]:
        """Where the forward pass and the loss are computed: ``torch.autocast`` where there is a precision.

        Args:
            device: Where the model is.

        Returns:
            The context; one that changes nothing without a precision.
        """
        if self.precision is None:
            return contextlib.nullcontext()
        return torch.autocast(device.type, DTYPES[self.precision])

    def output_and_target(self, model: nn.Module, batch: Batch) -> tuple[Any, Any]:
        """Run the model on a batch.

        Args:
            model: A module that ``self.model`` made.
            batch: What a data source yields: a tuple of tensors, or what ``collate`` returns.

        Returns:
            The output and the target, as ``loss`` and ``score`` take them.

        Raises:
            WorkloadError: The batch is not ``(x, y)`` and there is no ``forward``.
        """
        if self.augment is not None and model.training:
            batch = self.augment(batch)
        if self.forward is not None:
            return self.forward(model, batch)
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            shown = f"{len(batch)} parts" if isinstance(batch, (tuple, list)) else type(batch).__name__
            raise WorkloadError(
                "without a forward, a batch must be (x, y)",
                got=shown,
                mend="give forward=lambda model, batch: (output, target)",
            )
        return model(batch[0]), batch[1]


def length(examples: Examples) -> int:
    """Number of examples in a tuple of tensors or a Dataset.

    Examples:
        >>> length((torch.zeros(5, 2), torch.zeros(5)))
        5
    """
    return len(examples[0]) if isinstance(examples, tuple) else len(examples)  # type: ignore[arg-type]
