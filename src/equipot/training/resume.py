"""Going on with an interrupted training: which checkpoint, and whether it is the same training."""

import dataclasses
import math
from pathlib import Path
from typing import Any

from equipot.config import Config
from equipot.config.data import DataConfig
from equipot.data.statistics import Statistics
from equipot.deploy.checkpoint import Checkpoint, load_checkpoint
from equipot.errors import TrainingError
from equipot.training.fine_tune import with_architecture


def find_last(path: Path) -> Path:
    """The checkpoint to resume from: ``path``, or ``checkpoints/last.ckpt`` if it is a run directory.

    Raises:
        TrainingError: there is none.
    """
    path = Path(path)
    last = path / "checkpoints" / "last.ckpt" if path.is_dir() else path
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
    """The section as plain values, with the same name for the same file."""
    values = data.model_dump()
    del values["cache"]  # where the frames are kept
    for key in ("train", "validation", "test"):
        if isinstance(values[key], tuple):
            values[key] = [_entry(entry) for entry in values[key]]
    return values


def _entry(entry: Any) -> Any:
    if isinstance(entry, dict):
        return {**entry, "path": [str(path.resolve()) for path in entry["path"]]}
    return str(entry.resolve())


def _fine_tune(config: Config) -> dict[str, Any]:
    return {} if config.fine_tune is None else config.fine_tune.model_dump(mode="json")


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
