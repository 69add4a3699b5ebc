"""Errors of predictions against reference labels. Everything here is in eV, Å and their quotients."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from equipot.evaluation.predict import Comparison
from equipot.quantities import MEV, QUANTITIES


@dataclass(frozen=True)
class ErrorRow:
    """Error statistics of one quantity, in ``unit``; None where nothing was labelled.

    ``mae``, ``rmse`` and ``largest`` are over single numbers: Cartesian components, or energies per atom.
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
        mae, rmse = float(absolute.mean()), float(np.sqrt((labelled**2).mean()))
        return cls(quantity, unit, mae, rmse, float(absolute.max()), len(labelled), counted)


def error_rows(comparison: Comparison) -> list[ErrorRow]:
    """Each quantity in each of its units; those of atoms then by species, if there are several."""
    rows = []
    species = np.unique(comparison.atomic_numbers)
    for quantity in (QUANTITIES[name] for name in comparison.values):
        error, counted = comparison.error(quantity.name), quantity.choose("frames", "atoms")
        for reported in quantity.reported:
            values, unit = error / reported.size, reported.unit
            rows.append(ErrorRow.from_errors(quantity.name, unit, values, counted))
            for z in species if quantity.per_atom and len(species) > 1 else ():
                of_species = values[comparison.atomic_numbers == z]
                name = f"{quantity.name} {chemical_symbols[z]}"
                rows.append(ErrorRow.from_errors(name, unit, of_species, counted))
    return rows


def mean_errors(name: str, absolute: float, square: float, count: float) -> dict[str, float]:
    """The metrics of a quantity from sums over ``count`` numbers: ``energy_mae``, ``energy_rmse``.

    They are in eV and Å, of energies per atom, of others by component.
    """
    return {f"{name}_mae": absolute / count, f"{name}_rmse": math.sqrt(square / count)}


def summary(comparison: Comparison) -> dict[str, float]:
    """``mean_errors`` of each quantity that is labelled."""
    found = {}
    for name in comparison.values:
        error = comparison.error(name)
        error = error[~np.isnan(error.reshape(len(error), -1)).any(axis=1)]
        if error.size:
            found |= mean_errors(name, float(np.abs(error).sum()), float((error**2).sum()), error.size)
    return found


@dataclass(frozen=True)
class Group:
    """Errors of the frames that share a file or a ``config_type``."""

    kind: str  # "file" or "config_type"
    name: str | None  # None: frames without a config_type
    num_frames: int
    rows: list[ErrorRow]


def error_groups(comparison: Comparison) -> list[Group]:
    """Errors for each data file and each ``config_type``, where there are several; files come first."""
    return [
        Group(kind, name, int(chosen.sum()), error_rows(comparison.select(chosen)))
        for kind, name, chosen in frames_in_groups(comparison)
    ]


def frames_in_groups(comparison: Comparison) -> Iterator[tuple[str, str | None, NDArray]]:
    """Kind and name of each group, and which frames (S,) are in it."""
    for kind in ("file", "config_type"):
        names = [getattr(source, kind) for source in comparison.sources]
        numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
        group_of = np.array([numbers[name] for name in names])
        for name, number in numbers.items() if len(numbers) > 1 else ():
            yield kind, name, group_of == number


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
    if "energy" not in comparison.values:
        return {}
    energy = np.abs(comparison.error("energy"))
    squares = (comparison.error("forces") ** 2).mean(axis=1)
    sums, counts = (
        np.add.reduceat(values, comparison.offsets[:-1])
        for values in (np.nan_to_num(squares), ~np.isnan(squares) * 1.0)
    )
    rms = np.sqrt(np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0))
    worst = {}
    for name, size in (("forces", rms), ("energy", energy)):
        # A NaN, which is a frame without the label, is sorted last.
        order = np.argsort(-size, kind="stable")[:count]
        worst[name] = [_frame_error(comparison, int(i)) for i in order if not np.isnan(size[i])]
    return worst


def _frame_error(comparison: Comparison, i: int) -> FrameError:
    energy = comparison.error("energy")[i] / MEV
    atoms = comparison.atoms_of(i)
    forces = comparison.error("forces")[atoms] / MEV
    known = bool(np.isfinite(forces).any())  # of fixed atoms they may be left out
    atom = int(np.nan_to_num(np.abs(forces)).max(axis=1).argmax())
    source = comparison.sources[i]
    return FrameError(
        *source,
        energy=None if np.isnan(energy) else float(energy),
        forces_rmse=float(np.sqrt(np.nanmean(forces**2))) if known else None,
        forces_largest=float(np.nanmax(np.abs(forces))) if known else None,
        worst_atom=atom if known else None,
        worst_species=chemical_symbols[comparison.atomic_numbers[atoms][atom]] if known else None,
    )
