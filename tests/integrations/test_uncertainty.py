"""Uncertainties in ASE, of a model whose factor is known."""

import pickle

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from standin import write_uncertain

from equipot import EquipotCalculator
from equipot.engine.library import Engine
from equipot.integrations.md import run_md
from equipot.integrations.md_report import read_log
from equipot.integrations.md_settings import MDSettings
from equipot.ops.build import kernels_available

pytestmark = pytest.mark.skipif(not kernels_available(), reason="no compiler")
SPECIES = ["H", "C", "O", "Cu"]


@pytest.fixture(scope="module")
def factor():
    return np.tril(np.random.default_rng(0).normal(size=(4, 4)))


@pytest.fixture(scope="module")
def file(tmp_path_factory, factor):
    path = tmp_path_factory.mktemp("uncertain") / "model.pt"
    write_uncertain(path, factor, SPECIES)
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
    assert atoms.calc.export_properties()["energy"] == energy  # ASE has no name for uncertainties
    copy = pickle.loads(pickle.dumps(atoms.calc))
    assert copy.get_property("energy_uncertainty", atoms) == found["energy_uncertainty"]

    atoms.calc = EquipotCalculator(file, device="cpu", energy="isolated")
    alone = sum(copy.get_potential_energy(Atoms(symbol)) for symbol in atoms.symbols)
    assert atoms.get_potential_energy() == pytest.approx(energy - alone, abs=1e-4)
    assert atoms.calc.results["energy_uncertainty"] == found["energy_uncertainty"]

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


def test_dynamics_logs_it(file, tmp_path):
    """A column of the log and a number of each frame; after a resumption, too."""
    atoms = molecule("H2O")
    settings = {"timestep": 0.1, "log_interval": 2, "restart_interval": 4}
    run_md(atoms, file, tmp_path, MDSettings("nve", steps=4, **settings), device="cpu")
    run_md(atoms, file, tmp_path, MDSettings("nve", steps=8, **settings), device="cpu", resume=True)
    log, frames = read_log(tmp_path / "log.csv"), ase.io.read(tmp_path / "trajectory.extxyz", ":")
    assert log["step"].tolist() == [0, 2, 4, 6, 8] and len(frames) == 5
    calculator = EquipotCalculator(file, device="cpu")
    for sigma, frame in zip(log["energy_uncertainty_eV"], frames, strict=True):
        right = calculator.get_property("energy_uncertainty", frame)
        assert sigma == pytest.approx(right, rel=1e-3) == frame.info["energy_uncertainty"]
    run_md(atoms, [file, file], tmp_path / "two", MDSettings("nve", steps=2, **settings), device="cpu")
    log = read_log(tmp_path / "two" / "log.csv")
    assert log["energy_std_eV"].tolist() == [0, 0] and "energy_uncertainty_eV" not in log
