"""Batch norm's running statistics, taken anew at weights that were never trained to."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from batchscope.seeding import isolated
from batchscope.training.evaluation import EvaluationData
from batchscope.training.modes import evaluating


def tracking_norms(model: nn.Module) -> list[_BatchNorm]:
    """The batch norms of a model that keep running statistics.

    Args:
        model: Any model.
    """
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


def take_statistics(model: nn.Module, data: EvaluationData, *, seed: int) -> int:
    """Replace running statistics by those of the given examples at the model's present weights.

    Between two networks that were trained, the statistics of either are wrong, and interpolated ones too (Jordan et al.
    2022, arXiv 2211.08403). Batch norms alone are in training mode for it, and average over the batches; all else, as
    dropout, is in evaluation mode.

    Args:
        model: Changed in place, in its running statistics alone.
        data: The examples.
        seed: Of whatever the model draws.

    Returns:
        Examples that they were taken from; 0 where the model has no such statistics.
    """
    norms = tracking_norms(model)
    if not norms:
        return 0
    momenta = [norm.momentum for norm in norms]
    with evaluating(model), torch.no_grad(), isolated(seed, data.device):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over batches, each counting alike
            norm.training = True
        for count, batch in data.batches():
            if count > 1:
                data.workload.output_and_target(model, batch)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    return len(data.indices)
