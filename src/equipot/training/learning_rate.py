"""Learning-rate finder: steps on the real data while the rate rises from far too low to far too high.

Source: L. N. Smith, "Cyclical learning rates for training neural networks", WACV 2017, section 3.3.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import nn

from equipot.config import Config
from equipot.data.batching import Step, StepSampler, step_loader
from equipot.data.load import load_datasets
from equipot.data.progress import track
from equipot.errors import TrainingError
from equipot.files import atomic_write
from equipot.models.potential import predict
from equipot.training.batches import budget_of
from equipot.training.devices import choose_device
from equipot.training.fine_tune import begin_training, model_to_start_from
from equipot.training.loss import Loss, label_errors
from equipot.training.optimizers import make_optimizer
from equipot.training.run import check_labels

STEPS = 300
LOWEST, HIGHEST = 1e-5, 1.0
_SMOOTHING = 0.9  # of the moving average of the logarithm of the loss
_DIVERGED = 4.0  # times the lowest loss
_MARGIN = 3.0  # the suggestion stays below the rate of the lowest loss by this factor


@dataclass(frozen=True)
class RateSearch:
    """What each rate gave, and what to use."""

    rates: list[float]
    losses: list[float]  # of the frames of each step, before it
    smoothed: list[float]
    suggestion: float


def find_learning_rate(config: Config, steps: int = STEPS) -> RateSearch:
    """Train from where ``config`` starts for ``steps`` steps of rising rate; writes no file.

    It ends early when the loss has risen to four times its lowest value. The optimizer, the loss, the
    clipping and the data are those of ``config``; its learning rate, schedule and averages play no part.

    Raises:
        TrainingError: the loss is not finite from the start; or no usable data.
        DataError, DeviceError: as ``train``.
    """
    device = choose_device(config.run)
    config, source = model_to_start_from(config)
    datasets = load_datasets(config.data, config.model.cutoff)
    check_labels(datasets, config)
    torch.manual_seed(config.run.seed)
    begin = begin_training(config, datasets, source, None, device)
    potential = begin.potential.to(device).train()
    optimizer, loss = make_optimizer(potential, config.training, begin.factors), Loss(config.training.loss)
    rates, losses, smoothed = [], [], []
    batches = _steps(config, datasets.train, steps)
    for index, step in enumerate(track(batches, "finding the learning rate", steps)):
        rate = LOWEST * (HIGHEST / LOWEST) ** (index / (steps - 1))
        value = _step(potential, step.to(device), loss, optimizer, rate, config.training.gradient_clip)
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
    return RateSearch(rates, losses, smoothed, suggest(rates, smoothed))


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


def _steps(config: Config, dataset, number: int) -> Iterator[Step]:
    """The first steps of a training, over as many epochs as that takes."""
    training = config.training
    sampler = StepSampler(
        dataset, budget_of(training.batch_size), config.run.seed, accumulate=training.accumulate
    )
    done, epoch = 0, 0
    while done < number:
        sampler.set_epoch(epoch)
        for step in step_loader(dataset, sampler):
            yield step
            done += 1
            if done == number:
                return
        epoch += 1


def _step(
    potential: nn.Module,
    step: Step,
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    rate: float,
    gradient_clip: float | None,
) -> float:
    """One optimizer step at ``rate``; the loss before it. No step is made if that is not finite."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]
    optimizer.zero_grad()
    value = 0.0
    for part in step.parts:
        prediction = predict(potential, part)
        sums = loss.sums(label_errors(prediction, part))
        total = loss.total(sums, step.counts, prediction, loss.weights_at(0.0))
        total.backward()
        value += total.item()
    if math.isfinite(value):
        if gradient_clip is not None:
            nn.utils.clip_grad_norm_(potential.parameters(), gradient_clip)
        optimizer.step()
    return value


def _smooth(losses: list[float]) -> float:
    """The last value of the moving average of the logarithms, each weighing ``_SMOOTHING`` of the next."""
    weights = [_SMOOTHING**age for age in range(len(losses))][::-1]
    logarithms = [math.log(max(loss, 1e-300)) for loss in losses]
    return math.exp(sum(w * x for w, x in zip(weights, logarithms, strict=True)) / sum(weights))
