"""The model for TorchSim: what its repository tests of every model, and its runners."""

import ase.build
import numpy as np
import pytest
from ase.io import read

torch = pytest.importorskip("torch")
ts = pytest.importorskip("torch_sim", reason="torch-sim-atomistic is not installed")

from standin import write_standin  # noqa: E402
from torch_sim.models.interface import validate_model_outputs  # noqa: E402

from equipot import EquipotCalculator  # noqa: E402
from equipot.errors import SimulationError, UnknownSpeciesError  # noqa: E402
from equipot.integrations.torchsim import EquipotModel  # noqa: E402
from equipot.units import stress_to_voigt  # noqa: E402

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def si_fe(tmp_path_factory):
    """TorchSim validates with silicon and iron."""
    path = tmp_path_factory.mktemp("model") / "model.pt"
    write_standin(path, species=("H", "C", "O", "Si", "Fe"))
    return path


def systems():
    """Such as TorchSim's tests of consistency have: metals, oxides, displaced, triclinic, large."""
    rattled = ase.build.bulk("SiO", "rocksalt", a=4.6, cubic=True)
    rattled.rattle(0.1, seed=0)
    sheared = ase.build.bulk("Fe", "bcc", a=2.9)
    sheared.set_cell(sheared.cell.array @ (np.eye(3) + np.triu(np.full((3, 3), 0.1), 1)), scale_atoms=True)
    return [
        ase.build.bulk("Si", "diamond", a=5.43),
        ase.build.bulk("Fe", "hcp", a=2.5, c=4.0),
        sheared,
        rattled,
        ase.build.bulk("C", "fcc", a=3.4, cubic=True).repeat(2),
    ]


def test_their_own_validation(si_fe):
    """Shapes, inputs left as they are, batch = single; in both precisions, by the engine and by torch."""
    for dtype in (torch.float64, torch.float32):
        validate_model_outputs(EquipotModel(si_fe, "cpu", dtype), CPU, dtype)
    validate_model_outputs(EquipotModel(si_fe, "cpu", engine="torch"), CPU, torch.float64)


def test_consistent_with_the_calculator(si_fe):
    """Each alone and all at once, twice, with the neighbor lists of the first time."""
    model, calculator = EquipotModel(si_fe, CPU), EquipotCalculator(si_fe, "cpu")
    structures = systems()
    expected = []
    for atoms in structures:
        atoms.calc = calculator
        expected.append((atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()))
    batches = [[number] for number in range(len(structures))] + [list(range(len(structures)))] * 2
    for chosen in batches:
        found = model(ts.io.atoms_to_state([structures[n] for n in chosen], CPU, torch.float64))
        energies, forces, stresses = zip(*(expected[n] for n in chosen), strict=True)
        np.testing.assert_allclose(found["energy"].numpy(), energies, rtol=1e-12)
        np.testing.assert_allclose(found["forces"].numpy(), np.concatenate(forces), atol=1e-10)
        np.testing.assert_allclose(stress_to_voigt(found["stress"]).numpy(), stresses, atol=1e-12)
    molecule = ase.build.molecule("CH3OH")
    found = model(ts.io.atoms_to_state([molecule], CPU, torch.float64))
    molecule.calc = calculator
    np.testing.assert_allclose(found["forces"].numpy(), molecule.get_forces(), atol=1e-10)
    assert found["stress"].isnan().all()


def test_refusals(si_fe):
    model = EquipotModel(si_fe, "cpu", compute_stress=False)
    with pytest.raises(UnknownSpeciesError, match="Cu"):
        model(ts.io.atoms_to_state([ase.build.bulk("Cu")], CPU, torch.float64))
    close = ase.Atoms("H2", [[0, 0, 0], [0, 0, 0.01]], cell=[9] * 3, pbc=True)
    state = ts.io.atoms_to_state([ase.build.bulk("Si"), close], CPU, torch.float64)
    with pytest.raises(SimulationError, match="System 1 of 2: atoms 0 and 1 are"):
        model(state)
    assert set(model(ts.io.atoms_to_state([ase.build.bulk("Si")], CPU, torch.float64))) == {
        "energy",
        "forces",
    }


def test_their_relaxation(si_fe, tmp_path):
    """Of two crystals with their cells, to the minima of equipot's own."""
    from equipot.integrations.relax import run_relax
    from equipot.integrations.relax_settings import RelaxSettings

    given = [ase.build.bulk("C", "fcc", 3.1, cubic=True), ase.build.bulk("O", "fcc", 3.0)]
    given[0].rattle(0.05, seed=0)
    run_relax(given, si_fe, tmp_path, RelaxSettings(cell=True, force=1e-4, stress=0.01), device="cpu")
    final = ts.optimize(
        system=given,
        model=EquipotModel(si_fe, "cpu"),
        optimizer=ts.optimizers.frechet_cell_fire,
        convergence_fn=ts.runners.generate_force_convergence_fn(1e-3, include_cell_forces=True),
        max_steps=1000,
    )
    energies = [atoms.get_potential_energy() for atoms in read(tmp_path / "relaxed.extxyz", ":")]
    np.testing.assert_allclose(final.energy.numpy(), energies, atol=1e-5)


def test_their_dynamics_conserves_energy(si_fe, tmp_path):
    """Velocity Verlet of two systems; the total energy changes by far less than the kinetic."""
    given = [ase.build.bulk("C", "fcc", 3.1, cubic=True), ase.build.bulk("Fe", "bcc", 2.7) * (2, 2, 2)]

    def kinetic(state):
        return ts.quantities.calc_kinetic_energy(
            masses=state.masses, momenta=state.momenta, system_idx=state.system_idx
        )

    files = [tmp_path / f"{number}.h5md" for number in range(2)]
    quantities = {"potential": lambda state: state.energy, "kinetic": kinetic}
    ts.integrate(
        system=given,
        model=EquipotModel(si_fe, "cpu"),
        integrator=ts.integrators.nve,
        n_steps=50,
        temperature=300.0,
        timestep=0.001,
        trajectory_reporter={"filenames": files, "prop_calculators": {1: quantities}},
    )
    for file in files:
        with ts.TorchSimTrajectory(file) as trajectory:
            potential, moving = (trajectory.get_array(name).ravel() for name in quantities)
        assert len(potential) == 50
        total = potential + moving
        assert np.abs(total - total[0]).max() < 0.02 * moving.std()
