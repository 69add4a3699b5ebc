"""The Lightning module: a potential, its loss, and what one step does."""

import logging
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from equipot.config import TrainingConfig
from equipot.data.batching import Step
from equipot.devices import by_halves
from equipot.errors import TrainingError
from equipot.graph import AtomicGraph
from equipot.models.predict import Prediction, predict
from equipot.ops.operators import know_types
from equipot.training.devices import sum_over_processes
from equipot.training.ema import make_average
from equipot.training.learning_rate import LearningRateSchedule
from equipot.training.loss import LabelError, Loss, label_errors
from equipot.training.metrics import ErrorSums, LevelErrors
from equipot.training.optimizers import make_optimizer

logger = logging.getLogger("equipot")

_GPU_CHECK_INTERVAL = 50


class PotentialModule(L.LightningModule):
    """A potential, with the contract of :class:`equipot.models.potential.Potential`, under training.

    ``record`` is what every checkpoint says about the model under its key ``equipot``; ``factors`` are those
    of the learning rate, by the names of weights; 1 for those it does not name.
    """

    def __init__(
        self,
        potential: nn.Module,
        training: TrainingConfig,
        record: dict[str, Any],
        factors: Mapping[str, float] | None = None,
    ):
        super().__init__()
        # Lightning's own optimization knows neither steps in parts nor losses whose counts are joint.
        self.automatic_optimization = False
        self.potential = potential
        self.training_config = training
        outputs = getattr(potential, "outputs", None)
        spreads = {} if outputs is None else outputs.spreads
        self.loss = Loss(training.loss, spreads, getattr(potential, "species", ()), training.irrep_weights)
        self.average = make_average(potential, training)
        self.train_errors = ErrorSums()
        self.validation_errors = ErrorSums()
        self.level_errors = LevelErrors(getattr(potential, "levels", ()))
        self.validation_metrics: dict[str, float] = {}
        self.schedule: LearningRateSchedule | None = None
        self.most_edges: float = math.inf  # computed together; falls when memory runs out
        self._record = record
        self.time_done = 0.0  # of training.max_minutes, as a part of 1, where the schedule goes by it
        self.epoch = 0.0  # epochs done before the present step; more of them where the time is ahead
        self._factors = factors or {}
        self._weights = [weight for weight in potential.parameters() if weight.requires_grad]

    def setup(self, stage: str) -> None:
        training = self.training_config
        self.schedule = LearningRateSchedule(
            training.schedule,
            training.learning_rate,
            self.trainer.datamodule.steps_per_epoch,
            training.epochs,
            training.swa,
        )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return make_optimizer(self.potential, self.training_config, self._factors)

    def on_train_start(self) -> None:
        if self.average is not None:
            self.average.to(self.device)

    def transfer_batch_to_device(self, batch: Step | AtomicGraph, device: torch.device, _: int) -> Any:
        """Lightning's hook. A GPU need not count the atoms of each species."""
        moved = batch.to(device)
        graphs = ((one.parts if isinstance(one, Step) else (one,)) for one in (batch, moved))
        for on_host, graph in zip(*graphs, strict=True):
            know_types(graph.atom_types, on_host.atom_types, len(getattr(self.potential, "species", ())))
        return moved

    def on_train_batch_start(self, batch: Step, batch_idx: int) -> None:
        # In steps of the first epoch; others have a few more or less where the batch size is a budget.
        length = self.trainer.datamodule.steps_per_epoch
        position = self.current_epoch * length + batch_idx * (length / self.trainer.num_training_batches)
        position = max(position, self.time_done * self.schedule.total_steps)
        for group in self.optimizers().param_groups:
            group["lr"] = self.schedule.at(position) * group.get("factor", 1.0)
        epoch = self.current_epoch + batch_idx / self.trainer.num_training_batches
        self.epoch = max(epoch, self.time_done * self.training_config.epochs)

    def training_step(self, step: Step, batch_idx: int) -> None:
        """One optimizer step; its gradient is that of all its frames, on whichever process they are."""
        optimizer = self.optimizers()
        optimizer.zero_grad()
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        for part in step.parts:
            self._add_gradient(part, step.counts, loss)
        for weight in self._weights:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        sum_over_processes([loss, *(weight.grad for weight in self._weights)])
        # Reading a number from a GPU stops its queue, so it is done now and then there.
        if loss.device.type == "cpu" or batch_idx % _GPU_CHECK_INTERVAL == 0:
            self.refuse_non_finite(loss.item(), batch_idx)
        self.clip_gradients(optimizer, self.training_config.gradient_clip, "norm")
        optimizer.step()
        if self.average is not None:
            self.average.update(self.epoch)

    def _add_gradient(self, graph: AtomicGraph, counts: Tensor, total: Tensor) -> None:
        """Add to the weights' gradients, and to the loss ``total``, what the frames of ``graph`` give."""
        pieces = by_halves(partial(self._gradients, counts), graph, self._compute_less_at_once, self._fits)
        for loss, gradients, errors, sums in pieces:
            total += loss
            self.train_errors.update(errors, sums)
            for weight, gradient in zip(self._weights, gradients, strict=True):
                if gradient is not None:
                    # A copy: two weights may have been given the same tensor.
                    weight.grad = gradient.clone() if weight.grad is None else weight.grad.add_(gradient)

    def _gradients(self, counts: Tensor, graph: AtomicGraph) -> tuple:
        """The frames' share of the loss, its gradients, their errors and the sums of these."""
        prediction, errors, sums = self._predict(graph)
        loss = self.loss.total(sums, counts, prediction, self.loss.weights_at(self.epoch))
        # Not backward(): when memory runs out in the middle, that would leave some gradients added.
        return loss.detach(), torch.autograd.grad(loss, self._weights, allow_unused=True), errors, sums

    def _predicted(self, graph: AtomicGraph) -> tuple[AtomicGraph, tuple]:
        return graph, self._predict(graph)

    def _fits(self, graph: AtomicGraph) -> bool:
        return graph.num_edges <= self.most_edges or graph.num_structures == 1

    def _compute_less_at_once(self, graph: AtomicGraph, error: Exception) -> None:
        what = f"{graph.num_structures} frames with {graph.num_edges:,} edges"
        if graph.num_structures == 1:
            raise TrainingError(
                f"Memory ran out on a single frame of {graph.num_atoms:,} atoms and {graph.num_edges:,} "
                "edges: it takes a smaller model (channels, l_max, layers), a shorter cutoff or a larger GPU."
            ) from error
        self.most_edges = graph.num_edges / 2
        logger.warning(
            "Memory ran out on %s at once. Nothing is lost: the step is done in parts, and from here on at "
            "most %d edges are computed together. training.accumulate or training.batch_size would avoid it.",
            what, self.most_edges,
        )  # fmt: skip

    def on_validation_epoch_start(self) -> None:
        self.validation_errors.reset()
        self.level_errors.reset()
        if self.average is not None:
            self.average.swap()

    def validation_step(self, batch: AtomicGraph, batch_idx: int) -> None:
        # Lightning switches gradients off here, but forces are one. In eval mode no graph is kept.
        with torch.enable_grad():
            for graph, found in by_halves(self._predicted, batch, self._compute_less_at_once, self._fits):
                prediction, errors, sums = found
                self.validation_errors.update(errors, sums)
                self.level_errors.update(prediction, graph, self.loss)

    def on_validation_epoch_end(self) -> None:
        if self.average is not None:
            self.average.swap()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        average = self.average
        checkpoint["equipot"] = {
            **self._record,
            "validation": dict(self.validation_metrics),
            **({"ema": None, "swa": None} if average is None else average.checkpoint()),
        }
        checkpoint["equipot_resume"] = {
            "schedule": self.schedule.state_dict(),
            "average": None if average is None else average.state_dict(),
            "most_edges": self.most_edges,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        resume = checkpoint["equipot_resume"]
        self.schedule.load_state_dict(resume["schedule"])
        self.most_edges = resume["most_edges"]
        self.validation_metrics = dict(checkpoint["equipot"]["validation"])
        if self.average is not None:
            self.average.load(checkpoint["equipot"], resume["average"])

    def refuse_non_finite(self, loss: float, batch_idx: int) -> None:
        """Raise TrainingError if ``loss``, after batch ``batch_idx`` of this epoch, is not finite."""
        if abs(loss) < float("inf"):
            return
        rate = self.schedule.at(self.global_step)
        raise TrainingError(
            f"The loss is {loss} in epoch {self.current_epoch + 1}, batch {batch_idx + 1} "
            f"(step {self.global_step}), at a learning rate of {rate:.3g}. What helps: "
            "a lower training.learning_rate, training.gradient_clip (10, say), warm-up epochs; "
            "taking frames with huge forces out of the data; model.dtype: float64."
            + (" The checkpoints of earlier epochs are intact." if self.current_epoch > 0 else "")
        )

    def _predict(self, graph: AtomicGraph) -> tuple[Prediction, dict[str, LabelError], dict[str, Tensor]]:
        """Prediction, its errors, and their sums in the loss."""
        prediction = predict(self.potential, graph, energy=self.training_config.loss.of_energies)
        errors = label_errors(prediction, graph)
        return prediction, errors, self.loss.sums(errors)
