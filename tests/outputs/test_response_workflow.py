"""From labels with branches to a deployed model in a field: training, errors, ASE, dynamics."""

from dataclasses import replace
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from output_models import CUTOFF, NEQUIP, SPECIES, make_config, make_potential
from test_response import RESPONSE, differences

from equipot import EquipotCalculator
from equipot.config import config_from_dict
from equipot.data.dataset import GraphDataset, graph_from_atoms, to_graph
from equipot.data.readers import read_frames
from equipot.deploy.check import check
from equipot.deploy.export import deploy
from equipot.errors import ConfigError, DataError
from equipot.evaluation.ensemble import predict_members
from equipot.evaluation.model import load_model
from equipot.evaluation.run import evaluate
from equipot.graph import collate
from equipot.integrations.md import run_md
from equipot.integrations.md_settings import MDSettings
from equipot.models.predict import predict
from equipot.training.outputs import output_statistics
from equipot.training.run import train

SILICON = Path(__file__).parents[2] / "examples/04_engine/silicon.pt"
FIELD = np.array([0.05, -0.02, 0.03])


def labelled(seed: int, branch=(0, 0, 0)) -> Atoms:
    """A crystal as a model of other weights labels it, its polarization on another branch."""
    atoms = Atoms("HCOH", cell=[[4.0, 0, 0], [0.7, 4.4, 0], [0.2, -0.4, 3.9]], pbc=True)
    atoms.positions = [[0.5, 0.5, 0.5], [2.5, 0.4, 0.6], [0.4, 2.6, 0.5], [0.6, 0.5, 2.4]]
    atoms.rattle(0.15, seed=seed)
    found = predict(_teacher(), graph_from_atoms(atoms, SPECIES, CUTOFF))
    atoms.info |= {"energy": found.energy.item(), "stress": found.stress[0].numpy()}
    values = {name: value.numpy() for name, value in found.outputs.items()}
    atoms.info["polarization"] = values["polarization"][0] + branch @ atoms.cell.array
    atoms.info["polarizability"] = values["polarizability"][0].ravel()
    atoms.arrays |= {"forces": found.forces.numpy(), "born_charges": values["born_charges"].reshape(-1, 9)}
    return atoms


def _teacher():
    return make_potential(NEQUIP | {"layers": 1}, {name: RESPONSE[name] for name in list(RESPONSE)[1:]})


@pytest.fixture(scope="module")
def trained(tmp_path_factory, fresh_process):
    folder = tmp_path_factory.mktemp("response")
    rng = np.random.default_rng(0)
    ase.io.write(folder / "train.xyz", [labelled(seed, rng.integers(-5, 6, 3)) for seed in range(16)])
    ase.io.write(folder / "test.xyz", [labelled(seed, rng.integers(-5, 6, 3)) for seed in range(16, 20)])
    train(settings(folder))
    with fresh_process():
        deploy(folder / "run" / "checkpoints" / "best.ckpt", folder / "model.pt")
    return folder


def settings(folder):
    return make_config(
        NEQUIP | {"layers": 1, "channels": 8, "dtype": "float32", "field": True},
        {name: RESPONSE[name] for name in ("born_charges", "polarization", "polarizability")},
        data={"train": str(folder / "train.xyz"), "test": str(folder / "test.xyz"), "validation": 4},
        training={"epochs": 25, "batch_size": 2, "optimizer": "adam", "learning_rate": 0.02},
        run={"directory": str(folder / "run")},
    )


def test_training_learns_from_labels_on_any_branch(trained):
    found = evaluate(trained / "model.pt", [trained / "test.xyz"]).comparison
    plain = np.array([labelled(seed).info["polarization"] for seed in range(16, 20)])
    for name in ("polarization", "born_charges", "polarizability"):
        error = np.sqrt((found.error(name) ** 2).mean())
        assert error < 0.5 * found.reference[name].std(), name
    # The model's own branch is that of the vectors it is made of, not that of any label.
    np.testing.assert_allclose(found.reference["polarization"], plain, atol=1e-6)


def test_members_on_different_branches(trained):
    """Their mean is taken on one of them."""
    frames = read_frames(trained / "test.xyz", *_labels_and_units(trained))
    one = load_model(trained / "model.pt")

    def shifted(graph):
        found = one.predict(graph)
        moved = found.outputs["polarization"] + 3 * graph.cell[:, 1]
        return replace(found, outputs={**found.outputs, "polarization": moved})

    mean, _ = predict_members([one, replace(one, predict=shifted)], frames)
    single, _ = predict_members([one], frames)
    np.testing.assert_allclose(mean.error("polarization"), single.error("polarization"), atol=1e-9)


def _labels_and_units(folder):
    source = settings(folder).data.sources("train")[0]
    return source.labels, source.units


def test_labels_in_a_field(trained):
    """Frames with `electric_field` are compared, and trained, in it; those without at none."""
    frames = [labelled(seed) for seed in (16, 17)]
    frames[0].info["electric_field"] = 100 * FIELD  # in the unit below
    ase.io.write(trained / "in_field.xyz", frames)
    config = settings(trained)
    raw = config.to_dict()
    raw["data"]["units"]["electric_field"] = "V/nm"
    raw["data"]["units"]["length"] = "Ang"
    source = config_from_dict(raw).data.sources("train")[0]
    read = read_frames(trained / "in_field.xyz", source.labels, source.units)
    np.testing.assert_allclose(read[0].values["electric_field"], 10 * FIELD)
    assert "electric_field" not in read[1].values
    model = load_model(trained / "model.pt")
    graph = collate([to_graph(frame, model.species, model.cutoff) for frame in read])
    found = model.predict(graph)
    for index, field in enumerate([10 * FIELD, None]):
        calculator = EquipotCalculator(trained / "model.pt", field=field)
        forces = calculator.get_property("forces", frames[index])
        np.testing.assert_allclose(found.forces[graph.structure == index], forces, atol=1e-4)
    without = EquipotCalculator(trained / "model.pt").get_property("forces", frames[0])
    assert np.abs(found.forces[graph.structure == 0].numpy() - without).max() > 0.01
    raw["model"]["field"] = False
    with pytest.raises(ConfigError, match=r"data.labels.electric_field goes with `model.field: true`"):
        config_from_dict(raw)


def test_a_field_of_the_structure_alone_is_warned_of(caplog):
    atoms = bulk("Si", "diamond", 5.43)
    atoms.info["electric_field"] = [0.0, 0.0, 0.1]
    calculator = EquipotCalculator(SILICON)
    for _ in range(2):
        atoms.rattle(0.01)
        calculator.get_property("energy", atoms)
    assert caplog.text.count("field, which counts, is [0.0, 0.0, 0.0] V/Å") == 1


def test_sizes_do_not_see_the_branch(trained, caplog):
    config = settings(trained)
    frames = read_frames(trained / "train.xyz", *_labels_and_units(trained))
    dataset = GraphDataset(frames, SPECIES, CUTOFF)
    found = output_statistics(dataset, config.outputs)["polarization"]
    assert not caplog.records
    known_exactly = config.outputs["polarization"].model_copy(update={"modulo": None})
    output_statistics(dataset, {"polarization": known_exactly})
    assert "polarization of 16 training frames is that of a periodic cell" in caplog.text
    plain = np.array([labelled(seed).info["polarization"] for seed in range(16)])
    assert np.abs(plain).max() < 1.5  # within the first cell
    assert found["spread"] == pytest.approx(np.sqrt((plain**2).mean()))


@pytest.mark.parametrize("engine", ["auto", "torch"])
def test_deployed_model_in_a_field(trained, engine):
    report = check(trained / "model.pt", "cpu")
    assert report.passed
    assert {"energy by the field", "polarization by the field"} < {item.name for item in report.items}
    atoms = labelled(30)
    atoms.calc = calculator = EquipotCalculator(trained / "model.pt", field=FIELD, engine=engine)
    assert (calculator.model.engine is None) == (engine == "torch")
    forces = atoms.get_forces()
    born = atoms.calc.results["born_charges"]
    assert born.shape == (4, 3, 3) and calculator.results["polarizability"].shape == (3, 3)
    np.testing.assert_allclose(born.sum(axis=0), 0, atol=1e-5)

    def energy(step):
        moved = atoms.copy()
        moved.calc = calculator
        moved.positions[1] += step
        return np.array([moved.get_potential_energy()])

    size = 0.01  # Å; the network computes in float32
    np.testing.assert_allclose(-differences(energy, size)[0], forces[1], atol=2e-3)

    def in_field(name):
        def of(step):
            calculator.field = FIELD + step
            return calculator.get_property(name, atoms)

        return of

    polarization = calculator.get_property("polarization", atoms)
    np.testing.assert_allclose(differences(in_field("forces"), 0.5).swapaxes(1, 2), born, atol=1e-4)
    by_field = differences(lambda step: np.array([in_field("energy")(step)]), 0.5)[0]
    np.testing.assert_allclose(-by_field, polarization, atol=1e-4)
    calculator.field = None
    assert not np.allclose(atoms.get_forces(), forces)
    calculator.derivatives = False
    atoms.positions[0] += 0.01
    atoms.get_forces()
    assert "born_charges" not in calculator.results and "polarization" in calculator.results
    assert calculator.get_property("born_charges", atoms).shape == (4, 3, 3)


@pytest.mark.parametrize("field", [[0, 0], [0, 0, np.nan], 0.1])
def test_fields_that_are_none(trained, field):
    with pytest.raises(ConfigError, match=r"field must be three numbers \(V/Å\)"):
        EquipotCalculator(trained / "model.pt", field=field)


def test_field_for_a_model_that_knows_none():
    with pytest.raises(ConfigError, match=r"silicon.pt: its energy does not depend on an electric field"):
        EquipotCalculator(SILICON, field=FIELD)


def test_dynamics_in_a_field(trained):
    """The energy in the field is conserved, and momentum, too: charges add up to none."""
    labels = labelled(31)
    atoms = Atoms(labels.numbers, positions=labels.positions, cell=labels.cell, pbc=True)
    run = {"ensemble": "nve", "steps": 30, "timestep": 0.2, "log_interval": 1, "temperature": 100.0}
    logs = []
    for name, field in (("without", None), ("with", (0.0, 0.0, 0.5))):
        chosen = MDSettings(**run, field=field)
        found = run_md(atoms, trained / "model.pt", trained / name, chosen)
        logs.append(np.genfromtxt(found.log, delimiter=",", names=True))
    totals = [log["total_energy_eV"] for log in logs]
    calculator = EquipotCalculator(trained / "model.pt")
    polarization, alpha = (calculator.get_property(f"polariza{end}", atoms) for end in ("tion", "bility"))
    for total in totals:
        assert np.ptp(total) < 0.02 * np.ptp(logs[0]["potential_energy_eV"]) + 1e-4
    expected = -0.5 * polarization[2] - 0.5 * 0.5**2 * alpha[2, 2]
    assert totals[1][0] - totals[0][0] == pytest.approx(expected, abs=1e-3)
    with pytest.raises(ConfigError, match="--field must be three numbers"):
        MDSettings(field=(0.0, np.inf, 0.0))


def test_born_charges_of_the_wrong_shape(tmp_path):
    frames = [labelled(seed) for seed in range(6)]
    for atoms in frames:
        atoms.arrays["born_charges"] = atoms.arrays["born_charges"][:, :6]
    for name in ("train", "test"):
        ase.io.write(tmp_path / f"{name}.xyz", frames)
    with pytest.raises(
        DataError, match=r"born_charges 'born_charges' must have shape \(4, 3, 3\), .* \(4, 6\)"
    ):
        train(settings(tmp_path))
