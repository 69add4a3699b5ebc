"""The learning rate: linear warm-up, then plateau, cosine or constant; at last that of weight averaging."""

import math

from equipot.config import ScheduleConfig, SWAConfig

# A smaller relative fall counts as a plateau: averaged weights make the loss creep down for ever.
RELATIVE_IMPROVEMENT = 1e-4


class LearningRateSchedule:
    """Learning rate of each optimizer step.

    Args:
        settings: section ``training.schedule`` of the configuration.
        learning_rate: the rate after warm-up.
        steps_per_epoch: optimizer steps of one epoch.
        epochs: epochs of the whole training, at whose end the cosine arrives at its minimum.
        swa: section ``training.swa``, whose rate takes the place of all others once it begins.
    """

    def __init__(
        self,
        settings: ScheduleConfig,
        learning_rate: float,
        steps_per_epoch: int,
        epochs: int,
        swa: SWAConfig | None = None,
    ):
        self.settings = settings
        self.learning_rate = learning_rate
        self.warmup_steps = settings.warmup_epochs * steps_per_epoch
        self.total_steps = epochs * steps_per_epoch
        self.last_rate = None if swa is None else swa.learning_rate
        self.last_rate_from = math.inf if swa is None else swa.from_epoch * steps_per_epoch
        self._reduction = 1.0
        self._best = math.inf
        self._epochs_without_improvement = 0

    def at(self, step: int) -> float:
        """Learning rate of optimizer step ``step``, counted from 0."""
        if self.last_rate is not None and step >= self.last_rate_from:
            return self.last_rate
        if step < self.warmup_steps:
            rate = self.learning_rate * (step + 1) / self.warmup_steps
        elif self.settings.kind == "cosine":
            done = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
            lowest = self.settings.min_learning_rate
            rate = lowest + 0.5 * (self.learning_rate - lowest) * (1 + math.cos(math.pi * min(1.0, done)))
        else:
            rate = self.learning_rate * self._reduction
        return max(rate, self.settings.min_learning_rate)

    def observe(self, validation_loss: float, epoch: int) -> None:
        """Tell the schedule the validation loss after epoch ``epoch``, counted from 0."""
        if self.settings.kind != "plateau" or epoch < self.settings.warmup_epochs:
            return
        if validation_loss < self._best * (1 - RELATIVE_IMPROVEMENT):
            self._best = validation_loss
            self._epochs_without_improvement = 0
            return
        self._epochs_without_improvement += 1
        if self._epochs_without_improvement > self.settings.patience:
            self._reduction *= self.settings.factor
            self._epochs_without_improvement = 0

    def forget_best(self) -> None:
        """Look for a plateau anew; the reductions so far stay."""
        self._best = math.inf
        self._epochs_without_improvement = 0

    def state_dict(self) -> dict[str, float | int]:
        """What the losses so far have left behind."""
        return {
            "reduction": self._reduction,
            "best": self._best,
            "epochs_without_improvement": self._epochs_without_improvement,
        }

    def load_state_dict(self, state: dict[str, float | int]) -> None:
        """Go on where ``state_dict`` was taken."""
        self._reduction = state["reduction"]
        self._best = state["best"]
        self._epochs_without_improvement = state["epochs_without_improvement"]
