"""What following the noise scale adds to training in people's frameworks, in alternating runs in one process.

Each round trains the perceptron of Fashion-MNIST for as many updates with the framework's own loop, with the callback
at its default, and with its own loop again; the ratio is taken within the round, and that of the two without the
callback says how much of it is the machine's. The time is that of training, set-up left out; that of the processor
stands beside that of the clock, since other work on a machine disturbs it less. The monitor goes on from round to
round, as it would in one long run. A loop written by hand stands beside them.

    python benchmarks/integrations.py [--rounds 7] [--workload fashion-mlp] [--batch-size 128] [--loops Lightning,…]
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

import batchscope as bs
from batchscope.workload import Workload
from cases import case, keep, machine, median_and_spread

State = dict[str, Any]


class Times(NamedTuple):
    """What a run took: seconds of the clock, and of this process's processors, which other work disturbs less."""

    wall: float
    processor: float


def stopwatch() -> Callable[[], Times]:
    """Begin to measure; what is returned gives the times since."""
    wall, processor = time.perf_counter(), time.process_time()
    return lambda: Times(time.perf_counter() - wall, time.process_time() - processor)


class Batches(Dataset[Any]):
    """Whole batches, gathered in one go, so that reading takes a small part of the time in every framework."""

    def __init__(self, workload: Workload, batch_size: int, updates: int, *, named: bool = False) -> None:
        self.x, self.y = workload.train  # type: ignore[misc]
        self.rows = torch.randint(len(self.x), (updates, batch_size))
        self.named = named

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        x, y = self.x[self.rows[index]], self.y[self.rows[index]]
        return {"x": x, "labels": y} if self.named else (x, y)


class Framework(ABC):
    """One framework's loop on a model that is gone on with, with and without the noise scale.

    Args:
        workload: What is trained.
        batch_size: Examples in an update.

    Attributes:
        state: The monitor's, from run to run.
        overhead: The share of the time that it says it took.
        steps: Updates that it saw.
        measured: Those that it measured.
    """

    def __init__(self, workload: Workload, batch_size: int) -> None:
        torch.manual_seed(0)
        self.workload, self.batch_size = workload, batch_size
        self.model = workload.model()
        self.optimizer = workload.optimizer(self.model.parameters(), workload.learning_rate)
        self.state: State | None = None
        self.overhead, self.steps, self.measured = 0.0, 0, 0

    @abstractmethod
    def run(self, updates: int, *, watched: bool) -> Times:
        """What so many updates take."""

    def loader(self, updates: int, *, named: bool = False) -> Any:
        """Batches for so many updates."""
        batches = Batches(self.workload, self.batch_size, updates, named=named)
        return DataLoader(batches, batch_size=None)

    def resume(self, noise: bs.GradientNoise | None) -> None:
        """Let a monitor go on from the last run's."""
        if noise is not None and self.state is not None:
            noise.load_state_dict(self.state)

    def remember(self, noise: bs.GradientNoise | None) -> None:
        """Keep what the next run's monitor goes on from."""
        if noise is not None:
            self.state = noise.state_dict()
            self.overhead, self.steps, self.measured = noise.overhead, noise.steps, noise.steps_measured
            noise.close()


class PlainLoop(Framework):
    """A loop written by hand."""

    def run(self, updates: int, *, watched: bool) -> Times:
        """What so many updates take."""
        noise = bs.GradientNoise(self.model, self.optimizer) if watched else None
        self.resume(noise)
        elapsed = stopwatch()
        for x, y in self.loader(updates):
            self.optimizer.zero_grad()
            F.cross_entropy(self.model(x), y).backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
        times = elapsed()
        self.remember(noise)
        return times


class Lightning(Framework):
    """Lightning's Trainer with bare flags."""

    def run(self, updates: int, *, watched: bool) -> Times:
        """What so many updates take."""
        import lightning.pytorch as pl

        from batchscope.integrations.lightning import BatchscopeCallback

        outer = self

        class Module(pl.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.model = outer.model

            def training_step(self, batch: Any, batch_idx: int) -> Tensor:
                return F.cross_entropy(self.model(batch[0]), batch[1])

            def configure_optimizers(self) -> Any:
                return outer.optimizer

            def on_train_start(self) -> None:
                self.elapsed = stopwatch()

            def on_train_end(self) -> None:
                self.times = self.elapsed()

        _silence()
        module = Module()
        callback = BatchscopeCallback()
        if self.state is not None:
            callback.load_state_dict({"noise": self.state})
        trainer = pl.Trainer(
            max_epochs=1,
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[callback] if watched else [],
        )
        trainer.fit(module, self.loader(updates))
        if watched:
            self.remember(callback.noise)
        times: Times = module.times
        return times


class WithLoss(nn.Module):
    """A model that returns its loss with its logits, as those of transformers do."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Loss and logits."""
        logits = self.model(x)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


class Transformers(Framework):
    """transformers' Trainer, logging every 50 updates."""

    def run(self, updates: int, *, watched: bool) -> Times:
        """What so many updates take."""
        import transformers

        from batchscope.integrations.transformers import BatchscopeTrainerCallback

        outer = self

        class Clock(transformers.TrainerCallback):
            times = Times(0.0, 0.0)

            def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
                self.elapsed = stopwatch()

            def on_train_end(self, *args: Any, **kwargs: Any) -> None:
                self.times = self.elapsed()

        class Resumed(BatchscopeTrainerCallback):
            def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
                super().on_train_begin(*args, **kwargs)
                outer.resume(self.noise)

        class Trainer(transformers.Trainer):
            def get_train_dataloader(self) -> Any:
                return outer.loader(updates, named=True)

        clock, callback = Clock(), Resumed()
        with tempfile.TemporaryDirectory() as folder:
            arguments = transformers.TrainingArguments(
                output_dir=folder,
                max_steps=updates,
                per_device_train_batch_size=self.batch_size,
                logging_steps=50,
                save_strategy="no",
                report_to=[],
                use_cpu=True,
                disable_tqdm=True,
                max_grad_norm=0.0,
            )
            trainer = Trainer(
                model=WithLoss(self.model),
                args=arguments,
                train_dataset=Batches(self.workload, self.batch_size, updates, named=True),
                optimizers=(self.optimizer, torch.optim.lr_scheduler.ConstantLR(self.optimizer, factor=1.0)),
                callbacks=[callback, clock] if watched else [clock],
            )
            trainer.remove_callback(transformers.PrinterCallback)
            trainer.train()
        if watched:
            self.remember(callback.noise)
        return clock.times


class Accelerate(Framework):
    """A loop with an Accelerator."""

    def run(self, updates: int, *, watched: bool) -> Times:
        """What so many updates take."""
        from accelerate import Accelerator

        from batchscope.integrations.accelerate import gradient_noise_of

        accelerator = Accelerator(cpu=True)
        model, optimizer = accelerator.prepare(self.model, self.optimizer)
        noise = gradient_noise_of(accelerator, model, optimizer) if watched else None
        self.resume(noise)
        elapsed = stopwatch()
        for x, y in self.loader(updates):
            accelerator.backward(F.cross_entropy(model(x), y))
            optimizer.step()
            optimizer.zero_grad()
        times = elapsed()
        self.remember(noise)
        return times


class Skorch(Framework):
    """skorch's partial_fit."""

    def run(self, updates: int, *, watched: bool) -> Times:
        """What so many updates take."""
        import skorch

        from batchscope.integrations.skorch import BatchscopeNetCallback

        outer = self

        class Net(skorch.NeuralNetClassifier):
            def initialize_optimizer(self, *args: Any, **kwargs: Any) -> Any:
                self.optimizer_ = outer.optimizer
                return self

            def get_iterator(self, dataset: Any, training: bool = False) -> Any:
                return outer.loader(updates)

        callback = BatchscopeNetCallback()
        net = Net(
            self.model,
            criterion=nn.CrossEntropyLoss,
            max_epochs=1,
            train_split=None,
            verbose=0,
            callbacks=[("noise", callback)] if watched else [],
            callbacks__print_log=None,
        )
        net.initialize()
        given = dict(net.callbacks_).get("noise")
        if given is not None and self.state is not None:
            given.noise_ = bs.GradientNoise(self.model, self.optimizer)
            self.resume(given.noise_)
            given.noise_.close()
        data = Batches(self.workload, self.batch_size, updates)
        elapsed = stopwatch()
        net.partial_fit(data, None)
        times = elapsed()
        if given is not None:
            self.remember(given.noise_)
        return times


FRAMEWORKS: dict[str, type[Framework]] = {
    "plain loop": PlainLoop,
    "Lightning": Lightning,
    "transformers": Transformers,
    "accelerate": Accelerate,
    "skorch": Skorch,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="aimed at for each run")
    parser.add_argument("--workload", default="fashion-mlp")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--loops", default=",".join(FRAMEWORKS))
    arguments = parser.parse_args()
    _silence()
    workload = case(arguments.workload)
    title = f"Noise scale on {arguments.workload}, batch {arguments.batch_size}: time over the framework's own"
    table = Table(title=f"{title} (median of rounds, least–most)")
    for column in (
        "loop",
        "update, ms",
        "with the callback",
        "of processor",
        "without, again",
        "says itself",
        "measured",
    ):
        table.add_column(column, justify="left" if column == "loop" else "right")
    rows = []
    for name in arguments.loops.split(","):
        row = _measure(name, FRAMEWORKS[name](workload, arguments.batch_size), arguments)
        rows.append(row)
        table.add_row(
            name,
            f"{1000 * row['step_seconds']:.2f}",
            median_and_spread(row["ratios"]),
            median_and_spread(row["ratios_of_processor_time"]),
            median_and_spread(row["ratios_of_the_same"]),
            f"{row['overhead']:.1%}",
            f"{row['steps_measured']} of {row['steps']}",
        )
    console = Console(width=150)
    console.print(table)
    console.print(machine())
    console.print(f"Kept in {keep('integrations', rows)}")


def _measure(name: str, framework: Framework, arguments: argparse.Namespace) -> dict[str, Any]:
    framework.run(20, watched=False)
    updates = max(50, min(4000, round(arguments.seconds * 50 / framework.run(50, watched=False).wall)))
    framework.run(updates, watched=True)  # warms up
    ratios, of_processor, same, own = [], [], [], []
    for number in range(arguments.rounds):
        # Without, with, without again: the two of the same kind say how much of a ratio is the machine's.
        first = framework.run(updates, watched=False)
        watched = framework.run(updates, watched=True)
        last = framework.run(updates, watched=False)
        ratios.append(2 * watched.wall / (first.wall + last.wall))
        of_processor.append(2 * watched.processor / (first.processor + last.processor))
        same.append(last.wall / first.wall)
        own += [first.wall, last.wall]
        shown = f"{ratios[-1]:.3f}, of processor {of_processor[-1]:.3f}, without again {same[-1]:.3f}"
        print(f"{name} round {number + 1}: {shown}", flush=True)
    return {
        "loop": name,
        "workload": arguments.workload,
        "batch_size": arguments.batch_size,
        "updates": updates,
        "step_seconds": sorted(own)[len(own) // 2] / updates,
        "ratios": ratios,
        "ratios_of_processor_time": of_processor,
        "ratios_of_the_same": same,
        "overhead": framework.overhead,
        "steps": framework.steps,
        "steps_measured": framework.measured,
    }


def _silence() -> None:
    warnings.simplefilter("ignore")
    for logger in ("lightning", "lightning.pytorch", "lightning.fabric", "transformers"):
        logging.getLogger(logger).setLevel(logging.ERROR)


if __name__ == "__main__":
    main()
