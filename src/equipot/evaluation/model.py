"""One interface to what can be evaluated: a training checkpoint, a run directory, a deployed file."""

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import yaml

from equipot.config import LabelsConfig, UnitsConfig
from equipot.deploy.checkpoint import load_checkpoint
from equipot.deploy.load import load_deployed, resolve_device
from equipot.errors import ModelFileError
from equipot.graph import AtomicGraph
from equipot.models.potential import Prediction, predict

BEST_CHECKPOINT = Path("checkpoints") / "best.ckpt"


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to predict, and what its training knew about labels and units."""

    path: Path
    species: list[str]
    cutoff: float  # Å
    device: torch.device
    labels: LabelsConfig
    units: UnitsConfig
    predict: Callable[[AtomicGraph], Prediction]


def find_checkpoint(path: str | Path) -> Path:
    """The file meant by a run directory (its best checkpoint) or by a file name (that file).

    Raises:
        ModelFileError: nothing there, or a directory without a best checkpoint.
    """
    path = Path(path)
    if path.is_dir():
        best = path / BEST_CHECKPOINT
        if not best.is_file():
            raise ModelFileError(
                f"'{path}' is a folder without {BEST_CHECKPOINT}; expected the run directory of a "
                "training that has finished at least one epoch, a checkpoint, or a deployed model file."
            )
        return best
    if not path.is_file():
        raise ModelFileError(f"No model file or run directory '{path}' (looked in {path.absolute().parent}).")
    return path


def is_deployed(path: Path) -> bool:
    """Whether the file is a TorchScript archive; a checkpoint is an archive without code."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/code/" in name for name in archive.namelist())
    except (zipfile.BadZipFile, OSError) as error:
        raise ModelFileError(
            f"'{path}' is neither a checkpoint nor a deployed model, or it is damaged ({error}). "
            "If it was copied, copy it again; if it was deployed, run `equipot deploy` again."
        ) from None


def load_model(path: str | Path, device: str = "auto") -> LoadedModel:
    """Load a run directory, a checkpoint (with its EMA weights) or a deployed file.

    Raises:
        ModelFileError: missing, damaged, or made by a newer equipot.
        DeviceError: ``device`` is not on this machine.
    """
    file = find_checkpoint(path)
    target = resolve_device(device)
    return _load_deployed(file, target) if is_deployed(file) else _load_checkpoint(file, target)


def _load_checkpoint(path: Path, device: torch.device) -> LoadedModel:
    checkpoint = load_checkpoint(path)
    potential = checkpoint.potential.to(device).eval()
    data = checkpoint.config.data
    return LoadedModel(
        path=path,
        species=list(potential.species),
        cutoff=potential.cutoff,
        device=device,
        labels=data.labels,
        units=data.units,
        predict=partial(predict, potential),
    )


def _load_deployed(path: Path, device: torch.device) -> LoadedModel:
    deployed = load_deployed(path, device)
    metadata = deployed.metadata
    # Only what is needed, so that a file stays usable when other parts of the schema change.
    data = yaml.safe_load(metadata.config)["data"]
    return LoadedModel(
        path=path,
        species=list(metadata.species),
        cutoff=metadata.cutoff,
        device=device,
        labels=LabelsConfig(**data["labels"]),
        units=UnitsConfig(**data["units"]),
        predict=partial(predict, deployed),
    )
