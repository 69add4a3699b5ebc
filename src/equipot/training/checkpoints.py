"""Checkpoints: written whole or not at all, found again, and resumed by the same training only."""

import dataclasses
import io
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import CheckpointIO

from equipot.config import Config, TrainingConfig
from equipot.config.data import DataConfig
from equipot.data.statistics import Statistics
from equipot.data.text import counted
from equipot.deploy.checkpoint import Checkpoint, load_checkpoint
from equipot.errors import TrainingError
from equipot.files import atomic_write
from equipot.run_directory import RunDirectory
from equipot.training import stopping
from equipot.training.batches import budget_of
from equipot.training.fine_tune import with_architecture


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's checkpoint reading and writing, through a temporary file and a rename."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write ``checkpoint``; the file at ``path`` stays as it was unless everything has reached the disk.

        Raises:
            TrainingError: the disk is full, or the file cannot be written for another reason.
        """
        # Serialized in memory first: torch.save on a full disk says "unexpected pos", not "no space left".
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        try:
            with atomic_write(path, make_folder=False) as temporary:
                temporary.write_bytes(buffer.getbuffer())
        except OSError as error:
            raise _cannot_write(Path(path), error) from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read a checkpoint onto the CPU: tensors and plain values only, whatever ``weights_only`` says."""
        return torch.load(path, map_location="cpu", weights_only=True)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a checkpoint."""
        Path(path).unlink(missing_ok=True)


def copy_checkpoint(source: Path, target: Path) -> None:
    """Copy a checkpoint, whole or not at all. Raises TrainingError if it cannot be written."""
    try:
        with atomic_write(target, make_folder=False) as temporary:
            shutil.copyfile(source, temporary)
    except OSError as error:
        raise _cannot_write(target, error) from error


def _cannot_write(path: Path, error: OSError) -> TrainingError:
    message = f"Cannot write the checkpoint {path}: {os.strerror(error.errno) if error.errno else error}."
    if path.exists():
        message += " The previous one under that name is intact: mend this, then resume."
    elif not path.parent.is_dir():
        message += " Its folder was removed while the training ran."
    return TrainingError(message)


def find_last(path: Path) -> Path:
    """The checkpoint to resume from: ``path``, or ``checkpoints/last.ckpt`` if it is a run directory.

    Raises:
        TrainingError: there is none.
    """
    path = Path(path)
    last = RunDirectory(path).last if path.is_dir() else path
    if not last.is_file():
        raise TrainingError(f"Nothing to resume: no checkpoint '{last}'. Give the directory of a run.")
    return last.absolute()


def check_same_training(checkpoint: Path, config: Config) -> Checkpoint:
    """Refuse to resume with another model, other data, seed or optimizer; the rest may differ.

    Returns:
        What the checkpoint says, with the weights of the last step.

    Raises:
        TrainingError: names what differs.
        ModelFileError: the checkpoint is damaged or foreign.
    """
    start = load_checkpoint(checkpoint, weights="last")
    if config.fine_tune is not None:
        config = with_architecture(config, start.config.model, str(checkpoint))
    differing = [
        *_differences(start.config.model.model_dump(), config.model.model_dump(), "model"),
        *_differences(_plain(start.config.data), _plain(config.data), "data"),
        *_differences(start.config.run.seed, config.run.seed, "run.seed"),
        *_differences(_optimizer(start.config), _optimizer(config), "training"),
        *_differences(_fine_tune(start.config), _fine_tune(config), "fine_tune"),
    ]
    if differing:
        raise TrainingError(
            f"Cannot resume {checkpoint}: the configuration differs from the one it was trained with: "
            f"{'; '.join(differing)}. Set it back, or start a new training."
        )
    return start


def progress_in(checkpoint: Path) -> dict[str, Any]:
    """The state of its `TrainingMonitor`."""
    return torch.load(checkpoint, map_location="cpu", weights_only=True)["callbacks"]["TrainingMonitor"]


def check_progress(state: Mapping[str, Any], training: TrainingConfig) -> None:
    """Refuse to go on from this state of a `TrainingMonitor`.

    Raises:
        AllEpochsDone: no epoch is left to do.
        TimeUsedUp: no time by which the schedule could go.
        TrainingError: the steps of the epoch that was begun would be others.
    """
    if state["epochs_done"] >= training.epochs:
        raise stopping.AllEpochsDone(
            f"This training has already done {state['epochs_done']:g} of "
            f"{counted(training.epochs, 'epoch')}. To go on, raise training.epochs."
        )
    seconds = state["seconds"] + state.get("validation_seconds", 0.0)
    if training.schedule.in_time and seconds >= 60 * training.max_minutes:
        raise stopping.TimeUsedUp(
            f"This training has used its time (training.max_minutes: {training.max_minutes:g}), by which its "
            "schedule goes (training.schedule.in_time). To go on, raise training.max_minutes."
        )
    before, now = state.get("budget"), str(budget_of(training.batch_size))
    if state["batches_done"] and before not in (None, now):
        raise TrainingError(
            f"The checkpoint was written within an epoch of steps of {before}; training.batch_size is "
            f"now {now}. Set it back until the epoch ends ({state['batches_done']} steps are done)."
        )


def describe_changes(before: Config, now: Config) -> list[str]:
    """One line for each setting that differs and may, such as ``training.epochs: 4, now 6``."""
    settings = [(c.training.model_dump(), c.run.model_dump(exclude={"directory"})) for c in (before, now)]
    (training, run), (training_now, run_now) = settings
    return [*_differences(training, training_now, "training"), *_differences(run, run_now, "run")]


def check_same_statistics(checkpoint: Path, before: Statistics, now: Statistics) -> None:
    """Raise TrainingError if the training data have other statistics than those of ``checkpoint``."""
    differing = _differences(dataclasses.asdict(before), dataclasses.asdict(now), "statistics")
    if differing:
        raise TrainingError(
            f"Cannot resume {checkpoint}: the training data are not those it was trained on: "
            f"{'; '.join(differing)}. Restore the data and section data, or start a new training."
        )


def _optimizer(config: Config) -> dict[str, Any]:
    """What the optimizer's state in the checkpoint would silently override."""
    return config.training.model_dump(include={"optimizer", "weight_decay"})


def _plain(data: DataConfig) -> dict[str, Any]:
    """The section as plain values, without the folders of files: their content is compared with the split."""
    values = data.model_dump()
    del values["cache"], values["checks"]  # where the frames are kept, and what is said of them
    for key in ("train", "validation", "test"):
        if isinstance(values[key], tuple):
            values[key] = [_entry(entry) for entry in values[key]]
    return values


def _entry(entry: Any) -> Any:
    if isinstance(entry, dict):
        return {**entry, "path": [path.name for path in entry["path"]]}
    return entry.name


def _fine_tune(config: Config) -> dict[str, Any]:
    if config.fine_tune is None:
        return {}
    values = config.fine_tune.model_dump(mode="json")
    values["model"] = "/".join(Path(values["model"]).parts[-3:])  # RUN/checkpoints/best.ckpt
    if isinstance(values["replay"], str):
        values["replay"] = Path(values["replay"]).name
    return values


def _differences(before: Any, now: Any, place: str) -> list[str]:
    """One line for each value that differs, such as ``model.layers: 3, now 4``."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = dict.fromkeys((*before, *now))
        pairs = ((before.get(key), now.get(key), f"{place}.{key}") for key in keys)
        return [line for pair in pairs for line in _differences(*pair)]
    if isinstance(before, list | tuple) and isinstance(now, list | tuple) and len(before) == len(now):
        pairs = ((a, b, f"{place}[{i}]") for i, (a, b) in enumerate(zip(before, now, strict=True)))
        return [line for pair in pairs for line in _differences(*pair)]
    # Statistics are recomputed; another machine or number of threads may round them differently.
    if isinstance(before, float) and isinstance(now, float) and math.isclose(before, now, rel_tol=1e-6):
        return []
    return [] if before == now else [f"{place}: {before}, now {now}"]
