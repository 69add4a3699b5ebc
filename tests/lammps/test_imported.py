"""Imported models in LAMMPS: any number of ranks gives what one gives, and what ASE gives."""

import importlib.util
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from lammps_input import oxide, read_dump, setup, write_data

from equipot import EquipotCalculator
from equipot.deploy.export import deploy
from equipot.interop.importer import import_model

sys.path.append(str(Path(__file__).parents[1] / "interop"))

from plain_sevennet import make

pytestmark = pytest.mark.filterwarnings("ignore:.*")
INSTALLED = pytest.mark.skipif(importlib.util.find_spec("sevenn") is None, reason="sevenn is not installed")
TWO_LEVELS = {"_type_map": {14: 0, 8: 1}, "_modal_map": {"PBE": 0, "R2SCAN": 1}}
TWO_LEVELS |= {"use_modal_self_inter_intro": True, "use_modal_self_inter_outro": True}


@pytest.fixture
def model_of(tmp_path):
    """Imported and deployed in float64."""

    def make_file(source: str) -> Path:
        level = None
        if source == "random":
            torch.save(make(layers=4, **TWO_LEVELS).checkpoint(), tmp_path / "random.pth")
            source, level = str(tmp_path / "random.pth"), "R2SCAN"
        import_model(source, tmp_path / "model.ckpt", elements=["O", "Si"], dtype="float64")
        deploy(tmp_path / "model.ckpt", tmp_path / "model.pt", level=level)
        return tmp_path / "model.pt"

    return make_file


@pytest.mark.parametrize("source", ["random", pytest.param("7net-0", marks=INSTALLED)])
def test_ranks(lammps, model_of, tmp_path, source):
    model = model_of(source)
    write_data(tmp_path / "atoms.data", oxide(triclinic=True))
    script = setup(model) + "dump one all custom 10 out.dump id fx fy fz\n"
    script += "dump_modify one sort id format float %.17g\nvelocity all create 600 1 loop geom\n"
    script += "fix 1 all nve\nrun 20\n"
    found = []
    for ranks in (1, 2, 3, 4):
        thermo = lammps(script, ranks).thermo
        found.append((thermo[:, 1], thermo[:, 2:], read_dump(tmp_path / "out.dump")[:, :, 1:4]))
    for others in found[1:]:
        for one, other in zip(found[0], others, strict=True):
            np.testing.assert_allclose(other, one, rtol=0, atol=1e-9 * np.abs(one).max())
    atoms = ase.io.read(tmp_path / "atoms.data", format="lammps-data", atom_style="atomic", units="metal")
    atoms = atoms[np.argsort(atoms.arrays["id"])]
    atoms.calc = EquipotCalculator(model, device="cpu")
    assert found[0][0][0] == pytest.approx(atoms.get_potential_energy(), rel=1e-10)
    forces = atoms.get_forces()
    np.testing.assert_allclose(found[0][2][0], forces, rtol=0, atol=1e-9 * np.abs(forces).max())
    assert np.abs(forces).max() > 1e-3
