"""Predictions as extended XYZ, beside the labels they are to be compared with."""

from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms

from equipot.evaluation.predict import Comparison
from equipot.files import atomic_write


def write_predictions(comparison: Comparison, path: Path) -> None:
    """Write every frame with predicted and reference values, in eV and Å whatever the units of the data.

    Names: ``predicted_energy``, ``predicted_forces``, ``predicted_stress`` and ``reference_*``; a missing
    reference, and the stress of a frame that is not periodic in all directions, are left out.
    """
    with atomic_write(path) as temporary:
        ase.io.write(temporary, frames_with_predictions(comparison), format="extxyz")


def frames_with_predictions(comparison: Comparison) -> list[Atoms]:
    """One Atoms object per frame, as ``write_predictions`` writes them."""
    return [_frame_with_predictions(comparison, i) for i in range(len(comparison.frames))]


def _frame_with_predictions(comparison: Comparison, i: int) -> Atoms:
    frame = comparison.frames[i]
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
