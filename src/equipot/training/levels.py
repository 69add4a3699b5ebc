"""Errors of each level of theory, where a model has several."""

import dataclasses
from collections.abc import Sequence

import torch
from torch import nn

from equipot.deploy.checkpoint import metric_of_level
from equipot.graph import AtomicGraph, Label, Labels
from equipot.models.potential import Prediction
from equipot.quantities import LABELS
from equipot.training.loss import Loss, label_errors
from equipot.training.metrics import ErrorSums, summarize


class LevelErrors(nn.Module):
    """Sums of errors for each of ``levels``, the total of which ``ErrorSums`` has; for one level nothing."""

    def __init__(self, levels: Sequence[str]):
        super().__init__()
        self.names = list(levels) if len(levels) > 1 else []
        self.sums = nn.ModuleList(ErrorSums() for _ in self.names)

    def reset(self) -> None:
        """Forget all errors."""
        for sums in self.sums:
            sums.reset()

    def update(self, prediction: Prediction, graph: AtomicGraph, loss: Loss) -> None:
        """Add one batch."""
        for index, sums in enumerate(self.sums):
            errors = label_errors(prediction, _only_level(graph, index))
            sums.update(errors, loss.sums(errors))

    def metrics(self, weights: dict[str, float]) -> dict[str, float]:
        """What ``summarize`` gives but the loss, by names such as ``forces_mae[pbe0]``."""
        return {
            metric_of_level(metric, name): value
            for name, sums in zip(self.names, self.sums, strict=True)
            for metric, value in summarize(sums.compute(), weights).items()
            if metric != "loss"
        }


def _only_level(graph: AtomicGraph, index: int) -> AtomicGraph:
    """The same graph, where only structures of one level have labels."""
    structures = graph.level == index
    rows = {"energy": structures, "forces": structures[graph.structure], "stress": structures}
    labels = {name: _where(getattr(graph.labels, name), rows[name]) for name in LABELS}
    return dataclasses.replace(graph, labels=Labels(**labels, weight=graph.labels.weight))


def _where(label: Label | None, rows: torch.Tensor) -> Label | None:
    return None if label is None else Label(label.value, label.mask & rows)
