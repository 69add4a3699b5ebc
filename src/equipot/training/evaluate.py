"""Errors of a potential on a data set, outside Lightning."""

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from equipot.config import LossConfig
from equipot.graph import collate
from equipot.models.potential import predict
from equipot.training.loss import Loss, label_errors
from equipot.training.metrics import ErrorSums, summarize


def evaluate_errors(
    potential: nn.Module, dataset: Dataset, batch_size: int, loss: LossConfig, device: torch.device | str
) -> dict[str, float]:
    """The metrics of :func:`equipot.training.metrics.summarize` over all frames of ``dataset``."""
    potential = potential.to(device).eval()
    function, totals = Loss(loss), ErrorSums().to(device)
    for batch in DataLoader(dataset, batch_size, collate_fn=collate):
        graph = batch.to(device)
        errors = label_errors(predict(potential, graph), graph)
        totals.update(errors, function.sums(errors))
    return summarize(totals.sums, function.weights)
