"""Exponential moving average of the weights: what is validated, kept as best, and deployed."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """avg ← decay · avg + (1 − decay) · weights, after every optimizer step.

    Early on the decay is (1 + n) / (10 + n), so that the random initial weights are forgotten soon.

    Args:
        model: its trainable parameters are averaged; nothing else of it changes in training.
        decay: between 0 and 1.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.updates = 0
        self._model = model
        trainable = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self._names, self._weights = list(trainable), list(trainable.values())
        self._averages = [weight.detach().clone() for weight in self._weights]

    @torch.no_grad()
    def update(self) -> None:
        """Move the averages towards the present weights."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self._averages, [weight.data for weight in self._weights], 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model computes with the averages inside the block."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange weights and averages; exact, since only storage changes hands."""
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

    def load_model_state_dict(self, state: dict[str, Tensor], updates: int) -> None:
        """Go on from the ``model_state_dict`` taken after ``updates`` updates."""
        self.updates = updates
        for name, average in zip(self._names, self._averages, strict=True):
            average.copy_(state[name])
