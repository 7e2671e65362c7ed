"""The description of a workload in a record."""

from __future__ import annotations

from batchscope.records import WorkloadSummary
from batchscope.seeding import current_device, isolated
from batchscope.workload.tokens import mean_tokens
from batchscope.workload.workload import Workload


def summarise(workload: Workload) -> WorkloadSummary:
    """Describe a workload for a record."""
    with isolated(0, current_device()):
        model = workload.model()
        optimizer = workload.optimizer_for(model, workload.learning_rate)
    return WorkloadSummary(
        name=workload.title,
        parameters=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        training_examples=workload.training_examples,
        validation_examples=workload.validation_examples,
        optimizer=type(optimizer).__name__,
        loss=_name(workload.loss),
        score="minus the loss" if workload.score is None else _name(workload.score),
        batch_size=workload.batch_size,
        learning_rate=float(workload.learning_rate),
        tokens_per_example=mean_tokens(workload),
        options=", ".join(f"{name}={value!r}" for name, value in workload.options.items()) or None,
    )


def _name(function: object) -> str:
    name = getattr(function, "__name__", type(function).__name__)
    return "a function" if name == "<lambda>" else str(name)
