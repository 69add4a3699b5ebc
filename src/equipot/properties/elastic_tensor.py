"""Elastic constants of crystals, by the stress of strained cells."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from equipot.data.structures import read_structure
from equipot.errors import DataError
from equipot.properties.elasticity import (
    CrystalSymmetry,
    crystal_symmetry,
    rotated,
    stiffness_eigenvalues,
    symmetrised,
)
from equipot.properties.settings import require_amplitudes
from equipot.properties.strained import FMAX, deformed, relax_ions, second_piola_kirchhoff, stretch
from equipot.units import EV_A3_TO_GPA, stress_to_voigt, voigt_to_stress

AMPLITUDES = (0.0025, 0.005, 0.01)
_VACUUM = 6.0  # Å; crystals have no wider empty layer, and layers farther apart have no stiffness


@dataclass(frozen=True)
class ElasticTensor:
    """Tensors (6, 6) in GPa, Voigt order, in the Cartesian axes of the structure."""

    measured: NDArray  # C_ij = ∂S_i/∂η_j as found, before any symmetry
    tensor: NDArray  # with the symmetry of the crystal
    by_amplitude: NDArray  # (K, 6, 6) from each amplitude alone
    amplitudes: tuple[float, ...]
    stress: NDArray  # (6,) GPa, of the structure itself
    symmetry: CrystalSymmetry
    relaxed: bool  # ions moved to their minimum in each strained cell
    evaluations: int

    @property
    def standard(self) -> NDArray:
        """(6, 6) in the axes of spglib's standard cell, in which tables give constants."""
        return rotated(self.tensor, self.symmetry.to_standard)

    @property
    def constants(self) -> dict[str, float]:
        """The independent constants (GPa) of the crystal class, as ``C11``."""
        return {f"C{n}": float(self.standard[int(n[0]) - 1, int(n[1]) - 1]) for n in self.symmetry.constants}

    @property
    def forbidden(self) -> float:
        """GPa, the largest element of what symmetry forbids, C_ij ≠ C_ji included."""
        return float(abs(self.measured - self.tensor).max())

    @property
    def asymmetry(self) -> float:
        """GPa, the largest |C_ij − C_ji|, zero for forces and stresses of one energy."""
        return float(abs(self.measured - self.measured.T).max())

    @property
    def nonlinearity(self) -> float:
        """GPa, the most by which the largest amplitude alone differs from the extrapolated tensor."""
        return float(abs(self.by_amplitude[-1] - self.measured).max())

    @property
    def convergence(self) -> float:
        """GPa, the same of the smallest amplitude: noise of the stress, or ions that did not follow."""
        return float(abs(self.by_amplitude[0] - self.measured).max())

    @property
    def stable(self) -> bool:
        """Born: every strain costs energy."""
        return bool(stiffness_eigenvalues(self.tensor)[0] > 0)


def elastic_tensor(
    atoms: Atoms,
    amplitudes: tuple[float, ...] = AMPLITUDES,
    *,
    clamped: bool = False,
    fmax: float = FMAX,
    steps: int = 500,
    symprec: float = 1e-3,
) -> ElasticTensor:
    """The elastic tensor of a crystal with a calculator, by central differences of its stress.

    Each of the six Lagrangian strains η (symmetric, so the crystal does not turn) is taken with both signs at
    each amplitude; S is the second Piola-Kirchhoff stress, so C is the second derivative of the energy per
    volume by η also under stress. What is odd in η is fitted by C η + a η³. Ions are relaxed to ``fmax``
    (eV/Å) in each strained cell, or stay at their fractional coordinates (``clamped``).

    The cell is taken as it is; its stress is in the result. Raises ConfigError for amplitudes that make
    no sense, DataError for slabs and molecules, SimulationError if ions do not relax.
    """
    amplitudes = tuple(sorted(float(a) for a in amplitudes))
    require_amplitudes(amplitudes, amplitudes)
    require_crystal(atoms, "Elastic constants")
    symmetry = crystal_symmetry(atoms, symprec)
    atoms = deformed(atoms, np.eye(3))
    evaluations = 1 if clamped else relax_ions(atoms, fmax, steps)
    odd = np.zeros((len(amplitudes), 6, 6))
    for j in range(6):
        moved = None  # by the ions, per strain: the first guess for the next amplitude
        for k, amplitude in enumerate(amplitudes):
            for sign in (1, -1):
                stress, moved, count = _strained_stress(
                    atoms, j, sign * amplitude, moved, None if clamped else fmax, steps
                )
                odd[k, :, j] += sign * 0.5 * EV_A3_TO_GPA * stress
                evaluations += count
    by_amplitude = odd / np.array(amplitudes)[:, None, None]
    measured = _extrapolated(odd, np.array(amplitudes))
    return ElasticTensor(
        measured, symmetrised(measured, symmetry.rotations), by_amplitude, amplitudes,
        atoms.get_stress() * EV_A3_TO_GPA, symmetry, not clamped, evaluations,
    )  # fmt: skip


def _strained_stress(
    atoms: Atoms, component: int, strain: float, moved: NDArray | None, fmax: float | None, steps: int
) -> tuple[NDArray, NDArray | None, int]:
    """S (6,) eV/Å³ at one strain; how far the ions moved per strain (N, 3); evaluations."""
    voigt = np.zeros(6)
    voigt[component] = strain if component < 3 else 0.5 * strain
    gradient = stretch(voigt_to_stress(voigt))
    strained, count = deformed(atoms, gradient), 1
    if fmax is not None:
        affine = strained.positions.copy()
        if moved is not None:
            strained.positions += strain * moved
        name = f"The cell strained by {strain:+g} in {('xx', 'yy', 'zz', 'yz', 'xz', 'xy')[component]}"
        count = relax_ions(strained, fmax, steps, what=name)
        moved = (strained.positions - affine) / strain
    stress = voigt_to_stress(strained.get_stress())
    return stress_to_voigt(second_piola_kirchhoff(stress, gradient)), moved, count


def _extrapolated(odd: NDArray, amplitudes: NDArray) -> NDArray:
    """(6, 6) C of S = C η + a η³ by least squares, from odd (K, 6, 6); of one amplitude S / η."""
    powers = np.stack([amplitudes, amplitudes**3], axis=1)[:, : min(2, len(amplitudes))]
    return np.linalg.lstsq(powers, odd.reshape(len(amplitudes), 36), rcond=None)[0][0].reshape(6, 6)


def require_crystal(atoms: Atoms, what: str) -> None:
    """Refuse molecules, slabs and wires by name, in vacuum too. Raises DataError."""
    empty = [
        i for i in range(3) if not atoms.pbc[i] or not atoms.cell.array[i].any() or vacuum(atoms, i) > _VACUUM
    ]
    if not empty:
        return
    kind = {1: "slab", 2: "wire", 3: "molecule"}[len(empty)]
    widths = ", ".join(
        f"{vacuum(atoms, i):.1f} Å empty along {'abc'[i]}" if atoms.pbc[i] else f"{'abc'[i]} not periodic"
        for i in empty
    )
    raise DataError(
        f"{what} are those of a crystal, and this is a {kind} ({widths}). Its stress per volume would depend "
        f"on the vacuum. Give a structure that fills space."
    )


def require_crystal_in(structure: str | Path | Atoms, species_map: str | None, what: str) -> None:
    """The same of a file, before anything is relaxed: the cell of a slab would shrink."""
    require_crystal(read_structure(structure, species_map), what)


def vacuum(atoms: Atoms, direction: int) -> float:
    """Å, the widest layer without atoms' centers that is parallel to the other two lattice vectors."""
    height = atoms.get_volume() / np.linalg.norm(np.cross(*np.delete(atoms.cell.array, direction, axis=0)))
    where = np.sort(atoms.get_scaled_positions()[:, direction] % 1.0)
    return float(height * np.diff(where, append=where[0] + 1.0).max())
