"""Vibrations of molecules and adsorbates: the Hessian and its normal modes."""

from dataclasses import dataclass

import numpy as np
from ase import Atoms, units
from ase.constraints import FixAtoms
from numpy.typing import NDArray
from scipy.linalg import null_space

from equipot.errors import DataError
from equipot.properties.settings import VibrationSettings

DISPLACEMENT = 0.01  # Å
_STRAIGHT = 1e-3  # of the largest moment of inertia: what is less is a line's


@dataclass(frozen=True)
class Vibrations:
    """Normal modes, M of them; without translations and rotations where all atoms are free."""

    atoms: Atoms
    free: NDArray  # (n,) indices of atoms that move
    hessian: NDArray  # (3n, 3n) eV/Å²
    energies: NDArray  # (M,) eV, ascending; imaginary ones as negative numbers
    modes: NDArray  # (M, N, 3) 1/√u, displacements; times √mass they are normalised
    rigid: NDArray  # (R,) eV: energies that translations and rotations have, ideally 0
    asymmetry: float  # eV/Å², the largest |H − Hᵀ|
    change: float  # cm⁻¹, the most by which a frequency of the smaller displacement differs
    geometry: str  # "monatomic", "linear" or "nonlinear"; "fixed" where atoms are

    @property
    def wavenumbers(self) -> NDArray:
        """(M,) cm⁻¹, imaginary ones negative."""
        return self.energies / units.invcm

    @property
    def imaginary(self) -> NDArray:
        """(M,) bool: by more than what translations, rotations and the differences are wrong by."""
        noise = max(abs(self.rigid).max(initial=0.0), self.change * units.invcm)
        return self.energies < -noise

    @property
    def zero_point_energy(self) -> float:
        """eV, of the real modes."""
        return float(0.5 * self.energies[self.energies > 0].sum())


def hessian(atoms: Atoms, free: NDArray, displacement: float) -> NDArray:
    """(3n, 3n) eV/Å² of the free atoms, by central differences of forces; as found, not symmetrised."""
    moved = atoms.copy()
    moved.set_constraint()
    moved.calc = atoms.calc
    rows = []
    for atom in free:
        for axis in range(3):
            forces = []
            for sign in (1, -1):
                moved.positions = atoms.positions
                moved.positions[atom, axis] += sign * displacement
                forces.append(moved.get_forces()[free])
            rows.append((forces[1] - forces[0]).ravel() / (2 * displacement))
    return np.array(rows)


def vibrations(atoms: Atoms, displacement: float = DISPLACEMENT, *, any_cell: bool = False) -> Vibrations:
    """Normal modes of a structure with a calculator, at a stationary point of its energy.

    Forces are differentiated at ``displacement`` δ (Å) and at half of it: H = (4 H(δ/2) − H(δ)) / 3.
    Of a structure without fixed atoms (`FixAtoms`) translations and rotations are projected out. Periodic
    structures need fixed atoms, as adsorbates have; ``any_cell`` takes others, whose cells all move alike.
    Raises DataError, ConfigError.
    """
    VibrationSettings(displacement=displacement)  # an error if it makes no sense
    free = free_atoms(atoms)
    if atoms.pbc.any() and len(free) == len(atoms) and not any_cell:
        raise DataError(
            f"Vibrations of a periodic structure (pbc {atoms.pbc.tolist()}) depend on a wave vector: "
            "use equipot phonons. Of an adsorbate fix atoms of the surface; of a molecule take off pbc."
        )
    masses = np.repeat(atoms.get_masses()[free], 3)
    coarse, fine = (hessian(atoms, free, d) for d in (displacement, 0.5 * displacement))
    found = (4 * fine - coarse) / 3
    geometry = "fixed" if atoms.pbc.any() or len(free) < len(atoms) else shape_of(atoms)
    rigid = rigid_motions(atoms) if len(free) == len(atoms) else np.zeros((3 * len(free), 0))
    inner = null_space(rigid.T) if rigid.shape[1] else np.eye(3 * len(free))
    weighted = 0.5 * (found + found.T) / np.sqrt(np.outer(masses, masses))
    values, vectors = np.linalg.eigh(inner.T @ weighted @ inner)
    modes = np.zeros((len(values), len(atoms), 3))
    modes[:, free] = (inner @ vectors / np.sqrt(masses)[:, None]).T.reshape(-1, len(free), 3)
    smaller = 0.5 * (fine + fine.T) / np.sqrt(np.outer(masses, masses))
    change = _energies(np.linalg.eigvalsh(inner.T @ smaller @ inner)) - _energies(values)
    of_rigid = _energies(np.linalg.eigvalsh(rigid.T @ weighted @ rigid))
    asymmetry, largest = abs(found - found.T).max(initial=0.0), abs(change).max(initial=0.0) / units.invcm
    return Vibrations(
        *(atoms, free, 0.5 * (found + found.T), _energies(values), modes),
        *(of_rigid, float(asymmetry), float(largest), geometry),
    )


def _energies(values: NDArray) -> NDArray:
    """eV of eigenvalues in eV/(Å² u); negative for imaginary ones."""
    scale = units._hbar * 1e10 / np.sqrt(units._e * units._amu)
    return np.sign(values) * scale * np.sqrt(abs(values))


def free_atoms(atoms: Atoms) -> NDArray:
    """(n,) indices of the atoms that `FixAtoms` does not fix. Raises DataError for other constraints."""
    others = {type(c).__name__ for c in atoms.constraints if not isinstance(c, FixAtoms)}
    if others:
        raise DataError(
            f"Of constraints only FixAtoms is understood here, found {', '.join(sorted(others))}."
        )
    fixed = [c.index for c in atoms.constraints]
    return np.setdiff1d(np.arange(len(atoms)), np.concatenate(fixed) if fixed else [])


def shape_of(atoms: Atoms) -> str:
    """ "monatomic", "linear" or "nonlinear", by the moments of inertia."""
    if len(atoms) == 1:
        return "monatomic"
    moments = atoms.get_moments_of_inertia()
    return "linear" if moments[0] < _STRAIGHT * moments[-1] else "nonlinear"


def rigid_motions(atoms: Atoms) -> NDArray:
    """(3N, 3, 5 or 6) orthonormal, mass-weighted: translations, and rotations of what is not periodic."""
    masses = np.sqrt(atoms.get_masses())[:, None]
    arms = atoms.positions - atoms.get_center_of_mass()
    axes = np.eye(3)
    if (shape := shape_of(atoms)) == "linear":
        axes = atoms.get_moments_of_inertia(vectors=True)[1][1:]  # not about the line itself
    still = shape == "monatomic" or atoms.pbc.any()
    turns = [] if still else [masses * np.cross(axis, arms) for axis in axes]
    moves = [masses * np.tile(axis, (len(atoms), 1)) for axis in np.eye(3)]
    return np.linalg.qr(np.reshape([*moves, *turns], (-1, 3 * len(atoms))).T)[0]
