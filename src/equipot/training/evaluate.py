"""Errors of a potential on a data set, outside Lightning."""

import torch
from torch import nn

from equipot.config import LossConfig
from equipot.data.batching import BatchSampler, Budget, SizedGraphs, batch_loader
from equipot.models.potential import predict
from equipot.training.loss import Loss, label_errors
from equipot.training.metrics import ErrorSums, summarize


def evaluate_errors(
    potential: nn.Module, dataset: SizedGraphs, budget: Budget, loss: LossConfig, device: torch.device | str
) -> dict[str, float]:
    """The metrics of :func:`equipot.training.metrics.summarize`, over all frames, a ``budget`` at a time."""
    potential = potential.to(device).eval()
    function, totals = Loss(loss), ErrorSums().to(device)
    for batch in batch_loader(dataset, BatchSampler(dataset, budget)):
        graph = batch.to(device)
        errors = label_errors(predict(potential, graph), graph)
        totals.update(errors, function.sums(errors))
    return summarize(totals.sums, function.weights)
