"""Relaxing structures, and the stress of strained crystals."""

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.optimize import BFGS
from numpy.typing import NDArray

from equipot.errors import SimulationError

FMAX = 1e-4  # eV/Å, of strained crystals: 1e-3 would show in elastic constants


def relax_ions(atoms: Atoms, fmax: float = FMAX, steps: int = 500, *, what: str = "the structure") -> int:
    """Move the atoms to a minimum in their cell; how many evaluations it took. Raises SimulationError."""
    return _relax(atoms, atoms, fmax, steps, what)


def relax_shape(atoms: Atoms, fmax: float = FMAX, steps: int = 500, *, what: str = "the structure") -> int:
    """Move atoms and the shape of the cell to a minimum at constant volume."""
    from ase.filters import FrechetCellFilter

    return _relax(atoms, FrechetCellFilter(atoms, constant_volume=True), fmax, steps, what)


def _relax(atoms: Atoms, moved, fmax: float, steps: int, what: str) -> int:
    optimizer = BFGS(moved, logfile=None)
    if not optimizer.run(fmax=fmax, steps=steps):
        force = np.linalg.norm(np.reshape(moved.get_forces(), (-1, 3)), axis=1).max()
        raise SimulationError(
            f"{what} did not relax to {fmax:g} eV/Å in {steps} steps; {force:.2g} eV/Å is left. Give more "
            "--steps, or a larger --fmax if the forces of this model (float32?) have more noise than that."
        )
    return optimizer.nsteps + 1


def with_results(atoms: Atoms) -> Atoms:
    """A copy that keeps energy, forces and, of a crystal, stress, to be written or compared later."""
    kept = atoms.copy()
    results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
    if atoms.pbc.all():
        results["stress"] = atoms.get_stress()
    kept.calc = SinglePointCalculator(kept, **results)
    return kept


def deformed(atoms: Atoms, gradient: NDArray) -> Atoms:
    """A copy whose vectors r are F r, F the deformation gradient (3, 3), with the same calculator."""
    strained = atoms.copy()
    strained.set_cell(atoms.cell.array @ gradient.T, scale_atoms=True)
    strained.calc = atoms.calc
    return strained


def stretch(strain: NDArray) -> NDArray:
    """The symmetric F (3, 3) of a Lagrangian strain E (3, 3): F² = 1 + 2 E."""
    values, vectors = np.linalg.eigh(np.eye(3) + 2 * strain)
    return vectors * np.sqrt(values) @ vectors.T


def second_piola_kirchhoff(stress: NDArray, gradient: NDArray) -> NDArray:
    """S = J F⁻¹ σ F⁻ᵀ (3, 3), the derivative of the energy per undeformed volume by Lagrangian strain."""
    inverse = np.linalg.inv(gradient)
    return np.linalg.det(gradient) * inverse @ stress @ inverse.T
