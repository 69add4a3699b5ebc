"""From a checkpoint to a deployed file."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ase import Atoms

from equipot.config import DataConfig, load_config
from equipot.data.frames import Frame, frame_from_atoms
from equipot.data.readers import named_files, read_frame
from equipot.data.species import atom_types
from equipot.data.splits import FrameId, Split, follow_files
from equipot.deploy.capsule import synthetic_structures
from equipot.deploy.checkpoint import Checkpoint, load_checkpoint, training_state
from equipot.deploy.examples import example_structures
from equipot.deploy.metadata import Metadata
from equipot.deploy.rigidity import rigidity_of_run
from equipot.deploy.structure import Structure, make_structure
from equipot.deploy.torchscript import write_torchscript
from equipot.errors import DataError, ModelFileError
from equipot.run_directory import RunDirectory

log = logging.getLogger("equipot")

_NUM_FRAMES = 3  # of the data, in the capsule
_MAX_EDGES = 20_000  # per structure; keeps the capsule below about 1 MB and its evaluation below seconds


def deploy(
    checkpoint: str | Path,
    output: str | Path,
    structures: Sequence[Atoms] | None = None,
    weights: str = "average",
    tables: bool = True,
    level: str | None = None,
    uncertainty: bool = False,
    config: Path | None = None,
) -> Metadata:
    """Write the model of a checkpoint as one TorchScript file with its metadata and self-check capsule.

    The capsule holds ``structures`` if given, else a few validation frames of the training, or examples for
    an imported model, and always two synthetic structures that contain every species. The file is verified in
    a fresh process before it gets its name; on failure nothing is left behind.

    Args:
        checkpoint: written by ``equipot train`` or ``equipot import``.
        output: the file to write.
        structures: for the capsule; positions in Å.
        weights: "average" or "last".
        tables: replace the radial networks by tables that are as accurate.
        level: the level of theory to deploy; None: the only one.
        uncertainty: add that of energies, measured on the training set and calibrated on the validation set.
        config: the YAML of the training, where its data lie elsewhere by now.

    Raises:
        ModelFileError: the checkpoint is unusable, it has several levels and ``level`` is none of them, it is
            imported and ``config`` is given, or the file does not reproduce the eager model.
        DataError: ``config`` does not name the data of the training.
        ModelFileError, DataError: as `rigidity_of_run`, for an uncertainty.
        UnknownSpeciesError: ``structures`` contain an element that the model does not know.
    """
    whole = load_checkpoint(checkpoint, weights)
    loaded = whole.at_level(level)
    if weights == "average" and loaded.weights == "last" and not loaded.imported:
        log.warning("%s has no averaged weights; the last ones are deployed.", checkpoint)
    if config is not None and loaded.imported:
        raise ModelFileError(f"{checkpoint} is imported and has no training data: leave out --config.")
    species, cutoff = list(loaded.potential.species), float(loaded.potential.cutoff)
    if uncertainty and not loaded.potential.has_energy:
        raise ModelFileError(f"{checkpoint}: an uncertainty is that of energies, which this model has not.")
    if structures is None and not loaded.imported:
        frames, source = _frames_of_training(loaded, config, species, cutoff)
    else:
        frames, source = _given_frames(structures, species, cutoff)
    measure = rigidity_of_run(loaded, level, config) if uncertainty else None
    return write_torchscript(
        loaded.potential,
        output,
        [*frames, *synthetic_structures(species, cutoff)],
        source=source,
        model_type=loaded.config.model.type,
        atomic_energies=loaded.potential.scale_shift.shift.tolist() if loaded.potential.has_energy else (),
        weights="imported" if loaded.imported else loaded.weights,
        validation=loaded.validation,
        config=loaded.config.to_yaml(),
        tables=tables,
        level=next(iter(loaded.levels), ""),
        levels=tuple(whole.levels),
        shortest_distances=loaded.shortest_distances,
        origin=loaded.origin,
        training_state=training_state(loaded),
        measure=measure,
    )


def _given_frames(
    structures: Sequence[Atoms] | None, species: list[str], cutoff: float
) -> tuple[list[Structure], str]:
    """What the caller gave, else examples."""
    what = "given" if structures is not None else "example"
    frames = [frame_from_atoms(atoms) for atoms in structures or example_structures(species)]
    made = [_structure(frame, f"{what} {i}", species, cutoff) for i, frame in enumerate(frames)]
    return made, f"{what} structures and synthetic ones"


def _frames_of_training(
    checkpoint: Checkpoint, config: Path | None, species: list[str], cutoff: float
) -> tuple[list[Structure], str]:
    """A few frames of the data the model was trained with, and where they come from; none if it is gone."""
    data = checkpoint.config.data if config is None else load_config(config).data
    try:
        names, what = _candidates(checkpoint, data, moved=config is not None)
        structures = []
        for file, index in names:
            frame = read_frame(data, file, index)
            structures.append(_structure(frame, f"{Path(file).name} frame {index}", species, cutoff))
    except (DataError, OSError, ValueError, IndexError, StopIteration) as error:
        if config is not None:
            raise DataError(f"{config} does not say where the data of the training are: {error}") from None
        log.warning(
            "The training's data cannot be read (%s); the self-check has synthetic structures only. If they "
            "lie elsewhere now, name the YAML that says where by --config.",
            error,
        )
        return [], "synthetic only, the data of the training could not be read"
    usable = [s for s in structures if 0 < s.edge_index.shape[1] <= _MAX_EDGES]
    usable = usable or sorted(structures, key=lambda s: s.edge_index.shape[1])[:1]
    return usable[:_NUM_FRAMES], f"{what} and synthetic ones"


def _candidates(checkpoint: Checkpoint, data: DataConfig, moved: bool) -> tuple[list[FrameId], str]:
    """Frames to choose from, more than are needed: some may be too large."""
    split_file = RunDirectory.of_checkpoint(checkpoint.path).split
    if split_file.is_file():
        split = Split.load(split_file)
        if moved:
            split = follow_files(split, named_files(data))
        names = split.validation or split.train
        chosen = np.linspace(0, len(names) - 1, min(len(names), 3 * _NUM_FRAMES)).round().astype(int)
        # The middle ones first: the ends of a sampled trajectory are the least typical.
        return [names[i] for i in sorted(chosen, key=lambda i: abs(i - len(names) / 2))], "validation frames"
    return [(next(iter(named_files(data))), 0)], "the first frame of the training data"


def _structure(frame: Frame, name: str, species: list[str], cutoff: float) -> Structure:
    types = atom_types(frame.atomic_numbers, species, frame.where)
    return make_structure(name, frame.positions, frame.cell, frame.pbc, types, cutoff)
