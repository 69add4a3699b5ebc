"""Predictions as extended XYZ, beside the labels they are to be compared with."""

from collections.abc import Sequence
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms

from equipot.data.frames import Frame
from equipot.evaluation.predict import Comparison
from equipot.files import atomic_write


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
    values = {
        "predicted": (comparison.energy[i], comparison.forces[rows], comparison.stress[i]),
        "reference": (frame.energy, frame.forces, frame.stress),
    }
    for prefix, (energy, forces, stress) in values.items():
        if energy is not None:
            atoms.info[f"{prefix}_energy"] = float(energy)
        if forces is not None:
            atoms.arrays[f"{prefix}_forces"] = np.asarray(forces)
        if stress is not None and np.isfinite(stress).all():
            atoms.info[f"{prefix}_stress"] = np.asarray(stress)
    atoms.info["source_file"] = str(frame.file)
    atoms.info["source_index"] = frame.index
    if frame.config_type:
        atoms.info["config_type"] = frame.config_type
    return atoms
