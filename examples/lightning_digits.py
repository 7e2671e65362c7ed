"""Lightning: follow the noise scale of a run, then ask which batch size is worth its time."""

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, random_split

import batchscope as bs
from batchscope.integrations.lightning import BatchscopeCallback, workload_from_lightning


class Digits(pl.LightningDataModule):
    def setup(self, stage: str) -> None:
        x, y = load_digits(return_X_y=True)
        examples = TensorDataset(torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y))
        self.train, self.held_out = random_split(examples, [1437, 360], torch.Generator().manual_seed(0))

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, batch_size=32, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.held_out, batch_size=360)


class Network(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


pl.seed_everything(0)
callback = BatchscopeCallback(every=5)  # without every: as often as 3% of the time allow
quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
trainer = pl.Trainer(max_epochs=5, accelerator="cpu", callbacks=[callback], **quiet)
trainer.fit(Network(), Digits())
print(callback.noise)

workload = workload_from_lightning(Network, Digits(), score=lambda output, y: (output.argmax(1) == y).double().mean())
print(bs.compare(workload, [(16, 64), (128, 8)], seeds=2).conclusion)
