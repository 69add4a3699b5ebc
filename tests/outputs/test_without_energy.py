"""Models of outputs alone: no energies, no forces, in training and in whatever reads their files."""

import json

import ase.io
import numpy as np
import pytest
import torch
from ase.build import molecule
from ase.calculators.calculator import PropertyNotImplementedError
from output_models import make_config, make_potential
from test_workflow import BEST, MODELS, labelled

from equipot import EquipotCalculator, EquipotPredictor
from equipot.config import config_from_dict, load_config
from equipot.data.dataset import graph_from_atoms
from equipot.deploy.check import check
from equipot.deploy.checkpoint import load_checkpoint
from equipot.deploy.export import deploy
from equipot.deploy.info import info
from equipot.errors import ConfigError, DataError, ModelFileError
from equipot.evaluation.run import evaluate
from equipot.graph import collate
from equipot.integrations.md import run_md
from equipot.integrations.relax import run_relax
from equipot.models.predict import predict
from equipot.properties.start import prepare
from equipot.quantities import CONTRACT, KEYS, QUANTITIES
from equipot.training.html_report import write_report
from equipot.training.run import train

ALONE = {
    "spectrum": {"per": "structure", "tensor": "scalar", "size": 4, "reduce": "mean", "positive": True},
    "charges": {"per": "atom", "tensor": "scalar", "unit": "e"},
    "alpha": {"per": "structure", "tensor": "symmetric", "unit": "Ang^3"},
}


def write_data(folder):
    for name, seeds in (("train", range(18)), ("test", range(24, 28))):
        frames = [labelled(seed) for seed in seeds]
        for atoms in frames:
            del atoms.info["energy"], atoms.arrays["forces"]
        ase.io.write(folder / f"{name}.xyz", frames)
    return folder


def settings(folder, kind="nequip", epochs=8, **model):
    return make_config(
        MODELS[kind] | {"dtype": "float32", "energy": False} | model,
        ALONE,
        data={"train": str(folder / "train.xyz"), "test": str(folder / "test.xyz"), "validation": 4},
        training={"epochs": epochs, "batch_size": 4, "learning_rate": 0.02},
        run={"directory": str(folder / "run")},
    )


@pytest.fixture(scope="module", params=MODELS)
def trained(request, tmp_path_factory, fresh_process):
    folder = write_data(tmp_path_factory.mktemp(request.param))
    run = train(settings(folder, request.param)).directory
    with fresh_process():
        deploy(run / BEST, folder / "model.pt")
    return folder


def test_training_learns_and_says_what_it_does(trained):
    rows = (trained / "run" / "metrics.csv").read_text().splitlines()
    header, first, *_, last = (dict(zip(rows[0].split(","), row.split(","), strict=True)) for row in rows)
    assert float(last["train_loss"]) < 0.97 * float(first["train_loss"])
    assert not any(last[column] for column in header if "energy" in column or "forces" in column)
    log = (trained / "run" / "log.txt").read_text()
    assert "no energies, so no forces are computed" in log and "Atomic energies" not in log
    assert "meV" not in log


def test_report_in_a_process_that_knows_no_outputs(trained):
    for known in (QUANTITIES, KEYS, CONTRACT):
        for name in ALONE:
            known.pop(name, None)
    page = write_report(trained / "run", trained / "page.html").read_text()
    assert "spectrum, test MAE" in page and "forces MAE" not in page and "reference energy" not in page


def test_deployed_file(trained):
    report = check(trained / "model.pt", "cpu")
    assert report.passed, report.error or [str(item) for item in report.items if not item.passed]
    names = {item.name for item in report.items}
    assert {"reference charges", "alpha at the cutoff", "rotation"} < names
    assert not any("energy" in name or "forces" in name for name in names)
    assert len(info(trained / "model.pt").renderables)
    found = evaluate(trained / "model.pt", [trained / "test.xyz"], output=trained / "errors").comparison
    again = evaluate(trained / "run", [trained / "test.xyz"]).comparison
    assert set(found.values) == set(ALONE)
    for name, values in found.values.items():
        np.testing.assert_allclose(values, again.values[name], atol=2e-5)
    written = json.loads((trained / "errors" / "errors.json").read_text())
    assert set(written["errors"]) >= set(ALONE) and not written["worst_frames"].get("energy")


def test_ase(trained):
    atoms = labelled(40)
    atoms.calc = EquipotCalculator(trained / "model.pt")
    potential = load_checkpoint(trained / "run" / BEST).potential
    expected = predict(potential, graph_from_atoms(atoms, potential.species, potential.cutoff)).outputs
    np.testing.assert_allclose(atoms.get_charges(), expected["charges"], atol=2e-5)
    np.testing.assert_allclose(atoms.calc.get_property("spectrum", atoms), expected["spectrum"][0], atol=2e-5)
    results = EquipotPredictor(trained / "model.pt")(atoms)
    assert list(results) == EquipotPredictor(trained / "model.pt").names == list(ALONE)
    np.testing.assert_array_equal(results["charges"], atoms.get_charges())
    for ask in (atoms.get_potential_energy, atoms.get_forces):
        with pytest.raises(PropertyNotImplementedError, match=r"has no .* predicts spectrum, charges, alpha"):
            ask()
    mean = EquipotCalculator([trained / "model.pt"] * 2)
    np.testing.assert_allclose(mean.get_property("charges", atoms), atoms.get_charges(), atol=1e-12)
    assert "energy" not in mean.results and "forces_std" not in mean.results


def test_what_takes_energies_refuses(trained, tmp_path):
    model, atoms = trained / "model.pt", labelled(40)
    crystal = molecule("H2O", cell=[3, 3, 3], pbc=True)
    for run in (
        lambda: run_md(atoms, model, tmp_path / "out"),
        lambda: run_relax([atoms], model, tmp_path / "out"),
        lambda: prepare(crystal, model),
        lambda: EquipotCalculator(model, energy="isolated"),
    ):
        with pytest.raises(ModelFileError, match=r"no energies and forces, which .* model\.energy: false"):
            run()
    with pytest.raises(ModelFileError, match="an uncertainty is that of energies, which this model has not"):
        deploy(trained / "run" / BEST, tmp_path / "out", uncertainty=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", MODELS)
def test_nothing_is_differentiated(kind, ethanol, monkeypatch):
    """Values are those of the same weights in a model with energies, to the bit; in parts, too."""
    whole = make_potential(MODELS[kind], ALONE)
    alone = make_potential(MODELS[kind] | {"energy": False}, ALONE)
    assert {name for name, _ in whole.named_parameters()} - {name for name, _ in alone.named_parameters()}
    alone.load_state_dict(
        {n: w for n, w in whole.state_dict().items() if not n.startswith("network.readout")}
    )
    graph = collate([graph_from_atoms(ethanol, alone.species, alone.cutoff)] * 2)
    expected = predict(whole, graph).outputs

    def refused(*_, **__):
        raise AssertionError("a gradient")

    monkeypatch.setattr(torch.autograd, "grad", refused)
    for edges in (8192, 20):
        alone.edges_in_flight = {"cpu": edges}
        found = predict(alone, graph)
        assert found.energy is found.forces is found.of("stress") is None
        assert set(found.outputs) == set(ALONE)
        for name, value in found.outputs.items():
            assert not value.requires_grad
            torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("model.outputs", {}, "there are no `outputs`: the model would predict nothing"),
        ("model.field", True, "`field` is about energies, but `energy` is false"),
        (
            "model.outputs",
            {
                "dipole": {"per": "structure", "tensor": "vector", "unit": "e*Ang"},
                "born": {"per": "atom", "tensor": "matrix", "unit": "e", "derivative_of": "dipole"},
            },
            "`derivative_of` takes the reverse pass of a model with energies",
        ),
        ("model.zbl", True, "`zbl` is about energies, but `energy` is false"),
        (
            "training.loss.forces",
            1.0,
            "`training.loss.forces` is about energies, but `model.energy` is false",
        ),
        ("data.labels.energy", "E", "`data.labels.energy` is about energies"),
        ("data.atomic_energies", "least_squares", "`data.atomic_energies` is about energies"),
        ("data.level", "pbe", "`data.level` is about energies"),
    ],
)
def test_settings_about_energies(tmp_path, place, value, message):
    raw = settings(tmp_path).to_dict()
    raw["data"]["labels"] = {}
    raw["training"]["loss"] = {}
    *sections, key = place.split(".")
    section = raw
    for name in sections:
        section = section[name]
    section[key] = value
    with pytest.raises(ConfigError, match=message):
        config_from_dict(raw)


def test_defaults(tmp_path):
    config = settings(tmp_path)
    assert [config.training.loss.final_weight(name) for name in ("energy", "forces", "alpha")] == [0, 0, 1]
    assert not config.data.labels.names("energy") and not config.data.labels.names("stress")
    assert config_from_dict(config.to_dict()) == config
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert load_config(tmp_path / "config.yaml") == config


def test_data_without_energies_name_the_way_out(tmp_path):
    write_data(tmp_path)
    raw = settings(tmp_path, epochs=1).to_dict()
    raw["model"]["energy"] = True
    raw["training"]["loss"], raw["data"]["labels"] = {}, {}
    with pytest.raises(DataError, match=r"no frame has a label 'energy'.* model\.energy: false"):
        train(config_from_dict(raw))
