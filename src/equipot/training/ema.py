"""Averages of the weights, exponential or with equal shares: what is validated, kept as best, deployed."""

from typing import Any

import torch
from torch import Tensor, nn

from equipot.config import TrainingConfig
from equipot.errors import TrainingError

_KINDS = ("ema", "swa")


class WeightAverage:
    """At any time one average, which ``kind`` names.

    ``ema``: avg ← decay · avg + (1 − decay) · weights, after every optimizer step. Early on the decay is
    (1 + n) / (10 + n), so that the random initial weights are forgotten soon.
    ``swa``: the mean of the weights after every step since it began.
    None: there is no average yet, and the weights themselves stand in for it.

    Args:
        model: its trainable parameters are averaged; nothing else of it changes in training.
        decay: of ``ema``, between 0 and 1; None: there is none.
        swa_from: epochs after which ``swa`` begins; None: never.
    """

    def __init__(self, model: nn.Module, decay: float | None, swa_from: int | None = None):
        self.decay = decay
        self.swa_from = swa_from
        self.kind = None if decay is None else "ema"
        self.updates = 0
        self._model = model
        trainable = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self._names, self._weights = list(trainable), list(trainable.values())
        self._averages = [weight.detach().clone() for weight in self._weights]

    @torch.no_grad()
    def update(self, epoch: float = 0.0) -> None:
        """Take in the present weights, from a step that was made after ``epoch`` epochs."""
        if self.kind != "swa" and self.swa_from is not None and epoch >= self.swa_from:
            self.kind, self.updates = "swa", 0
        if self.kind is None:
            return
        self.updates += 1
        if self.kind == "swa":
            share = 1 / self.updates
        else:
            share = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self._averages, [weight.data for weight in self._weights], share)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange weights and averages; exact, since only storage changes hands."""
        if self.kind is None:
            return
        for index, weight in enumerate(self._weights):
            weight.data, self._averages[index] = self._averages[index], weight.data

    def to(self, device: torch.device) -> None:
        """Move the averages to ``device``."""
        self._averages = [average.to(device) for average in self._averages]

    def model_state_dict(self) -> dict[str, Tensor]:
        """State dict of the model with the averages as its weights."""
        state = dict(self._model.state_dict())
        state.update(zip(self._names, self._averages, strict=True))
        return state

    def checkpoint(self) -> dict[str, dict[str, Tensor] | None]:
        """For each kind the ``model_state_dict``, or None if the average is of another kind."""
        return {kind: self.model_state_dict() if kind == self.kind else None for kind in _KINDS}

    def state_dict(self) -> dict[str, int | None]:
        """What it takes to go on, beside ``checkpoint``."""
        return {"updates": self.updates, "swa_from": self.swa_from}

    def load(self, content: dict[str, Any], state: dict[str, int | None]) -> None:
        """Go on from what ``checkpoint`` and ``state_dict`` gave.

        Raises:
            TrainingError: it has another kind of average than this training would have by then.
        """
        kind = next((kind for kind in _KINDS if content.get(kind) is not None), None)
        if kind is None and self.decay is not None:
            raise TrainingError("The checkpoint has no average of the weights: set training.ema to null.")
        if kind == "swa" and state["swa_from"] != self.swa_from:
            raise TrainingError(
                f"The checkpoint holds an average of the weights since epoch {state['swa_from']}: set "
                "training.swa.from_epoch to that."
            )
        self.kind = None if kind == "ema" and self.decay is None else kind
        self.updates = state["updates"]
        if self.kind is not None:
            for name, average in zip(self._names, self._averages, strict=True):
                average.copy_(content[self.kind][name])


def make_average(potential: nn.Module, training: TrainingConfig) -> WeightAverage | None:
    """The average that ``training.ema`` and ``training.swa`` ask for; None: neither."""
    if training.ema is None and training.swa is None:
        return None
    return WeightAverage(potential, training.ema, None if training.swa is None else training.swa.from_epoch)
