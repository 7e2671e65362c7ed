"""skorch: Workloads that train what a net trains, and the noise scale in its history."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import skorch
import torch
from sklearn.base import clone
from tests.integrations.data import digits
from torch import Tensor, nn
from torch.nn import functional as F

import batchscope as bs
from batchscope.errors import WorkloadError
from batchscope.integrations.skorch import BatchscopeNetCallback, workload_from_net

x, y = digits()
X, Y = x.numpy(), y.numpy()


class Probabilities(nn.Module):
    """As skorch's classifiers are by default: they take the logarithm of what comes."""

    def __init__(self, hidden: int = 8) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, hidden), nn.Tanh(), nn.Linear(hidden, 10), nn.Softmax(dim=-1))

    def forward(self, X: Tensor) -> Tensor:
        out: Tensor = self.layers(X)
        return out


def classifier(**options: Any) -> Any:
    usual = {
        "module__hidden": 16,
        "lr": 0.1,
        "batch_size": 16,
        "optimizer__momentum": 0.9,
        "max_epochs": 3,
        "verbose": 0,
    }
    return skorch.NeuralNetClassifier(Probabilities, **(usual | options))


def test_a_workload_trains_what_the_net_trains() -> None:
    """Batches in their order, one epoch, from the same weights."""
    net = classifier(max_epochs=1)
    workload = workload_from_net(net, X, Y)
    assert not net.initialized_
    assert (workload.batch_size, workload.learning_rate, workload.title) == (16, 0.1, "Probabilities")
    assert workload.training_examples + workload.validation_examples == len(X)
    assert isinstance(workload.train, tuple)
    torch.manual_seed(0)
    model = workload.model()
    optimizer = workload.optimizer(model.parameters(), workload.learning_rate)
    for batch in zip(*(torch.split(part, 16) for part in workload.train), strict=True):
        optimizer.zero_grad()
        workload.loss(*workload.output_and_target(model, batch)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    torch.manual_seed(0)
    net.fit(X, Y)
    for ours, theirs in zip(model.parameters(), net.module_.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    score = workload.score
    assert score is not None
    assert isinstance(workload.validation, tuple)
    with torch.no_grad():
        found = float(score(model(workload.validation[0]), workload.validation[1]))
    assert found == pytest.approx(net.history[-1, "valid_acc"])


def test_weights_are_drawn_anew_under_a_seed_and_a_modules_own_are_kept() -> None:
    fresh = workload_from_net(classifier(), X, Y)
    torch.manual_seed(1)
    first, second = fresh.model(), fresh.model()
    assert not torch.equal(next(first.parameters()), next(second.parameters()))
    made = Probabilities()
    kept = workload_from_net(skorch.NeuralNetClassifier(made, verbose=0), X, Y)
    assert torch.equal(next(kept.model().parameters()), next(made.parameters()))


def test_a_regressors_score_is_r_squared() -> None:
    from sklearn.metrics import r2_score

    target = np.stack([Y, X[:, 20]], axis=1).astype(np.float32)
    net = skorch.NeuralNetRegressor(nn.Linear(64, 2), lr=0.01, verbose=0)
    workload = workload_from_net(net, X, target)
    score = workload.score
    assert score is not None
    output = torch.tensor(target) + torch.randn(len(target), 2, generator=torch.Generator().manual_seed(0))
    assert float(score(output, torch.tensor(target))) == pytest.approx(r2_score(target, output.numpy()), rel=1e-5)


def test_data_that_are_no_arrays_and_a_split_of_ones_own() -> None:
    data = torch.utils.data.TensorDataset(x, y)
    net = classifier(train_split=None)
    with pytest.raises(WorkloadError, match="train_split=None"):
        workload_from_net(net, data)
    workload = workload_from_net(net, data, validation=(X[:50], Y[:50]))
    assert (workload.training_examples, workload.validation_examples) == (len(x), 50)
    score = bs.train(workload, bs.Plan(batch_size=16, learning_rate=0.1, iterations=40)).best_score
    assert score is not None
    assert score > 0.3


def test_dictionaries_of_inputs() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(64, 10)

        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            out: Tensor = self.layer(torch.cat([left, right], dim=1))
            return out

    net = skorch.NeuralNetClassifier(Named, criterion=nn.CrossEntropyLoss, lr=0.1, verbose=0)
    workload = workload_from_net(net, {"left": X[:, :30], "right": X[:, 30:]}, Y)
    score = bs.train(workload, bs.Plan(batch_size=16, learning_rate=0.1, iterations=60)).best_score
    assert score is not None
    assert score > 0.5


def test_several_optimisers_are_refused() -> None:
    class Two(skorch.NeuralNetClassifier):
        def initialize_optimizer(self, *args: Any, **kwargs: Any) -> Any:
            super().initialize_optimizer(*args, **kwargs)
            self.second_ = torch.optim.SGD(self.module_.parameters(), lr=0.1)
            return self

    with pytest.raises(WorkloadError, match="2 of them"):
        workload_from_net(Two(Probabilities, verbose=0), X, Y)


def test_the_noise_scale_is_in_the_history_and_training_is_the_same() -> None:
    def fitted(*callbacks: Any) -> Any:
        torch.manual_seed(0)
        return classifier(callbacks=list(callbacks)).fit(X, Y)

    callback = BatchscopeNetCallback(every=1)
    watched, alone = fitted(("noise", callback)), fitted()
    assert all(torch.equal(a, b) for a, b in zip(watched.module_.parameters(), alone.module_.parameters(), strict=True))
    assert watched.history[-1, "noise_scale"] == callback.history_[-1][1].value
    assert watched.history[-1, "noise_scale_low"] < watched.history[-1, "noise_scale"]

    torch.manual_seed(0)
    again = clone(alone).initialize()
    train = workload_from_net(again, X, Y).train
    assert isinstance(train, tuple)
    model, optimizer = again.module_, again.optimizer_
    noise = bs.GradientNoise(model, optimizer, every=1)
    for _ in range(3):
        for inputs, target in zip(*(torch.split(part, 16) for part in train), strict=True):
            optimizer.zero_grad()
            F.nll_loss(torch.log(model(inputs) + torch.finfo(torch.float32).eps), target).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    assert callback.noise_ is not None
    assert noise.steps_measured == callback.noise_.steps_measured
    assert callback.noise_.noise_scale == noise.noise_scale
