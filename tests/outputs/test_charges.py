"""Charges that add up to a number of the frame, and dipoles of them: in torch, ASE, files and trainings."""

import ase.io
import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from output_models import ALLEGRO, CUTOFF, NEQUIP, SPECIES, make_config, make_potential, rotation

from equipot import EquipotCalculator, EquipotPredictor
from equipot.data.dataset import graph_from_atoms, to_graph
from equipot.data.readers import read_frames
from equipot.deploy.check import check
from equipot.deploy.export import deploy
from equipot.deploy.load import load_deployed
from equipot.errors import ConfigError, DataError
from equipot.evaluation.run import evaluate
from equipot.graph import collate, edge_vectors
from equipot.models.predict import predict
from equipot.properties.settings import SpectrumSettings
from equipot.properties.spectrum import spectrum
from equipot.quantities import QUANTITIES
from equipot.training.run import train

CHARGES = {"per": "atom", "tensor": "scalar", "unit": "e", "sum": "charge"}
DIPOLE = {"per": "structure", "tensor": "vector", "unit": "Debye", "charges": "charges"}
OUTPUTS = {"dipole": DIPOLE, "charges": CHARGES, "bare": CHARGES | {"sum": None}}
NO_LABELS = dict.fromkeys(OUTPUTS)
E_ANG = 1 / 0.20819433442462576  # Debye


@pytest.fixture(params=[NEQUIP, ALLEGRO], ids=["nequip", "allegro"])
def potential(request):
    return make_potential(request.param, OUTPUTS)


def graph_of(atoms, charge=None, tmp_path=None):
    """With its charge as a file has it."""
    atoms = atoms.copy()
    if charge is not None:
        atoms.info["charge"] = charge
    config = make_config(
        NEQUIP,
        OUTPUTS,
        data={"train": "x", "labels": NO_LABELS},
        training={"loss": dict.fromkeys(OUTPUTS, 0.0)},
    )
    ase.io.write(tmp_path / "one.xyz", atoms)
    [frame] = read_frames(tmp_path / "one.xyz", config.data.labels, config.data.units, required=())
    return to_graph(frame, SPECIES, CUTOFF)


def test_charges_add_up_to_that_of_the_frame(potential, ethanol, tmp_path):
    graphs = [
        graph_of(ethanol, 1.0, tmp_path),
        graph_of(ethanol, None, tmp_path),
        graph_of(ethanol, -2, tmp_path),
    ]
    together = predict(potential, collate(graphs)).outputs["charges"].detach().numpy().reshape(3, -1)
    np.testing.assert_allclose(together.sum(axis=1), [1, 0, -2], atol=1e-12)
    np.testing.assert_allclose(together[0] - together[1], 1 / len(ethanol), atol=1e-12)  # equal shares
    assert np.abs(together[1]).max() > 1e-3
    for graph, charges in zip(graphs, together, strict=True):
        np.testing.assert_allclose(predict(potential, graph).outputs["charges"], charges, atol=1e-12)
    free = predict(potential, graphs[0]).outputs["bare"].numpy()
    assert abs(free.sum()) > 1e-3


def test_dipoles_of_charges(potential, ethanol, tmp_path):
    """By hand from the network's rows; moved, a charged molecule's changes by Q t, a neutral one's not."""
    graph = graph_of(ethanol, 1.0, tmp_path)
    found = predict(potential, graph).outputs
    inputs = edge_vectors(graph), graph.edge_index, graph.atom_types, graph.atom_types >= 0
    atomic = potential(*inputs)[3].detach().numpy()[:, :3].sum(axis=0)
    of_charges = E_ANG * found["charges"].numpy() @ ethanol.positions
    np.testing.assert_allclose(found["dipole"][0], atomic + of_charges, atol=1e-9)
    moved = ethanol.copy()
    shift = np.array([3.0, -1.0, 0.5])
    moved.positions += shift
    for charge in (1.0, None):
        before, after = (
            predict(potential, graph_of(atoms, charge, tmp_path)).outputs["dipole"][0].numpy()
            for atoms in (ethanol, moved)
        )
        np.testing.assert_allclose(after - before, E_ANG * (charge or 0.0) * shift, atol=1e-8)


@pytest.mark.parametrize("sign", [1, -1])
def test_dipoles_turn(potential, ethanol, tmp_path, sign):
    matrix = sign * rotation(2)
    turned = ethanol.copy()
    turned.positions = ethanol.positions @ matrix.T
    one, other = (
        predict(potential, graph_of(a, -1.0, tmp_path)).outputs["dipole"][0].numpy()
        for a in (ethanol, turned)
    )
    np.testing.assert_allclose(other, matrix @ one, atol=1e-6)


def test_a_periodic_dipole_is_refused(potential):
    crystal = bulk("C", cubic=True)
    with pytest.raises(DataError, match="'dipole' has Σ q r, which depends on which images"):
        predict(potential, graph_from_atoms(crystal, SPECIES, CUTOFF))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"charges": CHARGES | {"sum": "dipole"}}, r"outputs\.charges\.sum: 'dipole' is an output"),
        ({"charges": CHARGES | {"per": "structure"}}, r"`sum` goes with `per: atom` and `tensor: scalar`"),
        ({"charges": CHARGES | {"positive": True}}, r"`sum` goes with"),
        ({"dipole": DIPOLE | {"charges": "bare"}}, r"outputs\.dipole\.charges: 'bare' has no `sum`"),
        ({"dipole": DIPOLE | {"charges": "q"}}, r"outputs\.dipole\.charges: 'q' is no output"),
        (
            {"dipole": DIPOLE | {"unit": "Ang"}},
            r"dipole is in Ang, but charges × a length in e × Ang",
        ),
        (
            {"born": {"per": "atom", "tensor": "matrix", "unit": "e", "derivative_of": "dipole"}},
            r"dipole: its `charges` would be in no derivative",
        ),
        ({"dipole": DIPOLE | {"per": "atom"}}, r"`charges` goes with `per: structure`"),
    ],
)
def test_settings_that_do_not_fit(changed, message):
    with pytest.raises(ConfigError, match=message):
        make_config(NEQUIP, OUTPUTS | changed)


def test_the_total_is_a_label_without_a_weight():
    config = make_config(NEQUIP, OUTPUTS, data={"train": "x.xyz", "labels": {"charge": "q"}})
    assert config.data.labels.names("charge") == {"charge": "q"} and QUANTITIES["charge"].unit == "e"
    with pytest.raises(ConfigError, match=r"training\.loss\.charge: unknown key"):
        make_config(NEQUIP, OUTPUTS, training={"loss": {"charge": 1.0}})


def ion(seed: int):
    """Energies, forces and charges of a sum over pairs; every third one has a charge, and none says 0."""
    atoms = molecule(["H2O", "CH4", "CH3OH"][seed % 3])
    atoms.rattle(0.08, seed=seed)
    atoms.positions += [1.0, 2.0, 3.0]
    vectors = atoms.positions[:, None] - atoms.positions
    distances = np.linalg.norm(vectors, axis=-1) + np.eye(len(atoms))
    weights = np.exp(-distances) * (1 - np.eye(len(atoms)))
    charge = {0: 1.0, 1: -1.0}.get(seed % 6, 0.0)
    charges = 0.1 * (weights * (atoms.numbers[None] - atoms.numbers[:, None])).sum(axis=1) + charge / len(
        atoms
    )
    atoms.info |= {"energy": float(weights.sum()), "mu": charges @ atoms.positions}
    if charge:
        atoms.info["charge"] = charge
    atoms.arrays["forces"] = 2 * np.einsum("ij,ija->ia", weights / distances, vectors)
    return atoms


def test_from_a_training_to_ase(tmp_path, caplog):
    """Charges are learned from dipoles alone; the deployed file takes the charge from atoms.info."""
    frames = [ion(seed) for seed in range(36)]
    ase.io.write(tmp_path / "train.xyz", frames[:30])
    ase.io.write(tmp_path / "test.xyz", frames[30:])
    config = make_config(
        NEQUIP | {"dtype": "float32", "l_max": 1, "layers": 2},
        {"dipole": DIPOLE, "charges": CHARGES},
        data={
            "train": str(tmp_path / "train.xyz"), "test": str(tmp_path / "test.xyz"), "validation": 6,
            "labels": {"dipole": "mu", "charges": None}, "units": {"dipole": "e*Ang"},
        },
        training={"epochs": 6, "batch_size": 6, "learning_rate": 0.02, "loss": {"charges": 0.0}},
        run={"directory": str(tmp_path / "run")},
    )  # fmt: skip
    result = train(config)
    assert "charges add up to 'charge', which 14 of 24 training frames do not have" in caplog.text
    rows = [row.split(",") for row in (result.directory / "metrics.csv").read_text().splitlines()]
    column = rows[0].index("validation_dipole_rmse")
    assert float(rows[-1][column]) < 0.8 * float(rows[1][column])
    deploy(result.directory / "checkpoints/best.ckpt", tmp_path / "model.pt")
    assert check(tmp_path / "model.pt").passed
    report = evaluate(tmp_path / "model.pt", [tmp_path / "test.xyz"]).comparison
    atoms = frames[30].copy()
    assert atoms.info["charge"] == 1.0
    atoms.calc = EquipotCalculator(tmp_path / "model.pt")
    in_debye = report.values["dipole"][0]  # the output's unit; ASE's dipoles are in e Å
    np.testing.assert_allclose(atoms.get_dipole_moment(), in_debye / E_ANG, atol=1e-5)
    np.testing.assert_allclose(EquipotPredictor(tmp_path / "model.pt")(atoms)["dipole"], in_debye, atol=1e-5)
    engine = atoms.calc.model.engine
    assert engine is not None and set(engine.output_facts) == {"dipole", "charges"}
    by_torch = EquipotCalculator(load_deployed(tmp_path / "model.pt", engine="torch"))
    for name in ("charges", "dipole"):
        np.testing.assert_allclose(by_torch.get_property(name, atoms), atoms.calc.results[name], atol=1e-5)
    charged = atoms.calc.results["charges"]
    moving = [atoms.copy() for _ in range(8)]
    for step, frame in enumerate(moving):
        frame.positions[0, 0] += 0.02 * np.sin(step)
        frame.calc = atoms.calc
        frame.info |= {"time_ps": 1e-3 * step, "temperature_K": 300.0, "mu": frame.get_dipole_moment() / 2}
        frame.calc = None
    by_model = spectrum(moving, tmp_path / "model.pt").numbers["infrared_km_per_mol_cm"]
    halves = SpectrumSettings(dipole="mu")
    of_frames = spectrum(moving, settings=halves).numbers["infrared_km_per_mol_cm"]
    np.testing.assert_allclose(by_model, 4 * of_frames, rtol=1e-5)
    assert charged.sum() == pytest.approx(1.0)
    del atoms.info["charge"]
    neutral = atoms.get_dipole_moment()
    assert atoms.calc.results["charges"].sum() == pytest.approx(0.0, abs=1e-9)
    np.testing.assert_allclose(charged - atoms.calc.results["charges"], 1 / len(atoms), atol=1e-9)
    assert np.abs(neutral - in_debye / E_ANG).max() > 0.1
    atoms.info["charge"] = "one"
    with pytest.raises(DataError, match=r"must be a number .*found 'one'"):
        atoms.get_dipole_moment()
    del atoms.info["charge"]
    atoms.set_cell([9, 9, 9])
    atoms.pbc = True
    assert np.isfinite(atoms.get_potential_energy())
    with pytest.raises(PropertyNotImplementedError, match="Σ q r of a periodic structure"):
        atoms.get_dipole_moment()
    for frame in moving:
        frame.set_cell([9, 9, 9])
        frame.pbc = True
    with pytest.raises(DataError, match="The model's dipole: Σ q r of a periodic structure"):
        spectrum(moving, tmp_path / "model.pt")


def test_periodic_frames_do_not_train(tmp_path):
    frames = [ion(seed) for seed in range(4)]
    for atoms in frames:
        atoms.set_cell([9, 9, 9])
        atoms.pbc = True
    ase.io.write(tmp_path / "train.xyz", frames)
    config = make_config(
        NEQUIP,
        {"dipole": DIPOLE, "charges": CHARGES},
        data={
            "train": str(tmp_path / "train.xyz"),
            "labels": {"dipole": "mu", "charges": None},
            "validation": 1,
        },
        training={"loss": {"charges": 0.0}},
        run={"directory": str(tmp_path / "run")},
    )  # fmt: skip
    with pytest.raises(DataError, match="'dipole' has Σ q r"):
        train(config)
