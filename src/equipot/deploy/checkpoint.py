"""Read a training checkpoint back into a potential."""

import dataclasses
import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch

from equipot import __version__
from equipot.config import Config, config_from_dict
from equipot.data.statistics import Statistics
from equipot.deploy.metadata import is_deployed, read_training_state, require_checksums
from equipot.errors import ConfigError, DataError, ModelFileError
from equipot.models.build import build_potential
from equipot.models.potential import Potential
from equipot.models.transfer import transfer
from equipot.run_directory import RunDirectory

# 2: what the model was built from stands apart from the data's statistics; levels of theory.
CHECKPOINT_FORMAT = 2
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
    built_from: dict[str, Any]  # arguments of `build_potential` beside the section ``model``
    shortest_distances: dict[str, float]  # Å, of pairs of elements in what it was trained on; {}: not known
    origin: dict[str, str] = dataclasses.field(default_factory=dict)  # of a model of another code; {}: ours

    @property
    def imported(self) -> bool:
        """Whether its weights are those of another code, and not trained further."""
        return bool(self.origin) and self.statistics.num_frames == 0

    @property
    def levels(self) -> list[str]:
        """Names of the levels of theory; none if they have no names."""
        return self.potential.levels

    def level_index(self, level: str | None) -> int:
        """The number of a level; None is the only one. Raises ModelFileError if there is no such level."""
        named = f"Its levels of theory are: {', '.join(self.levels)}."
        if level is None and len(self.levels) > 1:
            raise ModelFileError(f"{self.path}: choose a level of theory. {named}")
        if level is not None and level not in self.levels:
            named = named if self.levels else "Its only one has no name: leave the choice out."
            raise ModelFileError(f"{self.path}: the model has no level '{level}'. {named}")
        return 0 if level is None else self.levels.index(level)

    def at_level(self, level: str | None) -> "Checkpoint":
        """The same with a potential of one level; None is the only one. Raises as `level_index`."""
        index = self.level_index(level)
        if len(self.levels) < 2:
            return self
        built_from = self.built_from | {
            "levels": [level],
            "atomic_energies": self.built_from["atomic_energies"][index],
        }
        potential = build_potential(self.config.model, **built_from)
        species = range(len(potential.species))
        state = transfer(self.potential.state_dict(), self.config.model.type, species, [index])
        potential.load_state_dict(state)
        return dataclasses.replace(
            self,
            potential=potential.eval(),
            built_from=built_from,
            validation=metrics_of_level(self.validation, level),
        )


def metric_of_level(metric: str, level: str) -> str:
    """The name of a metric of one of several levels of theory: ``forces_mae[pbe0]``."""
    return f"{metric}[{level}]"


def metrics_of_level(metrics: dict[str, float], level: str) -> dict[str, float]:
    """Those of one level, without its name."""
    suffix = metric_of_level("", level)
    return {name.removesuffix(suffix): value for name, value in metrics.items() if name.endswith(suffix)}


def find_checkpoint(path: str | Path) -> Path:
    """The file meant by a run directory (its best checkpoint) or by a file name (that file).

    Raises:
        ModelFileError: nothing there, or a directory without a best checkpoint.
    """
    path = Path(path)
    if path.is_dir():
        best = RunDirectory(path).best
        members = sorted(path.glob("member_*"))
        if not best.is_file() and members:
            raise ModelFileError(f"'{path}' is an ensemble: name one of its members, such as {members[0]}.")
        if not best.is_file():
            raise ModelFileError(
                f"'{path}' is a folder without {best.relative_to(path)}; expected the run directory of a "
                "training that has finished at least one epoch, a checkpoint, or a deployed model file."
            )
        return best
    if not path.is_file():
        raise ModelFileError(f"No model file or run directory '{path}' (looked in {path.absolute().parent}).")
    return path


def load_checkpoint(path: str | Path, weights: Literal["average", "last"] = "average") -> Checkpoint:
    """Rebuild the potential of a checkpoint.

    ``weights="average"`` takes the averaged weights that were validated, exponential ("ema") or with equal
    shares ("swa"), or the last ones if there was no average; `Checkpoint.weights` says which it was.

    Raises ModelFileError if the file is missing, damaged, no equipot checkpoint, or newer than this equipot.
    """
    path = Path(path)
    return _from_content(path, _read(path), weights)


def load_training_state(path: str | Path) -> Checkpoint:
    """What a training can start from: a run directory (its best weights), a checkpoint or a deployed file.

    Raises ModelFileError as `load_checkpoint`, and for a deployed file that holds no training state.
    """
    path = find_checkpoint(path)
    if not is_deployed(path):
        return load_checkpoint(path)
    state = read_training_state(path)
    if state is None:
        raise ModelFileError(
            f"{path}: this file was deployed without what a training needs to start from it, by an earlier "
            "equipot. Start from its run directory or a checkpoint, or deploy it again."
        )
    content = torch.load(io.BytesIO(state), map_location="cpu", weights_only=True)
    _check_content(path, content)
    return _from_content(path, content, "last")


def training_state(checkpoint: Checkpoint) -> bytes:
    """The content of a file that `load_training_state` reads: weights and description, no optimizer."""
    weights = checkpoint.potential.state_dict()
    content = {
        "state_dict": {_PREFIX + name: weight for name, weight in weights.items()},
        "equipot": describe(
            checkpoint.config,
            checkpoint.statistics,
            checkpoint.built_from,
            checkpoint.shortest_distances,
            checkpoint.origin,
        )
        | {"validation": dict(checkpoint.validation), "ema": None},
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def describe(
    config: Config,
    statistics: Statistics,
    built_from: dict[str, Any],
    shortest_distances: Mapping[str, float] = MappingProxyType({}),
    origin: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """What every checkpoint says of the model, beside its weights: plain values only."""
    return {
        "format": CHECKPOINT_FORMAT,
        "config": config.to_dict(),
        "statistics": statistics.to_dict(),
        "species": list(built_from["species"]),
        "built_from": dict(built_from),
        "shortest_distances": dict(shortest_distances),
        "origin": dict(origin),
        "equipot_version": __version__,
        # A subclass of str, which a checkpoint of plain values may not hold.
        "torch_version": str(torch.__version__),
    }


def built_from_statistics(
    statistics: Statistics, species: Sequence[str], levels: Sequence[str]
) -> dict[str, Any]:
    """The arguments of `build_potential` beside the section ``model``, as the training data give them."""
    several = len(levels) > 1
    return {
        "species": list(species),
        "levels": list(levels),
        "avg_num_neighbors": statistics.avg_num_neighbors,
        "atomic_energies": [list(statistics.levels[level].atomic_energies) for level in levels]
        if several
        else list(statistics.atomic_energies),
        "force_rms": statistics.force_rms,
    }


def _from_content(path: Path, content: dict[str, Any], weights: str) -> Checkpoint:
    extra = content["equipot"]
    try:
        config = config_from_dict(extra["config"])
        statistics = Statistics.from_dict(extra["statistics"])
        # Format 1 knew no levels, and built models from the statistics of their data.
        built_from = extra.get("built_from") or built_from_statistics(statistics, extra["species"], ())
        potential = build_potential(config.model, **built_from)
        used, state = _choose_weights(content, weights)
    except (KeyError, TypeError, ConfigError, DataError) as error:
        raise ModelFileError(
            f"{path}: the checkpoint's description of its model cannot be read: {error}"
        ) from error
    try:
        potential.load_state_dict(state)
    except RuntimeError as error:
        raise ModelFileError(f"{path}: the weights do not fit the configured model. {error}") from None
    validation = dict(extra.get("validation") or {})
    distances = dict(extra.get("shortest_distances") or {})  # which earlier checkpoints do not have
    facts = (config, statistics, validation, built_from, distances, dict(extra.get("origin") or {}))
    return Checkpoint(path, potential.eval(), used, *facts)


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
    _check_content(path, content)
    return content


def _check_content(path: Path, content: Any) -> None:
    if not isinstance(content, dict) or "equipot" not in content or "state_dict" not in content:
        raise ModelFileError(f"{path}: a PyTorch file, but not a checkpoint written by 'equipot train'.")
    extra = content["equipot"]
    found = extra.get("format")
    if not isinstance(found, int) or found > CHECKPOINT_FORMAT:
        raise ModelFileError(
            f"{path}: checkpoint format {found}, written by equipot {extra.get('equipot_version', '?')}; "
            f"this equipot reads formats up to {CHECKPOINT_FORMAT}. Upgrade equipot."
        )


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
