"""What a training leaves of itself: a row for each epoch, its plot, and what each start ran on."""

import csv
import io
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import lightning as L
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from equipot import __version__
from equipot.deploy.checkpoint import metric_of_level
from equipot.files import atomic_write, read_json, write_json, write_text
from equipot.machine import available_cores, processor_name
from equipot.quantities import BY_INTEREST, LABELS

# Epochs done, with a fraction if the last one was cut short; training time so far, without interruptions.
_FIRST = ("epoch", "step", "time_s", "epoch_s", "learning_rate")
_PACKAGES = ("torch", "lightning", "e3nn", "numpy", "ase", "matscipy")

Row = dict[str, float]


def columns(levels: Sequence[str] = ()) -> tuple[str, ...]:
    """Of metrics.csv."""
    errors = [f"{label}_{kind}" for label in LABELS for kind in ("mae", "rmse")]
    of_all = [f"{part}_{metric}" for part in ("train", "validation") for metric in ("loss", *errors)]
    of_levels = [metric_of_level(f"validation_{metric}", name) for name in levels for metric in errors]
    return (*_FIRST, *of_all, *(of_levels if len(levels) > 1 else ()))


class History:
    """The rows of metrics.csv, one per epoch; errors in eV and Å, energies per atom, empty without a label.

    Training errors are collected while the weights change, validation errors are of the averaged weights;
    those of each of several ``levels`` of theory come last.
    """

    def __init__(self, path: Path, levels: Sequence[str] = ()):
        self.path = path
        self.columns = columns(levels)
        self.rows: list[Row] = []

    def start(self, epochs_done: float = 0) -> None:
        """Begin the file, keeping rows of the first ``epochs_done`` epochs if there are any."""
        if epochs_done:
            self.read()
            self.rows = [row for row in self.rows if row["epoch"] <= epochs_done]
        write_text(self.path, _csv_text(self.rows, self.columns, header=True))

    def read(self) -> None:
        """Take the rows of the file, if there is one, without a last one that is not complete."""
        if self.path.exists():
            whole, _, _ = self.path.read_text(encoding="utf-8").rpartition("\n")
            rows = csv.DictReader(io.StringIO(whole))
            self.rows = [{k: float(v) for k, v in row.items() if v} for row in rows]

    def append(self, row: Row) -> None:
        """Add one epoch, on disk at once."""
        self.rows.append(row)
        with self.path.open("a", encoding="utf-8", newline="") as file:
            file.write(_csv_text([row], self.columns, header=False))


def _csv_text(rows: list[Row], columns: Sequence[str], header: bool) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, restval="", lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows({key: f"{value:.8g}" for key, value in row.items()} for row in rows)
    return buffer.getvalue()


def plot_learning_curve(rows: list[Row], path: Path, best_epoch: float | None) -> None:
    """Write ``learning_curve`` as PNG."""
    with atomic_write(path) as temporary:
        learning_curve(rows, best_epoch).savefig(temporary, dpi=150)


def learning_curve(rows: list[Row], best_epoch: float | None) -> Figure:
    """Training and validation errors and learning rate over epochs, on logarithmic scales."""
    reported = [(q, *q.reported[0]) for q in BY_INTEREST]
    panels = [(f"{q.name}_mae", f"{q.singular} MAE ({unit})", size) for q, unit, size in reported]
    panels.append(("loss", "loss", 1.0))
    panels = [panel for panel in panels if any(f"train_{panel[0]}" in row for row in rows)]
    columns = (len(panels) + 2) // 2  # in two rows, with the learning rate
    figure = Figure(figsize=(4.2 * columns, 6.4), layout="constrained")
    axes = list(figure.subplots(2, columns, squeeze=False).flat)
    for unused in axes[len(panels) + 1 :]:
        unused.remove()
    axes = axes[: len(panels) + 1]
    for axis, (metric, title, unit) in zip(axes, panels, strict=False):
        for part, color in (("train", "tab:blue"), ("validation", "tab:orange")):
            _curve(axis, rows, f"{part}_{metric}", unit, label=part, color=color)
        axis.set_ylabel(title)
        if best_epoch is not None:
            axis.axvline(best_epoch, color="0.6", linewidth=0.8, linestyle="--", label="best")
    _curve(axes[-1], rows, "learning_rate", 1.0, color="tab:green")
    axes[-1].set_ylabel("learning rate")
    axes[0].legend(frameon=False)
    for axis in axes:
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
        _logarithmic(axis)
    rates = [row["learning_rate"] for row in rows]
    if min(rates) == max(rates) > 0:
        axes[-1].set_ylim(rates[0] / 2, rates[0] * 2)
        axes[-1].set_yticks([rates[0] / 2, rates[0], rates[0] * 2])
    return figure


def _logarithmic(axis) -> None:
    axis.set_yscale("log")
    low, high = axis.get_ylim()
    # Errors often span less than a decade, where ticks at 1, 2 and 5 would leave the axis nearly bare.
    axis.yaxis.set_major_locator(MaxNLocator(6) if high < 10 * low else LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.grid(linewidth=0.3, alpha=0.5)


def _curve(axis, rows: list[Row], column: str, unit: float, **style) -> None:
    points = [(row["epoch"], row[column] / unit) for row in rows if row.get(column, 0) > 0]
    if points:
        # A single epoch is a point, which a line would not show.
        axis.plot(*zip(*points, strict=True), marker="." if len(points) < 30 else None, **style)


class SessionRecord(L.Callback):
    """Adds an entry when the training starts, and completes it when it ends; a killed one stays incomplete.

    ``facts``: what else the JSON file says, such as the device; plain values.
    """

    def __init__(self, path: Path, facts: dict[str, Any]):
        self.path = path
        self.facts = facts
        self._sessions: list[dict[str, Any]] = []

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            self._sessions = [*read_sessions(self.path), _new_session(self.facts)]
            self._write()

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, error: BaseException) -> None:
        self.end("failed", error=str(error) or type(error).__name__)

    def end(self, stopped: str, **facts: Any) -> None:
        """Say how it ended; does nothing for a training that never started."""
        if self._sessions and self.path.is_file():  # a run directory that was removed is not made again
            self._sessions[-1] |= {"ended": _now(), "stopped": stopped, "error": None, **facts}
            self._write()

    def _write(self) -> None:
        write_json(self.path, {"sessions": self._sessions})


def read_sessions(path: Path) -> list[dict[str, Any]]:
    """The entries, oldest first; none without the file."""
    return read_json(path)["sessions"] if path.is_file() else []


def _new_session(facts: dict[str, Any]) -> dict[str, Any]:
    return {
        "started": _now(),
        "ended": None,
        "stopped": None,
        "host": platform.node(),
        "system": platform.platform(),
        "processor": processor_name(),
        "cores": available_cores(),
        "versions": {"equipot": __version__, "python": platform.python_version(), **_versions()},
        **facts,
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # such as lightning under its other name
            continue
    return found
