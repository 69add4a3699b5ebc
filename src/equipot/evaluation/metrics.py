"""Errors of predictions against reference labels. Everything here is in eV, Å and their quotients."""

from dataclasses import dataclass

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

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


def summary(comparison: Comparison) -> dict[str, float]:
    """``energy_mae``, ``energy_rmse`` (eV/atom), ``forces_...`` (eV/Å), ``stress_...`` (eV/Å³)."""
    errors = {
        "energy": comparison.energy_error_per_atom(),
        "forces": comparison.forces_error(),
        "stress": comparison.stress_error(),
    }
    rows = {name: ErrorRow.from_errors(name, "eV, Å", values, "") for name, values in errors.items()}
    return {
        f"{name}_{kind}": getattr(row, kind)
        for name, row in rows.items()
        if row.count
        for kind in ("mae", "rmse")
    }


@dataclass(frozen=True)
class Group:
    """Errors of the frames that share a file or a ``config_type``."""

    kind: str  # "file" or "config_type"
    name: str | None  # None: frames without a config_type
    num_frames: int
    rows: list[ErrorRow]


def error_groups(comparison: Comparison) -> list[Group]:
    """Errors for each data file and each ``config_type``, where there are several; files come first."""
    groups = []
    for kind in ("file", "config_type"):
        names = [getattr(source, kind) for source in comparison.sources]
        numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
        if len(numbers) < 2:
            continue
        group_of = np.array([numbers[name] for name in names])
        for name, number in numbers.items():
            chosen = group_of == number
            rows = error_rows(comparison.select(chosen))
            groups.append(Group(kind, name, int(chosen.sum()), rows))
    return groups


@dataclass(frozen=True)
class FrameError:
    """How wrong one frame is: where it is, and its errors in meV units (None without the label)."""

    file: str
    index: int  # in the file, from 0
    config_type: str | None
    energy: float | None  # meV/atom, signed: predicted - reference
    forces_rmse: float | None  # meV/Å
    forces_largest: float | None  # meV/Å, the largest component
    worst_atom: int | None  # the atom with it, from 0
    worst_species: str | None


def worst_frames(comparison: Comparison, count: int = 5) -> dict[str, list[FrameError]]:
    """The ``count`` frames with the largest ``forces`` RMSE and those with the largest ``energy`` error."""
    energy = np.abs(comparison.energy_error_per_atom())
    rms = np.sqrt(_mean_of_frames((comparison.forces_error() ** 2).mean(axis=1), comparison))
    worst = {}
    for name, size in (("forces", rms), ("energy", energy)):
        # A NaN, which is a frame without the label, is sorted last.
        order = np.argsort(-size, kind="stable")[:count]
        worst[name] = [_frame_error(comparison, int(i)) for i in order if not np.isnan(size[i])]
    return worst


def _mean_of_frames(values: NDArray, comparison: Comparison) -> NDArray:
    """(S,) from (N,): the mean over the atoms of each frame."""
    return np.add.reduceat(values, comparison.offsets[:-1]) / comparison.num_atoms


def _frame_error(comparison: Comparison, i: int) -> FrameError:
    energy = comparison.energy_error_per_atom()[i] / MEV
    atoms = comparison.atoms_of(i)
    forces = (comparison.forces[atoms] - comparison.reference_forces[atoms]) / MEV
    known = not np.isnan(forces).any()
    atom = int(np.abs(forces).max(axis=1).argmax())
    source = comparison.sources[i]
    return FrameError(
        file=source.file,
        index=source.index,
        config_type=source.config_type,
        energy=None if np.isnan(energy) else float(energy),
        forces_rmse=float(np.sqrt((forces**2).mean())) if known else None,
        forces_largest=float(np.abs(forces).max()) if known else None,
        worst_atom=atom if known else None,
        worst_species=chemical_symbols[comparison.atomic_numbers[atoms][atom]] if known else None,
    )
