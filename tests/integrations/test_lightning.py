"""Lightning's Trainer: measured as a plain loop is, left alone by it, led by a schedule; and Workloads from modules."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from tests.integrations.data import EXAMPLES, accuracy, network, split
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import batchscope as bs
from batchscope.errors import ArgumentError, PlanError, WorkloadError
from batchscope.integrations.lightning import BatchscopeCallback, workload_from_lightning

BATCH = 16


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class Digits(pl.LightningDataModule):
    def __init__(self, batch: int = BATCH) -> None:
        super().__init__()
        self.batch = batch

    def setup(self, stage: str) -> None:
        self.train, self.held_out = split()

    def train_dataloader(self) -> Any:
        return DataLoader(self.train, batch_size=self.batch)

    def val_dataloader(self) -> Any:
        return DataLoader(self.held_out, batch_size=64)


class Network(pl.LightningModule):
    def __init__(self, rate: float = 0.1) -> None:
        super().__init__()
        self.layers: Any = network()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.rate, momentum=0.9)


class Apart(Network):
    """Calls a part of itself in place of itself."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.layers(batch[0]), batch[1])


def fit(module: Any, *callbacks: Any, data: Any = None, ckpt_path: Any = None, **options: Any) -> Any:
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        **({"max_epochs": 2, "logger": False, "enable_checkpointing": False} | options),
    )
    trainer.fit(module, data or Digits(), ckpt_path=ckpt_path)
    return trainer


def seeded(kind: Callable[..., Any] = Network, **options: Any) -> Any:
    torch.manual_seed(0)
    return kind(**options)


def by_hand(accumulate: int, epochs: int = 2) -> bs.GradientNoise:
    """The same training in a plain loop, watched from the same micro-batch on."""
    model = seeded().layers
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    train, _ = split()
    noise: bs.GradientNoise | None = None
    for _ in range(epochs):
        for i, (x, y) in enumerate(DataLoader(train, batch_size=BATCH)):
            if i % accumulate == 0:
                optimizer.zero_grad()
            (F.cross_entropy(model(x), y) / accumulate).backward()  # type: ignore[no-untyped-call]
            if i % accumulate == accumulate - 1:
                optimizer.step()
            noise = noise or bs.GradientNoise(model, optimizer, every=1)
    assert noise is not None
    return noise


@pytest.mark.parametrize("kind", [Network, Apart])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_what_is_measured_is_what_a_plain_loop_measures(kind: type, accumulate: int) -> None:
    callback = BatchscopeCallback(every=1)
    fit(seeded(kind), callback, accumulate_grad_batches=accumulate)
    want = by_hand(accumulate)
    assert callback.noise is not None
    assert (
        callback.noise.source == want.source == ["per-example gradients", "accumulated micro-batches"][accumulate > 1]
    )
    assert callback.noise.steps_measured == want.steps_measured > 3
    assert callback.noise.trace_covariance == want.trace_covariance
    assert callback.noise.noise_scale == want.noise_scale


def test_training_is_the_same_bit_for_bit() -> None:
    alone, watched = seeded(), seeded()
    fit(alone)
    fit(watched, BatchscopeCallback(every=1))
    assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), watched.parameters(), strict=True))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in watched.modules())


def test_numbers_go_to_the_loggers_and_into_the_metrics(tmp_path: Path) -> None:
    logger = pl.loggers.CSVLogger(str(tmp_path), name="", version="")
    callback = BatchscopeCallback(every=1)
    trainer = fit(seeded(), callback, logger=logger, log_every_n_steps=8, max_epochs=3)
    assert [updates for updates, _ in callback.history] == [8, 16, 24, 32, 40, 48]
    assert callback.history[-1][1].resolved
    logger.save()
    header, *lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert {"noise_scale", "noise_scale_low", "noise_scale_high"} <= set(header.split(","))
    assert len(lines) >= 6
    assert float(trainer.callback_metrics["noise_scale"]) == pytest.approx(callback.history[-1][1].value)


class Told(pl.Callback):
    """Remembers the micro-batches and the learning rate of every update."""

    def __init__(self) -> None:
        self.updates: list[tuple[int, float]] = []
        self._since = 0

    def on_train_batch_start(self, *args: Any) -> None:
        self._since += 1

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        self.updates.append((self._since, optimizer.param_groups[0]["lr"]))
        self._since = 0


SCHEDULE = bs.Schedule(
    (bs.Phase(0, BATCH), bs.Phase(3 * BATCH, 2 * BATCH), bs.Phase(8 * BATCH, 4 * BATCH)), coupling="rule"
)


def test_a_schedule_is_followed_by_accumulation() -> None:
    told, module = Told(), seeded()
    trainer = fit(module, BatchscopeCallback(schedule=SCHEDULE), told, max_epochs=1)
    # 48 examples are over before micro-batch 3; the next update of 2 that can begin there is at micro-batch 4.
    assert told.updates == [(1, 0.1)] * 4 + [(2, 0.2)] * 2 + [(4, 0.4)] * 2
    assert trainer.accumulate_grad_batches == 1

    model = seeded().layers
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    train, _ = split()
    examples = iter(DataLoader(train, batch_size=BATCH))
    for count, rate in told.updates:
        x, y = (torch.cat(part) for part in zip(*(next(examples) for _ in range(count)), strict=True))
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    for ours, theirs in zip(module.layers.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_a_checkpoint_keeps_the_noise_and_the_schedule(tmp_path: Path) -> None:
    def callbacks() -> tuple[BatchscopeCallback, Told]:
        return BatchscopeCallback(every=1, schedule=SCHEDULE), Told()

    first, _ = callbacks()
    trainer = fit(seeded(), first, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    again, told = callbacks()
    fit(seeded(), again, told, max_epochs=2, ckpt_path=tmp_path / "one.ckpt")
    assert first.noise is not None
    assert again.noise is not None
    assert again.noise.steps_measured > first.noise.steps_measured > 0
    assert told.updates == [(4, 0.4)] * 4


def test_the_deprecated_early_stopping_still_works(tmp_path: Path) -> None:
    class Judged(Network):
        def validation_step(self, batch: Any, index: int) -> None:
            self.log("val_loss", self.training_step(batch, index))

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=2.0, momentum=0.9)  # too much: good and bad come in turns

    class Seen(pl.Callback):
        def __init__(self) -> None:
            self.losses: dict[int, float] = {}

        def on_validation_end(self, trainer: Any, module: Any) -> None:
            if trainer.state.fn == "fit" and not trainer.sanity_checking:
                self.losses[trainer.global_step] = float(trainer.callback_metrics["val_loss"])

    def run(**options: Any) -> tuple[BatchscopeCallback, Any, dict[int, float], Any]:
        with pytest.warns(DeprecationWarning, match="EarlyStopping"):
            callback, seen = BatchscopeCallback(monitor="val_loss", higher_is_better=False, **options), Seen()
        torch.manual_seed(0)
        module = Judged()
        trainer = fit(module, callback, seen, max_epochs=12, num_sanity_val_steps=1, limit_val_batches=4)
        return callback, module, seen.losses, trainer

    callback, module, losses, trainer = run(patience=3)
    assert callback.stopping is not None
    best = min(losses, key=lambda step: losses[step])
    steps = sorted(losses)
    assert (callback.stopping.updates, callback.stopping.value) == (best, losses[best])
    assert len(steps) == 12 or steps.index(best) == len(steps) - 4
    [again] = trainer.validate(module, Digits(), verbose=False)
    assert again["val_loss"] == pytest.approx(losses[best], rel=1e-5)

    target = losses[steps[1]]
    _, _, losses, _ = run(target=target)
    assert losses[max(losses)] <= target < min([losses[step] for step in sorted(losses)[:-1]], default=math.inf)

    with pytest.raises(ArgumentError, match="monitor='val_accuracy'"):
        fit(Judged(), BatchscopeCallback(monitor="val_accuracy"), max_epochs=1)
    with pytest.raises(ArgumentError, match="patience=3 without monitor"):
        BatchscopeCallback(patience=3)


def test_what_the_callback_cannot_follow_is_refused_with_a_mend() -> None:
    class Scheduled(Network):
        def configure_optimizers(self) -> Any:
            one = torch.optim.SGD(self.parameters(), lr=0.1)
            return [one], [torch.optim.lr_scheduler.StepLR(one, 1)]

    class Two(Network):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(self.layers[i].parameters(), lr=0.1) for i in (0, 2)]

    with pytest.raises(PlanError, match="Remove it from configure_optimizers"):
        fit(Scheduled(), BatchscopeCallback(schedule=SCHEDULE))
    with pytest.raises(PlanError, match="accumulate_grad_batches=2"):
        fit(Network(), BatchscopeCallback(schedule=SCHEDULE), accumulate_grad_batches=2)
    with pytest.raises(PlanError, match="16 with micro-batches of 12"):
        fit(Network(), BatchscopeCallback(schedule=SCHEDULE), data=Digits(12))
    with pytest.raises(ArgumentError, match="2 of them"):
        fit(Two(), BatchscopeCallback())


# Workloads


def written_by_hand() -> bs.Workload:
    train, held_out = split()
    return bs.Workload(
        model=network,
        train=train.tensors,
        validation=held_out.tensors,
        loss=F.cross_entropy,
        score=accuracy,
        optimizer=lambda params, lr: torch.optim.SGD(params, lr=lr, momentum=0.9),
        learning_rate=0.1,
        batch_size=BATCH,
    )


@pytest.mark.parametrize("loss", [None, F.cross_entropy])
def test_a_module_trains_as_its_workload_written_by_hand(loss: Any) -> None:
    workload = workload_from_lightning(Network, Digits(), score=accuracy, loss=loss)
    assert (workload.batch_size, workload.learning_rate, workload.title) == (BATCH, 0.1, "Network")
    assert (workload.training_examples, workload.validation_examples) == (EXAMPLES, 64)
    plan = bs.Plan(batch_size=32, learning_rate=0.1, iterations=30)
    ours, theirs = (bs.train(w, plan, seed=3) for w in (workload, written_by_hand()))
    assert ours.best_score == pytest.approx(theirs.best_score)
    module = Network()
    module.load_state_dict(ours.state)  # under the names that the module has
    assert theirs.state is not None
    for name, weight in theirs.state.items():
        torch.testing.assert_close(module.layers.state_dict()[name], weight, rtol=1e-4, atol=1e-6)


def test_a_training_step_can_be_measured_as_a_loss_can() -> None:
    workloads = workload_from_lightning(Network, Digits()), written_by_hand()
    ours, theirs = (bs.gradient_noise(workload, examples=EXAMPLES) for workload in workloads)
    assert ours.source == "per-example gradients"
    assert ours.trace_covariance.value == pytest.approx(theirs.trace_covariance.value, rel=1e-4)
    assert theirs.noise_scale.resolved
    assert ours.noise_scale.value == pytest.approx(theirs.noise_scale.value, rel=1e-3)


def test_a_comparison_of_a_module() -> None:
    found = bs.compare(workload_from_lightning(Network, Digits(), score=accuracy), [(8, 16), (32, 4)], seeds=2)
    assert [row.batch_size for row in found.rows] == [8, 32]


def test_a_module_stays_what_it_is() -> None:
    module: Any = workload_from_lightning(Network, Digits()).model()
    assert isinstance(module, Network)
    assert type(module).__name__ == "Network"
    x, y = split()[1].tensors
    twin = copy.deepcopy(module)
    assert torch.equal(twin(x), module.layers(x))
    assert float(module.training_step((x, y), 0)) == pytest.approx(float(F.cross_entropy(module(x), y)))


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([])


class Streaming(Digits):
    def train_dataloader(self) -> Any:
        return DataLoader(Stream(), batch_size=4)


class Manual(Network):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class Several(Network):
    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(self.layers[i].parameters(), lr=0.1) for i in (0, 2)]


class Attached(Network):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss: Tensor = F.cross_entropy(self(batch[0]), batch[1]) / self.trainer.world_size
        return loss


class Augmented(Digits):
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch


@pytest.mark.parametrize(
    ("module", "data", "said"),
    [
        (Network, Streaming, "iterable Stream"),
        (Manual, Digits, "automatic_optimization=False"),
        (Several, Digits, "2 of them"),
        (Attached, Digits, "without a Trainer"),
        (Network, Augmented, "on_after_batch_transfer"),
    ],
)
def test_what_cannot_be_a_workload_is_refused_with_a_mend(module: Any, data: Any, said: str) -> None:
    with pytest.raises(WorkloadError, match=said) as error:
        workload_from_lightning(module, data())
    assert error.value.mend


def test_a_scheduler_of_learning_rates_is_left_out_aloud() -> None:
    class Scheduled(Network):
        def configure_optimizers(self) -> Any:
            one = torch.optim.SGD(self.parameters(), lr=0.3)
            return {"optimizer": one, "lr_scheduler": torch.optim.lr_scheduler.LambdaLR(one, lambda epoch: 0.5)}

    with pytest.warns(UserWarning, match="learning-rate scheduler"):
        assert workload_from_lightning(Scheduled, Digits()).learning_rate == 0.3


def test_dictionaries_need_a_forward_for_a_score_alone() -> None:
    class Named(TensorDataset):
        def __getitem__(self, index: int) -> Any:
            x, y = (tensor[index] for tensor in self.tensors)
            return {"x": x, "y": y}

    class Data(Digits):
        def setup(self, stage: str) -> None:
            self.train, self.held_out = (Named(*part.tensors) for part in split())

    class Reads(Network):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return {"loss": F.cross_entropy(self(batch["x"]), batch["y"])}

    assert workload_from_lightning(Reads, Data()).score is None
    with pytest.raises(WorkloadError, match="without a forward"):
        workload_from_lightning(Reads, Data(), score=accuracy)
    given = workload_from_lightning(Reads, Data(), score=accuracy, forward=lambda m, b: (m(b["x"]), b["y"]))
    plan = bs.Plan(batch_size=32, learning_rate=0.1, iterations=10)
    assert bs.train(given, plan).best_score == pytest.approx(bs.train(written_by_hand(), plan).best_score)


OTHER_NAME = """
import sys, warnings
warnings.simplefilter("ignore")
import pytorch_lightning as pl
import torch
from batchscope.integrations.lightning import BatchscopeCallback
assert issubclass(BatchscopeCallback, pl.Callback) and "lightning.pytorch" not in sys.modules

class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
    def training_step(self, batch, batch_idx):
        return self.layer(batch).square().mean()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)

callback = BatchscopeCallback(every=1)
trainer = pl.Trainer(max_epochs=1, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
                     enable_progress_bar=False, enable_model_summary=False, callbacks=[callback])
trainer.fit(Module(), torch.utils.data.DataLoader(torch.randn(64, 2), batch_size=4))
print("measured", callback.noise.steps_measured)
"""


def test_lightning_under_its_other_name() -> None:
    done = subprocess.run([sys.executable, "-c", OTHER_NAME], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "measured 13" in done.stdout
