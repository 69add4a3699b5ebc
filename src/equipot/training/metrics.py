"""Errors over a whole epoch as exact sums over all known components, on one process or on many."""

import math

import torch
from torch import Tensor
from torchmetrics import Metric

from equipot.quantities import LABELS
from equipot.training.loss import LabelError

_COLUMNS = ("absolute", "square", "loss", "count")


class ErrorSums(Metric):
    """Sums of |error|, error², loss and count of each label, float64, added up over processes.

    One small tensor instead of a dozen metrics: a training step pays for one update.
    """

    full_state_update = False
    sums: Tensor  # (3, 4): rows energy, forces, stress; columns |error|, error², loss, count

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
        """The sums (3, 4)."""
        return self.sums


def summarize(sums: Tensor, weights: dict[str, float]) -> dict[str, float]:
    """Named errors from the sums of ``ErrorSums``.

    Returns:
        ``loss`` (the weighted sum of means over everything summed), and for each label that occurred
        ``energy_mae``, ``energy_rmse`` (eV/atom), ``forces_mae``, ``forces_rmse`` (eV/Å, per component),
        ``stress_mae``, ``stress_rmse`` (eV/Å³, per component).
    """
    metrics = {"loss": 0.0}
    for name, row in zip(LABELS, sums.tolist(), strict=True):
        absolute, square, loss, count = row
        if count == 0:
            continue
        metrics["loss"] += weights[name] * loss / count
        metrics[f"{name}_mae"] = absolute / count
        metrics[f"{name}_rmse"] = math.sqrt(square / count)
    return metrics
