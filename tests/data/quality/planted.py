"""Two clean sets by effective medium theory, and faults to plant in them, one at a time."""

from collections.abc import Callable, Iterable

import ase
import ase.io
import numpy as np
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

BOHR, HARTREE, KCAL, GPA = 0.529177, 27.2114, 0.0433641, 0.00624151
OFFSETS = {1: -13.6, 6: -1030.0, 8: -2041.0, 13: -107.0, 29: -45.0}  # eV, as if by another method


def labelled(atoms: ase.Atoms) -> ase.Atoms:
    """With energy and stress (six numbers) in ``info`` and forces in ``arrays``."""
    atoms.calc = EMT()
    energy = atoms.get_potential_energy() + sum(OFFSETS[z] for z in atoms.numbers)
    atoms.arrays["forces"], atoms.info["energy"] = atoms.get_forces(), float(energy)
    if atoms.pbc.all():
        atoms.info["stress"] = atoms.get_stress()
    atoms.calc = None
    return atoms


def crystals(number: int = 90) -> list[ase.Atoms]:
    """Cu, Al and Cu3Al in sheared cells, a third strained, a third displaced, a third both."""
    random = np.random.default_rng(5)
    sheared = np.array([[1.0, 0, 0], [0.3, 1.0, 0], [0.1, 0.2, 1.0]])
    found = []
    for i in range(number):
        atoms = bulk("Cu", cubic=True, a=(3.6, 4.0, 3.7)[i % 3]) * (2, 1, 1)
        atoms.numbers[:] = ([29] * 8, [13] * 8, [29, 29, 29, 13] * 2)[i % 3]
        atoms = ase.Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True)
        shear = 0.05 * (sheared - np.eye(3))
        atoms.set_cell(atoms.cell @ (np.eye(3) + shear), scale_atoms=True)
        kind = (i // 3) % 3
        if kind != 1:
            strain = random.uniform(-0.02, 0.02, size=(3, 3))
            atoms.set_cell(atoms.cell @ (np.eye(3) + 0.5 * (strain + strain.T)), scale_atoms=True)
        if kind != 0:
            atoms.positions += random.normal(scale=0.06, size=(8, 3))
        found.append(labelled(atoms))
    return found


def cells_of_their_own(number: int = 24) -> list[ase.Atoms]:
    """Copper; no two frames have the same cell, as in dynamics at constant pressure."""
    random = np.random.default_rng(7)
    found = []
    for _ in range(number):
        atoms = bulk("Cu").repeat(2)
        strain = random.normal(scale=0.02, size=(3, 3))
        atoms.set_cell(atoms.cell @ (np.eye(3) + 0.5 * (strain + strain.T)), scale_atoms=True)
        atoms.positions += random.normal(scale=0.1, size=(8, 3))
        found.append(labelled(atoms))
    return found


def equation_of_state(number: int = 15) -> list[ase.Atoms]:
    """Copper at rest, whose forces are zero by symmetry."""
    crystal = bulk("Cu", cubic=True)
    scales = np.linspace(0.95, 1.05, number)
    frames = [
        ase.Atoms(crystal.numbers, crystal.positions * s, cell=crystal.cell * s, pbc=True) for s in scales
    ]
    return [labelled(atoms) for atoms in frames]


def molecules(number: int = 60) -> list[ase.Atoms]:
    """Ethanol with displaced atoms, turned at random."""
    random = np.random.default_rng(6)
    found = []
    for _ in range(number):
        atoms = molecule("CH3CH2OH")
        atoms.positions += random.normal(scale=random.choice([0.03, 0.08]), size=(9, 3))
        if random.random() < 0.5:
            atoms.rotate(random.uniform(0, 180), random.normal(size=3))
        found.append(labelled(atoms))
    return found


def write(path, structures: Iterable[ase.Atoms]) -> str:
    """As extended XYZ with ``energy``, ``forces`` and ``stress``."""
    rows = []
    for atoms in structures:
        atoms = atoms.copy()
        results = {key: atoms.info.pop(key) for key in ("energy", "stress") if key in atoms.info}
        results["forces"] = atoms.arrays.pop("forces")
        atoms.calc = SinglePointCalculator(atoms, **results)
        rows.append(atoms)
    ase.io.write(path, rows, format="extxyz")
    return str(path)


# Faults. Each changes copies of the frames in place, or returns others.


def scaled(name: str, factor: float) -> Callable:
    """All values of a label times a factor."""

    def plant(frames):
        for atoms in frames:
            where = atoms.arrays if name == "forces" else atoms.info
            if name in where:
                where[name] = where[name] * factor

    return plant


def lengths_in_bohr(frames):
    for atoms in frames:
        atoms.set_cell(atoms.cell / BOHR, scale_atoms=False)
        atoms.positions /= BOHR


def shear_order(frames):
    for atoms in frames:
        if "stress" in atoms.info:
            atoms.info["stress"] = atoms.info["stress"][[0, 1, 2, 5, 4, 3]]


def virial_as_stress(frames):
    for atoms in frames:
        if "stress" in atoms.info:
            atoms.info["stress"] = -atoms.get_volume() * atoms.info["stress"]


def zero(name: str) -> Callable:
    """In every eighth frame."""

    def plant(frames):
        for atoms in frames[3::8]:
            where = atoms.arrays if name == "forces" else atoms.info
            where[name] = 0 * where[name]

    return plant


def some_opposite(frames):
    for atoms in frames[4::8]:
        atoms.arrays["forces"] *= -1


def some_halved(frames):
    for atoms in frames[4::8]:
        atoms.arrays["forces"] *= 0.5


def swapped_species(frames):
    """Al for Cu and the other way round; in molecules the elements in the opposite order."""
    for atoms in frames[2::9]:
        other = {29: 13, 13: 29}
        swapped = [other.get(z, z) for z in atoms.numbers]
        atoms.numbers = swapped if atoms.pbc.any() else atoms.numbers[::-1].copy()


def permuted_forces(frames):
    for atoms in frames:
        atoms.arrays["forces"] = np.roll(atoms.arrays["forces"], 1, axis=0)


def some_permuted_forces(frames):
    for atoms in frames[4::8]:
        atoms.arrays["forces"] = np.roll(atoms.arrays["forces"], 1, axis=0)


def duplicated(frames):
    return [*frames, *(atoms.copy() for atoms in frames[5:12])]


def contradicting(frames):
    again = [atoms.copy() for atoms in frames[5:8]]
    for atoms in again:
        atoms.info["energy"] += 0.3
    return [*frames, *again]


def another_level(frames):
    for atoms in frames[1::10]:
        atoms.info["energy"] += 0.5 * len(atoms)


def energies_per_atom(frames):
    for atoms in frames:
        atoms.info["energy"] /= len(atoms)


def transposed_cell(frames):
    for atoms in frames:
        atoms.set_cell(atoms.cell.array.T.copy())


def dropped_cell(frames):
    for atoms in frames:
        atoms.set_cell(None)
        atoms.pbc = False
        atoms.info.pop("stress", None)


def some_dropped_cells(frames):
    dropped_cell(frames[3::10])


def dropped_pbc(frames):
    for atoms in frames:
        atoms.pbc = False
        atoms.info.pop("stress", None)


def copied_forces(frames):
    frames[13].arrays["forces"] = frames[16].arrays["forces"].copy()


def energy_outlier(frames):
    frames[17].info["energy"] += 40.0


def force_outlier(frames):
    frames[17].arrays["forces"][2] += [0, 0, 400.0]


def short_contact(frames):
    frames[11].positions[1] = frames[11].positions[0] + [0.0, 0.0, 0.55]


def single_precision(frames):
    for atoms in frames:
        atoms.info["energy"] = float(np.float32(atoms.info["energy"] - 3e4))


def constrained(frames):
    for atoms in frames:
        atoms.arrays["forces"][:3] = 0.0


def shifted_energies(frames):
    energies = [atoms.info["energy"] for atoms in frames]
    for atoms, energy in zip(frames, np.roll(energies, 1), strict=True):
        atoms.info["energy"] = float(energy)


def shifted_forces(frames):
    forces = [atoms.arrays["forces"] for atoms in frames]
    for i, atoms in enumerate(frames):
        atoms.arrays["forces"] = forces[i - 1].copy()


def shifted_labels(frames):
    shifted_energies(frames)
    forces = [atoms.arrays["forces"] for atoms in frames]
    for i, atoms in enumerate(frames):
        atoms.arrays["forces"] = forces[i - 1].copy()
