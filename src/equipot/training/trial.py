"""A few steps of a training that leaves nothing behind: to find a learning rate, or what a step costs."""

import math
from collections.abc import Iterator, Mapping

from torch import nn

from equipot.config import Config
from equipot.data.batching import Step, StepSampler, step_loader
from equipot.data.dataset import GraphDataset
from equipot.models.predict import predict
from equipot.training.batches import budget_of
from equipot.training.loss import Loss, label_errors
from equipot.training.optimizers import make_optimizer


class Trial:
    """The first steps of a training, with the optimizer and the loss of ``config``.

    ``factors`` are those of the learning rate, by the names of weights; 1 for those it does not name.
    """

    def __init__(
        self,
        config: Config,
        dataset: GraphDataset,
        potential: nn.Module,
        device: str,
        factors: Mapping[str, float] | None = None,
    ):
        training = config.training
        self.potential, self.dataset, self.device = potential.to(device).train(), dataset, device
        self.sampler = StepSampler(
            dataset, budget_of(training.batch_size), config.run.seed, accumulate=training.accumulate
        )
        self._clip = training.gradient_clip
        self._optimizer = make_optimizer(potential, training, factors)
        spreads = {} if potential.outputs is None else potential.outputs.spreads
        self._loss = Loss(training.loss, spreads, potential.species, training.irrep_weights)

    def steps(self, number: int) -> Iterator[Step]:
        """The first ``number`` steps, over as many epochs as that takes."""
        done, epoch = 0, 0
        while done < number:
            self.sampler.set_epoch(epoch)
            for step in step_loader(self.dataset, self.sampler):
                yield step
                done += 1
                if done == number:
                    return
            epoch += 1

    def train(self, step: Step, rate: float) -> float:
        """One optimizer step at ``rate``; the loss before it. No step is made if that is not finite."""
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        self._optimizer.zero_grad()
        value = 0.0
        step = step.to(self.device)
        for part in step.parts:
            prediction = predict(self.potential, part, energy=self._loss.settings.of_energies)
            sums = self._loss.sums(label_errors(prediction, part))
            total = self._loss.total(sums, step.counts, prediction, self._loss.weights_at(0.0))
            total.backward()
            value += total.item()
        if math.isfinite(value):
            if self._clip is not None:
                nn.utils.clip_grad_norm_(self.potential.parameters(), self._clip)
            self._optimizer.step()
        return value
