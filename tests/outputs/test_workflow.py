"""From labelled files to a deployed model with outputs, and what reads it."""

import io
from dataclasses import replace

import ase.io
import numpy as np
import pytest
import torch
from ase.build import molecule
from ase.calculators.calculator import PropertyNotImplementedError
from output_models import make_config
from rich.console import Console

from equipot import EquipotCalculator
from equipot.config import config_from_dict
from equipot.data.convert import convert
from equipot.data.dataset import GraphDataset, graph_from_atoms
from equipot.data.readers import read_frames
from equipot.data.store.file import Store
from equipot.deploy.check import check
from equipot.deploy.checkpoint import load_checkpoint
from equipot.deploy.ensemble import load_members
from equipot.deploy.export import deploy
from equipot.deploy.info import info
from equipot.deploy.load import load_deployed
from equipot.errors import ConfigError, DataError, ModelFileError, TrainingError
from equipot.evaluation.model import load_model
from equipot.evaluation.run import evaluate
from equipot.integrations.relax import run_relax
from equipot.integrations.relax_settings import RelaxSettings
from equipot.models.outputs import OutputSpec, basis_change
from equipot.models.predict import predict
from equipot.quantities import CONTRACT, KEYS, QUANTITIES, declare, output
from equipot.training.loss import LabelError, Loss
from equipot.training.outputs import output_statistics
from equipot.training.run import train

OUTPUTS = {
    "dipole": {"per": "structure", "tensor": "vector", "unit": "e*Ang"},
    "alpha": {"per": "structure", "tensor": "symmetric", "unit": "Ang^3"},
    "charges": {"per": "atom", "tensor": "scalar", "unit": "e"},
    "born_charges": {"per": "atom", "tensor": "matrix", "unit": "e"},
    "spectrum": {"per": "structure", "tensor": "scalar", "size": 4, "reduce": "mean", "positive": True},
}
BEST = "checkpoints/best.ckpt"
DEBYE = 0.20819433442462576


def labelled(seed: int):
    """A molecule of which everything is a sum over pairs: w = exp(−r), charges Σ_j w (Z_j − Z_i) / 10, ..."""
    atoms = molecule(["H2O", "CH4", "CH3OH"][seed % 3])
    atoms.rattle(0.08, seed=seed)
    vectors = atoms.positions[:, None] - atoms.positions
    distances = np.linalg.norm(vectors, axis=-1) + np.eye(len(atoms))
    weights = np.exp(-distances) * (1 - np.eye(len(atoms)))
    tensors = np.einsum("ij,ija,ijb->iab", weights, vectors, vectors)
    charges = 0.1 * (weights * (atoms.numbers[None] - atoms.numbers[:, None])).sum(axis=1)
    atoms.info["energy"] = float(weights.sum())
    atoms.arrays["forces"] = 2 * np.einsum("ij,ija->ia", weights / distances, vectors)
    atoms.info["mu"] = charges @ atoms.positions / DEBYE
    atoms.info["alpha"] = (tensors.sum(axis=0) + 0.2 * atoms.numbers.sum() * np.eye(3)).ravel()
    atoms.arrays["charges"] = charges
    atoms.arrays["born_charges"] = tensors.reshape(-1, 9)
    atoms.info["spectrum"] = np.array([weights.mean(), 0.1, 0.0, weights.max()])
    return atoms


def write_data(folder):
    ase.io.write(folder / "train.xyz", [labelled(seed) for seed in range(24)])
    ase.io.write(folder / "test.xyz", [labelled(seed) for seed in range(24, 30)])
    return folder


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path)


# Adam moves weights farther than Muon in the first steps.
FEW_STEPS = {"optimizer": "adam", "learning_rate": 0.02, "schedule": {"kind": "constant"}}
MODELS = {
    "nequip": {"type": "nequip", "layers": 2, "channels": 8, "radial_hidden": [16]},
    "allegro": {"type": "allegro", "layers": 1, "channels": 8, "scalar_channels": 16},
}


def settings(data, kind="nequip", epochs=12, **of_data):
    files = {"train": [str(data / "train.xyz")], "test": [str(data / "test.xyz")], "validation": 6}
    return make_config(
        MODELS[kind] | {"dtype": "float32"},
        OUTPUTS,
        data={**files, "labels": {"dipole": "mu"}, "units": {"dipole": "Debye"}, **of_data},
        training={"epochs": epochs, "batch_size": 4, **FEW_STEPS},
        run={"directory": str(data / "run")},
    )


@pytest.fixture(scope="module", params=MODELS)
def trained(request, tmp_path_factory, fresh_process):
    """A folder with the run of a training and its deployed model."""
    folder = write_data(tmp_path_factory.mktemp(request.param))
    run = train(settings(folder, request.param)).directory
    with fresh_process():
        deploy(run / BEST, folder / "model.pt")
    return folder


def test_training_learns(trained):
    rows = (trained / "run" / "metrics.csv").read_text().splitlines()
    header, first, *_, last = (row.split(",") for row in rows)
    for name in ("validation_loss", "validation_dipole_rmse", "validation_born_charges_rmse"):
        column = header.index(name)
        assert float(last[column]) < 0.8 * float(first[column]), name
    assert {f"validation_{name}_mae" for name in OUTPUTS} < set(header)


def test_deployed_model_is_right(trained):
    report = check(trained / "model.pt", "cpu")
    assert report.passed, report.error or [str(item) for item in report.items if not item.passed]
    assert {f"reference {name.replace('_', ' ')}" for name in OUTPUTS} < {item.name for item in report.items}
    potential, atoms = load_checkpoint(trained / "run" / BEST).potential, labelled(40)
    expected = predict(potential, graph_from_atoms(atoms, potential.species, potential.cutoff)).outputs
    atoms.calc = EquipotCalculator(trained / "model.pt")
    for name, value in expected.items():
        of_one = value.numpy() if QUANTITIES[name].per_atom else value[0].numpy()
        np.testing.assert_allclose(atoms.calc.get_property(name, atoms), of_one, atol=5e-5)
    np.testing.assert_array_equal(atoms.get_dipole_moment(), atoms.calc.results["dipole"])
    assert atoms.calc.model.engine is not None
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(info(trained / "model.pt"))
    assert (
        "dipole (e*Ang) per structure, alpha (Ang^3) per structure, charges (e) per" in console.export_text()
    )


def test_what_only_the_engine_gives(trained):
    """Heat fluxes and uncertainties, of models with outputs too."""
    deploy(trained / "run" / BEST, trained / "uncertain.pt", uncertainty=True)
    atoms = labelled(40)
    atoms.calc = EquipotCalculator(trained / "uncertain.pt", engine="torch")
    dipole = atoms.get_dipole_moment()
    if atoms.calc.model.metadata.num_exchanges:  # else it is made of virials
        with pytest.raises(PropertyNotImplementedError, match="only equipot's engine gives the heat flux"):
            atoms.calc.get_property("heat_flux", atoms)
    atoms.calc = EquipotCalculator(trained / "uncertain.pt")
    assert atoms.calc.model.engine is not None
    np.testing.assert_allclose(atoms.get_dipole_moment(), dipole, atol=1e-5)
    assert atoms.calc.get_property("heat_flux", atoms).shape == (3,)
    sigma = atoms.calc.results["energy_uncertainty"]
    assert sigma > 0
    ase.io.write(trained / "one.xyz", labelled(40))
    found = evaluate(trained / "uncertain.pt", [trained / "one.xyz"]).comparison
    np.testing.assert_allclose(found.uncertainty * len(atoms), sigma, rtol=1e-4)
    np.testing.assert_allclose(found.values["dipole"][0], dipole, atol=1e-5)


def test_relaxation(trained, tmp_path):
    run_relax([labelled(40), labelled(41)], trained / "model.pt", tmp_path / "out", RelaxSettings(steps=2))
    for atoms in ase.io.read(tmp_path / "out" / "relaxed.extxyz", ":"):
        forces = atoms.get_forces()
        atoms.calc = EquipotCalculator(trained / "model.pt")
        np.testing.assert_allclose(forces, atoms.get_forces(), atol=1e-4)


def test_members_of_ensembles_have_the_same_outputs(trained):
    one = load_deployed(trained / "model.pt", "cpu")
    other = replace(one, metadata=replace(one.metadata, outputs={}))
    assert load_model(one.path).outputs == load_model(trained / "run").outputs == tuple(OUTPUTS)
    assert len(load_members([one, one], "cpu")) == 2
    for members in ([one, other], [other, one]):
        with pytest.raises(ModelFileError, match=r"Outputs .*(\(none\) .*\(dipole, |\(dipole, .*\(none\))"):
            load_members(members, "cpu")


def test_evaluation(trained):
    files = {"predictions": trained / "p.xyz", "output": trained / "errors"}
    found = evaluate(trained / "model.pt", [trained / "test.xyz"], **files).comparison
    reference = [labelled(seed) for seed in range(24, 30)]
    dipoles = [DEBYE * frame.info["mu"] for frame in reference]
    np.testing.assert_allclose(found.reference["dipole"], dipoles, atol=1e-6)
    assert np.abs(found.error("dipole")).mean() < 0.7 * np.abs(dipoles).mean()
    written = ase.io.read(trained / "p.xyz", 1)
    assert written.arrays["predicted_born_charges"].shape == (len(written), 9)
    np.testing.assert_allclose(
        written.info["reference_alpha"], np.reshape(reference[1].info["alpha"], (3, 3))
    )


def test_evaluation_without_labels_of_an_output(trained, tmp_path, caplog):
    frames = [labelled(seed) for seed in (24, 25)]
    for atoms in frames:
        del atoms.info["mu"]
    ase.io.write(tmp_path / "test.xyz", frames)
    with caplog.at_level("INFO", "equipot"):
        found = evaluate(trained / "model.pt", [tmp_path / "test.xyz"]).comparison
    assert "no frame has a label 'mu', so no dipole is read" in caplog.text
    assert "--dipole-key" not in caplog.text
    assert np.isnan(found.reference["dipole"]).all() and np.isfinite(found.error("alpha")).all()


def test_fine_tuning_keeps_outputs(trained):
    """Where the configuration names them; they would else go on untrained, without a word."""
    old = load_checkpoint(trained / "run" / BEST)
    tuning = settings(trained, epochs=1).to_dict()
    tuning |= {"fine_tune": {"model": str(trained / "run")}, "run": {"directory": str(trained / "tuned")}}
    plain = {"data": {"train": tuning["data"]["train"], "validation": 6}, "fine_tune": tuning["fine_tune"]}
    with pytest.raises(ConfigError, match=r"also predicts dipole, alpha, .*: repeat its model.type and"):
        train(config_from_dict(plain | {"run": tuning["run"]}))
    tuning["model"] = {"type": old.config.model.type, "outputs": OUTPUTS}
    new = load_checkpoint(train(config_from_dict(tuning)).directory / BEST)
    assert new.potential.output_names == list(OUTPUTS)
    torch.testing.assert_close(new.potential.outputs.scale, old.potential.outputs.scale)


def forget():
    for known in (QUANTITIES, KEYS, CONTRACT):
        for name in OUTPUTS:
            known.pop(name, None)


def test_deployed_files_say_what_their_outputs_are(trained):
    """To a process that has not read their configuration."""
    forget()
    atoms = labelled(40)
    found = EquipotCalculator(trained / "model.pt").get_property("born_charges", atoms)
    assert found.shape == (len(atoms), 3, 3) and "alpha" in QUANTITIES
    forget()
    declare(output("alpha", shape=(), unit="", per_atom=True))
    with pytest.raises(ConfigError, match=r"The output 'alpha' .* is something else"):
        load_deployed(trained / "model.pt")


def test_stores_hold_labels_of_outputs(data):
    source = settings(data).data.sources("train")[0]
    convert([data / "train.xyz"], data / "train.equipot", source.labels, source.units, cutoff=4.0, workers=2)
    frames = read_frames(data / "train.xyz", source.labels, source.units)
    store = Store(data / "train.equipot")
    for number in (0, 7):
        for name, value in frames[number].values.items():
            np.testing.assert_array_equal(store.frame(number).values[name], value)
    assert store.columns().known("alpha").all()
    forget()
    store = Store(data / "train.equipot")  # in a process that knows none of them, or others first
    assert set(store.frame(3).values) == {"energy", "forces"}
    declare(output("spectrum", shape=(4,), unit="", per_atom=False, mean=True))
    declare(output("alpha", shape=(3,), unit="Ang^3", per_atom=False))
    store = Store(data / "train.equipot")
    assert set(store.frame(3).values) == {"energy", "forces", "spectrum"}  # that alpha is something else
    np.testing.assert_array_equal(store.frame(3).values["spectrum"], frames[3].values["spectrum"])
    np.testing.assert_array_equal(store.columns().known("alpha"), False)


def test_training_from_a_cache_is_the_same(data):
    """To the last digit that metrics.csv has."""
    first = train(settings(data, epochs=2))
    rows = [line.split(",")[5:] for line in (first.directory / "metrics.csv").read_text().splitlines()]
    for _ in range(2):  # made, then opened
        again = train(settings(data, epochs=2, cache=str(data / "cache")), overwrite=True)
        assert [
            line.split(",")[5:] for line in (again.directory / "metrics.csv").read_text().splitlines()
        ] == rows


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda atoms: atoms.info.update(alpha=np.arange(9.0)), r"alpha 'alpha' is not symmetric"),
        (
            lambda atoms: atoms.info.update(mu=[1.0, 2.0]),
            r"dipole 'mu' must have shape \(3,\), but has shape",
        ),
        (lambda atoms: atoms.info.pop("alpha"), r"no frame has a label 'alpha' for the alpha"),
    ],
)
def test_labels_of_the_wrong_kind(data, change, message, caplog):
    frames = ase.io.read(data / "train.xyz", ":")
    for atoms in frames:
        change(atoms)
    ase.io.write(data / "train.xyz", frames)
    with pytest.raises((DataError, TrainingError), match=message):
        train(settings(data, epochs=1))


def test_sizes_come_from_the_labels(data):
    config = settings(data)
    source = config.data.sources("train")[0]
    frames = read_frames(data / "train.xyz", source.labels, source.units)
    dataset = GraphDataset(frames, ["H", "C", "O"], 4.0)
    found = output_statistics(dataset, config.outputs)
    charges = np.concatenate([frame.values["charges"] for frame in frames])
    numbers = np.concatenate([frame.atomic_numbers for frame in frames])
    means = np.array([charges[numbers == z].mean() for z in (1, 6, 8)])
    np.testing.assert_allclose(np.ravel(found["charges"]["shift"]), means, atol=1e-10)
    left = charges - means[np.searchsorted([1, 6, 8], numbers)]
    assert found["charges"]["scale"][0] == pytest.approx(np.sqrt(np.mean(left**2)))
    dipoles = np.array([frame.values["dipole"] for frame in frames])
    sizes = np.array([frame.num_atoms for frame in frames])
    assert found["dipole"]["scale"] == pytest.approx([np.sqrt((dipoles**2 / sizes[:, None]).mean())] * 3)
    assert found["dipole"]["spread"] == pytest.approx(np.sqrt((dipoles**2).mean()))
    # Isotropic parts are fitted to the composition, weighted as energies per atom; the rest is orthogonal.
    counts = np.array([[(frame.atomic_numbers == z).sum() for z in (1, 6, 8)] for frame in frames])
    isotropic = np.array([np.trace(frame.values["alpha"]) for frame in frames]) / 3**0.5
    shift = np.array(found["alpha"]["shift"])
    assert not shift[:, 1:].any()
    np.testing.assert_allclose(((isotropic - counts @ shift[:, 0]) / sizes**2) @ counts, 0, atol=1e-9)
    spec = OutputSpec(**config.outputs["spectrum"].spec("spectrum"))
    start = np.log1p(np.exp(np.array(found["spectrum"]["shift"])[0])) @ basis_change(spec)
    np.testing.assert_allclose(
        start[:2], np.mean([f.values["spectrum"] for f in frames], axis=0)[:2], rtol=0.05
    )


def test_negative_labels_of_a_positive_output(data, caplog):
    charges = OUTPUTS["charges"] | {"positive": True}
    config = make_config(MODELS["nequip"], {"charges": charges})
    frames = read_frames(data / "train.xyz", config.data.labels, config.data.units)
    output_statistics(GraphDataset(frames, ["H", "C", "O"], 4.0), config.outputs)
    count = sum((frame.values["charges"] < 0).sum() for frame in frames)
    assert (
        count
        and f"charges: {count} of {sum(frame.num_atoms for frame in frames)} labels are below 0"
        in caplog.text
    )


def test_loss_is_in_units_of_the_spread():
    """Another unit of the labels changes no step of a training."""
    settings_of_loss = make_config({"type": "nequip"}, {"dipole": OUTPUTS["dipole"]}).training.loss
    error = LabelError(torch.tensor([[1.0, 2.0, 2.0]], dtype=torch.float64), torch.tensor(3.0))
    scaled = LabelError(error.error * 5, error.count)
    for kind in ("mse", "huber"):
        chosen = settings_of_loss.model_copy(update={"kind": kind})
        one, other = (
            Loss(chosen, {"dipole": s}).sums({"dipole": e})["dipole"]
            for s, e in ((2.0, error), (10.0, scaled))
        )
        assert one == pytest.approx(other)
    assert Loss(settings_of_loss, {"dipole": 2.0}).sums({"dipole": error})["dipole"] == pytest.approx(9 / 4)
