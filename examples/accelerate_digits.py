"""accelerate: the noise scale of a loop with gradient accumulation, then a comparison of batch sizes."""

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import batchscope as bs
from batchscope.integrations.accelerate import gradient_noise_of, workload_from_accelerate

torch.manual_seed(0)
x, y = load_digits(return_X_y=True)
x, y = torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y)
order = torch.randperm(len(x))
train, held_out = (TensorDataset(x[part], y[part]) for part in (order[:1437], order[1437:]))

accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
loaders = DataLoader(train, batch_size=16, shuffle=True), DataLoader(held_out, batch_size=360)
workload = workload_from_accelerate(
    accelerator,
    model,
    optimizer,
    *loaders,
    loss=F.cross_entropy,
    score=lambda output, y: (output.argmax(1) == y).double().mean(),
)

model, optimizer, loader = accelerator.prepare(model, optimizer, loaders[0])
noise = gradient_noise_of(accelerator, model, optimizer, every=5)  # without every: as often as 3% of the time allow
for _ in range(8):
    for x, y in loader:
        with accelerator.accumulate(model):
            accelerator.backward(F.cross_entropy(model(x), y))
            optimizer.step()
            optimizer.zero_grad()
print(noise)
print(bs.compare(workload, [(16, 64), (128, 8)], seeds=2).conclusion)
