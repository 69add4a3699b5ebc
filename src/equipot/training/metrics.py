"""Errors over a whole epoch as exact sums over all known components, on one process or on many, by level."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from equipot.deploy.checkpoint import metric_of_level
from equipot.evaluation.metrics import mean_errors
from equipot.graph import AtomicGraph
from equipot.models.predict import Prediction
from equipot.quantities import LABELS
from equipot.training.loss import LabelError, Loss, label_errors

_COLUMNS = ("absolute", "square", "loss", "count")


class ErrorSums(Metric):
    """Sums of |error|, error², loss and count of each label, float64, added up over processes.

    One small tensor instead of a dozen metrics: a training step pays for one update.
    """

    full_state_update = False
    sums: Tensor  # (Q, 4): a row for each quantity; columns |error|, error², loss, count

    def __init__(self):
        super().__init__()
        zeros = torch.zeros(len(LABELS), len(_COLUMNS), dtype=torch.float64)
        self.add_state("sums", zeros, dist_reduce_fx="sum")

    def update(self, errors: dict[str, LabelError], loss_sums: dict[str, Tensor]) -> None:
        """Add one batch."""
        for name, label in errors.items():
            error = label.error.detach()
            row = (error.abs().sum(), error.square().sum(), loss_sums[name].detach(), label.count)
            self.sums[LABELS.index(name)] += torch.stack(row)

    def compute(self) -> Tensor:
        """The sums (Q, 4)."""
        return self.sums


def summarize(sums: Tensor, weights: dict[str, float]) -> dict[str, float]:
    """Named errors from the sums of ``ErrorSums``.

    Returns:
        ``loss`` (the weighted sum of means over everything summed), and ``mean_errors`` of each label that
        occurred.
    """
    metrics = {"loss": 0.0}
    for name, (absolute, square, loss, count) in zip(LABELS, sums.tolist(), strict=True):
        if count:
            metrics["loss"] += weights[name] * loss / count
            metrics |= mean_errors(name, absolute, square, count)
    return metrics


class LevelErrors(nn.ModuleList):
    """``ErrorSums`` for each of several ``levels``, to add to those of all; of one level none."""

    def __init__(self, levels: Sequence[str]):
        self.names = list(levels) if len(levels) > 1 else []
        super().__init__(ErrorSums() for _ in self.names)

    def reset(self) -> None:
        """Forget all errors."""
        for sums in self:
            sums.reset()

    def update(self, prediction: Prediction, graph: AtomicGraph, loss: Loss) -> None:
        """Add one batch."""
        for index, sums in enumerate(self):
            errors = label_errors(prediction, graph, graph.level == index)
            sums.update(errors, loss.sums(errors))

    def metrics(self, weights: dict[str, float]) -> dict[str, float]:
        """What ``summarize`` gives but the loss, by names such as ``forces_mae[pbe0]``."""
        return {
            metric_of_level(metric, name): value
            for name, sums in zip(self.names, self, strict=True)
            for metric, value in summarize(sums.compute(), weights).items()
            if metric != "loss"
        }
