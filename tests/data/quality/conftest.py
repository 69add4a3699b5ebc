"""A small set of copper by effective medium theory, whose energies, forces and stresses belong together."""

import sys
from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

from equipot.data.quality import check_files, inspect_files

sys.path.insert(0, str(Path(__file__).parent))  # for the module planted

KEYS = {"energy": "energy", "forces": "forces", "stress": "stress"}


def labelled(atoms: ase.Atoms) -> ase.Atoms:
    atoms.calc = EMT()
    labels = {
        "energy": atoms.get_potential_energy(),
        "forces": atoms.get_forces(),
        "stress": atoms.get_stress(),
    }
    atoms.calc = None
    atoms.info.update(energy=labels["energy"], stress=labels["stress"])
    atoms.arrays["forces"] = labels["forces"]
    return atoms


def make_copper() -> list[ase.Atoms]:
    """30 random strains of up to 2 % with the atoms at their sites, 20 random displacements, 15 of both."""
    random = np.random.default_rng(3)
    crystal = bulk("Cu", cubic=True) * (2, 1, 1)
    structures = []
    for i in range(65):
        atoms = crystal.copy()
        if not 30 <= i < 50:
            strain = random.uniform(-0.02, 0.02, size=(3, 3))
            atoms.set_cell(atoms.cell @ (np.eye(3) + 0.5 * (strain + strain.T)), scale_atoms=True)
        if i >= 30:
            atoms.rattle(0.06, seed=i)
        structures.append(labelled(atoms))
    return structures


_COPPER = make_copper()


@pytest.fixture
def copper() -> list[ase.Atoms]:
    """Structures with labels in info and arrays, to be spoilt."""
    return [atoms.copy() for atoms in _COPPER]


@pytest.fixture
def check(tmp_path):
    """Function (structures, ...) -> findings other than notes as {check: (severity, message, frames)}."""

    def run(structures, notes=False, **options):
        structures = [atoms.copy() for atoms in structures]
        for atoms in structures:
            names = [k for k in ("energy", "stress") if k in atoms.info]
            results = {key: atoms.info.pop(key) for key in names}
            if "forces" in atoms.arrays:
                results["forces"] = atoms.arrays.pop("forces")
            atoms.calc = SinglePointCalculator(atoms, **results)
        ase.io.write(tmp_path / "a.traj", structures)
        report = check_files([tmp_path / "a.traj"], KEYS, **options)
        return {
            f.check: (f.severity, f.message, [index for _, index in f.frames])
            for f in report.findings
            if notes or f.severity != "note"
        }

    return run


@pytest.fixture
def inspect():
    """Function (paths, ...) -> summaries."""

    def run(*paths, **options):
        return inspect_files(list(paths), KEYS, **options)

    return run
