"""A transformers Trainer: measured, logged, left alone; and Workloads that train what it trains."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from accelerate.state import AcceleratorState
from tests.integrations.data import Text
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import IterableDataset

import batchscope as bs
from batchscope.errors import ArgumentError, MissingPackageError, PlanError, WorkloadError
from batchscope.integrations.transformers import BatchscopeTrainerCallback, workload_from_trainer

TRAIN, HELD_OUT = Text(128), Text(32, first=128)


@pytest.fixture(autouse=True)
def fresh_state() -> Iterator[None]:
    """Accelerators of one process share their settings, precision among them."""
    transformers.logging.set_verbosity_error()
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def make() -> Any:
    config = transformers.GPT2Config(
        vocab_size=128,
        n_positions=16,
        n_embd=16,
        n_layer=2,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    return transformers.GPT2LMHeadModel(config)


@pytest.fixture
def trainer(tmp_path: Path) -> Any:
    def made(*, kind: Any = None, callbacks: Any = (), **options: Any) -> Any:
        names = ("model", "model_init", "train_dataset", "eval_dataset", "compute_metrics", "compute_loss_func")
        given = {name: options.pop(name) for name in names if name in options}
        if "model_init" not in given:
            torch.manual_seed(0)
            given.setdefault("model", make())
        usual = {
            "per_device_train_batch_size": 8,
            "max_steps": 12,
            "logging_steps": 4,
            "learning_rate": 3e-3,
            "lr_scheduler_type": "constant",
        }
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path),
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            **(usual | options),
        )
        data = {"train_dataset": TRAIN, "eval_dataset": HELD_OUT}
        return (kind or transformers.Trainer)(args=arguments, callbacks=list(callbacks), **(data | given))

    return made


@pytest.mark.parametrize("options", [{}, {"bf16": True}, {"gradient_accumulation_steps": 4}], ids=str)
def test_what_is_measured_is_what_single_gradients_say(trainer: Any, options: dict[str, Any]) -> None:
    """One batch again and again at a rate of 0, so that every measurement is of the same gradients."""

    class Same(Text):
        def __getitem__(self, index: int) -> Any:
            return super().__getitem__(index % 8)

    callback = BatchscopeTrainerCallback(every=1)
    size = 8 // options.get("gradient_accumulation_steps", 1)
    one = trainer(
        callbacks=[callback], train_dataset=Same(128), learning_rate=0.0, per_device_train_batch_size=size, **options
    )
    one._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(one.train_dataset)
    one.train()
    noise = callback.noise
    assert noise is not None
    assert noise.source == ["per-example gradients", "accumulated micro-batches"][size < 8]
    assert noise.note is None
    assert noise.steps_measured >= 8

    model = one.model.eval()
    rows = []
    for part in torch.split(Same(8).rows, 1 if size == 8 else size):
        model.zero_grad()
        model(input_ids=part, labels=part).loss.backward()
        rows.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    gradients = torch.stack(rows).double()
    trace = (1 if size == 8 else size) * float(gradients.var(0, unbiased=True).sum())
    norm = float(gradients.mean(0).square().sum()) - trace / 8
    # Their ratio: the Trainer divides the loss by its own count of tokens, which some versions take before the shift.
    _, measured_trace, measured_norm, *_ = noise._window.samples[-1]
    assert measured_trace / measured_norm == pytest.approx(trace / norm, rel=0.03 if "bf16" in options else 1e-3)


def test_training_is_the_same_bit_for_bit(trainer: Any) -> None:
    alone, watched = trainer(), trainer(callbacks=[BatchscopeTrainerCallback(every=1)])
    alone.train()
    watched.train()
    assert all(torch.equal(a, b) for a, b in zip(alone.model.parameters(), watched.model.parameters(), strict=True))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in watched.model.modules())


class Reporter(transformers.TrainerCallback):
    def __init__(self) -> None:
        self.logged: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.logged.append(dict(kwargs["logs"]))


def test_numbers_go_into_the_log_and_attached_to_the_reporters(trainer: Any) -> None:
    callback, reporter = BatchscopeTrainerCallback(every=1), Reporter()
    one = trainer(callbacks=[reporter])  # a reporter comes before a person's callbacks
    assert callback.attach(one) is callback
    one.train()
    losses = [entry for entry in one.state.log_history if "loss" in entry]
    assert [entry["step"] for entry in losses] == [4, 8, 12] == [step for step, _ in callback.history]
    for entry, (_, interval), logged in zip(losses, callback.history, reporter.logged, strict=False):
        if interval.resolved:
            assert entry["noise_scale"] == interval.value == logged["noise_scale"]
            assert entry["noise_scale_low"] == interval.low
    assert any(interval.resolved for _, interval in callback.history)


# A schedule, and stopping


class Told(transformers.TrainerCallback):
    """What every update was made of."""

    def __init__(self) -> None:
        self.updates: list[tuple[int, float]] = []
        self._since = 0

    def on_substep_end(self, *args: Any, **kwargs: Any) -> None:
        self._since += 1

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.updates.append((self._since + 1, kwargs["optimizer"].param_groups[0]["lr"]))
        self._since = 0


SCHEDULE = bs.Schedule((bs.Phase(0, 8), bs.Phase(3 * 8, 16), bs.Phase(8 * 8, 32)), coupling="rule")
PLAIN = {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0}


def in_order(one: Any) -> Any:
    one._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(one.train_dataset)
    return one


def share_counted(trainer: Any) -> float:
    """What the Trainer makes of a mean over labels: some versions count them before the shift, and so one too many."""
    one = in_order(trainer(max_steps=1, logging_steps=1, **PLAIN))
    with torch.no_grad():
        rows = TRAIN.rows[:8].to(one.model.device)
        mean = float(one.model(input_ids=rows, labels=rows).loss)
    one.train()
    said: float = one.state.log_history[0]["loss"]
    return said / mean


def test_a_schedule_is_followed_by_accumulation(trainer: Any) -> None:
    told, callback = Told(), BatchscopeTrainerCallback(schedule=SCHEDULE)
    # The 12 batches of 8 that 12 updates would be made of without the schedule.
    one = in_order(trainer(callbacks=[callback, told], **PLAIN))
    model = copy.deepcopy(one.model)
    one.train()
    # 24 examples are over before batch 3; the next update of two that can begin there is at batch 4.
    counts, rates = zip(*told.updates, strict=True)
    assert counts == (1,) * 4 + (2,) * 2 + (4,) * 2
    assert rates == pytest.approx([0.1 * count for count in counts])
    assert one.args.gradient_accumulation_steps == 1

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = iter(torch.split(TRAIN.rows, 8))
    counted = share_counted(trainer)
    for count, rate in told.updates:
        rows = torch.cat([next(batches) for _ in range(count)])
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        (model(input_ids=rows, labels=rows).loss * counted).backward()
        optimizer.step()
    for ours, theirs in zip(one.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_a_schedule_goes_on_in_the_next_epoch_and_again_in_another_run(trainer: Any) -> None:
    told = Told()
    schedule = bs.Schedule((bs.Phase(0, 8), bs.Phase(15 * 8, 24)), coupling="rule")
    one = trainer(
        callbacks=[BatchscopeTrainerCallback(schedule=schedule), told], max_steps=-1, num_train_epochs=2, **PLAIN
    )
    for _ in range(2):
        told.updates.clear()
        one.train()
        # Sixteen batches an epoch, of which the last three-batch update takes what is left.
        assert [count for count, _ in told.updates] == [1] * 15 + [1] + [3] * 5 + [1]
        one.state.global_step = 0


@pytest.mark.parametrize(
    ("options", "schedule", "said"),
    [
        ({"gradient_accumulation_steps": 2}, SCHEDULE, "gradient_accumulation_steps=2"),
        ({"lr_scheduler_type": "linear"}, SCHEDULE, 'lr_scheduler_type="constant"'),
        ({"per_device_train_batch_size": 6}, SCHEDULE, "8 with micro-batches of 6"),
        ({}, bs.Schedule((bs.Phase(0, 16), bs.Phase(32, 8))), "8 after 16"),
    ],
)
def test_a_schedule_that_a_trainer_cannot_follow_is_refused(
    trainer: Any, options: Any, schedule: bs.Schedule, said: str
) -> None:
    with pytest.raises(PlanError, match=said):
        trainer(callbacks=[BatchscopeTrainerCallback(schedule=schedule)], **options).train()


def test_a_schedule_needs_a_trainer_that_ends_updates_with_its_epochs(
    trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchscope.integrations.frameworks._installed", lambda package: "4.47.1")
    trainer(callbacks=[BatchscopeTrainerCallback()]).train()
    with pytest.raises(MissingPackageError, match=r"4\.48 or newer is needed to follow a schedule"):
        trainer(callbacks=[BatchscopeTrainerCallback(schedule=SCHEDULE)], **PLAIN).train()


def test_the_deprecated_early_stopping_still_works(trainer: Any) -> None:
    often = {"eval_strategy": "steps", "eval_steps": 2}
    with pytest.warns(DeprecationWarning, match="EarlyStoppingCallback"):
        free = BatchscopeTrainerCallback(monitor="loss", higher_is_better=False)
    one = trainer(callbacks=[free], max_steps=40, learning_rate=0.05, **often)
    one.train()
    assert one.state.global_step == 40
    seen = {entry["step"]: entry["eval_loss"] for entry in one.state.log_history if "eval_loss" in entry}
    least = min(seen, key=lambda step: seen[step])
    assert free.stopping is not None
    assert (free.stopping.updates, free.stopping.value) == (least, seen[least])
    assert one.evaluate()["eval_loss"] == pytest.approx(seen[least], rel=1e-5)

    within = BatchscopeTrainerCallback(monitor="eval_loss", higher_is_better=False, target=seen[4])
    two = trainer(callbacks=[within], max_steps=40, learning_rate=0.05, **often)
    two.train()
    assert two.state.global_step == next(step for step, loss in seen.items() if loss <= seen[4])

    with pytest.raises(ArgumentError, match=r"eval_accuracy.*eval_loss"):
        trainer(callbacks=[BatchscopeTrainerCallback(monitor="accuracy")], **often).train()


# Workloads


def test_a_workload_trains_what_the_trainer_trains(trainer: Any) -> None:
    """Batches in their order, one epoch, the same weights at its end.

    Unclipped, since Adam does not mind that the Trainer divides the loss by its own count of tokens, which some
    versions take before the shift.
    """
    one = trainer(max_steps=16, weight_decay=0.1, max_grad_norm=0.0)
    workload = workload_from_trainer(one)
    assert (workload.batch_size, workload.learning_rate) == (8, 3e-3)
    assert workload.title == "GPT2LMHeadModel"
    one._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(one.train_dataset)
    model = workload.model()
    optimizer = workload.optimizer(model.parameters(), workload.learning_rate)
    assert sorted(group["weight_decay"] for group in optimizer.param_groups) == [0.0, 0.1]
    for start in range(0, 128, 8):
        assert workload.collate is not None
        batch = workload.collate([TRAIN[i] for i in range(start, start + 8)])
        optimizer.zero_grad()
        workload.loss(*workload.output_and_target(model, batch)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    one.train()
    for ours, theirs in zip(model.parameters(), one.model.parameters(), strict=True):
        # Of the 0.05 that a weight may have moved; Adam's ε is what the Trainer's own count makes a difference to.
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_the_trainer_stays_as_it_is(trainer: Any) -> None:
    one = trainer()
    state = torch.get_rng_state()
    before = {name: weight.clone() for name, weight in one.model.state_dict().items()}
    held = one.model
    workload = workload_from_trainer(one)
    bs.train(workload, bs.Plan(batch_size=8, learning_rate=0.01, iterations=3))
    assert one.model is held
    assert one.optimizer is None
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], weight) for name, weight in one.model.state_dict().items())


def test_runs_begin_with_the_models_weights_or_with_model_init(trainer: Any) -> None:
    one = trainer()
    copies = workload_from_trainer(one)
    torch.manual_seed(1)
    assert all(torch.equal(a, b) for a, b in zip(copies.model().parameters(), one.model.parameters(), strict=True))
    fresh = workload_from_trainer(trainer(model_init=make))
    torch.manual_seed(1)
    made = fresh.model()
    torch.manual_seed(1)
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), make().parameters(), strict=True))
    torch.manual_seed(2)
    assert not torch.equal(next(made.parameters()), next(fresh.model().parameters()))


def next_byte(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits[:, :-1].argmax(-1) == labels[:, 1:]).double().mean()


def metrics(prediction: Any) -> dict[str, float]:
    logits, labels = prediction.predictions, prediction.label_ids
    return {"next": float(np.mean(logits[:, :-1].argmax(-1) == labels[:, 1:]))}


def test_scores_from_a_function_and_from_compute_metrics(trainer: Any) -> None:
    one = trainer(compute_metrics=metrics, gradient_accumulation_steps=2)
    plan = bs.Plan(batch_size=16, learning_rate=0.01, iterations=8)
    scores = [bs.train(workload_from_trainer(one, score=score), plan).best_score for score in (next_byte, "next")]
    assert scores[0] == pytest.approx(scores[1])
    assert scores[0] is not None
    assert 0 < scores[0] < 1
    assert workload_from_trainer(one).batch_size == 16
    with pytest.raises(WorkloadError, match="returns next, and no accuracy"):
        workload_from_trainer(one, score="accuracy")
    with pytest.raises(WorkloadError, match="without compute_metrics"):
        workload_from_trainer(trainer(), score="next")


def test_a_loss_of_the_trainers_own_is_used(trainer: Any) -> None:
    class Doubled(transformers.Trainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
            return (2 * loss, outputs) if kwargs.get("return_outputs") else 2 * loss

    def ours(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        return F.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())

    def loss_of(one: Any) -> float:
        workload = workload_from_trainer(one)
        assert workload.collate is not None
        batch = workload.collate([TRAIN[0], TRAIN[1]])
        return workload.loss(*workload.output_and_target(workload.model().eval(), batch)).item()

    plain = loss_of(trainer())
    assert loss_of(trainer(kind=Doubled)) == pytest.approx(2 * plain)
    assert loss_of(trainer(compute_loss_func=ours)) == pytest.approx(plain, rel=1e-5)
    assert loss_of(trainer(label_smoothing_factor=0.5)) != pytest.approx(plain, rel=1e-5)


def test_a_classifier_with_sequences_of_many_lengths(trainer: Any) -> None:
    config = transformers.BertConfig(
        vocab_size=128,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=2,
        max_position_embeddings=16,
    )

    class Lines(Text):
        def __getitem__(self, index: int) -> Any:
            row = self.rows[index][: 4 + index % 12]
            return {"input_ids": row, "label": int((row == ord(" ")).sum() > 2)}

    def padded(examples: list[Any]) -> dict[str, Tensor]:
        ids = nn.utils.rnn.pad_sequence([e["input_ids"] for e in examples], batch_first=True)
        return {"input_ids": ids, "attention_mask": ids != 0, "labels": torch.tensor([e["label"] for e in examples])}

    one = trainer(
        model=transformers.BertForSequenceClassification(config),
        train_dataset=Lines(128),
        eval_dataset=Lines(64, first=128),
    )
    one.data_collator = padded
    workload = workload_from_trainer(one, score=lambda logits, y: (logits.argmax(-1) == y).double().mean())
    found = bs.compare(workload, [(8, 8), (32, 2)], seeds=2, learning_rate="fixed")
    assert [row.batch_size for row in found.rows] == [8, 32]
    assert bs.gradient_noise(workload, examples=32).trace_covariance.value is not None


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(TRAIN)


class Silent(nn.Module):
    """Takes labels, and returns no loss."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Embedding(128, 4)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        return {"logits": self.layer(input_ids)}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"auto_find_batch_size": True}, "auto_find_batch_size=True"),
        ({"train_dataset": Stream()}, "iterable Stream"),
        ({"eval_dataset": None}, "one eval_dataset"),
        ({"model": Silent()}, "return its loss"),
    ],
)
def test_what_cannot_be_a_workload_is_refused_with_a_mend(trainer: Any, options: Any, said: str) -> None:
    with pytest.raises(WorkloadError, match=said) as error:
        workload_from_trainer(trainer(**options))
    assert error.value.mend
