"""Read a training checkpoint back into a potential."""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from equipot.config import Config, config_from_dict
from equipot.data.statistics import Statistics
from equipot.deploy.metadata import require_checksums
from equipot.errors import ConfigError, DataError, ModelFileError
from equipot.models.build import build_potential
from equipot.models.potential import Potential

CHECKPOINT_FORMAT = 1
_PREFIX = "potential."


@dataclass(frozen=True)
class Checkpoint:
    """A trained potential, in eval mode on the CPU, and what is known of its training."""

    path: Path
    potential: Potential
    weights: str  # "ema", "swa" or "last": which weights the potential carries
    config: Config
    statistics: Statistics
    validation: dict[str, float]  # validation errors when it was written


def load_checkpoint(path: str | Path, weights: Literal["average", "last"] = "average") -> Checkpoint:
    """Rebuild the potential of a checkpoint.

    ``weights="average"`` takes the averaged weights that were validated, exponential ("ema") or with equal
    shares ("swa"), or the last ones if there was no average; `Checkpoint.weights` says which it was.

    Raises ModelFileError if the file is missing, damaged, no equipot checkpoint, or newer than this equipot.
    """
    path = Path(path)
    content = _read(path)
    extra = content["equipot"]
    try:
        config = config_from_dict(extra["config"])
        statistics = Statistics.from_dict(extra["statistics"])
        potential = build_potential(
            config.model,
            list(extra["species"]),
            statistics.avg_num_neighbors,
            list(statistics.atomic_energies),
            statistics.force_rms,
        )
        used, state = _choose_weights(content, weights)
    except (KeyError, TypeError, ConfigError, DataError) as error:
        raise ModelFileError(
            f"{path}: the checkpoint's description of its model cannot be read: {error}"
        ) from error
    try:
        potential.load_state_dict(state)
    except RuntimeError as error:
        raise ModelFileError(f"{path}: the weights do not fit the configured model. {error}") from None
    return Checkpoint(path, potential.eval(), used, config, statistics, dict(extra.get("validation") or {}))


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ModelFileError(
            f"{path}: no such file. Expected a checkpoint, such as runs/NAME/checkpoints/best.ckpt."
        )
    try:
        _check_archive(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except ModelFileError:
        raise
    except Exception as error:  # the unpickler raises whatever wrong bytes lead it into
        raise ModelFileError(
            f"{path}: not a checkpoint, or truncated or damaged ({path.stat().st_size} bytes; "
            f"{type(error).__name__})."
        ) from None
    if not isinstance(content, dict) or "equipot" not in content or "state_dict" not in content:
        raise ModelFileError(f"{path}: a PyTorch file, but not a checkpoint written by 'equipot train'.")
    extra = content["equipot"]
    found = extra.get("format")
    if not isinstance(found, int) or found > CHECKPOINT_FORMAT:
        raise ModelFileError(
            f"{path}: checkpoint format {found}, written by equipot {extra.get('equipot_version', '?')}; "
            f"this equipot reads formats up to {CHECKPOINT_FORMAT}. Upgrade equipot."
        )
    return content


def _check_archive(path: Path) -> None:
    """Refuse what torch.load lets pass: changed bytes, and TorchScript files until a confusing error."""
    with zipfile.ZipFile(path) as archive:
        require_checksums(path, archive)
        if any(name.endswith("/constants.pkl") for name in archive.namelist()):
            raise ModelFileError(f"{path}: a deployed model, where a training checkpoint is expected.")


def _choose_weights(content: dict[str, Any], weights: str) -> tuple[str, dict[str, torch.Tensor]]:
    if weights == "average":
        for kind in ("ema", "swa"):  # at most one of them
            if content["equipot"].get(kind) is not None:
                return kind, content["equipot"][kind]
    state = content["state_dict"]
    return "last", {k.removeprefix(_PREFIX): v for k, v in state.items() if k.startswith(_PREFIX)}
