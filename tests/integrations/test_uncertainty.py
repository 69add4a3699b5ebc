"""Uncertainties in ASE, of a model whose factor is known."""

import pickle

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from standin import verified_in_this_process

from equipot import EquipotCalculator
from equipot.config import NequIPConfig
from equipot.deploy.capsule import synthetic_structures
from equipot.deploy.rigidity import Rigidity
from equipot.deploy.torchscript import write_torchscript
from equipot.engine.library import Engine
from equipot.models.build import build_potential
from equipot.ops.build import kernels_available

pytestmark = pytest.mark.skipif(not kernels_available(), reason="no compiler")
SPECIES, SHIFT = ["H", "C", "O", "Cu"], [-1.0, -2.0, -3.0, -4.0]
FIGURES = {"features": 4, "training_frames": 9, "validation_frames": 5}
FIGURES |= {"predicted_rms": 0.1, "error_rms": 0.1, "miscalibration": 0.1}


@pytest.fixture(scope="module")
def factor():
    return np.tril(np.random.default_rng(0).normal(size=(4, 4)))


@pytest.fixture(scope="module")
def file(tmp_path_factory, factor):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("uncertain") / "model.pt"
    settings = {"layers": 2, "channels": 4, "l_max": 1, "radial_hidden": (8,), "cutoff": 3.0}
    potential = build_potential(NequIPConfig(type="nequip", **settings), SPECIES, 10.0, SHIFT, 1.0).eval()
    facts = {"model_type": "nequip", "weights": "last", "validation": {}, "config": ""}
    with verified_in_this_process():
        write_torchscript(
            potential,
            path,
            synthetic_structures(SPECIES, 3.0),
            source="made for the tests",
            atomic_energies=SHIFT,
            measure=lambda program: Rigidity(factor, FIGURES),
            **facts,
        )
    return path


def test_results(file, factor):
    """From the engine's features, and the factor that was put in; whatever the order of atoms inside."""
    atoms = molecule("CH3CH2OH")
    atoms.positions += 100  # no atom is in a cell of its own
    atoms.calc = EquipotCalculator(file, device="cpu")
    energy = atoms.get_potential_energy()
    types = [SPECIES.index(symbol) for symbol in atoms.get_chemical_symbols()]
    features = Engine(file).evaluate(atoms.positions, np.zeros((3, 3)), (0, 0, 0), types).features
    found = atoms.calc.results
    each = np.linalg.norm(features @ factor.T, axis=1)
    np.testing.assert_allclose(found["energies_uncertainty"], each, rtol=1e-5)
    total = np.linalg.norm(factor @ features.sum(axis=0))
    assert found["energy_uncertainty"] == pytest.approx(total, rel=1e-5)
    assert atoms.calc.get_property("energy_uncertainty", atoms) == found["energy_uncertainty"]
    copy = pickle.loads(pickle.dumps(atoms.calc))
    assert copy.get_property("energy_uncertainty", atoms) == found["energy_uncertainty"]

    atoms.calc = EquipotCalculator([file, file], device="cpu")
    assert atoms.get_potential_energy() == pytest.approx(energy)
    assert atoms.calc.results["energy_std"] == 0 and "energy_uncertainty" not in atoms.calc.results


def test_a_repeated_crystal_is_as_many_times_as_uncertain(file):
    sigma = []
    for repeats in (1, 3):
        atoms = bulk("Cu", cubic=True) * (repeats, 1, 1)
        atoms.calc = EquipotCalculator(file, device="cpu")
        atoms.get_potential_energy()
        sigma.append(atoms.calc.results["energy_uncertainty"])
    assert sigma[1] == pytest.approx(3 * sigma[0], rel=1e-4)


def test_torchscript_refuses_by_name(file, model_file, caplog):
    atoms = molecule("H2O")
    atoms.calc = EquipotCalculator(file, device="cpu", engine="torch")
    assert "the uncertainty of its energies is not given, which takes the engine on a CPU" in caplog.text
    with pytest.raises(PropertyNotImplementedError, match="energy_uncertainty"):
        atoms.calc.get_property("energy_uncertainty", atoms)
    assert "energy_uncertainty" not in EquipotCalculator.implemented_properties
    caplog.clear()
    atoms.calc = EquipotCalculator(model_file, device="cpu")  # which has none
    with pytest.raises(PropertyNotImplementedError, match="energy_uncertainty"):
        atoms.calc.get_property("energy_uncertainty", atoms)
    assert "uncertainty" not in caplog.text
