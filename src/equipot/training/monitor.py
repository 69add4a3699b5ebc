"""What happens around the steps: the record of each epoch, checkpoints, and stopping, in one fixed order."""

import logging
import math
import time
from typing import Any

import lightning as L
from torch import Tensor

from equipot.config import TrainingConfig
from equipot.graph import AtomicGraph
from equipot.run_directory import RunDirectory
from equipot.training import stopping
from equipot.training.batches import Batches
from equipot.training.checkpoints import check_progress, copy_checkpoint, progress_in
from equipot.training.history import History
from equipot.training.metrics import summarize
from equipot.training.module import PotentialModule
from equipot.training.progress import ProgressDisplay

logger = logging.getLogger("equipot")

clock = time.monotonic  # by which trainings go; benchmarks take processor time
_LATE = 0.05  # of the time, by which a training may be late before its schedule goes by the time


class TrainingMonitor(L.Callback):
    """One callback instead of many, because the order matters: measure, decide, write, stop.

    ``checkpoint_minutes`` are those between checkpoints within an epoch; None: only at the ends of epochs.
    ``batches`` are told where to go on in an epoch that was interrupted.
    """

    def __init__(
        self,
        training: TrainingConfig,
        checkpoint_minutes: float | None,
        batches: Batches,
        directory: RunDirectory,
        history: History,
        display: ProgressDisplay,
    ):
        self.training = training
        self.checkpoint_seconds = math.inf if checkpoint_minutes is None else 60 * checkpoint_minutes
        self.batches = batches
        self.directory = directory
        self.history = history
        self.display = display
        self.stop_reason = stopping.FINISHED
        self.best_loss = math.inf
        self.best_epoch: float | None = None
        self.epochs_done: float = 0
        self._early_stopping = stopping.EarlyStopping(training.early_stopping)
        self._signals = stopping.StopSignals()
        self._seconds_before = 0.0
        self._cut_epoch_short = False
        self._validation_seconds = 0.0
        self._said_to_be_late = False
        self._start = self._validation_start = self._epoch_start = self._last_save = clock()
        # Of an epoch that is interrupted: what a checkpoint must know to go on within it.
        self._batches_done = 0
        self._train_sums: Tensor | None = None
        self._restored: dict[str, Any] | None = None
        self._forget_best = False

    # Lightning's hooks, in the order of a training.

    def on_train_start(self, trainer: L.Trainer, module: PotentialModule) -> None:
        self._signals.install()
        self._start = self._epoch_start = self._last_save = clock()
        if trainer.is_global_zero:
            self.history.start(math.floor(self.epochs_done))
        if self._restored is not None:
            self._go_on(module, self._restored, trainer.is_global_zero)
            self._restored = None
        if self.training.schedule.in_time:
            module.time_done = self._schedule_done()
        self.display.start(self.epochs_done)

    def on_train_batch_end(
        self, trainer: L.Trainer, module: PotentialModule, outputs: Any, batch: AtomicGraph, batch_idx: int
    ) -> None:
        if self.display.due:
            self._show_batch("train", module, batch_idx + 1, trainer.num_training_batches)
        if self.training.schedule.in_time:
            done = self._schedule_done()
            module.time_done = stopping.latest(done, module.time_done, batch_idx, module.device)
        reason = stopping.agree(self._reason_to_stop(), batch_idx, module.device)
        if reason is None or batch_idx + 1 == trainer.num_training_batches:
            return  # at the last batch the end of the epoch sees to it
        self._save_within_epoch(trainer, module, batch_idx + 1)
        if reason == stopping.SAVE:
            return
        if reason == stopping.INTERRUPTED:
            raise stopping.TrainingInterrupted
        # Lightning now validates and ends the epoch, so that the last steps can still give the best weights.
        self._cut_epoch_short = True
        self._stop(trainer, reason)

    def on_validation_start(self, trainer: L.Trainer, module: PotentialModule) -> None:
        self._validation_start = clock()

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        module: PotentialModule,
        outputs: Any,
        batch: AtomicGraph,
        batch_idx: int,
        *_: Any,
    ) -> None:
        if self.display.due:
            self._show_batch("validation", module, batch_idx + 1, trainer.num_val_batches[0])

    def on_validation_end(self, trainer: L.Trainer, module: PotentialModule) -> None:
        self._validation_seconds = clock() - self._validation_start

    def on_train_epoch_end(self, trainer: L.Trainer, module: PotentialModule) -> None:
        if not self._cut_epoch_short:
            self.epochs_done = trainer.current_epoch + 1
        row, improved = self._measure(trainer, module)
        no_progress = False
        if not self._cut_epoch_short:
            module.schedule.observe(row["validation_loss"], trainer.current_epoch)
            if module.epoch >= self.training.last_stage_epoch:
                no_progress = self._early_stopping.observe(row["validation_loss"])
        module.train_errors.reset()
        self._epoch_start = clock()
        self._batches_done, self._train_sums = 0, None
        # The row first: a resume drops rows beyond its checkpoint, but could not restore a missing one.
        if trainer.is_global_zero:
            self.history.append(row)
            for logger in trainer.loggers:
                logger.log_metrics({k: v for k, v in row.items() if k != "step"}, step=int(row["step"]))
        reason = stopping.agree(self._reason_to_stop(), 0, module.device)
        self._save(trainer, improved)  # after the look at the time: what is saved knows that it is up
        self.display.epoch(row, improved)
        if trainer.is_global_zero:
            self._say_if_late(module)
        if reason == stopping.INTERRUPTED:
            raise stopping.TrainingInterrupted
        all_done = trainer.current_epoch + 1 >= self.training.epochs  # Lightning counts from 0
        if (reason == stopping.OUT_OF_TIME and not all_done) or no_progress:
            self._stop(trainer, reason or stopping.NO_PROGRESS)

    def forget_best(self) -> None:
        """When the training goes on from a checkpoint, do not compare losses with those from before it."""
        self._forget_best = True

    def close(self) -> None:
        """Give the terminal and the signals back. Not a hook: Lightning calls none that always comes."""
        self.display.stop()
        self._signals.uninstall()

    # State in the checkpoint.

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors only, so that checkpoints can be read without running code."""
        return {
            "epochs_done": self.epochs_done,
            "best_loss": self.best_loss,
            "best_epoch": self.best_epoch,
            "early_stopping": self._early_stopping.state_dict(),
            "seconds": self._seconds(),
            "validation_seconds": self._validation_seconds,
            "epoch_seconds": clock() - self._epoch_start,
            "batches_done": self._batches_done,
            "budget": str(self.batches.budget),
            "train_sums": self._train_sums,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was taken.

        Raises what `check_progress` raises.
        """
        self.epochs_done = state["epochs_done"]
        self.best_loss, self.best_epoch = state["best_loss"], state["best_epoch"]
        try:
            check_progress(state, self.training)
        except stopping.TimeUsedUp:
            if not state["batches_done"]:
                raise
            # No validation has seen the last steps: after one more it does.
        self._restored = state
        self._early_stopping.load_state_dict(state["early_stopping"])
        self._seconds_before = state["seconds"]
        if self.training.schedule.in_time:
            self._validation_seconds = state.get("validation_seconds", 0.0)
        # Lightning asks for the loaders later, so they still learn where to start.
        self.batches.resume_within(math.floor(state["epochs_done"]), state["batches_done"])

    def _go_on(self, module: PotentialModule, state: dict[str, Any], first_process: bool) -> None:
        if self.directory.best.is_file():  # perhaps of an epoch that was cut short, later than the last state
            best = progress_in(self.directory.best)
            if best["best_loss"] < self.best_loss:
                self.best_loss, self.best_epoch = best["best_loss"], best["best_epoch"]
        if self._forget_best:
            # best_epoch stays until there is a new one: best.ckpt is still that of then.
            self.best_loss = math.inf
            self._early_stopping = stopping.EarlyStopping(self.training.early_stopping)
            module.schedule.forget_best()
        if math.isfinite(self.best_loss) and not self.directory.best.is_file():
            self.best_loss = math.inf
            if first_process:
                logger.warning("%s is gone: the best of those to come is kept.", self.directory.best)
        if state["train_sums"] is not None:
            self._epoch_start -= state["epoch_seconds"]
            if first_process:  # they are sums over all processes, and will be summed again
                module.train_errors.sums += state["train_sums"].to(module.device)

    # Steps of the hooks.

    def _seconds(self) -> float:
        """Of training so far, without interruptions."""
        return self._seconds_before + clock() - self._start

    def _reason_to_stop(self) -> str | None:
        if self._signals.received:
            return stopping.INTERRUPTED
        if self.training.max_minutes is not None and self._time_done() >= 1:
            return stopping.OUT_OF_TIME
        return stopping.SAVE if clock() - self._last_save > self.checkpoint_seconds else None

    def _time_done(self) -> float:
        """Of ``max_minutes``, as a part of 1, with a validation to come; 0 where there is no such limit."""
        if self.training.max_minutes is None:
            return 0.0
        before = self._seconds_before if self.training.schedule.in_time else 0.0
        used = before + clock() - self._start + self._validation_seconds
        return used / (60 * self.training.max_minutes)

    def _schedule_done(self) -> float:
        """As ``_time_done``, but at its end with it and begun late: a slow start changes nothing."""
        return max(0.0, (self._time_done() - _LATE) / (1 - _LATE))

    def _say_if_late(self, module: PotentialModule) -> None:
        changes = self.training.schedule.kind == "cosine" or self.training.last_stage_epoch > 0
        late = module.time_done > self.epochs_done / self.training.epochs
        if self._said_to_be_late or not (changes and late):
            return
        self._said_to_be_late = True
        logger.info(
            "Of the %d epochs there is time for about %d: the learning rate and the weights of the loss go "
            "by the time, and are at their ends when it is up (training.schedule.in_time).",
            self.training.epochs, self.epochs_done / self._time_done(),
        )  # fmt: skip

    def _stop(self, trainer: L.Trainer, reason: str) -> None:
        self.stop_reason = reason
        trainer.should_stop = True

    def _show_batch(self, kind: str, module: PotentialModule, done: int, total: int) -> None:
        errors = module.train_errors if kind == "train" else module.validation_errors
        # Sums of this process alone: adding up over processes would make the others wait.
        self.display.batch(kind, done, int(total), summarize(errors.sums, module.loss.weights))

    def _measure(self, trainer: L.Trainer, module: PotentialModule) -> tuple[dict[str, float], bool]:
        """The history's row of this epoch, and whether its validation loss is the best so far."""
        train = summarize(module.train_errors.compute(), module.loss.weights)
        validation = summarize(module.validation_errors.compute(), module.loss.weights)
        for loss in (train["loss"], validation["loss"]):
            module.refuse_non_finite(loss, trainer.num_training_batches - 1)
        improved = validation["loss"] < self.best_loss
        if improved:
            self.best_loss, self.best_epoch = validation["loss"], self.epochs_done
        validation |= module.level_errors.metrics(module.loss.weights)
        module.validation_metrics = validation
        group = module.optimizers().param_groups[0]
        row = {
            "epoch": self.epochs_done,
            "step": trainer.global_step,
            "time_s": self._seconds(),
            "epoch_s": clock() - self._epoch_start,
            "learning_rate": group["lr"] / group.get("factor", 1.0),
            **{f"train_{name}": value for name, value in train.items()},
            **{f"validation_{name}": value for name, value in validation.items()},
        }
        return row, improved

    def _save(self, trainer: L.Trainer, improved: bool) -> None:
        """Write best, then last: after a kill in between, resuming from last repeats the best epoch."""
        self._last_save = clock()
        if improved:
            trainer.save_checkpoint(self.directory.best)
        if self._cut_epoch_short:
            return  # last is the exact state within the epoch, from before the validation
        if not improved:
            trainer.save_checkpoint(self.directory.last)
        elif trainer.is_global_zero:
            copy_checkpoint(self.directory.best, self.directory.last)

    def _save_within_epoch(self, trainer: L.Trainer, module: PotentialModule, batches_done: int) -> None:
        self.epochs_done = trainer.current_epoch + batches_done / trainer.num_training_batches
        self._batches_done = batches_done
        self._train_sums = module.train_errors.compute().clone()
        # On a GPU not every step's loss has been looked at.
        loss = summarize(self._train_sums, module.loss.weights)["loss"]
        module.refuse_non_finite(loss, batches_done - 1)
        trainer.save_checkpoint(self.directory.last)
        self._last_save = clock()
