"""skorch: a net with its noise scale in the history, then a comparison of batch sizes."""

import numpy as np
import torch
from sklearn.datasets import load_digits
from skorch import NeuralNetClassifier

import batchscope as bs
from batchscope.integrations.skorch import BatchscopeNetCallback, workload_from_net


class Network(torch.nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(64, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, 10))

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        return self.layers(X)


X, y = load_digits(return_X_y=True)
X = (X / 16).astype(np.float32)
torch.manual_seed(0)
net = NeuralNetClassifier(
    Network,
    module__hidden=64,
    criterion=torch.nn.CrossEntropyLoss,
    optimizer__momentum=0.9,
    lr=0.1,
    batch_size=32,
    max_epochs=5,
    iterator_train__shuffle=True,
    verbose=0,
    callbacks=[("noise", BatchscopeNetCallback(every=5))],  # without every: as often as 3% of the time allow
)
net.fit(X, y)
print(f"gradient noise scale {net.history[-1, 'noise_scale']:.0f}, accuracy {net.history[-1, 'valid_acc']:.3f}")
print(bs.compare(workload_from_net(net, X, y), [(16, 64), (128, 8)], seeds=2).conclusion)
