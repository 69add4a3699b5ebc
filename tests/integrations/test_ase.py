"""The calculator against finite differences, and at work in ASE's algorithms."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.filters import FrechetCellFilter
from ase.md.langevin import Langevin
from ase.md.nose_hoover_chain import IsotropicMTKNPT
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from ase.phonons import Phonons
from ase.stress import full_3x3_to_voigt_6_stress
from ase.units import kB
from standin import StandInNetwork, write_standin

import equipot
from equipot import EquipotCalculator
from equipot.config import NequIPConfig
from equipot.data import graph_from_atoms
from equipot.deploy.capsule import synthetic_structures
from equipot.deploy.load import load_deployed
from equipot.deploy.torchscript import write_torchscript
from equipot.errors import (
    ConfigError,
    DataError,
    DeviceError,
    ModelFileError,
    SimulationError,
    UnknownSpeciesError,
)
from equipot.models.build import build_potential
from equipot.models.predict import predict
from equipot.units import stress_to_voigt


@pytest.fixture(scope="module")
def calculator(model_file):
    return EquipotCalculator(model_file, device="cpu")


@pytest.fixture
def crystal(calculator):
    """A strained, rattled crystal of C and O."""
    atoms = bulk("CO", "rocksalt", a=4.4, cubic=True)
    atoms.set_cell(atoms.cell @ np.array([[1.02, 0.01, 0], [0, 0.99, 0.02], [0, 0, 1.01]]), scale_atoms=True)
    atoms.rattle(0.1, seed=1)
    atoms.calc = calculator
    return atoms


@pytest.fixture
def ethanol(calculator):
    atoms = molecule("CH3CH2OH")
    atoms.calc = calculator
    return atoms


def draw_velocities(atoms, temperature):
    noise = np.random.default_rng(0).normal(size=atoms.positions.shape)
    atoms.set_velocities(noise * np.sqrt(kB * temperature / atoms.get_masses()[:, None]))


def test_forces_are_the_gradient(crystal):
    """Central differences of 1e-4 Å: error 1e-8 times the third derivative, rounding 1e-12 eV / 1e-4 Å."""
    forces, step = crystal.get_forces(), 1e-4
    for atom, axis in ((0, 0), (3, 1), (7, 2)):
        energies = []
        for sign in (1, -1):
            moved = crystal.copy()
            moved.calc = crystal.calc
            moved.positions[atom, axis] += sign * step
            energies.append(moved.get_potential_energy())
        assert forces[atom, axis] == pytest.approx(-(energies[0] - energies[1]) / (2 * step), abs=1e-6)


def test_stress_is_the_strain_derivative(crystal):
    """All six components, sign and order; tolerance as for the forces, divided by a volume of 85 Å³."""
    stress, step = crystal.get_stress(voigt=False), 1e-4
    numerical = np.zeros((3, 3))
    for a in range(3):
        for b in range(a, 3):
            energies = []
            for sign in (1, -1):
                strain = np.eye(3)
                strain[a, b] += 0.5 * sign * step
                strain[b, a] += 0.5 * sign * step
                moved = crystal.copy()
                moved.set_cell(crystal.cell @ strain, scale_atoms=True)
                moved.calc = crystal.calc
                energies.append(moved.get_potential_energy())
            numerical[a, b] = numerical[b, a] = (
                (energies[0] - energies[1]) / (2 * step) / crystal.get_volume()
            )
    np.testing.assert_allclose(stress, numerical, atol=1e-7)
    np.testing.assert_allclose(crystal.get_stress(), full_3x3_to_voigt_6_stress(numerical), atol=1e-7)
    assert np.abs(stress).max() > 1e-3


def test_properties_fit_together(crystal):
    assert crystal.get_potential_energy() == crystal.get_potential_energy(force_consistent=True)
    assert crystal.get_potential_energies().sum() == pytest.approx(crystal.get_potential_energy(), abs=1e-12)
    assert crystal.get_stresses().shape == (8, 6)
    np.testing.assert_allclose(crystal.get_stresses().sum(axis=0), crystal.get_stress(), atol=1e-15)
    # The calculator reorders atoms; every atom gets its own back.
    prediction = predict(crystal.calc.model, graph_from_atoms(crystal, ["H", "C", "O"], 4.0))
    stresses = stress_to_voigt(-prediction.atom_virials.numpy() / crystal.get_volume())
    np.testing.assert_allclose(crystal.get_stresses(), stresses, atol=1e-14)
    np.testing.assert_allclose(crystal.get_forces().sum(axis=0), 0.0, atol=1e-12)
    assert all(np.asarray(value).dtype == np.float64 for value in crystal.calc.results.values())


def test_supercell_is_extensive(crystal):
    """Same atoms, longer sums: rounding only. The primitive cell is smaller than the cutoff."""
    larger = crystal * (2, 1, 2)
    larger.calc = crystal.calc
    assert larger.get_potential_energy() == pytest.approx(4 * crystal.get_potential_energy(), abs=1e-10)
    np.testing.assert_allclose(larger.get_stress(), crystal.get_stress(), atol=1e-12)
    np.testing.assert_allclose(larger.get_forces()[:8], crystal.get_forces(), atol=1e-11)


def test_no_stress_without_a_full_cell(ethanol):
    ethanol.get_forces()
    with pytest.raises(PropertyNotImplementedError, match="periodic in all three directions"):
        ethanol.get_stress()
    slab = bulk("CO", "rocksalt", a=4.4, cubic=True)
    slab.pbc = [True, True, False]
    slab.calc = ethanol.calc
    assert np.isfinite(slab.get_forces()).all()
    with pytest.raises(PropertyNotImplementedError):
        slab.get_stresses()


def test_unknown_species_leaves_no_result(calculator):
    atoms = Atoms("HF", [[0, 0, 0], [0, 0, 1]], calculator=calculator)
    with pytest.raises(UnknownSpeciesError, match=r"contains F, .* H, C, O"):
        atoms.get_potential_energy()
    assert calculator.results == {}


def test_non_finite_positions(calculator):
    atoms = Atoms("H2", [[0, 0, 0], [0, 0, np.nan]], calculator=calculator)
    with pytest.raises(DataError, match="not finite"):
        atoms.get_potential_energy()


def test_construction_errors(model_file, tmp_path):
    with pytest.raises(ModelFileError):
        EquipotCalculator(tmp_path / "none.pt")
    with pytest.raises(DeviceError):
        EquipotCalculator(model_file, device="cuda:99")
    for skin in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="skin"):
            EquipotCalculator(model_file, skin=skin)
    with pytest.raises(TypeError, match="skinn"):
        EquipotCalculator(model_file, skinn=1.0)


def test_ase_arguments(model_file):
    atoms = molecule("H2O")
    calculator = EquipotCalculator(model_file, device="cpu", label="run", atoms=atoms, directory="here")
    assert atoms.calc is calculator
    assert (calculator.prefix, calculator.directory) == ("run", "here")


def test_unusable_structures(calculator):
    with pytest.raises(DataError, match="The structure has no atoms"):
        Atoms(calculator=calculator).get_potential_energy()
    clash = Atoms("H3", [[5, 0, 0], [0, 0, 0], [0, 0, 0.0]], calculator=calculator)
    with pytest.raises(DataError, match=r"Atoms 1 and 2 are 0\.0000 Å apart"):
        clash.get_potential_energy()


def test_non_finite_results(model_file, monkeypatch):
    calculator = EquipotCalculator(model_file, device="cpu")
    right = calculator.model.module

    def broken(*inputs):
        energies, forces, virials = right(*inputs)
        forces = forces.clone()
        forces[2] = torch.nan
        return energies, forces, virials

    object.__setattr__(calculator.model, "module", broken)
    atoms = molecule("H2O")
    atoms.calc = calculator
    with pytest.raises(SimulationError, match=r"not finite for 1 of 3 atoms \(indices 2\)"):
        atoms.get_potential_energy()


def test_failed_self_check_refuses(model_file, monkeypatch):
    monkeypatch.setattr("equipot.deploy.capsule.RELATIVE_TOLERANCE", {"float64": -1.0})
    with pytest.raises(ModelFileError, match="does not reproduce its reference structures"):
        EquipotCalculator(model_file, device="cpu")
    EquipotCalculator(model_file, device="cpu", check=False)


def test_edges_stay_on_the_device(model_file, crystal):
    """As tensors; another name for the CPU stands for a GPU."""
    model = replace(load_deployed(model_file, "cpu", "torch"), device="cpu:0")
    there = EquipotCalculator(model)
    assert torch.is_tensor(there.neighbors.edges(crystal.positions, crystal.cell.array, crystal.pbc).vec)
    types = []
    for _ in range(3):
        expected = EquipotCalculator(model_file, device="cpu", skin=0.0)
        for calculator in (expected, there):
            calculator.calculate(crystal)
        for name, value in expected.results.items():
            np.testing.assert_allclose(there.results[name], value, rtol=1e-12, atol=1e-12)
        types.append(there._types[1])
        crystal.rattle(0.05)
    assert types[0] is types[1]  # what a GPU has found out about them is kept
    crystal.positions[1] = crystal.positions[0] + 0.05
    with pytest.raises(DataError, match=r"Atoms 0 and 1 are 0\.0866 Å apart"):
        there.calculate(crystal)


def test_nothing_is_computed_twice(model_file, crystal, monkeypatch):
    """Whatever is asked of the same structure, and once more for every change of it."""
    calculator = EquipotCalculator(model_file, device="cpu")
    evaluations = []
    monkeypatch.setattr(calculator.distances, "find", lambda *_: evaluations.append(1) or [])
    crystal.calc = calculator

    def count():
        crystal.get_forces(), crystal.get_potential_energy(), crystal.get_stress()
        return len(evaluations)

    assert count() == count() == 1
    crystal.info["name"] = "other"
    crystal.set_initial_magnetic_moments([1.0] * len(crystal))
    assert count() == 1
    crystal.positions[0, 0] += 1e-12
    assert count() == 2
    crystal.cell[0, 0] += 1e-12
    assert count() == 3
    crystal.numbers[0], crystal.numbers[1] = crystal.numbers[1], crystal.numbers[0]
    assert count() == 4
    crystal.calc = None
    calculator.calculate(crystal)
    assert len(evaluations) == 5


def test_package_exports_the_calculator():
    assert equipot.EquipotCalculator is EquipotCalculator
    with pytest.raises(AttributeError):
        equipot.Nonsense  # noqa: B018


def test_lone_atom(calculator):
    atoms = Atoms("C", calculator=calculator)
    assert atoms.get_potential_energy() == pytest.approx(-20.0, abs=1e-12)
    assert np.array_equal(atoms.get_forces(), np.zeros((1, 3)))


def test_several_structures_in_turn(calculator, model_file):
    """One calculator for structures of other sizes, cells and species gives what fresh calculators give."""
    structures = [molecule("H2O"), molecule("CH4"), bulk("C", cubic=True), molecule("H2O")]
    structures[3].rattle(0.05, seed=3)
    for atoms in structures * 2:
        atoms.calc = calculator
        fresh = atoms.copy()
        fresh.calc = EquipotCalculator(model_file, device="cpu", skin=0.0, check=False)
        np.testing.assert_allclose(atoms.get_forces(), fresh.get_forces(), atol=1e-11)


def test_species_change_in_place(calculator):
    atoms = molecule("H2O")
    atoms.calc = calculator
    before = atoms.get_potential_energy()
    atoms.numbers[0] = 6
    after = atoms.get_potential_energy()
    reverted = atoms.copy()
    reverted.numbers[0] = 8
    reverted.calc = calculator
    assert after != pytest.approx(before, abs=1.0)
    assert reverted.get_potential_energy() == pytest.approx(before, abs=1e-12)


def test_relaxation_of_a_molecule(ethanol):
    start = ethanol.get_potential_energy()
    assert BFGS(ethanol, logfile=None).run(fmax=0.01, steps=300)
    assert ethanol.get_potential_energy() < start


def test_relaxation_of_a_cell(crystal):
    assert BFGS(FrechetCellFilter(crystal), logfile=None).run(fmax=0.005, steps=300)
    assert np.abs(crystal.get_stress()).max() < 0.005


def test_nve_conserves_energy(ethanol):
    """Relaxed first, so that the run is gentle; what remains is velocity Verlet's own fluctuation."""
    BFGS(ethanol, logfile=None).run(fmax=0.05, steps=200)
    draw_velocities(ethanol, 300)
    dynamics = VelocityVerlet(ethanol, 0.2 * units.fs)
    energies = [ethanol.get_total_energy() for _ in dynamics.irun(300)]
    assert np.ptp(energies) / len(ethanol) < 1e-3 < ethanol.get_kinetic_energy() / len(ethanol)


def test_langevin_and_npt_run(crystal):
    draw_velocities(crystal, 50)
    Langevin(
        crystal,
        0.5 * units.fs,
        temperature_K=50,
        friction=0.01 / units.fs,
        fixcm=False,
        rng=np.random.default_rng(1),
    ).run(20)
    volume = crystal.get_volume()
    IsotropicMTKNPT(crystal, 0.5 * units.fs, 50, 0.0, tdamp=50 * units.fs, pdamp=500 * units.fs).run(20)
    assert crystal.get_volume() != volume
    assert crystal.get_kinetic_energy() / len(crystal) < 20 * kB * 50


def test_phonons(calculator, tmp_path):
    """The acoustic modes at Γ vanish; central differences of 0.01 Å leave about 1e-4 of the largest."""
    atoms = bulk("C", "fcc", a=3.0)
    atoms.calc = calculator
    BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=1e-4, steps=100)
    phonons = Phonons(atoms, calculator, supercell=(3, 3, 3), delta=0.01, name=str(tmp_path / "phonon"))
    phonons.run()
    phonons.read(acoustic=False)
    at_gamma, elsewhere = phonons.band_structure([[0, 0, 0], [0.5, 0.5, 0.0]])
    assert np.abs(at_gamma).max() < 0.03 * np.abs(elsewhere).max()


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory):
    """A folder of three members that differ in their strength."""
    folder = tmp_path_factory.mktemp("ensemble")

    def stronger(factor):
        def network(*arguments):
            made = StandInNetwork(*arguments)
            made.strength.data.mul_(factor)
            return made

        return network

    for index, factor in enumerate((1.0, 1.1, 1.3)):
        write_standin(folder / f"member_{index}.pt", network=stronger(factor))
    return folder


def test_ensemble_gives_the_mean_and_the_deviations(ensemble, crystal):
    files = sorted(ensemble.iterdir())
    alone = []
    for file in files:
        atoms = crystal.copy()
        atoms.calc = EquipotCalculator(file, device="cpu")
        atoms.get_forces()
        alone.append(atoms.calc.results)
    for model in (ensemble, files):
        atoms = crystal.copy()
        atoms.calc = EquipotCalculator(model, device="cpu")
        atoms.get_forces()
        for name in ("energy", "energies", "forces", "stress", "stresses"):
            mean = np.mean([results[name] for results in alone], axis=0)
            assert atoms.calc.results[name] == pytest.approx(mean, rel=1e-12, abs=1e-14), name  # rounding
        energy_std = np.std([results["energy"] for results in alone], ddof=1)
        assert atoms.calc.results["energy_std"] == pytest.approx(energy_std, rel=1e-9)
        variances = np.var([results["forces"] for results in alone], axis=0, ddof=1).sum(axis=1)
        assert atoms.calc.results["forces_std"] == pytest.approx(np.sqrt(variances), rel=1e-9)
        assert atoms.calc.results["forces_std"].shape == (len(crystal),)
    assert "energy_std" not in alone[0]


@pytest.mark.parametrize("model", ["one", "ensemble"])
def test_energies_relative_to_isolated_atoms(model, ensemble, model_file, crystal):
    """Of each member; atoms alone have none, and nothing else changes."""
    file = model_file if model == "one" else ensemble
    total, isolated = (EquipotCalculator(file, device="cpu", energy=e) for e in ("total", "isolated"))
    alone = {}
    for symbol in "CO":
        atom = Atoms(symbol)
        alone[symbol] = total.get_potential_energy(atom)
        assert isolated.get_potential_energy(atom) == 0.0
    far = Atoms("CO", [[0, 0, 0], [0, 0, 50]])
    assert isolated.get_potential_energy(far) == 0.0
    for calculator in (total, isolated):
        calculator.calculate(crystal)
    taken_off = np.array([alone[symbol] for symbol in crystal.symbols])
    np.testing.assert_allclose(
        isolated.results["energies"], total.results["energies"] - taken_off, atol=1e-11
    )
    assert isolated.results["energy"] == isolated.results["free_energy"]
    assert isolated.results["energy"] == pytest.approx(total.results["energy"] - taken_off.sum(), abs=1e-10)
    assert isolated.results.keys() == total.results.keys()
    for name in isolated.results.keys() - {"energy", "free_energy", "energies"}:
        np.testing.assert_allclose(isolated.results[name], total.results[name], rtol=1e-9)
    with pytest.raises(ConfigError, match="energy must be 'total' or 'isolated', found 'relative'"):
        EquipotCalculator(model_file, energy="relative")


def test_ensemble_with_a_damaged_member_is_refused(ensemble, tmp_path):
    for file in ensemble.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "member_1.pt").write_bytes(b"nothing")
    with pytest.raises(ModelFileError, match=r"member_1\.pt"):
        EquipotCalculator(tmp_path, device="cpu")


@pytest.fixture(scope="module", params=["standin", "nequip"])
def heat_model(request, model_file, tmp_path_factory):
    """By TorchScript without messages, and by the engine with them."""
    if request.param == "standin":
        return model_file
    torch.manual_seed(0)
    species, shift = ["H", "C", "O"], [-1.0, -2.0, -3.0]
    settings = {"cutoff": 3.0, "layers": 3, "channels": 4, "radial_hidden": (8,), "dtype": "float64"}
    potential = build_potential(NequIPConfig(type="nequip", **settings), species, 6.0, shift, 1.0)
    path = tmp_path_factory.mktemp("heat") / "nequip.pt"
    facts = {"atomic_energies": shift, "weights": "ema", "validation": {}, "config": ""}
    structures = synthetic_structures(species, 3.0)
    write_torchscript(potential, path, structures, source="", model_type="nequip", **facts)
    return path


def test_heat_flux(heat_model, ethanol):
    """d/dt Σ r_i E_i of a free molecule; dU_i/dt by central differences, steps of 1e-4 fs."""
    ethanol.calc = EquipotCalculator(heat_model, device="cpu")
    draw_velocities(ethanol, 2000)
    velocities, step = ethanol.get_velocities(), 1e-5
    flux = ethanol.calc.get_property("heat_flux", ethanol)
    energies = ethanol.get_potential_energies()
    energies += 0.5 * ethanol.get_masses() * (velocities**2).sum(axis=1)
    power = (ethanol.get_forces() * velocities).sum(axis=1)
    for sign in (1, -1):
        moved = ethanol.copy()
        moved.positions += sign * step * velocities
        power += sign * ethanol.calc.get_property("energies", moved) / (2 * step)
    np.testing.assert_allclose(flux, energies @ velocities + power @ ethanol.positions, rtol=0, atol=1e-7)
    assert np.abs(power @ ethanol.positions).max() > 1e-3


def test_heat_flux_follows_the_velocities(heat_model, ethanol, monkeypatch):
    ethanol.calc = EquipotCalculator(heat_model, device="cpu")
    assert not ethanol.calc.get_property("heat_flux", ethanol).any()
    ethanol.get_forces()
    assert "heat_virials" in ethanol.calc.results
    monkeypatch.setattr(ethanol.calc, "calculate", None)  # nothing is evaluated again
    draw_velocities(ethanol, 300)
    flux = ethanol.calc.get_property("heat_flux", ethanol)
    ethanol.set_velocities(-ethanol.get_velocities())
    np.testing.assert_allclose(ethanol.calc.get_property("heat_flux", ethanol), -flux)
    assert flux.any()


@pytest.mark.parametrize("wrong", ["momenta", "masses"])
def test_heat_flux_that_is_not_finite(heat_model, ethanol, wrong):
    ethanol.calc = EquipotCalculator(heat_model, device="cpu")
    draw_velocities(ethanol, 300)
    values = ethanol.get_momenta() if wrong == "momenta" else ethanol.get_masses()
    values[2] = np.nan
    ethanol.set_array(wrong, values)
    with pytest.raises(DataError, match="velocities or masses of the structure are not"):
        ethanol.calc.get_property("heat_flux", ethanol)
    ethanol.set_array(wrong, np.ones_like(values))
    assert np.isfinite(ethanol.calc.get_property("heat_flux", ethanol)).all()


def test_no_structure(heat_model):
    for name in ("energy", "heat_flux"):
        with pytest.raises(DataError, match="There is no structure: give one"):
            EquipotCalculator(heat_model, device="cpu").get_property(name)


def test_heat_flux_of_an_ensemble_is_the_mean(ensemble, crystal):
    draw_velocities(crystal, 300)
    calculators = [EquipotCalculator(model, device="cpu") for model in (ensemble, *ensemble.iterdir())]
    mean, *each = (calculator.get_property("heat_virials", crystal) for calculator in calculators)
    np.testing.assert_allclose(mean, np.mean(each, axis=0), atol=1e-12)
    assert calculators[0].get_property("heat_flux", crystal).shape == (3,)


@pytest.mark.parametrize("heat_model", ["nequip"], indirect=True)
def test_torchscript_has_no_heat_flux_of_messages(heat_model, ethanol):
    ethanol.calc = EquipotCalculator(heat_model, device="cpu", engine="torch")
    with pytest.raises(
        PropertyNotImplementedError, match=r"only equipot's engine gives.*deployed since there is"
    ):
        ethanol.calc.get_property("heat_flux", ethanol)
    assert ethanol.get_forces().any()
