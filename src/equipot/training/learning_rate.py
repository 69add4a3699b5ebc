"""The learning rate: its schedule in a training, and the search for one.

The search makes steps on the real data while the rate rises from far too low to far too high.

Source: L. N. Smith, "Cyclical learning rates for training neural networks", WACV 2017, section 3.3.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from equipot.config import Config, ScheduleConfig, SWAConfig
from equipot.data.progress import track
from equipot.errors import TrainingError
from equipot.files import atomic_write
from equipot.training.preparation import prepare
from equipot.training.trial import Trial

# A smaller relative fall counts as a plateau: averaged weights make the loss creep down for ever.
RELATIVE_IMPROVEMENT = 1e-4
STEPS = 300
LOWEST, HIGHEST = 1e-5, 1.0
_SMOOTHING = 0.9  # of the moving average of the logarithm of the loss
_DIVERGED = 4.0  # times the lowest loss
_MARGIN = 3.0  # the suggestion stays below the rate of the lowest loss by this factor


class LearningRateSchedule:
    """Learning rate of each optimizer step: ``learning_rate`` is that after warm-up.

    The cosine arrives at its minimum after ``epochs``, and the rate of ``swa`` takes the place of all others.
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
        self.warmup_steps = round(settings.warmup_epochs * steps_per_epoch)
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


@dataclass(frozen=True)
class RateSearch:
    """What each rate gave, and what to use."""

    rates: list[float]
    losses: list[float]  # of the frames of each step, before it
    smoothed: list[float]
    suggestion: float
    now: float  # what the training would have
    choices: list[str]  # of what was `auto`, a line each


def find_learning_rate(config: Config, steps: int = STEPS) -> RateSearch:
    """Train for ``steps`` steps, the rate rising by equal factors; writes no file.

    It ends early when the loss has risen to four times its lowest value. The data, the weights to start
    from, the optimizer, the loss and the clipping are those of ``config``; its learning rate, schedule and
    averages play no part.

    Raises:
        TrainingError: the loss is not finite from the start; or as `prepare`, which raises others, too.
    """
    prepared = prepare(config)
    start = prepared.start
    trial = Trial(prepared.config, prepared.training_set, start.potential, prepared.device, start.factors)
    rates, losses, smoothed = [], [], []
    for index, step in enumerate(track(trial.steps(steps), "finding the learning rate", steps)):
        rate = LOWEST * (HIGHEST / LOWEST) ** (index / (steps - 1))
        value = trial.train(step, rate)
        if not math.isfinite(value):
            break
        rates.append(rate)
        losses.append(value)
        smoothed.append(_smooth(losses))
        if smoothed[-1] > _DIVERGED * min(smoothed):
            break
    if not rates:
        raise TrainingError(
            "The loss is not finite before the first step: look for huge or wrong labels in the data."
        )
    now = prepared.config.training.learning_rate
    return RateSearch(rates, losses, smoothed, suggest(rates, smoothed), now, prepared.choices)


def suggest(rates: list[float], smoothed: list[float]) -> float:
    """A third of the rate of the lowest smoothed loss, rounded down to 1, 2 or 5 times a power of ten."""
    best = rates[min(range(len(rates)), key=smoothed.__getitem__)] / _MARGIN
    power = 10.0 ** math.floor(math.log10(best))
    return max(digit * power for digit in (1, 2, 5) if digit * power <= best * (1 + 1e-9))


def plot_search(search: RateSearch, path: Path) -> None:
    """PNG of the loss against the rate, both on logarithmic scales."""
    figure = Figure(figsize=(5.6, 3.8), layout="constrained")
    axes = figure.subplots()
    axes.plot(search.rates, search.losses, ".", color="0.75", markersize=3, label="loss of each step")
    axes.plot(search.rates, search.smoothed, color="tab:blue", label="smoothed")
    axes.axvline(search.suggestion, color="tab:orange", label=f"suggestion: {search.suggestion:g}")
    axes.set(xscale="log", yscale="log", xlabel="learning rate", ylabel="loss")
    axes.grid(linewidth=0.3, alpha=0.5)
    axes.legend(frameon=False)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=150)


def _smooth(losses: list[float]) -> float:
    """The last value of the moving average of the logarithms, each weighing ``_SMOOTHING`` of the next."""
    weights = _SMOOTHING ** np.arange(len(losses))[::-1]
    return float(np.exp(np.average(np.log(np.maximum(losses, 1e-300)), weights=weights)))
