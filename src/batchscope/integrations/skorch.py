"""skorch: a callback for the noise scale, and a Workload from a net and its data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.base import clone
from torch import Tensor, nn
from torch.utils.data import Subset

from batchscope.errors import WorkloadError
from batchscope.integrations.frameworks import framework
from batchscope.integrations.loaders import source_of
from batchscope.integrations.optimizers import OptimizerLike
from batchscope.integrations.watching import interval_of, values_of
from batchscope.measure import GradientNoise
from batchscope.records import Interval
from batchscope.seeding import current_device, isolated
from batchscope.workload import Workload
from batchscope.workload.scores import accuracy

if TYPE_CHECKING:
    from skorch import NeuralNet, NeuralNetClassifier, NeuralNetRegressor
    from skorch.callbacks import Callback
else:
    _PACKAGE = framework("skorch", "read a net")
    NeuralNet, NeuralNetClassifier = _PACKAGE.NeuralNet, _PACKAGE.NeuralNetClassifier
    NeuralNetRegressor, Callback = _PACKAGE.NeuralNetRegressor, _PACKAGE.callbacks.Callback

Score = Callable[[Any, Any], "float | Tensor"]


class BatchscopeNetCallback(Callback):
    """Measure the gradient noise scale during ``net.fit``.

    ::

        net = NeuralNetClassifier(..., callbacks=[("noise", BatchscopeNetCallback())])
        net.fit(X, y)

    At the end of every epoch the noise scale and its interval are added to ``net.history`` as ``noise_scale``,
    ``noise_scale_low`` and ``noise_scale_high``. It is measured as by :class:`batchscope.GradientNoise`.

    Args:
        overhead: Largest share of the training time for measurements.
        every: Updates between two measurements, whatever they cost; None: as often as ``overhead`` permits.

    Attributes:
        noise_: The monitor, available during and after training.
        history_: (updates, interval) at the end of every epoch.
    """

    def __init__(self, overhead: float = 0.03, every: int | None = None) -> None:
        # scikit-learn's clone copies every attribute whose name does not end in an underscore.
        self.overhead = overhead
        self.every = every
        self.noise_: GradientNoise | None = None
        self.history_: list[tuple[int, Interval]] = []

    def on_train_begin(self, net: NeuralNet, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        """Begin to measure, or continue after ``partial_fit``.

        Raises:
            WorkloadError: Several optimisers.
        """
        if len(net._optimizers) != 1:
            raise WorkloadError("the net must have one optimiser", got=f"{len(net._optimizers)} of them")
        state = None if self.noise_ is None else self.noise_.state_dict()
        self.noise_ = GradientNoise(net.module_, net.optimizer_, overhead=self.overhead, every=self.every)
        if state is not None:
            self.noise_.load_state_dict(state)

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        """Record the noise scale."""
        found = None if self.noise_ is None else interval_of(self.noise_)
        if self.noise_ is None or found is None:
            return
        self.history_.append((self.noise_.steps, found))
        for name, value in values_of(found).items():
            net.history.record(name, value)

    def on_train_end(self, net: NeuralNet, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        """Remove every hook; the results stay available."""
        if self.noise_ is not None:
            self.noise_.close()


def workload_from_net(
    net: NeuralNet,
    X: Any,
    y: Any = None,
    *,
    score: Score | None = None,
    validation: tuple[Any, Any] | None = None,
    name: str | None = None,
) -> Workload:
    """Make a Workload from the arguments of ``net.fit(X, y)``.

    Module, criterion and optimiser are those of an initialised clone of the net, with its ``lr`` and ``batch_size``.
    The validation examples are those of its ``train_split``, and the loss is its ``get_loss``.

    Args:
        net: The net, initialised or not, which is not changed.
        X: Inputs as for ``fit``: arrays, tensors or a Dataset.
        y: Targets.
        score: ``score(output, target)``, higher is better; None: the accuracy of a NeuralNetClassifier, R² of a
            NeuralNetRegressor, minus the loss of any other net.
        validation: Validation inputs and targets; None: from the net's ``train_split``.
        name: Name for tables and reports; None: the module's class.

    Returns:
        The workload.

    Raises:
        WorkloadError: Unsupported, for example several optimisers or a net without a split.
    """
    made = _initialized(net)
    if len(made._optimizers) != 1:
        raise WorkloadError(
            "the net must have one optimiser", got=f"{len(made._optimizers)} of them", mend="train all modules with one"
        )
    if len(made._modules) != 1:
        raise WorkloadError(
            "the net must have one module", got=", ".join(made._modules), mend="put them into one nn.Module"
        )
    with isolated(0, current_device()):
        if validation is None:
            train, held_out = made.get_split_datasets(X, y)
        else:
            train, held_out = made.get_dataset(X, y), made.get_dataset(*validation)
    if held_out is None:
        raise WorkloadError(
            "there must be examples to validate on",
            got="train_split=None",
            mend="give validation=(X, y), or a train_split",
        )
    sources = [source_of(made.get_iterator(part, training=True), "the data") for part in (train, held_out)]
    like = OptimizerLike(made.optimizer_, made.module_)
    examples = len(train)
    size = examples if made.batch_size == -1 else min(int(made.batch_size), examples)
    return Workload(
        model=lambda: _initialized(net, seed=None).module_,
        train=_tensors(train) or sources[0].dataset,
        validation=_tensors(held_out) or sources[1].dataset,
        loss=_Loss(made),
        score=score or _score(net),
        optimizer=like,
        learning_rate=like.learning_rate,
        batch_size=size,
        forward=_forward,
        collate=sources[0].collate,
        name=name or type(made.module_).__name__,
    )


def _initialized(net: Any, seed: int | None = 0) -> Any:
    """An initialised clone of the net, with weights from this seed, or from torch's global generator."""
    fresh = clone(net)
    fresh.set_params(device=None, verbose=0, callbacks=None)
    if seed is None:
        return fresh.initialize()
    with isolated(seed, current_device()):
        return fresh.initialize()


class _Loss:
    """The loss of a net."""

    def __init__(self, net: Any) -> None:
        self._net = net

    def __call__(self, output: Any, target: Any) -> Tensor:
        loss: Tensor = self._net.get_loss(output, target, training=True)
        return loss


def _forward(model: nn.Module, batch: Any) -> tuple[Any, Any]:
    x, y = batch
    return (model(**x) if isinstance(x, Mapping) else model(x)), y


def _score(net: Any) -> Score | None:
    if isinstance(net, NeuralNetClassifier):
        return _accuracy
    return _r_squared if isinstance(net, NeuralNetRegressor) else None


def _accuracy(output: Any, target: Any) -> Tensor:
    return accuracy(output[0] if isinstance(output, tuple) else output, target)


def _r_squared(output: Any, target: Any) -> Tensor:
    """The coefficient of determination R², the mean over columns as in scikit-learn."""
    output, target = (value.reshape(len(value), -1).double() for value in (output, target))
    error = (output - target).square().sum(0)
    spread = (target - target.mean(0)).square().sum(0)
    found: Tensor = (1 - error / spread).mean()
    return found


def _tensors(dataset: Any) -> tuple[Tensor, ...] | None:
    """The arrays of a net's dataset as tensors, which are gathered without Python code per example, if any."""
    where = None
    if type(dataset) is Subset:
        dataset, where = dataset.dataset, np.asarray(dataset.indices)
    if type(dataset) is not framework("skorch", "read a net", module="skorch.dataset").Dataset:
        return None
    parts = dataset.X, dataset.y
    if not all(isinstance(part, (np.ndarray, Tensor)) for part in parts):
        return None
    found = tuple(torch.as_tensor(part) for part in parts)
    return found if where is None else tuple(part[torch.as_tensor(where)] for part in found)
