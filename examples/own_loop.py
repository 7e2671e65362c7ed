"""A plain PyTorch loop with the gradient noise scale beside it: the two lines that say noise."""

import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F

import batchscope as bs

torch.manual_seed(0)
x, y = load_digits(return_X_y=True)
x, y = torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y)
model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

noise = bs.GradientNoise(model, optimizer, every=5)  # without every: as often as 3% of the time allow
for _ in range(10):
    for batch in torch.randperm(len(x)).split(32):
        loss = F.cross_entropy(model(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
print(noise)
