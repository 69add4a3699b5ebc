"""Reasons to stop before the last epoch: a signal, no more progress; what processes agree on."""

import math
import signal
import threading
from types import FrameType

import torch
import torch.distributed

from equipot.config import EarlyStoppingConfig
from equipot.errors import TrainingError

INTERRUPTED, OUT_OF_TIME, NO_PROGRESS, FINISHED = "interrupted", "max_minutes", "early_stopping", "finished"
SAVE = "save"  # no reason to stop: time to write a checkpoint and go on
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_STEPS_BETWEEN_AGREEMENTS = 10


class TrainingInterrupted(Exception):
    """The user or the batch system asked to stop; everything is saved."""


class AllEpochsDone(TrainingError):
    """There is nothing left to resume but, perhaps, the evaluation at the end."""

    stopped = FINISHED


class TimeUsedUp(AllEpochsDone):
    """The same, of a training whose schedule goes by the time."""

    stopped = OUT_OF_TIME


class StopSignals:
    """Ctrl-C, SIGTERM and SIGUSR1 become a flag that is looked at between batches.

    A second Ctrl-C acts as it would without this class.
    """

    def __init__(self):
        self.received: str | None = None
        self._previous = {}

    def install(self) -> None:
        """Start listening. Does nothing outside the main thread, where Python allows no handlers."""
        if threading.current_thread() is threading.main_thread():
            self._previous = {s: signal.signal(s, self._remember) for s in _SIGNALS}

    def uninstall(self) -> None:
        """Give the signals back to whoever had them."""
        for number, handler in self._previous.items():
            # None stands for a handler that was not installed from Python.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous = {}

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name
        signal.signal(signal.SIGINT, signal.default_int_handler)


class EarlyStopping:
    """Counts epochs in which the validation loss has not fallen by ``min_delta``; None never stops."""

    def __init__(self, settings: EarlyStoppingConfig | None):
        self.settings = settings
        self.best = math.inf
        self.epochs_without_improvement = 0

    def observe(self, validation_loss: float) -> bool:
        """Tell the loss of one more epoch; True if training should stop."""
        if self.settings is None:
            return False
        if validation_loss < self.best - self.settings.min_delta:
            self.best = validation_loss
            self.epochs_without_improvement = 0
        else:
            self.epochs_without_improvement += 1
        return self.epochs_without_improvement >= self.settings.patience

    def state_dict(self) -> dict[str, float | int]:
        return {"best": self.best, "epochs_without_improvement": self.epochs_without_improvement}

    def load_state_dict(self, state: dict[str, float | int]) -> None:
        self.best = state["best"]
        self.epochs_without_improvement = state["epochs_without_improvement"]


def agree(reason: str | None, step: int, device: torch.device) -> str | None:
    """The same reason to stop or save on every process, looked for every few steps when there are several.

    Processes that stop at different batches would wait for each other for ever.
    """
    if not torch.distributed.is_initialized():
        return reason
    if step % _STEPS_BETWEEN_AGREEMENTS:
        return None
    order = (None, SAVE, OUT_OF_TIME, INTERRUPTED)
    strongest = torch.tensor(order.index(reason), device=device)
    torch.distributed.all_reduce(strongest, torch.distributed.ReduceOp.MAX)
    return order[int(strongest)]


def latest(value: float, before: float, step: int, device: torch.device) -> float:
    """The largest ``value`` of all processes; of several, found every few steps: ``before`` in between."""
    if not torch.distributed.is_initialized():
        return value
    if step % _STEPS_BETWEEN_AGREEMENTS:
        return before
    largest = torch.tensor(value, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
    return float(largest)
