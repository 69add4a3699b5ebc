"""Distances shorter than any in the training set: found, said once for each pair, and reasons to stop."""

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from standin import make_potential

from equipot import EquipotCalculator
from equipot.deploy.capsule import synthetic_structures
from equipot.deploy.torchscript import write_torchscript
from equipot.errors import ConfigError, DataError, SimulationError
from equipot.integrations.md import MDSettings, run_md
from equipot.integrations.md_report import read_log
from equipot.integrations.verlet import Edges

SEEN = {"H-O": 1.7, "H-H": 1.4, "C-O": 1.2}


def write_model(path, shortest=SEEN):
    potential = make_potential()
    write_torchscript(
        potential, path, synthetic_structures(potential.species, 4.0), source="", model_type="standin",
        atomic_energies=[-10.0, -20.0, -30.0], weights="ema", validation={}, config="",
        shortest_distances=shortest,
    )  # fmt: skip
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "model.pt")


def chain(*distances, symbols="OHH"):
    """Atoms on a line, so far apart."""
    return Atoms(symbols, [[x, 0, 0] for x in np.cumsum([0.0, *distances])])


def warnings(caplog):
    found = [record.message for record in caplog.records if "Closer" in record.message]
    caplog.clear()
    return found


def test_each_pair_is_named_once(model, caplog):
    calculator = EquipotCalculator(model, device="cpu")
    calculator.get_potential_energy(chain(1.7, 1.4))  # to the last digit what was seen
    assert warnings(caplog) == []
    calculator.get_potential_energy(chain(1.69, 1.5))
    assert warnings(caplog) == [
        "Closer than anything the model was trained on: atoms 0 and 1 (H-O) are 1.690 Å apart; "
        "shortest in the training set: 1.700 Å."
    ]
    calculator.get_potential_energy(chain(1.5, 1.5))
    assert warnings(caplog) == []
    calculator.get_potential_energy(chain(1.5, 1.2))
    assert "(H-H) are 1.200 Å" in warnings(caplog)[0]


def test_pairs_never_within_the_cutoff(model, caplog):
    calculator = EquipotCalculator(model, device="cpu")
    calculator.get_potential_energy(chain(4.01, symbols="CH"))
    assert warnings(caplog) == []
    calculator.get_potential_energy(chain(3.9, symbols="CH"))
    assert "(C-H) are 3.900 Å apart; shortest in the training set: no such pair" in warnings(caplog)[0]


def test_periodic_images_count(model, caplog):
    """Against all distances by ASE, of atoms in any order."""
    rng = np.random.default_rng(0)
    atoms = Atoms("HOOH" * 4, rng.uniform(0, 6, (16, 3)), cell=[6, 6.5, 7], pbc=True)
    calculator = EquipotCalculator(model, device="cpu")
    calculator.get_potential_energy(atoms)
    distances = atoms.get_all_distances(mic=True) + 10 * np.eye(16)
    expected = {}
    for pair in ("H-O", "H-H", "O-O"):
        of_pair = ["-".join(sorted((a, b))) == pair for a in atoms.symbols for b in atoms.symbols]
        shortest = np.where(np.reshape(of_pair, (16, 16)), distances, 10).min()
        if shortest < SEEN.get(pair, 4.0):
            expected[pair] = f"{shortest:.3f} Å apart"
    found = warnings(caplog)
    assert len(found) == len(expected) > 1
    for pair, text in expected.items():
        assert any(f"({pair}) are {text}" in line for line in found)


def test_files_without_distances_find_nothing(model_file, caplog):
    EquipotCalculator(model_file, device="cpu").get_potential_energy(chain(0.3, 0.3))
    assert warnings(caplog) == []


def test_an_ensemble_has_seen_what_any_member_has(model, tmp_path, caplog):
    other = write_model(tmp_path / "other.pt", {"H-O": 1.6, "H-H": 1.5})
    calculator = EquipotCalculator([model, other], device="cpu")
    assert calculator.distances.shortest == {"H-O": 1.6, "H-H": 1.4, "C-O": 1.2}


def collision():
    """A hydrogen that flies at an oxygen, 0.2 Å in each fs: from 2.2 to 1.7 Å in about 27 steps."""
    atoms = chain(2.2, 5.5)
    velocities = np.zeros((3, 3))
    velocities[1, 0] = -0.2 / ase.units.fs
    atoms.set_velocities(velocities)
    return atoms


def test_dynamics_says_the_step(model, tmp_path, caplog):
    settings = MDSettings("nve", steps=60, timestep=0.1, log_interval=1, temperature=5000)
    result = run_md(collision(), model, tmp_path, settings, device="cpu")
    found = [record.message for record in caplog.records if "shortest in" in record.message]
    below = [f.get_distance(0, 1) < 1.7 for f in ase.io.read(result.trajectory, ":")]
    assert len(found) == 1
    assert found[0].startswith(f"Step {below.index(True)}: atoms 0 and 1 (H-O) are 1.")


@pytest.mark.parametrize(("limit", "distance"), [("1.1", 1.87), ("1.8Å", 1.8), ("1.65A", 1.65)])
def test_dynamics_stops(limit, distance, model, tmp_path):
    """Everything is written, the frame that was too close beside the trajectory."""
    settings = MDSettings("nve", steps=60, timestep=0.1, log_interval=1, temperature=5000, stop_below=limit)
    with pytest.raises(SimulationError, match=r"Stopped at step \d+ .*: atoms 0 and 1 \(H-O\)") as caught:
        run_md(collision(), model, tmp_path, settings, device="cpu")
    assert f"--stop-below {limit}" in str(caught.value)
    frames, stopped = (
        ase.io.read(tmp_path / "trajectory.extxyz", ":"),
        ase.io.read(tmp_path / "stopped.extxyz"),
    )
    assert stopped.get_distance(0, 1) < distance <= frames[-1].get_distance(0, 1)
    assert f"Stopped at step {len(frames)} " in str(caught.value)
    assert read_log(tmp_path / "log.csv")["step"][-1] == len(frames) - 1
    assert (tmp_path / "plot.png").is_file()


def test_a_stopped_run_goes_on_with_another_limit(model, tmp_path):
    """As if there had been none."""
    given = {"ensemble": "nve", "steps": 40, "timestep": 0.1, "log_interval": 1, "temperature": 5000}
    whole = run_md(collision(), model, tmp_path / "whole", MDSettings(**given), device="cpu")
    with pytest.raises(SimulationError):
        run_md(collision(), model, tmp_path / "a", MDSettings(**given, stop_below="1.1"), device="cpu")
    resumed = run_md(collision(), model, tmp_path / "a", MDSettings(**given), device="cpu", resume=True)
    assert resumed.log.read_bytes() == whole.log.read_bytes()
    assert not (tmp_path / "a" / "stopped.extxyz").exists()


def test_limits_that_mean_nothing(model, model_file, tmp_path):
    atoms = molecule("H2O")
    with pytest.raises(ConfigError, match="which this model file does not have"):
        run_md(atoms, model_file, tmp_path / "a", MDSettings(stop_below="0.9"), device="cpu")
    with pytest.raises(SimulationError, match="--stop-below 2Å"):  # at the start: nothing is begun
        run_md(atoms, model_file, tmp_path / "a", MDSettings(stop_below="2Å"), device="cpu")
    assert not (tmp_path / "a").exists()


def test_coinciding_atoms_are_an_error(model):
    calculator = EquipotCalculator(model, device="cpu")
    index, squared = np.array([[0, 1], [1, 0]]), np.full(2, 0.05**2)
    edges = Edges(np.array([[0.05, 0, 0], [-0.05, 0, 0]]), index, squared, np.arange(2), np.arange(2))
    with pytest.raises(DataError, match=r"Atoms 0 and 1 are 0\.0500 Å apart"):
        calculator.distances.find(edges, np.array([0, 0]))
