"""Errors of predictions against reference labels. Everything here is in eV, Å and their quotients."""

from dataclasses import dataclass

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from equipot.data.frames import Frame
from equipot.evaluation.predict import Comparison
from equipot.units import EV_A3_TO_GPA

MEV = 1e-3  # eV


@dataclass(frozen=True)
class ErrorRow:
    """Error statistics of one quantity, in ``unit``; None where nothing was labelled.

    ``mae``, ``rmse`` and ``largest`` are over single numbers: frames for the energy per atom, Cartesian
    components for forces (3 an atom) and stress (9 a frame).
    """

    quantity: str
    unit: str
    mae: float | None
    rmse: float | None
    largest: float | None
    count: int
    counted: str  # "frames" or "atoms": what ``count`` counts

    @classmethod
    def from_errors(cls, quantity: str, unit: str, errors: NDArray, counted: str) -> "ErrorRow":
        """Statistics of ``errors`` (n, ...) in ``unit``; rows with a NaN have no label and do not count."""
        flat = errors.reshape(len(errors), int(np.prod(errors.shape[1:])))
        labelled = flat[~np.isnan(flat).any(axis=1)]
        if labelled.size == 0:
            return cls(quantity, unit, None, None, None, 0, counted)
        absolute = np.abs(labelled)
        return cls(
            quantity=quantity,
            unit=unit,
            mae=float(absolute.mean()),
            rmse=float(np.sqrt((labelled**2).mean())),
            largest=float(absolute.max()),
            count=len(labelled),
            counted=counted,
        )


def error_rows(comparison: Comparison) -> list[ErrorRow]:
    """Energy per atom, forces (all, then by species if there are several), stress: in meV units and GPa."""
    energy = comparison.energy_error_per_atom() / MEV
    forces = comparison.forces_error() / MEV
    stress = comparison.stress_error()
    rows = [
        ErrorRow.from_errors("energy", "meV/atom", energy, "frames"),
        ErrorRow.from_errors("forces", "meV/Å", forces, "atoms"),
    ]
    species = np.unique(comparison.atomic_numbers)
    if len(species) > 1:
        rows += [
            ErrorRow.from_errors(
                f"forces {chemical_symbols[z]}", "meV/Å", forces[comparison.atomic_numbers == z], "atoms"
            )
            for z in species
        ]
    rows.append(ErrorRow.from_errors("stress", "meV/Å³", stress / MEV, "frames"))
    rows.append(ErrorRow.from_errors("stress", "GPa", stress * EV_A3_TO_GPA, "frames"))
    return rows


def grouped_rows(comparison: Comparison) -> dict[str, list[ErrorRow]]:
    """Rows for each data file and each ``config_type``, where there are several; files come first."""
    groups: dict[str, list[ErrorRow]] = {}
    for key in (lambda frame: frame.file, lambda frame: frame.config_type):
        names = [key(frame) for frame in comparison.frames]
        if len(set(names)) < 2:
            continue
        for name in dict.fromkeys(names):
            selected = [i for i, other in enumerate(names) if other == name]
            groups[name or "no config_type"] = error_rows(comparison.select(selected))
    return groups


@dataclass(frozen=True)
class FrameError:
    """How wrong one frame is: where it is, and its errors in meV units (None without the label)."""

    file: str
    index: int
    energy: float | None  # meV/atom, signed: predicted - reference
    forces_rmse: float | None  # meV/Å
    forces_largest: float | None  # meV/Å, the largest component


def worst_frames(comparison: Comparison, count: int = 5) -> list[FrameError]:
    """The ``count`` frames with the largest force RMSE; those without forces follow, by energy error."""
    energy = comparison.energy_error_per_atom() / MEV
    forces = comparison.forces_error() / MEV
    errors = [
        _frame_error(frame, energy[i], forces[comparison.atoms_of(i)])
        for i, frame in enumerate(comparison.frames)
    ]
    labelled = [e for e in errors if e.energy is not None or e.forces_rmse is not None]
    labelled.sort(key=lambda e: (e.forces_rmse or 0.0, abs(e.energy or 0.0)), reverse=True)
    return labelled[:count]


def _frame_error(frame: Frame, energy: float, forces: NDArray) -> FrameError:
    has_forces = not np.isnan(forces).any()
    return FrameError(
        file=frame.file,
        index=frame.index,
        energy=None if np.isnan(energy) else float(energy),
        forces_rmse=float(np.sqrt((forces**2).mean())) if has_forces else None,
        forces_largest=float(np.abs(forces).max()) if has_forces else None,
    )
