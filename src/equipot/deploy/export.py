"""From a checkpoint to a deployed file."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ase import Atoms

from equipot.data.frames import Frame, frame_from_atoms
from equipot.data.readers import expand_paths, read_frame
from equipot.data.species import atom_types
from equipot.data.splits import FrameId, Split
from equipot.deploy.capsule import synthetic_structures
from equipot.deploy.checkpoint import Checkpoint, load_checkpoint, training_state
from equipot.deploy.examples import example_structures
from equipot.deploy.metadata import Metadata
from equipot.deploy.rigidity import rigidity_of_run
from equipot.deploy.structure import Structure, make_structure
from equipot.deploy.torchscript import write_torchscript
from equipot.errors import DataError
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
        config: the YAML of the training, where its data lie elsewhere by now; for the uncertainty.

    Raises:
        ModelFileError: the checkpoint is unusable, it has several levels and ``level`` is none of them, or
            the file does not reproduce the eager model.
        ModelFileError, DataError: as `rigidity_of_run`, for an uncertainty.
        UnknownSpeciesError: ``structures`` contain an element that the model does not know.
    """
    whole = load_checkpoint(checkpoint, weights)
    loaded = whole.at_level(level)
    if weights == "average" and loaded.weights == "last" and not loaded.imported:
        log.warning("%s has no averaged weights; the last ones are deployed.", checkpoint)
    species, cutoff = list(loaded.potential.species), float(loaded.potential.cutoff)
    if structures is None and not loaded.imported:
        frames, source = _frames_of_training(loaded, species, cutoff)
    else:
        what = "given" if structures is not None else "example"
        given = [frame_from_atoms(atoms) for atoms in structures or example_structures(species)]
        frames = [_structure(frame, f"{what} {i}", species, cutoff) for i, frame in enumerate(given)]
        source = f"{what} structures and synthetic ones"
    measure = rigidity_of_run(loaded, level, config) if uncertainty else None
    return write_torchscript(
        loaded.potential,
        output,
        [*frames, *synthetic_structures(species, cutoff)],
        source=source,
        model_type=loaded.config.model.type,
        atomic_energies=loaded.potential.scale_shift.shift.tolist(),
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


def _frames_of_training(
    checkpoint: Checkpoint, species: list[str], cutoff: float
) -> tuple[list[Structure], str]:
    """A few frames of the data the model was trained with, and where they come from; none if it is gone."""
    try:
        names, what = _candidates(checkpoint)
        structures = []
        for file, index in names:
            frame = read_frame(checkpoint.config.data, file, index)
            structures.append(_structure(frame, f"{Path(file).name} frame {index}", species, cutoff))
    except (DataError, OSError, ValueError, IndexError, StopIteration) as error:
        log.warning(
            "The training's data cannot be read (%s); the self-check has synthetic structures only.", error
        )
        return [], "synthetic only, the data of the training could not be read"
    usable = [s for s in structures if 0 < s.edge_index.shape[1] <= _MAX_EDGES]
    usable = usable or sorted(structures, key=lambda s: s.edge_index.shape[1])[:1]
    return usable[:_NUM_FRAMES], f"{what} and synthetic ones"


def _candidates(checkpoint: Checkpoint) -> tuple[list[FrameId], str]:
    """Frames to choose from, more than are needed: some may be too large."""
    split_file = RunDirectory.of_checkpoint(checkpoint.path).split
    if split_file.is_file():
        split = Split.load(split_file)
        names = split.validation or split.train
        chosen = np.linspace(0, len(names) - 1, min(len(names), 3 * _NUM_FRAMES)).round().astype(int)
        # The middle ones first: the ends of a sampled trajectory are the least typical.
        return [names[i] for i in sorted(chosen, key=lambda i: abs(i - len(names) / 2))], "validation frames"
    file = str(expand_paths(checkpoint.config.data.sources("train")[0].path)[0])
    return [(file, 0)], "the first frame of the training data"


def _structure(frame: Frame, name: str, species: list[str], cutoff: float) -> Structure:
    types = atom_types(frame.atomic_numbers, species, frame.where)
    return make_structure(name, frame.positions, frame.cell, frame.pbc, types, cutoff)
