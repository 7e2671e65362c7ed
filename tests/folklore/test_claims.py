"""The claims as experiments: what they share, what they come to where it is known, and how they end."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import batchscope as bs
from batchscope import Workload
from batchscope.errors import ArgumentError
from batchscope.folklore import CLAIMS, central_limit, claims
from batchscope.folklore import gradient_error as error
from batchscope.folklore import runner as runner_module
from batchscope.folklore.claims import checked_names
from batchscope.folklore.rows import gradient_rows
from batchscope.folklore.runner import ExperimentRunner
from batchscope.progress import ProgressEvent
from batchscope.records.claims import Claims
from batchscope.report import images
from batchscope.training.loop import Prepared

Make = Callable[..., Workload]
VERDICTS = {"holds here", "does not hold here", "can't be told"}


def runner_of(workload: Workload, *, seeds: tuple[int, ...] = (0, 1), budget_seconds: float = 5.0) -> ExperimentRunner:
    return ExperimentRunner(
        Prepared(workload, torch.device("cpu")),
        seeds=seeds,
        budget_seconds=budget_seconds,
        seed=0,
        workers=None,
        notify=lambda label: None,
        should_stop=lambda: False,
    )


@pytest.fixture(scope="module", autouse=True)
def briefly_timed() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner_module, "TIMING_SECONDS", 1.0)
        yield


@pytest.fixture(scope="module")
def found(few_digits: Workload) -> Claims:
    return claims(few_digits, seeds=2, budget_seconds=5.0)


def test_every_claim_comes_to_a_verdict_with_its_numbers(found: Claims) -> None:
    assert [claim.name for claim in found.claims] == list(CLAIMS)
    for claim in found.claims:
        assert claim.verdict in VERDICTS
        assert claim.said == CLAIMS[claim.name].statement
        assert claim.experiment
        assert claim.explanation
        assert claim.findings
    assert found.runs > 30
    assert not found.interrupted
    counts = {verdict: sum(claim.verdict == verdict for claim in found.claims) for verdict in VERDICTS}
    assert f"{counts['holds here']} hold on digits" in found.conclusion


def test_they_are_saved_shown_and_drawn(found: Claims, tmp_path: Path) -> None:
    assert bs.load(found.to_json(tmp_path / "claims.json")) == found
    page = found.report(tmp_path / "claims.html").read_text(encoding="utf-8")
    for claim in found.claims:
        assert claim.said.split(",")[0].split("'")[0] in page
    names = images.names(found)
    assert set(names) == {f"claim-{claim.name}" for claim in found.claims if claim.picture is not None}
    assert images.svg(found, names[0]).startswith("<svg")
    with pytest.raises(ArgumentError, match="a chart must be one that this record has"):
        images.svg(found, "learning_curves")


def test_runs_are_made_once_and_shared(few_digits: Workload) -> None:
    runner = runner_of(few_digits)
    plan = runner.plan(32, "fixed")
    first = runner.train(plan)
    made = runner.runs
    assert runner.train(plan) == first
    assert runner.runs == made
    assert len(runner.scores(plan)) == 2
    assert first[0].result.examples == runner.examples
    model = few_digits.model()
    model.load_state_dict(dict(first[0].state))


def test_what_was_asked_for_is_checked(make: Make) -> None:
    with pytest.raises(ArgumentError, match="a claim is one of"):
        claims(make(), only=["flat-earth"])
    with pytest.raises(ArgumentError, match="at least two seeds"):
        claims(make(), seeds=1)
    with pytest.raises(ArgumentError, match="a budget"):
        claims(make(), budget_seconds=0.5)
    assert [claim.name for claim in checked_names(["start-at-32", "sharper-minima"])] == [
        "sharper-minima",
        "start-at-32",
    ]


def test_stopped_on_the_way_what_was_tested_is_kept(few_digits: Workload) -> None:
    def stop(event: ProgressEvent) -> None:
        if event.label and event.label.startswith("rescaled-rates"):
            os.kill(os.getpid(), signal.SIGINT)

    kept = claims(few_digits, seeds=2, budget_seconds=5.0, progress=stop)
    assert kept.interrupted
    assert 1 <= len(kept.claims) < len(CLAIMS)
    assert kept.claims[0].name == "smaller-batches-score-better"


def test_means_of_normal_gradients_are_normal_and_heavy_tails_are_seen() -> None:
    generator = np.random.default_rng(0)
    normal, heavy = generator.standard_normal(2000), generator.standard_cauchy(2000)
    assert central_limit._distance(normal, 32, generator) < central_limit.CLOSE
    assert central_limit._distance(heavy, 32, generator) > 2 * central_limit.CLOSE
    assert central_limit._distance(generator.standard_exponential(2000), 1, generator) > central_limit.CLOSE


def test_gradients_of_single_examples_are_those_of_autograd(make: Make) -> None:
    workload = make()
    runner = runner_of(workload)
    state = runner.train(runner.plan(8, "fixed"))[0].state
    rows = gradient_rows(runner, state, 10_000, "test")
    model = workload.model()
    model.load_state_dict(dict(state))
    model.eval()
    x, y = workload.train  # type: ignore[misc]
    parts = torch.autograd.grad(workload.loss(model(x), y), list(model.parameters()))
    whole = torch.cat([part.flatten() for part in parts]).double().numpy()
    assert rows.shape == (len(x), len(whole))
    assert float(np.linalg.norm(rows.mean(axis=0))) == pytest.approx(float(np.linalg.norm(whole)), rel=1e-4)


def test_the_error_of_the_gradient_falls_as_the_root(few_digits: Workload) -> None:
    outcome = error.test(runner_of(few_digits))
    slope = outcome.findings[0].value
    assert slope.value == pytest.approx(-0.5, abs=0.1)


class Memory(nn.Module):
    """Says what it was told, whatever the batch: nothing is gained by any batch size."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = x[:, :3] * 0 + self.weight
        return out


def test_where_batch_size_changes_nothing_no_effect_is_claimed(make: Make) -> None:
    workload = make(examples=600, model=Memory)
    outcome = CLAIMS["four-beats-four-thousand"].test(runner_of(workload, seeds=(0, 1, 2)))
    assert outcome.verdict != "holds here"
    assert not math.isnan(outcome.findings[0].value.value or 0.0)


def test_data_without_labels_cannot_be_arranged(make: Make) -> None:
    x = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
    target = x.sum(1, keepdim=True)
    workload = Workload(
        model=lambda: nn.Linear(4, 1),
        train=(x[:250], target[:250]),
        validation=(x[250:], target[250:]),
        loss=nn.functional.mse_loss,
        optimizer=lambda parameters, rate: torch.optim.SGD(parameters, lr=rate),
        learning_rate=0.05,
        batch_size=16,
    )
    outcome = CLAIMS["alike-batches-matter-less"].test(runner_of(workload))
    assert outcome.verdict == "can't be told"
    assert "cannot be stratified" in outcome.explanation
