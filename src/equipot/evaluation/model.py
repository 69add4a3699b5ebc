"""One interface to what can be evaluated: a training checkpoint, a run directory, a deployed file."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import yaml

from equipot.config import LabelsConfig, UnitsConfig
from equipot.config.data import Parsing
from equipot.deploy.checkpoint import find_checkpoint, load_checkpoint
from equipot.deploy.load import DeployedModel, load_deployed
from equipot.deploy.metadata import is_deployed
from equipot.devices import resolve_device
from equipot.errors import ModelFileError
from equipot.graph import AtomicGraph
from equipot.models.predict import Prediction, predict


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to predict, and what its training knew about labels and units."""

    path: Path
    species: list[str]
    cutoff: float  # Å
    device: str  # that graphs should be on
    runs_on: str  # whose memory bounds what is evaluated at once
    labels: LabelsConfig
    units: UnitsConfig
    predict: Callable[[AtomicGraph], Prediction]
    missing: str = "error"  # what NaN means, as in ``data.missing``
    parsing: Parsing = field(default_factory=Parsing)  # as ``data.species_map`` and so on
    outputs: tuple[str, ...] = ()  # beside energy and forces


def load_model(path: str | Path, device: str = "auto", level: str | None = None) -> LoadedModel:
    """Load a run directory, a checkpoint (with its averaged weights) or a deployed file.

    ``level``: the level of theory; None is the only one.

    Raises:
        ModelFileError: missing, damaged, or made by a newer equipot; the model has no such level, or several
            and none is chosen.
        DeviceError: ``device`` is not on this machine.
    """
    file = find_checkpoint(path)
    return (_load_deployed if is_deployed(file) else _load_checkpoint)(file, device, level)


def _load_checkpoint(path: Path, device: str, level: str | None) -> LoadedModel:
    device = resolve_device(device)
    checkpoint = load_checkpoint(path).at_level(level)
    potential = checkpoint.potential.to(device).eval()
    data, run = checkpoint.config.data, partial(predict, potential)
    species = list(potential.species)
    how = data.missing, data.parsing, tuple(potential.output_names)
    where = device, device
    return LoadedModel(path, species, potential.cutoff, *where, data.labels, data.units, run, *how)


def _load_deployed(path: Path, device: str, level: str | None) -> LoadedModel:
    deployed = load_deployed(path, device)
    metadata = deployed.metadata
    if level is not None and level != metadata.level:
        found = f"the level '{metadata.level}'" if metadata.level else "a level of theory without a name"
        raise ModelFileError(f"{path}: deployed for {found}, not for '{level}'.")
    # Only what is needed, so that a file stays usable when other parts of the schema change.
    data = yaml.safe_load(metadata.config)["data"]
    labels, units = LabelsConfig(**data["labels"]), UnitsConfig(**data["units"])
    missing, parsing = data.get("missing", "error"), Parsing(fixed_atoms=data.get("fixed_atoms", "use"))
    run = partial(_with_uncertainty if deployed.has_features else predict, deployed)
    return LoadedModel(
        path, list(metadata.species), metadata.cutoff, deployed.takes_from, deployed.device, labels, units,
        run, missing, parsing, outputs=tuple(deployed.output_names),
    )  # fmt: skip


def _with_uncertainty(deployed: DeployedModel, graph: AtomicGraph) -> Prediction:
    """As `predict`; by one evaluation, unless there are outputs, which may be in a field."""
    sums = np.zeros((graph.num_structures, deployed.engine.feature_width))

    def rows(*inputs: torch.Tensor, **field: torch.Tensor) -> Sequence[torch.Tensor]:
        found = deployed.rows(*(x.numpy() for x in inputs), derivatives=False)
        np.add.at(sums, graph.structure.numpy(), found.pop("features"))
        return (
            deployed(*inputs, **field) if deployed.output_names else [*map(torch.from_numpy, found.values())]
        )

    rows.output_names = deployed.output_names
    prediction = predict(rows, graph)
    return replace(prediction, energy_uncertainty=torch.from_numpy(deployed.engine.uncertainty(sums)))
