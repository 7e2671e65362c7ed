"""Evaluation: the score on the whole set, the loss by examples, and the model left as it was."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from batchscope import RunError, Workload
from batchscope.training import evaluation
from batchscope.training.evaluation import EvaluationData, evaluate

CPU = torch.device("cpu")
Make = Callable[..., Workload]
HELD_OUT = 150  # two evaluation batches of 64 and one of 22


def r_squared(output: Tensor, target: Tensor) -> float:
    return float(1 - (output - target).square().sum() / (target - target.mean()).square().sum())


def regression(make: Make, **changes: Any) -> Workload:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(HELD_OUT, 6, generator=generator)
    y = x[:, :1] + 0.5 * torch.randn(HELD_OUT, 1, generator=generator)
    y[130:] += 5  # the last batch differs from the others, so that a mean of scores is another number
    arguments: dict[str, Any] = {"loss": F.mse_loss, "score": r_squared, "model": lambda: nn.Linear(6, 1)}
    return make(**({"train": (x, y), "validation": (x, y)} | arguments | changes))


def evaluated(workload: Workload, which: str = "validation") -> tuple[float, float, nn.Module]:
    torch.manual_seed(0)
    model = workload.model()
    loss, score = evaluate(model, EvaluationData(workload, which, CPU))
    return loss, score, model


def whole(workload: Workload) -> tuple[Tensor, ...]:
    assert isinstance(workload.validation, tuple)
    return workload.validation


def test_the_score_is_of_the_whole_set_and_no_mean_of_batches(make: Make) -> None:
    workload = regression(make)
    loss, score, model = evaluated(workload)
    x, y = whole(workload)
    with torch.no_grad():
        output = model(x)
        assert score == pytest.approx(r_squared(output, y), rel=1e-5)
        assert loss == pytest.approx(float(F.mse_loss(output, y)), rel=1e-6)
        parts = [r_squared(o, t) * len(o) for o, t in zip(torch.split(output, 64), torch.split(y, 64), strict=True)]
    assert abs(sum(parts) / HELD_OUT - score) > 0.1


def test_a_score_comes_through_to_the_last_bit(make: Make) -> None:
    # So that a target of exactly that score is reached: a number times 150 over 150 is not always the number.
    for answer in (0.1 + 0.2 * i / 7 for i in range(50)):
        assert evaluated(regression(make, score=Fussy(answer)))[1] == answer


def test_without_a_score_it_is_minus_the_loss(make: Make) -> None:
    loss, score, _ = evaluated(regression(make, score=None))
    assert score == -loss


def dictionary(model: nn.Module, batch: Any) -> tuple[Any, Any]:
    return {"prediction": model(batch[0]), "square": model(batch[0]) ** 2}, {"truth": batch[1]}


class ModelOutput(OrderedDict[str, Tensor]):
    """A dict whose entries are attributes too, as transformers returns them."""

    def __getattr__(self, name: str) -> Tensor:
        return self[name]


class Pair(NamedTuple):
    prediction: Tensor
    spread: Tensor


FORMS: dict[str, tuple[Callable[[nn.Module, Any], tuple[Any, Any]], Callable[[Any, Any], tuple[Tensor, Tensor]]]] = {
    "dict": (dictionary, lambda output, target: (output["prediction"], target["truth"])),
    "attributes": (
        lambda model, batch: (ModelOutput(prediction=model(batch[0])), batch[1]),
        lambda output, target: (output.prediction, target),
    ),
    "named tuple": (
        lambda model, batch: (Pair(model(batch[0]), model(batch[0])), batch[1]),
        lambda output, target: (output.prediction, target),
    ),
    "list": (
        lambda model, batch: ([model(batch[0]), batch[0]], (batch[1],)),
        lambda output, target: (output[0], target[0]),
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_outputs_of_any_form_are_joined_and_keep_it(make: Make, form: str) -> None:
    forward, parts = FORMS[form]
    _, expected, _ = evaluated(regression(make))
    kinds: set[type] = set()

    def score(output: Any, target: Any) -> float:
        kinds.add(type(output))
        return r_squared(*parts(output, target))

    workload = regression(
        make, forward=forward, loss=lambda output, target: F.mse_loss(*parts(output, target)), score=score
    )
    assert evaluated(workload)[1] == pytest.approx(expected, rel=1e-6)
    assert len(kinds) == 1


def ragged(model: nn.Module, batch: Any) -> tuple[Any, Any]:
    # Outputs that are as long as the batch is large in the second dimension cannot be joined.
    output = model(batch[0])
    return output.T.expand(2, -1), {"truth": batch[1].T.expand(2, -1), "more": batch[0]}


def test_outputs_that_cannot_be_joined_fall_back_to_a_mean_weighted_by_examples(make: Make) -> None:
    def score(output: Tensor, target: dict[str, Tensor]) -> float:
        return -float((output - target["truth"]).square().mean())

    workload = regression(
        make, forward=ragged, loss=lambda output, target: F.mse_loss(output, target["truth"]), score=score
    )
    loss, found, _ = evaluated(workload)
    # A mean over examples survives that: of sets of 64, 64 and 22 by their examples, whatever the target looks like.
    assert found == pytest.approx(-loss, rel=1e-5)


def test_large_outputs_are_scored_set_by_set(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def score(output: Tensor, target: Tensor) -> float:
        calls.append(len(output))
        return -float(F.mse_loss(output, target))

    workload = regression(make, score=score)
    calls.clear()
    monkeypatch.setattr(evaluation, "SCORE_SET_BYTES", 64 * 8)  # a batch of 64 outputs and targets, and the next
    loss, found, _ = evaluated(workload)
    assert calls == [128, 22]
    assert found == pytest.approx(-loss, rel=1e-5)


class Fussy:
    """A score that raises or answers nonsense once the workload is made."""

    def __init__(self, answer: Any) -> None:
        self.answer, self.checked = answer, False

    def __call__(self, output: Tensor, target: Tensor) -> Any:
        if not self.checked:
            self.checked = True
            return 0.0
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.mark.parametrize("answer", [ValueError("odd"), KeyError("logits"), None, "high", torch.zeros(3)])
def test_a_score_that_fails_is_said_so(make: Make, answer: Any) -> None:
    workload = regression(make, score=Fussy(answer))
    with pytest.raises(RunError, match=r"^score\(output, target\) must return a number; got ") as caught:
        evaluated(workload)
    if isinstance(answer, Exception):
        assert type(answer).__name__ in str(caught.value)
        assert caught.value.__cause__ is answer


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_a_score_that_runs_out_of_memory_is_told_apart(make: Make, error: Exception) -> None:
    workload = regression(make, score=Fussy(error))
    with pytest.raises(type(error)):
        evaluated(workload)


@pytest.mark.parametrize("answer", [float("nan"), float("inf"), torch.tensor(-3.5), 7, True])
def test_numbers_of_any_kind_are_scores(make: Make, answer: Any) -> None:
    _, score, _ = evaluated(regression(make, score=Fussy(answer)))
    assert score == pytest.approx(float(answer), nan_ok=True)


@pytest.mark.parametrize("raises", [False, True])
def test_the_modes_of_every_module_are_put_back(make: Make, raises: bool) -> None:
    workload = make("frozen norm", held_out=HELD_OUT, score=Fussy(ValueError() if raises else 1.0))
    model = workload.model()
    before = copy.deepcopy(model.state_dict())
    modes = {name: module.training for name, module in model.named_modules()}
    assert set(modes.values()) == {True, False}
    try:
        evaluate(model, EvaluationData(workload, "validation", CPU))
    except RunError:
        assert raises
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_dropout_and_batch_norm_are_evaluated_in_evaluation_mode(make: Make) -> None:
    for kind in ("dropout", "batch norm"):
        workload = make(kind, held_out=HELD_OUT)
        loss, _, model = evaluated(workload)
        x, y = whole(workload)
        with torch.no_grad():
            assert loss == pytest.approx(float(F.cross_entropy(model.eval()(x), y)), rel=1e-5)
            assert abs(loss - float(F.cross_entropy(model.train()(x), y))) > 1e-3


def test_a_model_that_draws_at_random_leaves_the_random_state_alone(make: Make) -> None:
    workload = make("noisy", held_out=HELD_OUT)
    model, data = workload.model(), EvaluationData(workload, "validation", CPU)
    state = torch.get_rng_state()
    first = evaluate(model, data)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert evaluate(model, data) == first


def test_the_training_sample_is_as_large_as_the_validation_set_and_fixed(make: Make) -> None:
    workload = make(examples=90, held_out=70)
    sample = EvaluationData(workload, "training", CPU)
    assert isinstance(workload.train, tuple)
    read = torch.cat([batch[0] for _, batch in sample.batches()])
    assert torch.equal(read, workload.train[0][sample.indices])
    assert [count for count, _ in sample.batches()] == [64, 6]
    assert len(sample.indices.unique()) == 70  # type: ignore[no-untyped-call]
    assert sample.indices.max() > 75  # spread over the data, which may be sorted
    assert torch.equal(sample.indices, EvaluationData(workload, "training", CPU).indices)
    few = make(examples=30, held_out=70)
    assert len(EvaluationData(few, "training", CPU).indices) == 30


def test_a_random_dataset_is_evaluated_on_the_same_draw_every_time(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    workload = make("augmented", held_out=HELD_OUT)
    model = workload.model()
    data = EvaluationData(workload, "validation", CPU)
    first = evaluate(model, data)
    torch.manual_seed(5)
    assert evaluate(model, data) == first  # kept
    assert evaluate(model, EvaluationData(workload, "validation", CPU)) == first  # read again
    monkeypatch.setattr(evaluation, "CACHE_BYTES", 100)
    uncached = EvaluationData(workload, "validation", CPU)
    assert evaluate(model, uncached) == evaluate(model, uncached) == first


def test_the_batches_of_an_evaluation_do_not_depend_on_the_plan(make: Make) -> None:
    for batch_size, expected in ((1, 64), (100, 100), (600, 512)):
        workload = make(examples=700, batch_size=batch_size)
        assert EvaluationData(workload, "validation", CPU).batch_size == expected
