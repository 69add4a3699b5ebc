"""Errors of predictions against reference labels. Everything here is in eV, Å and their quotients."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from ase.data import chemical_symbols
from e3nn.o3 import Irreps
from numpy.typing import NDArray

from equipot.cartesian import irreps_basis
from equipot.evaluation.predict import Comparison
from equipot.quantities import BASIC, MEV, QUANTITIES, Quantity


@dataclass(frozen=True)
class ErrorRow:
    """Error statistics of one quantity, in ``unit``; None where nothing was labelled.

    ``mae``, ``rmse`` and ``largest`` are over single numbers: Cartesian components, or energies per atom.
    ``spread`` is the standard deviation of the labels: the RMS of each component's about its own mean.
    """

    quantity: str
    unit: str
    mae: float | None
    rmse: float | None
    largest: float | None
    count: int
    counted: str  # "frames" or "atoms": what ``count`` counts
    spread: float | None = None

    @classmethod
    def from_errors(
        cls, quantity: str, unit: str, errors: NDArray, counted: str, labels: NDArray | None = None
    ) -> "ErrorRow":
        """Statistics of ``errors`` (n, ...) in ``unit``; rows with a NaN have no label and do not count.

        ``labels``, of the same shape, are for ``spread``.
        """
        flat = errors.reshape(len(errors), int(np.prod(errors.shape[1:])))
        known = ~np.isnan(flat).any(axis=1)
        labelled = flat[known]
        if labelled.size == 0:
            return cls(quantity, unit, None, None, None, 0, counted)
        absolute = np.abs(labelled)
        mae, rmse = float(absolute.mean()), float(np.sqrt((labelled**2).mean()))
        largest = float(absolute.max())
        spread = None
        if labels is not None:
            spread = float(np.sqrt(labels.reshape(flat.shape)[known].var(axis=0).mean()))
        return cls(quantity, unit, mae, rmse, largest, len(labelled), counted, spread)


def error_rows(comparison: Comparison) -> list[ErrorRow]:
    """Each quantity in each of its units; then by irrep and, of atoms, by species, where there are several.

    Irreps are orthonormal: the squares of an output's errors add up to those of its irreps.
    """
    rows = []
    species = np.unique(comparison.atomic_numbers)
    for quantity in (QUANTITIES[name] for name in comparison.values):
        error, counted = comparison.error(quantity.name), quantity.choose("frames", "atoms")
        zero = np.zeros_like(comparison.reference[quantity.name])
        labels = quantity.error(comparison.reference[quantity.name], zero, comparison.num_atoms)
        for reported in quantity.reported:
            values, own, unit = error / reported.size, labels / reported.size, reported.unit
            rows.append(ErrorRow.from_errors(quantity.name, unit, values, counted, own))
            parts, of_labels = by_irrep(quantity, values), by_irrep(quantity, own)
            for irrep in parts if len(parts) > 1 else ():
                row = f"{quantity.name} {irrep}", unit, parts[irrep], counted, of_labels[irrep]
                rows.append(ErrorRow.from_errors(*row))
            for z in species if quantity.per_atom and len(species) > 1 else ():
                chosen = comparison.atomic_numbers == z
                name = f"{quantity.name} {chemical_symbols[z]}"
                rows.append(ErrorRow.from_errors(name, unit, values[chosen], counted, own[chosen]))
    return rows


def by_irrep(quantity: Quantity, values: NDArray) -> dict[str, NDArray]:
    """Values of an output (n, ...) as components (n, K) of each of its irreps; of anything else nothing."""
    if quantity.name in BASIC or not (quantity.rows.irreps or quantity.symmetry):
        return {}
    flat = values.reshape(len(values), -1)
    if quantity.rows.irreps:
        irreps = Irreps(quantity.rows.irreps)
        found: dict[str, list[NDArray]] = {}
        for (_, ir), columns in zip(irreps, irreps.slices(), strict=True):
            found.setdefault(str(ir), []).append(flat[:, columns])
        return {ir: np.concatenate(parts, axis=1) for ir, parts in found.items()}
    rank = quantity.rows.rank
    parity = "eo"[(rank + quantity.rows.pseudo) % 2]
    tensors = values.reshape(-1, 3**rank)
    return {
        f"{degree}{parity}": (tensors @ basis.reshape(-1, 3**rank).T).reshape(len(values), -1)
        for degree, basis in irreps_basis(quantity.symmetry).items()
    }


def component_errors(comparison: Comparison) -> dict[str, dict[str, list]]:
    """``mae`` and ``rmse`` of each number of an output, in the shape of its values."""
    found = {}
    for quantity in (QUANTITIES[name] for name in comparison.values if name not in BASIC):
        known = _labelled(comparison.error(quantity.name))
        if quantity.shape and len(known):
            rmse = np.sqrt((known**2).mean(axis=0))
            found[quantity.name] = {"mae": np.abs(known).mean(axis=0).tolist(), "rmse": rmse.tolist()}
    return found


def _labelled(error: NDArray) -> NDArray:
    """(n, ...): rows without a NaN."""
    return error[~np.isnan(error.reshape(len(error), -1)).any(axis=1)]


def mean_errors(name: str, absolute: float, square: float, count: float) -> dict[str, float]:
    """The metrics of a quantity from sums over ``count`` numbers: ``energy_mae``, ``energy_rmse``.

    They are in eV and Å, of energies per atom, of others by component.
    """
    return {f"{name}_mae": absolute / count, f"{name}_rmse": math.sqrt(square / count)}


def summary(comparison: Comparison) -> dict[str, float]:
    """``mean_errors`` of each quantity that is labelled."""
    found = {}
    for name in comparison.values:
        error = _labelled(comparison.error(name))
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
