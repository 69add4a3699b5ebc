"""The live progress bar on a terminal; elsewhere one line per epoch."""

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from equipot.data.text import counted
from equipot.quantities import BY_INTEREST
from equipot.training.report import RunLog, describe_epoch, describe_errors

_SECONDS_BETWEEN_UPDATES = 0.25
_WIDE = 105  # columns that hold the numbers and a bar


class ProgressDisplay:
    """Shows epochs and batches with the force and energy errors; None or a file as ``console``: no bar."""

    def __init__(self, console: Console | None, report: RunLog, epochs: int):
        self._report = report
        self._epochs = epochs
        self._live = console is not None and console.is_terminal
        self._next_update = 0.0
        self._bar = Progress(
            TextColumn("{task.description}"),
            *([BarColumn(bar_width=20)] if console is not None and console.width >= _WIDE else []),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[errors]}"),
            console=console,
            disable=not self._live,
        )
        self._row: dict[str, float] = {}

    def start(self, epochs_done: float) -> None:
        """Show the bar; ``epochs_done`` is above 0 if the training goes on with an earlier one."""
        if epochs_done:
            self._report.line(f"Resuming after {counted(epochs_done, 'epoch')}.")
        self._bar.start()
        self._epoch_task = self._bar.add_task(
            "epoch", total=self._epochs, completed=int(epochs_done), errors=""
        )
        self._batch_task = self._bar.add_task("train", total=None, errors="")

    def stop(self) -> None:
        """Leave the epochs as they are and go on below them."""
        if self._bar.tasks:
            self._bar.update(self._batch_task, visible=False)
        self._bar.stop()

    @property
    def due(self) -> bool:
        """Whether it is time to show a batch; asked first, because reading errors costs time on a GPU."""
        return self._live and time.monotonic() >= self._next_update

    def batch(self, kind: str, done: int, total: int, metrics: dict[str, float]) -> None:
        """Show the errors so far in this epoch; ``kind`` is ``train`` or ``validation``."""
        self._next_update = time.monotonic() + _SECONDS_BETWEEN_UPDATES
        row = {**self._row, **{f"{kind}_{name}": value for name, value in metrics.items()}}
        self._bar.update(
            self._batch_task, description=kind[:5], completed=done, total=total, errors=self._errors(row)
        )

    def epoch(self, row: dict[str, float], is_best: bool) -> None:
        """Show and log a finished epoch."""
        self._row = row
        text = describe_epoch(row, self._epochs, is_best)
        if self._live:
            self._report.keep(text)
        else:
            self._report.line(text)
        if is_best:
            self._bar.update(self._epoch_task, errors=f"best so far: epoch {row['epoch']:.4g}")
        self._bar.update(self._epoch_task, completed=int(row["epoch"]))
        self._bar.reset(self._batch_task, description="train", errors=self._errors(row))

    @staticmethod
    def _errors(row: dict[str, float]) -> str:
        return "  ".join(text for q in BY_INTEREST if q.usual and (text := describe_errors(row, q)))
