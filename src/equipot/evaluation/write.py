"""Predictions as extended XYZ, beside the labels they are to be compared with."""

from collections.abc import Sequence
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms

from equipot.data.frames import Frame
from equipot.evaluation.predict import Comparison
from equipot.files import atomic_write
from equipot.quantities import QUANTITIES


def write_predictions(comparison: Comparison, frames: Sequence[Frame], path: Path) -> None:
    """Write every frame with predicted and reference values, in eV and Å whatever the units of the data.

    Names: ``predicted_energy``, ``predicted_forces``, ``predicted_stress`` and ``reference_*``; a missing
    reference, and the stress of a frame that is not periodic in all directions, are left out.
    """
    with atomic_write(path) as temporary:
        ase.io.write(
            temporary,
            [_frame_with_predictions(comparison, frame, i) for i, frame in enumerate(frames)],
            format="extxyz",
        )


def _frame_with_predictions(comparison: Comparison, frame: Frame, i: int) -> Atoms:
    atoms = Atoms(frame.atomic_numbers, positions=frame.positions, cell=frame.cell, pbc=frame.pbc)
    rows = comparison.atoms_of(i)
    predicted = {name: value[QUANTITIES[name].choose(i, rows)] for name, value in comparison.values.items()}
    for prefix, values in (("predicted", predicted), ("reference", frame.values)):
        for name, value in values.items():
            if np.isfinite(value).all():
                where = QUANTITIES[name].choose(atoms.info, atoms.arrays)
                where[f"{prefix}_{name}"] = float(value) if np.ndim(value) == 0 else np.asarray(value)
    atoms.info["source_file"] = str(frame.file)
    atoms.info["source_index"] = frame.index
    if frame.config_type:
        atoms.info["config_type"] = frame.config_type
    return atoms
