"""Supercells for displacements: between ASE and phonopy, and how large."""

import math
from typing import TYPE_CHECKING

import numpy as np
from ase import Atoms
from ase.spacegroup.symmetrize import refine_symmetry
from numpy.typing import NDArray

from equipot.errors import ConfigError
from equipot.properties.start import symmetry_dataset

if TYPE_CHECKING:
    from phonopy.structure.atoms import PhonopyAtoms

_LEAST_WIDTH = 10.0  # Å of the first supercell, or twice the model's cutoff
_MOST_ATOMS = 100_000  # of a supercell; phonopy's arrays of all pairs with the primitive cell still fit
_GROWTH = 1.25  # of the narrowest direction, from one supercell to the next


def to_phonopy(atoms: Atoms) -> "PhonopyAtoms":
    """With the masses of ``atoms`` (ASE's, unless the file has its own)."""
    from phonopy.structure.atoms import PhonopyAtoms

    return PhonopyAtoms(
        symbols=list(atoms.symbols),
        masses=atoms.get_masses(),
        cell=atoms.cell.array,
        scaled_positions=atoms.get_scaled_positions(),
    )


def from_phonopy(cell: "PhonopyAtoms") -> Atoms:
    return Atoms(list(cell.symbols), cell=cell.cell, scaled_positions=cell.scaled_positions, pbc=True)


def refined(atoms: Atoms, symprec: float) -> Atoms:
    """Every atom where symmetry wants it, within ``symprec`` (Å), so that phonopy finds all of it."""
    exact = Atoms(atoms.numbers, cell=atoms.cell, positions=atoms.positions, pbc=True)
    exact.set_masses(atoms.get_masses())
    refine_symmetry(exact, symprec)
    return exact


def widths(cell: NDArray) -> NDArray:
    """(3,) Å between opposite faces of a cell (3, 3)."""
    return 1.0 / np.linalg.norm(np.linalg.inv(cell), axis=0)


def base_cell(atoms: Atoms, symprec: float) -> NDArray:
    """(3, 3) integers, columns: the conventional cell in vectors of this one, if it is a multiple of it.

    Its multiples are less oblique than those of a primitive cell.
    """
    found = symmetry_dataset(atoms, symprec)
    if found is not None:
        columns = np.linalg.inv(found.transformation_matrix)
        whole = np.rint(columns)
        if np.abs(columns - whole).max() < 1e-4 and np.linalg.det(whole) > 0.5:
            return whole.astype(int)
    return np.eye(3, dtype=int)


def repetitions(cell: NDArray, width: float) -> NDArray:
    """(3,) copies that make a cell (3, 3) at least so wide (Å) in each direction."""
    return np.maximum(np.ceil(width / widths(cell) - 1e-6), 1).astype(int)


def first_supercell(cell: NDArray, cutoff: float | None) -> NDArray:
    """(3,) copies: at least 10 Å wide, and twice the cutoff (Å), where the strongest couplings end.

    What lies between this and the range over which a model with message passing couples atoms, often more
    than 50 Å, is found out by larger ones.
    """
    return repetitions(cell, max(_LEAST_WIDTH, 2.0 * (cutoff or 0.0)))


def larger(cell: NDArray, copies: NDArray) -> NDArray:
    """(3,) copies of the next supercell, wider by a quarter at least in its narrowest direction."""
    narrowest = float((widths(cell) * copies).min())
    return np.maximum(copies, repetitions(cell, _GROWTH * narrowest))


def num_atoms(atoms: Atoms, base: NDArray, copies: NDArray) -> float:
    """Of a supercell; a float, as absurd ones do not fit into an integer."""
    return len(atoms) * abs(float(np.linalg.det(base))) * float(np.prod(copies, dtype=float))


def require_size(atoms: Atoms, base: NDArray, copies: NDArray) -> None:
    """Raises ConfigError for a supercell that is too large to begin with."""
    number = num_atoms(atoms, base, copies)
    if number > _MOST_ATOMS:
        size = " ".join(str(n) for n in copies)
        raise ConfigError(
            f"--supercell {size} has {number:,.0f} atoms; expected at most {_MOST_ATOMS:,}. Take fewer."
        )


def describe(cell: NDArray, num_atoms: int) -> str:
    """Such as ``64 atoms, 10.9 Å wide``."""
    least, most = widths(cell).min(), widths(cell).max()
    span = f"{least:.1f}" if math.isclose(least, most, rel_tol=0.01) else f"{least:.1f} to {most:.1f}"
    return f"{num_atoms} atoms, {span} Å wide"
