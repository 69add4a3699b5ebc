"""The Lightning module: a potential, its loss, and what one step does."""

from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from equipot.config import TrainingConfig
from equipot.errors import TrainingError
from equipot.graph import AtomicGraph
from equipot.models.potential import predict
from equipot.training.ema import WeightAverage
from equipot.training.loss import Loss, label_errors
from equipot.training.metrics import ErrorSums
from equipot.training.schedule import LearningRateSchedule

_GPU_CHECK_INTERVAL = 50


class PotentialModule(L.LightningModule):
    """A potential under training.

    Args:
        potential: with the contract of :class:`equipot.models.potential.Potential`.
        training: section ``training`` of the configuration.
        record: what every checkpoint says about the model under its key ``equipot``.
    """

    def __init__(self, potential: nn.Module, training: TrainingConfig, record: dict[str, Any]):
        super().__init__()
        self.potential = potential
        self.training_config = training
        self.loss = Loss(training.loss)
        self.average = None if training.ema is None else WeightAverage(potential, training.ema)
        self.train_errors = ErrorSums()
        self.validation_errors = ErrorSums()
        self.validation_metrics: dict[str, float] = {}
        self.schedule: LearningRateSchedule | None = None
        self._record = record

    def setup(self, stage: str) -> None:
        training = self.training_config
        self.schedule = LearningRateSchedule(
            training.schedule,
            training.learning_rate,
            self.trainer.datamodule.steps_per_epoch,
            training.epochs,
        )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        training = self.training_config
        optimizers = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
        weights = [weight for weight in self.potential.parameters() if weight.requires_grad]
        # Matrices decay; the scale and shift of each species mean energies, which must not be drawn to zero.
        groups = [
            {"params": [w for w in weights if w.dim() >= 2], "weight_decay": training.weight_decay},
            {"params": [w for w in weights if w.dim() < 2], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        return optimizers[training.optimizer](groups, lr=training.learning_rate, fused=True)

    def on_train_start(self) -> None:
        if self.average is not None:
            self.average.to(self.device)

    def on_train_batch_start(self, batch: AtomicGraph, batch_idx: int) -> None:
        for group in self.optimizers().param_groups:
            group["lr"] = self.schedule.at(self.global_step)

    def transfer_batch_to_device(
        self, batch: AtomicGraph, device: torch.device, dataloader_idx: int
    ) -> AtomicGraph:
        return batch.to(device)

    def training_step(self, batch: AtomicGraph, batch_idx: int) -> Tensor:
        loss = self._loss(batch, self.train_errors)
        # Reading a number from a GPU stops its queue, so it is done now and then there.
        if loss.device.type == "cpu" or batch_idx % _GPU_CHECK_INTERVAL == 0:
            self.refuse_non_finite(loss.item(), batch_idx)
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.average is not None:
            self.average.update()

    def on_validation_epoch_start(self) -> None:
        self.validation_errors.reset()
        if self.average is not None:
            self.average.swap()

    def validation_step(self, batch: AtomicGraph, batch_idx: int) -> None:
        # Lightning switches gradients off here, but forces are one. In eval mode no graph is kept.
        with torch.enable_grad():
            self._loss(batch, self.validation_errors)

    def on_validation_epoch_end(self) -> None:
        if self.average is not None:
            self.average.swap()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        average = self.average
        checkpoint["equipot"] = {
            **self._record,
            "validation": dict(self.validation_metrics),
            "ema": None if average is None else average.model_state_dict(),
        }
        checkpoint["equipot_resume"] = {
            "schedule": self.schedule.state_dict(),
            "average_updates": 0 if average is None else average.updates,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.schedule.load_state_dict(checkpoint["equipot_resume"]["schedule"])
        self.validation_metrics = dict(checkpoint["equipot"]["validation"])
        if self.average is None:
            return
        if checkpoint["equipot"]["ema"] is None:
            raise TrainingError("The checkpoint has no average of the weights: set training.ema to null.")
        updates = checkpoint["equipot_resume"]["average_updates"]
        self.average.load_model_state_dict(checkpoint["equipot"]["ema"], updates)

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

    def _loss(self, graph: AtomicGraph, totals: ErrorSums) -> Tensor:
        prediction = predict(self.potential, graph)
        errors = label_errors(prediction, graph)
        sums = self.loss.sums(errors)
        totals.update(errors, sums)
        return self.loss.total(errors, sums, prediction)
