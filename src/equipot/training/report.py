"""What the user reads, on the console and in log.txt: the start, a line per epoch, the summary."""

import logging
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

from equipot import __version__
from equipot.config import Config, DenoiseConfig, LossConfig, ScheduleConfig, TrainingConfig, WeightSchedule
from equipot.data.statistics import Statistics
from equipot.data.text import counted
from equipot.ops.operators import load_operators
from equipot.quantities import BY_INTEREST, LABELS, Quantity, given_quantities

WARNING = "Warning: "  # how warnings start in log.txt


class RunLog(logging.Handler):
    """Prints lines on the console and keeps them in the log file, with the records of the logger ``equipot``.

    Lines that come before ``open`` are kept back: a run directory is made only for a training that can start.
    Used as a context manager, which is when it listens to the logger. Without a ``console``, as on processes
    other than the first, it prints nothing.
    """

    def __init__(self, console: Console | None):
        super().__init__()
        self.console = console
        self._path: Path | None = None
        self._waiting: list[str] = []

    def __enter__(self) -> "RunLog":
        logging.getLogger("equipot").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("equipot").removeHandler(self)

    def line(self, text: str) -> None:
        """Print and keep one line."""
        if self.console is not None:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)
        self.keep(text)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a log record; printing it is up to the logger's other handlers."""
        text = " ".join(self.format(record).splitlines())
        self.keep(f"{WARNING}{text}" if record.levelno >= logging.WARNING else text)

    def open(self, path: Path) -> None:
        """Write to ``path`` from now on, after what it already holds."""
        self._path = path
        waiting, self._waiting = self._waiting, []
        for text in waiting:
            self.keep(text)

    def keep(self, text: str) -> None:
        """Keep one line without printing it."""
        if self._path is None:
            self._waiting.append(text)
        elif self.console is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(text + "\n")


def describe_start(
    config: Config,
    sizes: dict[str, int],
    statistics: Statistics,
    potential: nn.Module,
    steps: int,
    device: str,
) -> list[str]:
    """The lines at the start of a training of ``steps`` optimizer steps per epoch."""
    training = config.training
    parameters = sum(weight.numel() for weight in potential.parameters())
    trained = sum(weight.numel() for weight in potential.parameters() if weight.requires_grad)
    frozen = f" ({trained:,} of them trained)" if config.fine_tune and config.fine_tune.freeze else ""
    return [
        f"equipot {__version__}, run directory {config.run.directory}",
        f"Data: {sizes['train']} training, {sizes['validation']} validation, {sizes['test']} test frames; "
        f"species {_species(statistics)}",
        *(_atomic_energies(statistics) if config.model.energy else ()),
        f"Neighbors: {statistics.avg_num_neighbors:.1f} per atom within {config.model.cutoff:g} Å"
        + (_of_forces(statistics) if config.model.energy else "; no energies, so no forces are computed"),
        f"Model: {config.model.type}, {parameters:,} parameters{frozen}, {config.model.dtype}, "
        f"{describe_products()}",
        f"Training: up to {counted(training.epochs, 'epoch')} of {counted(steps, 'step')}, on {device}; "
        "errors below are MAE of training / validation",
        *describe_stages(training),
    ]


def describe_stages(training: TrainingConfig) -> list[str]:
    """A line for each thing that changes at a fixed epoch, and for what has no effect."""
    schedule, lines = training.schedule, []
    for key in ("patience", "factor"):
        if schedule.kind != "plateau" and getattr(schedule, key) != getattr(ScheduleConfig(), key):
            lines.append(
                f"{WARNING}training.schedule.{key} has no effect with `kind: {schedule.kind}`: give "
                "`kind: plateau`, or leave it out."
            )
    for name in LABELS:
        weight = training.loss.value_of(name)
        if isinstance(weight, WeightSchedule):
            when = f"after epoch {weight.from_epoch}"
            if weight.to_epoch is not None:
                when = f"from epoch {weight.from_epoch} to {weight.to_epoch}"
            lines.append(
                f"Loss: weight of {name} goes from {weight.start:g} to {weight.end:g} {when}; "
                "the best epoch is judged with the latter"
            )
    if training.swa is not None:
        rate = "" if training.swa.learning_rate is None else f", learning rate {training.swa.learning_rate:g}"
        lines.append(
            f"Weights: averaged with equal shares after epoch {training.swa.from_epoch}{rate}; "
            "that average is then validated and kept"
        )
    return lines


def describe_unused(loss: LossConfig, labelled: dict[str, int]) -> list[str]:
    """One line if training frames (``labelled``: how many for each label) have labels that nobody trains on.

    That of the stress is 0 by default, and a model that never saw a stress gives wrong pressures.
    """
    given = given_quantities()
    unused = [name for name in LABELS if labelled[name] and not loss.trains(name) and name not in given]
    if not unused:
        return []
    found = ", ".join(f"{name} of {counted(labelled[name], 'frame')}" for name in unused)
    hint = "; crystals, and dynamics at constant pressure, need the stress" if "stress" in unused else ""
    return [f"Loss: labels with a weight of 0 in training.loss are not trained on: {found}{hint}"]


def describe_noise(denoise: DenoiseConfig, paired: bool) -> str:
    """One line; ``paired``: labels of the files are trained on, too."""
    low, high = denoise.range
    sigma = f"{low:g}" if low == high else f"{low:g} to {high:g}"
    labels = "each frame also as it is, for its labels" if paired else "labels of the files are not used"
    return f"Noise: positions displaced by {sigma} Å, which {denoise.output} is to undo; {labels}"


def _species(statistics: Statistics) -> str:
    pairs = list(zip(statistics.species, statistics.atoms_per_species, strict=True))
    others = sum(not atoms for _, atoms in pairs)
    more = f", and {others} more that the model keeps" if others else ""
    return " ".join(symbol for symbol, atoms in pairs if atoms) + more


def _of_forces(statistics: Statistics) -> str:
    rms = statistics.force_rms
    return "; no forces" if rms is None else f"; forces {rms:.3g} eV/Å rms"


def _atomic_energies(statistics: Statistics) -> list[str]:
    """One line for each level of theory."""
    lines = []
    for level, facts in (statistics.levels or {"": statistics}).items():
        rows = zip(statistics.species, facts.atomic_energies, statistics.atoms_per_species, strict=True)
        energies = ", ".join(f"{symbol} {energy:.4f}" for symbol, energy, atoms in rows if atoms)
        residual = facts.energy_residual_rms
        left = "" if residual is None else f"; leaves {residual:.4g} eV/atom rms"
        of_level = f" of {level}" if level else ""
        lines.append(f"Atomic energies{of_level} ({facts.atomic_energies_source}): {energies} eV{left}")
    return lines


def describe_device(config: Config, kind: str) -> str:
    """Such as ``cpu (2 threads)`` or ``4 × NVIDIA A100``."""
    count = config.run.devices * config.run.nodes
    if kind == "cuda":
        name = torch.cuda.get_device_name(0)
        return name if count == 1 else f"{count} × {name}"
    processes = "" if count == 1 else f"{count} × "
    threads = torch.get_num_threads()
    return f"{processes}cpu ({counted(threads, 'thread')})"


def describe_products() -> str:
    """Which code computes the tensor products: the slow path is never taken without a word."""
    if load_operators():
        return "fused tensor products"
    return "tensor products by plain torch operations, several times slower than a fused kernel"


def describe_epoch(row: dict[str, float], epochs: int, is_best: bool) -> str:
    """One line: errors of training / validation, learning rate, time."""
    parts = [f"epoch {row['epoch']:>{len(str(epochs))}g}/{epochs}"]
    parts += [text for quantity in BY_INTEREST if (text := describe_errors(row, quantity))]
    parts.append(f"lr {row['learning_rate']:.1e}")
    parts.append(f"{row['epoch_s']:.1f} s" + ("  best" if is_best else ""))
    return "  ".join(parts)


def describe_errors(row: dict[str, float], quantity: Quantity) -> str:
    """Such as ``forces 12.3 / 15.1 meV/Å`` (MAE of training / validation); empty without such errors."""
    values = [row.get(f"{part}_{quantity.name}_mae") for part in ("train", "validation")]
    if all(value is None for value in values):
        return ""
    reported = quantity.reported[0]
    shown = ["-" if value is None else _three_digits(value / reported.size) for value in values]
    return f"{quantity.name} {shown[0]:>5} / {shown[1]:>5} {reported.unit}"


def describe_metrics(metrics: dict[str, float]) -> str:
    """MAE and RMSE of each label on one data set."""
    parts = []
    for name, reported in ((quantity.name, quantity.reported[0]) for quantity in BY_INTEREST):
        if f"{name}_mae" in metrics:
            mae, rmse = (_three_digits(metrics[f"{name}_{kind}"] / reported.size) for kind in ("mae", "rmse"))
            parts.append(f"{name} MAE {mae}, RMSE {rmse} {reported.unit}")
    return "; ".join(parts)


def describe_failure(validation: dict[str, float], force_rms: float, training: TrainingConfig) -> str:
    """A warning if the best weights, by their ``validation`` errors, are worse than no model; else empty.

    ``force_rms``: of the validation forces, eV/Å.
    """
    error = validation.get("forces_rmse", 0.0)
    # Written so that a NaN warns too. Forces that are not trained on are no sign of anything.
    if not training.loss.trains("forces") or error <= force_rms:
        return ""
    return (
        f"{WARNING}the best validation force error (RMSE {error:.4g} eV/Å) exceeds the forces themselves "
        f"(RMS {force_rms:.4g} eV/Å): the model is worse than none. If more epochs do not mend this, use a "
        f"lower training.learning_rate (now {training.learning_rate:g}), training.gradient_clip (10, say) or "
        "warm-up epochs, and look for frames with huge forces or wrong units."
    )


def _three_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
