"""The structures of the benchmark, and the numbers about them that models are built with."""

import itertools
from pathlib import Path

import ase.build
import ase.io
import numpy as np
from ase import Atoms, units
from ase.data import chemical_symbols
from ase.neighborlist import neighbor_list

LATTICE_CONSTANT = 5.43  # Å, diamond silicon
WATER_DENSITY = 0.997  # g/cm³


def molecules(path: Path, count: int) -> list[Atoms]:
    """The first ``count`` frames with energy and forces of more than one atom."""
    frames = [atoms for atoms in ase.io.read(path, ":") if len(atoms) > 1]
    frames = [atoms for atoms in frames if atoms.calc is not None and "forces" in atoms.calc.results]
    if len(frames) < count:
        raise SystemExit(f"{path}: {count} frames with energy and forces are needed, found {len(frames)}.")
    return frames[:count]


def water(path: Path | None, per_edge: int = 4) -> Atoms:
    """The first frame of ``path``; without one, randomly turned molecules on a cubic grid."""
    if path is not None:
        return _bare(ase.io.read(path, 0))
    random = np.random.default_rng(0)
    molecule = ase.build.molecule("H2O")
    mass = per_edge**3 * molecule.get_masses().sum() / units.kg * 1e3  # g
    edge = (mass / WATER_DENSITY) ** (1 / 3) * 1e8  # Å
    box = Atoms(cell=[edge] * 3, pbc=True)
    for corner in itertools.product(range(per_edge), repeat=3):
        turned = molecule.copy()
        turned.positions -= turned.get_center_of_mass()
        turned.positions = turned.positions @ _rotation(random).T + np.array(corner) * edge / per_edge
        box += turned
    box.wrap()
    return box


def silicon(num_atoms: int) -> Atoms:
    """Diamond silicon, rattled by 0.05 Å, of about ``num_atoms`` atoms in whole cubic cells of 8."""
    side = (num_atoms / 8) ** (1 / 3)
    choices = itertools.combinations_with_replacement(range(max(1, int(side)), int(side) + 3), 3)
    repeats = min(choices, key=lambda n: (abs(8 * n[0] * n[1] * n[2] - num_atoms), n[2] - n[0]))
    atoms = ase.build.bulk("Si", "diamond", LATTICE_CONSTANT, cubic=True) * repeats
    atoms.rattle(0.05, seed=1)
    return atoms


def describe(frames: list[Atoms], cutoff: float, count_edges: bool = True) -> dict:
    """Species, atomic energies (eV), RMS force (eV/Å) and neighbors within ``cutoff`` (Å).

    Structures without labels have atomic energies of zero and an RMS force of one. Without ``count_edges``
    the neighbors are those of the density and there is no count to compare with.
    """
    species = sorted({int(number) for atoms in frames for number in atoms.numbers})
    num_atoms = sum(map(len, frames))
    edges = sum(len(neighbor_list("i", atoms, cutoff)) for atoms in frames) if count_edges else None
    energies, force_rms = np.zeros(len(species)), 1.0
    if frames[0].calc is not None:
        counts = np.array([[(atoms.numbers == number).sum() for number in species] for atoms in frames])
        totals = np.array([atoms.get_potential_energy() for atoms in frames])
        energies = np.linalg.lstsq(counts, totals, rcond=None)[0]
        forces = np.concatenate([atoms.get_forces() for atoms in frames])
        force_rms = float(np.sqrt((forces**2).mean()))
    density = num_atoms / max(sum(atoms.cell.volume for atoms in frames), 1e-9)
    per_atom = edges / num_atoms if count_edges else density * 4 / 3 * np.pi * cutoff**3
    return {
        "species": [chemical_symbols[number] for number in species],
        "atomic_energies": energies.tolist(),
        "force_rms": force_rms,
        "avg_num_neighbors": float(per_atom),
        "total_edges": edges,
        "total_atoms": num_atoms,
    }


def _bare(atoms: Atoms) -> Atoms:
    """Positions, elements, cell and periodicity alone."""
    return Atoms(numbers=atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc)


def _rotation(random: np.random.Generator) -> np.ndarray:
    """(3, 3) a rotation, uniformly distributed, from a unit quaternion."""
    w, x, y, z = (q := random.normal(size=4)) / np.linalg.norm(q)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
