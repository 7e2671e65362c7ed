"""Every refusal of a Workload: the rule, the value got, and the mend."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from batchscope import Workload, WorkloadError

Make = Callable[..., Workload]
X, Y = torch.randn(12, 6, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3


class Streamed(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter([(X[0], Y[0])])


class Unsized(Dataset[Any]):
    def __getitem__(self, index: int) -> Any:
        return X[index], Y[index]


class UnsizedAfterAll(Unsized):
    def __len__(self) -> int:
        raise NotImplementedError("ask somebody else")


class Broken(Unsized):
    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Any:
        raise OSError("no such file: 0.png\nand more")


class Ragged(Broken):
    def __getitem__(self, index: int) -> Any:
        return torch.zeros(index + 1), 0


class Empty(Unsized):
    def __len__(self) -> int:
        return 0


class Positional(nn.Linear):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
        return x


class Counter:
    """Weights that differ from call to call, whatever the seed."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> nn.Module:
        self.calls += 1
        layer = nn.Linear(6, 3)
        nn.init.constant_(layer.bias, float(self.calls))
        return layer


def raises(*arguments: Any, **options: Any) -> Any:
    raise ValueError("something of its own\nwith details")


made = nn.Linear(6, 3)
shared = nn.Parameter(torch.ones(3, 6))


def sharing() -> nn.Module:
    layer = nn.Linear(6, 3)
    layer.weight = shared
    return layer


def frozen() -> nn.Module:
    return nn.Linear(6, 3).requires_grad_(False)


def detached(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output.detach(), target)


def undifferentiable(output: Tensor, target: Tensor) -> Tensor:
    class Stop(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            raise RuntimeError("no way back")

    return F.cross_entropy(Stop.apply(output), target)  # type: ignore[no-untyped-call]


def only_first(parameters: Any, rate: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(list(parameters)[:1], lr=rate)


class NeedsClosure(torch.optim.SGD):
    def step(self, closure: Any) -> Any:  # type: ignore[override]
        return closure()


SET = "must be a tuple of tensors or a Dataset with __len__ and __getitem__"
LOSS = "loss(output, target) must take what the model returns on train"

REFUSALS: list[tuple[dict[str, Any], str, str]] = [
    # what is given; the rule and the value got; the mend
    (
        {"model": made},
        "model must be a function that returns a fresh module at each call; got an instance of Linear",
        "model=lambda",
    ),
    ({"model": 3}, "model must be a function; got 3", ""),
    ({"loss": "cross_entropy"}, "loss must be a function; got cross_entropy", ""),
    ({"optimizer": None}, "optimizer must be a function", ""),
    ({"score": 0.5}, "score must be a function; got 0.5", ""),
    ({"forward": "x"}, "forward must be a function; got x", ""),
    ({"collate": []}, "collate must be a function; got []", ""),
    ({"name": 5}, "name must be text; got 5", ""),
    (
        {"train": (X.numpy(), Y)},
        "train must be a tuple of tensors or a Dataset; got a tuple of (ndarray, Tensor)",
        "torch.as_tensor",
    ),
    ({"train": ()}, "train must be a tuple of tensors or a Dataset", "torch.as_tensor"),
    ({"validation": [X, Y]}, f"validation {SET}; got list", "Give (x, y)"),
    ({"train": X}, f"train {SET}; got Tensor", "Give (x, y)"),
    ({"train": None}, f"train {SET}; got NoneType", "Give (x, y)"),
    ({"train": Unsized()}, f"train {SET}; got Unsized", ""),
    (
        {"train": UnsizedAfterAll()},
        "train must have a length; got NotImplementedError: ask somebody else",
        "",
    ),
    (
        {"train": Streamed()},
        "train must be a map-style Dataset, since batches are drawn by index; got an IterableDataset",
        "__getitem__",
    ),
    ({"train": (X, torch.tensor(1))}, "every tensor in train needs a first dimension of examples", ""),
    (
        {"train": (X, Y[:5])},
        "the tensors in train must be of equal length; got (float32[12×6], int64[5])",
        "as many targets",
    ),
    ({"train": (X[:0], Y[:0])}, "train must hold at least one example; got an empty set", ""),
    ({"validation": (X[:0], Y[:0])}, "validation must hold at least one example; got an empty set", ""),
    ({"validation": Empty()}, "validation must hold at least one example; got an empty set", ""),
    (
        {"train": Broken()},
        "examples of train must collate to a batch; got OSError: no such file: 0.png",
        "collate=",
    ),
    ({"validation": Ragged()}, "examples of validation must collate to a batch; got RuntimeError", "collate="),
    ({"learning_rate": 0}, "learning_rate must be a finite number above 0; got 0", "the present learning rate"),
    ({"learning_rate": -0.1}, "learning_rate must be a finite number above 0; got -0.1", ""),
    ({"learning_rate": float("nan")}, "learning_rate must be a finite number above 0; got nan", ""),
    ({"learning_rate": float("inf")}, "learning_rate must be a finite number above 0; got inf", ""),
    ({"learning_rate": "0.1"}, "learning_rate must be a finite number above 0; got 0.1", ""),
    ({"learning_rate": True}, "learning_rate must be a finite number above 0; got True", ""),
    ({"batch_size": 0}, "batch_size must be a whole number of at least 1; got 0", ""),
    ({"batch_size": 2.0}, "batch_size must be a whole number of at least 1; got 2.0", ""),
    ({"batch_size": True}, "batch_size must be a whole number of at least 1; got True", ""),
    (
        {"batch_size": 13},
        "batch_size must be at most the number of training examples; got 13 > 12",
        "batch_size=12 or less",
    ),
    (
        {"model": raises},
        "model() must return a module without arguments; got ValueError: something of its own",
        "run it by itself",
    ),
    ({"model": lambda width: made}, "model() must return a module without arguments; got TypeError", ""),
    ({"model": lambda: "a model"}, "model() must return a torch.nn.Module; got str", ""),
    (
        {"model": lambda: made},
        "model() must return fresh weights at each call; got the same weights twice",
        "inside the function",
    ),
    (
        {"model": sharing},
        "model() must return fresh weights at each call; got the same weights twice",
        "inside the function",
    ),
    ({"model": nn.ReLU}, "the model must have a parameter to train; got none that requires a gradient", ""),
    ({"model": frozen}, "the model must have a parameter to train; got none that requires a gradient", ""),
    ({"model": Counter()}, "model() must return the same weights under the same seed", "torch's global generator"),
    (
        {"model": lambda: nn.LazyLinear(3)},
        "every parameter must have its shape when model() returns; got weight",
        "give sizes",
    ),
    (
        {"optimizer": raises},
        "optimizer(parameters, learning_rate) must return a torch optimiser; got ValueError",
        "lambda params, lr",
    ),
    (
        {"optimizer": lambda parameters: None},
        "optimizer(parameters, learning_rate) must return a torch optimiser; got TypeError",
        "",
    ),
    ({"optimizer": lambda parameters, rate: "sgd"}, "optimizer(...) must return a torch.optim.Optimizer; got str", ""),
    (
        {"optimizer": only_first},
        "the optimiser must hold every parameter that requires a gradient; got 1 missed: bias",
        "requires_grad_(False)",
    ),
    (
        {"optimizer": lambda p, lr: torch.optim.LBFGS(p, lr=lr)},
        "the optimiser must step without a closure; got LBFGS",
        "use SGD",
    ),
    (
        {"optimizer": lambda p, lr: NeedsClosure(p, lr=lr)},
        "the optimiser must step without a closure; got NeedsClosure",
        "use SGD",
    ),
    ({"train": (X, X, Y)}, "without a forward, a batch must be (x, y); got 3 parts", "forward=lambda"),
    (
        {"model": lambda: nn.Linear(5, 3)},
        "the model must take a batch of train; got (float32[8×6], int64[8]): RuntimeError",
        "check the shapes",
    ),
    (
        {"model": lambda: Positional(6, 3)},
        "the model must take a batch of train; got (float32[8×6], int64[8]): TypeError",
        "forward=lambda",
    ),
    (
        {"validation": (X[:, :5], Y)},
        "the model must take a batch of validation; got (float32[8×5], int64[8]): RuntimeError",
        "",
    ),
    ({"forward": raises}, "the model must take a batch of train; got (float32[8×6], int64[8]): ValueError", ""),
    (
        {"forward": lambda model, batch: model(batch[0])},
        "forward(model, batch) must return (output, target); got Tensor",
        "",
    ),
    (
        {"loss": raises},
        f"{LOSS}; got output float32[8×3], target int64[8]: ValueError: something of its own",
        "shapes and number formats",
    ),
    ({"train": (X, Y.float())}, f"{LOSS}; got output float32[8×3], target float32[8]: RuntimeError", ""),
    (
        {"loss": lambda o, t: F.cross_entropy(o, t, reduction="none")},
        "the loss must be a scalar tensor; got float32[8]",
        "take its mean",
    ),
    (
        {"loss": lambda o, t: F.cross_entropy(o, t)[None]},
        "the loss must be a scalar tensor; got float32[1]",
        "take its mean",
    ),
    ({"loss": lambda o, t: 0.5}, "the loss must be a scalar tensor; got float", "take its mean"),
    (
        {"loss": lambda o, t: F.cross_entropy(o, t) / 0},
        "the loss must be finite with fresh weights; got inf on train",
        "divisions by zero",
    ),
    (
        {"train": (X * float("nan"), Y)},
        "the loss must be finite with fresh weights; got nan on train",
        "data that are not finite",
    ),
    ({"validation": (X * float("nan"), Y)}, "the loss must be finite with fresh weights; got nan on validation", ""),
    ({"loss": detached}, "the loss must depend on the parameters; got a loss without a gradient", "without detach()"),
    ({"loss": undifferentiable}, "the loss must be differentiable; got RuntimeError: no way back", ""),
    (
        {"loss": lambda o, t: F.cross_entropy(o, t, reduction="sum")},
        "the loss must be the mean over the batch; got",
        "reduction='mean'",
    ),
    ({"score": raises}, "score(output, target) must return a number; got ValueError: something of its own", ""),
    ({"score": lambda o, t: o}, "score(output, target) must return a number; got", ""),
    ({"score": lambda o, t: None}, "score(output, target) must return a number; got TypeError", ""),
    ({"score": lambda o, t: float("nan")}, "score(output, target) must be a number at the start; got nan", ""),
]


@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize(("changes", "said", "mend"), REFUSALS, ids=[said[:50] for _, said, _ in REFUSALS])
def test_it_is_refused_with_the_rule_the_value_and_the_mend(
    make: Make, changes: dict[str, Any], said: str, mend: str
) -> None:
    arguments: dict[str, Any] = {"train": (X, Y), "validation": (X, Y), "model": lambda: nn.Linear(6, 3)}
    with pytest.raises(WorkloadError) as caught:
        make(**(arguments | changes))
    message = str(caught.value)
    assert message.startswith(said)
    assert mend.lower() in message.lower()
    assert "\n" not in message
    assert caught.value.exit_status == 2
    assert str(pickle.loads(pickle.dumps(caught.value))) == message


# What is accepted


def unusual_loss(output: Tensor, target: Tensor) -> Tensor:
    """A mean that changes when every example is there twice, without being a sum."""
    similarity = output @ output.T
    return F.cross_entropy(similarity, torch.arange(len(output)))


def clipped(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    return model(batch[0]), batch[1]


def with_nan_buffer() -> nn.Module:
    model = nn.Linear(6, 3)
    model.register_buffer("unset", torch.tensor(float("nan")))
    return model


ACCEPTED: dict[str, dict[str, Any]] = {
    "a whole number as the rate": {"learning_rate": 1},
    "a full batch": {"batch_size": 12},
    "one example": {"train": (X[:1], Y[:1]), "validation": (X[:1], Y[:1]), "batch_size": 1},
    "a Subset": {"train": Subset(TensorDataset(X, Y), [1, 5, 7, 8, 9, 10, 11, 0])},
    "a contrastive loss": {"loss": unusual_loss, "score": None},
    "a loss of zero": {"loss": lambda o, t: 0 * F.cross_entropy(o, t)},
    "a frozen part": {"model": lambda: nn.Sequential(nn.Linear(6, 6).requires_grad_(False), nn.Linear(6, 3))},
    "no score": {"score": None},
    "an infinite score": {"score": lambda o, t: float("-inf")},
    "its own forward": {"forward": clipped},
    "several groups": {
        "optimizer": lambda p, lr: torch.optim.SGD([{"params": [q], "lr": lr} for q in p], lr=lr),
    },
    "batch norm": {"model": lambda: nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 3))},
    "a weight that is not a number": {"model": with_nan_buffer},
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_it_is_accepted(make: Make, name: str) -> None:
    arguments: dict[str, Any] = {"train": (X, Y), "validation": (X, Y), "model": lambda: nn.Linear(6, 3)}
    workload = make(**(arguments | ACCEPTED[name]))
    assert workload.training_examples >= 1
    assert workload.title == "mlp"


def test_a_number_of_numpy_is_accepted(make: Make) -> None:
    assert make(learning_rate=np.float64(0.1)).learning_rate == 0.1


def test_nothing_of_the_person_s_is_changed(make: Make) -> None:
    def draw() -> tuple[float, float, float]:
        return torch.rand(()).item(), random.random(), float(np.random.rand())  # noqa: NPY002

    def seed() -> None:
        torch.manual_seed(1)
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002

    seed()
    expected = draw()
    seed()
    x = X.clone().requires_grad_()
    make("augmented")
    make(train=(x, Y), validation=(X, Y))
    assert draw() == expected
    assert torch.initial_seed() == 1
    with pytest.raises(WorkloadError):
        make(loss=raises)
    assert torch.is_grad_enabled()
    seed()
    with pytest.raises(WorkloadError):
        make(score=raises)
    assert draw() == expected


def test_it_is_frozen_and_keyword_only(make: Make) -> None:
    workload = make()
    with pytest.raises(AttributeError):
        workload.batch_size = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        Workload(lambda: nn.Linear(6, 3))  # type: ignore[call-arg]
    assert workload != make()  # two of the same are two
    assert len({workload, make()}) == 2
