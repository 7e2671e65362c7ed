"""Checks of a workload when it is made, rather than an hour later."""

from __future__ import annotations

import inspect
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.data import IterableDataset

from batchscope.errors import WorkloadError, first_line
from batchscope.seeding import current_device, isolated
from batchscope.workload.batches import describe, take, to_device
from batchscope.workload.options import check_options, form_of
from batchscope.workload.tokens import tokens_in
from batchscope.workload.workload import Batch, Examples, length

if TYPE_CHECKING:
    from batchscope.workload.workload import Workload

CHECK_EXAMPLES = 8


def check(workload: Workload) -> None:
    """Check a workload with a forward and backward pass over a few examples.

    Raises:
        WorkloadError: A part that cannot be trained.
    """
    for name in ("model", "loss", "optimizer"):
        _callable(name, getattr(workload, name))
    for name in ("score", "forward", "collate"):
        if getattr(workload, name) is not None:
            _callable(name, getattr(workload, name))
    tokens = workload.tokens_per_example
    whole = isinstance(tokens, int) and not isinstance(tokens, bool) and tokens >= 1
    if tokens is not None and not callable(tokens) and not whole:
        raise WorkloadError(
            "tokens_per_example must be a whole number of at least 1, or a function of a batch",
            got=tokens,
            mend="give the length of a sequence, or lambda batch: int(batch['attention_mask'].sum())",
        )
    if workload.name is not None and not isinstance(workload.name, str):
        raise WorkloadError("name must be text", got=workload.name)
    _examples("train", workload.train)
    _examples("validation", workload.validation)
    _reference(workload)
    check_options(workload)
    with isolated(0, current_device()):
        model = _fresh_models(workload)
        _optimizer(workload, model)
        _training_pass(workload, model)
        _validation_pass(workload, model)


def _callable(name: str, value: object) -> None:
    if isinstance(value, nn.Module) and name == "model":
        raise WorkloadError(
            "model must be a function that returns a fresh module at each call",
            got=f"an instance of {type(value).__name__}",
            mend="give model=lambda: MyModel(...), so that every run starts from its own weights",
        )
    if not callable(value):
        raise WorkloadError(f"{name} must be a function", got=value)


def _examples(name: str, examples: Examples) -> None:
    if isinstance(examples, tuple):
        if not examples or not all(isinstance(tensor, Tensor) for tensor in examples):
            kinds = ", ".join(type(item).__name__ for item in examples)
            raise WorkloadError(
                f"{name} must be a tuple of tensors or a Dataset",
                got=f"a tuple of ({kinds})",
                mend="turn arrays into tensors with torch.as_tensor",
            )
        if any(tensor.dim() == 0 for tensor in examples):
            raise WorkloadError(f"every tensor in {name} needs a first dimension of examples", got=describe(examples))
        sizes = {len(tensor) for tensor in examples}
        if len(sizes) > 1:
            raise WorkloadError(
                f"the tensors in {name} must be of equal length",
                got=describe(examples),
                mend="give as many targets as inputs",
            )
    elif isinstance(examples, IterableDataset):
        raise WorkloadError(
            f"{name} must be a map-style Dataset, since batches are drawn by index",
            got="an IterableDataset",
            mend="give a Dataset with __len__ and __getitem__",
        )
    elif not (hasattr(examples, "__len__") and hasattr(examples, "__getitem__")) or isinstance(
        examples, (list, str, dict, Tensor)
    ):
        raise WorkloadError(
            f"{name} must be a tuple of tensors or a Dataset with __len__ and __getitem__",
            got=type(examples).__name__,
            mend="give (x, y)",
        )
    try:
        count = length(examples)
    except Exception as error:
        raise WorkloadError(
            f"{name} must have a length",
            got=first_line(error),
            mend="give it a __len__ that returns a number",
        ) from error
    if count == 0:
        raise WorkloadError(f"{name} must hold at least one example", got="an empty set")


def _reference(workload: Workload) -> None:
    rate, size = workload.learning_rate, workload.batch_size
    if not isinstance(rate, (int, float)) or isinstance(rate, bool) or not math.isfinite(rate) or rate <= 0:
        raise WorkloadError(
            "learning_rate must be a finite number above 0", got=rate, mend="give the present learning rate"
        )
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise WorkloadError("batch_size must be a whole number of at least 1", got=size)
    if size > workload.training_examples:
        raise WorkloadError(
            "batch_size must be at most the number of training examples",
            got=f"{size} > {workload.training_examples}",
            mend=f"give batch_size={workload.training_examples} or less",
        )


def _fresh_models(workload: Workload) -> nn.Module:
    try:
        with isolated(0, current_device()):
            model = workload.model()
        with isolated(0, current_device()):
            again = workload.model()
    except Exception as error:
        raise WorkloadError(
            "model() must return a module without arguments", got=first_line(error), mend="run it by itself to see more"
        ) from error
    for made in (model, again):
        if not isinstance(made, nn.Module):
            raise WorkloadError("model() must return a torch.nn.Module", got=type(made).__name__)
    if lazy := [name for name, parameter in model.named_parameters() if is_lazy(parameter)]:
        raise WorkloadError(
            "every parameter must have its shape when model() returns",
            got=f"{', '.join(lazy[:3])}{' …' if len(lazy) > 3 else ''} without one",
            mend="give sizes explicitly instead of using lazy modules",
        )
    parameters = {id(parameter) for parameter in model.parameters()}
    if model is again or any(id(parameter) in parameters for parameter in again.parameters()):
        raise WorkloadError(
            "model() must return fresh weights at each call",
            got="the same weights twice",
            mend="build the module inside the function, as in model=lambda: MyModel(...)",
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise WorkloadError("the model must have a parameter to train", got="none that requires a gradient")
    ours, theirs = model.state_dict(), again.state_dict()
    if ours.keys() != theirs.keys() or any(
        not torch.equal(ours[key], theirs[key]) for key in ours if _plain(ours[key])
    ):
        raise WorkloadError(
            "model() must return the same weights under the same seed",
            got="weights that differ after torch.manual_seed(0)",
            mend="draw them only from torch's global generator",
        )
    return model


def _plain(value: Any) -> bool:
    return isinstance(value, Tensor) and not value.is_meta and not torch.isnan(value).any()


def _optimizer(workload: Workload, model: nn.Module) -> None:
    try:
        optimizer = workload.optimizer_for(model, workload.learning_rate)
    except Exception as error:
        form = form_of(workload.optimizer)
        raise WorkloadError(
            f"optimizer({form}, learning_rate) must return a torch optimiser",
            got=first_line(error),
            mend="as in optimizer=lambda params, lr: torch.optim.SGD(params, lr=lr); a first parameter named "
            "named_parameters gets model.named_parameters(), and one named model gets the model",
        ) from error
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise WorkloadError("optimizer(...) must return a torch.optim.Optimizer", got=type(optimizer).__name__)
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    missed = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in held]
    if missed:
        raise WorkloadError(
            "the optimiser must hold every parameter that requires a gradient",
            got=f"{len(missed)} missed: {', '.join(missed[:3])}{' …' if len(missed) > 3 else ''}",
            mend="pass it all the parameters it is given, or freeze those with requires_grad_(False)",
        )
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if isinstance(optimizer, torch.optim.LBFGS) or (closure and closure.default is inspect.Parameter.empty):
        raise WorkloadError(
            "the optimiser must step without a closure",
            got=type(optimizer).__name__,
            mend="use SGD, Adam or another optimiser with one gradient per step",
        )


def _training_pass(workload: Workload, model: nn.Module) -> None:
    batch = _few(workload, model, "train")
    try:
        tokens_in(workload, batch, min(CHECK_EXAMPLES, workload.training_examples))
    except WorkloadError:
        raise
    except Exception as error:
        raise WorkloadError(
            "tokens_per_example must be able to count a batch of training examples", got=first_line(error)
        ) from error
    output, target = _forward(workload, model, batch, "train")
    loss = _loss(workload, output, target, "train")
    if not loss.requires_grad:
        raise WorkloadError(
            "the loss must depend on the parameters",
            got="a loss without a gradient",
            mend="compute it from the model's output without detach() or no_grad()",
        )
    try:
        torch.autograd.backward(loss)
    except Exception as error:
        raise WorkloadError("the loss must be differentiable", got=first_line(error)) from error


def _validation_pass(workload: Workload, model: nn.Module) -> None:
    model.eval()
    with torch.no_grad():
        batch = _few(workload, model, "validation")
        output, target = _forward(workload, model, batch, "validation")
        loss = _loss(workload, output, target, "validation")
        if workload.score is not None:
            try:
                score = float(workload.score(output, target))
            except Exception as error:
                raise WorkloadError("score(output, target) must return a number", got=first_line(error)) from error
            if math.isnan(score):
                raise WorkloadError("score(output, target) must be a number at the start", got="nan")
        once = min(CHECK_EXAMPLES, workload.validation_examples)
        twice = to_device(take(workload.validation, [*range(once)] * 2, workload.collate), _device(model))
        doubled = float(_loss(workload, *_forward(workload, model, twice, "validation"), "validation"))
    if abs(float(loss)) > 1e-12 and math.isclose(doubled, 2 * float(loss), rel_tol=1e-3):
        raise WorkloadError(
            "the loss must be the mean over the batch",
            got=f"{float(loss):.4g}, and twice that if every example occurs twice, as with a sum",
            mend="use reduction='mean', so that the learning rate has the same meaning at every batch size",
        )


def _few(workload: Workload, model: nn.Module, which: str) -> Batch:
    examples: Examples = getattr(workload, which)
    try:
        batch = take(examples, range(min(CHECK_EXAMPLES, length(examples))), workload.collate)
    except Exception as error:
        raise WorkloadError(
            f"examples of {which} must collate to a batch",
            got=first_line(error),
            mend="give collate= if the examples differ in size",
        ) from error
    return to_device(batch, _device(model))


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _forward(workload: Workload, model: nn.Module, batch: Batch, which: str) -> tuple[Any, Any]:
    try:
        result = workload.output_and_target(model, batch)
    except WorkloadError:
        raise
    except Exception as error:
        raise WorkloadError(
            f"the model must take a batch of {which}",
            got=f"{describe(batch)}: {first_line(error)}",
            mend="check the shapes, or give forward=lambda model, batch: (output, target)",
        ) from error
    if not isinstance(result, tuple) or len(result) != 2:
        raise WorkloadError("forward(model, batch) must return (output, target)", got=type(result).__name__)
    return result


def _loss(workload: Workload, output: Any, target: Any, which: str) -> Tensor:
    try:
        loss = workload.loss(output, target)
    except Exception as error:
        raise WorkloadError(
            f"loss(output, target) must take what the model returns on {which}",
            got=f"output {describe(output)}, target {describe(target)}: {first_line(error)}",
            mend="check shapes and number formats",
        ) from error
    if not isinstance(loss, Tensor) or loss.numel() != 1 or loss.dim() > 0:
        got = describe(loss) if isinstance(loss, Tensor) else type(loss).__name__
        raise WorkloadError("the loss must be a scalar tensor", got=got, mend="take its mean over the batch")
    if not torch.isfinite(loss):
        raise WorkloadError(
            "the loss must be finite with fresh weights",
            got=f"{float(loss.detach())} on {which}",
            mend="look for logarithms of zero, divisions by zero or data that are not finite",
        )
    return loss
