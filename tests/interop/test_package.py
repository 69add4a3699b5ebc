"""The models in the package sevenn against its own calculator, where it is installed."""

import importlib.util

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule

from equipot import EquipotCalculator
from equipot.deploy.examples import example_structures
from equipot.deploy.export import deploy
from equipot.interop.importer import MODELS, import_model
from equipot.interop.verify import sevennet

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("sevenn") is None, reason="sevenn is not installed"),
    pytest.mark.filterwarnings("ignore:.*"),
]
LEVELS = {"7net-mf-0": ("PBE", "R2SCAN")}


def real_structures() -> list[Atoms]:
    """16 of 23 elements: crystals, strained, skew, smaller than the cutoff; a slab, molecules."""
    strain = np.eye(3) + np.array([[0.03, 0.02, 0], [0, -0.02, 0.01], [0.01, 0, 0.02]])
    silicon = bulk("Si", cubic=True)
    silicon.set_cell(silicon.cell.array @ strain, scale_atoms=True)
    spinel = bulk("MgO", "rocksalt", a=4.2, cubic=True)
    spinel.symbols[:] = ["Mg", "O", "Fe", "O", "Ni", "O", "Mn", "O"]
    skew = Atoms("LiPS2", [[0, 0, 0], [2.4, 0.3, 0.2], [1.1, 2.2, 1.0], [1.9, 0.9, 3.1]], pbc=True)
    skew.set_cell([[4.6, 0.2, 0], [1.3, 4.4, 0.3], [-0.7, 0.9, 4.9]])
    ice = molecule("H2O")
    ice.set_cell([4.2, 4.5, 4.8])
    ice.pbc = True
    structures = [
        bulk("Si"), silicon, spinel, skew, ice, bulk("NaCl", "rocksalt", a=5.64), bulk("Fe"), bulk("Ti"),
        bulk("Al", cubic=True), bulk("ZnO", "wurtzite", a=3.25, c=5.2), bulk("GaAs", "zincblende", a=5.65),
        bulk("Cu").repeat(2), bulk("CsI", "cesiumchloride", a=4.6), fcc111("Pt", (2, 2, 3), vacuum=8.0),
        molecule("CH3CH2OH"), molecule("CH3CONH2"),
    ]  # fmt: skip
    for seed, atoms in enumerate(structures):
        atoms.rattle(0.05, seed=seed)
    return structures


@pytest.mark.parametrize("name, level", [(n, lv) for n in MODELS for lv in LEVELS.get(n, (None,))])
def test_against_sevenn(name, level, tmp_path):
    """In float64 to rounding; deployed in float32 with splines, by the engine, within single precision."""
    file = tmp_path / "a.ckpt"
    found = import_model(name, file, level, verify=True)
    assert len(found.comparisons) >= 12 and max(item.worst for item in found.comparisons) < 1e-11
    covered = {
        symbol for atoms in example_structures(found.checkpoint.potential.species) for symbol in atoms.symbols
    }
    assert len(covered) == 89
    assert found.checkpoint.origin["licence"].startswith("MIT")
    metadata = deploy(file, tmp_path / "a.pt")
    assert metadata.origin == found.checkpoint.origin
    original = sevennet_of(name, level)
    calculator = EquipotCalculator(tmp_path / "a.pt")
    structures = real_structures()
    assert len({symbol for atoms in structures for symbol in atoms.symbols}) >= 20
    for atoms in structures:
        energy, forces, stress = original(atoms)
        atoms.calc = calculator
        assert atoms.get_potential_energy() == pytest.approx(energy, rel=1e-6)
        np.testing.assert_allclose(atoms.get_forces(), forces, rtol=0, atol=5e-5)
        if atoms.pbc.all():
            np.testing.assert_allclose(atoms.get_stress(voigt=False), stress, rtol=0, atol=1e-6)


def sevennet_of(name, level):
    from equipot.interop.importer import _find

    return sevennet(_find(name)[0], level)
