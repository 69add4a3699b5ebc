"""Outputs that fine-tuning adds to a trained model."""

from types import SimpleNamespace

import ase.io
import numpy as np
import pytest
import torch
from output_models import SPECIES, make_config
from test_workflow import BEST, MODELS, labelled, write_data

from equipot import EquipotCalculator
from equipot.config import config_from_dict
from equipot.data.dataset import graph_from_atoms
from equipot.deploy.check import check
from equipot.deploy.checkpoint import load_checkpoint
from equipot.deploy.export import deploy
from equipot.errors import ConfigError
from equipot.models.predict import predict
from equipot.training.fine_tune import _what_is_added
from equipot.training.run import train

SPECTRUM = {
    "spectrum": {"per": "structure", "tensor": "scalar", "size": 4, "reduce": "mean", "positive": True}
}
ADDED = SPECTRUM | {
    "alpha": {"per": "structure", "tensor": "symmetric", "unit": "Ang^3"},
    "dipole": {"per": "structure", "tensor": "vector", "unit": "e*Ang"},
}


@pytest.fixture(scope="module", params=MODELS)
def source(request, tmp_path_factory):
    """A potential of H, C and O, its deployed file, and molecules without O, energies and forces."""
    folder = write_data(tmp_path_factory.mktemp(request.param))
    config = make_config(
        MODELS[request.param] | {"dtype": "float32"},
        {},
        data={"train": str(folder / "train.xyz"), "validation": 4},
        training={"epochs": 2, "batch_size": 4},
        run={"directory": str(folder / "potential")},
    )
    deploy(train(config).directory / BEST, folder / "potential.pt")
    frames = [labelled(seed) for seed in range(1, 36, 3)]  # methane
    for atoms in frames:
        del atoms.info["energy"], atoms.arrays["forces"]
    ase.io.write(folder / "methane.xyz", frames)
    return folder, request.param


def tuning(folder, kind, outputs=ADDED, freeze=("potential",), start="potential", run="head", **settings):
    raw = {
        "data": {
            "train": str(folder / "methane.xyz"),
            "validation": 3,
            "labels": {"dipole": "mu"} if "dipole" in outputs else {},
            "units": {"dipole": "Debye"} if "dipole" in outputs else {},
        },
        "model": {"type": kind, "outputs": outputs},
        "training": {"epochs": 6, "batch_size": 3, "learning_rate": 0.05},
        "run": {"directory": str(folder / run)},
        "fine_tune": {"model": str(folder / start), "freeze": list(freeze)},
    }
    return config_from_dict(raw | settings)


@pytest.fixture(scope="module")
def head(source):
    """Where heads were trained on the frozen potential."""
    return train(tuning(*source)).directory


@pytest.fixture(scope="module")
def without_energy(source):
    """Where heads were trained in place of the potential's energies."""
    folder, kind = source
    model = {"type": kind, "outputs": ADDED, "energy": False}
    return train(tuning(folder, kind, freeze=(), run="alone", model=model)).directory


def of(potential, atoms, **more):
    return predict(potential, graph_from_atoms(atoms, potential.species, potential.cutoff), **more)


def test_heads_on_a_frozen_potential(source, head):
    folder, _ = source
    before, after = (load_checkpoint(run / BEST).potential for run in (folder / "potential", head))
    assert after.species == before.species == SPECIES  # though there is no oxygen in the new data
    for atoms in (labelled(40), labelled(41)):
        old, new = of(before, atoms), of(after, atoms)
        for name in ("energy", "forces", "atom_virials"):
            assert torch.equal(getattr(old, name), getattr(new, name)), name
        assert set(new.outputs) == set(ADDED)
        alone = of(after, atoms, energy=False)
        assert alone.energy is None
        for name, value in alone.outputs.items():
            torch.testing.assert_close(value, new.outputs[name])
    log = (head / "log.txt").read_text()
    assert "Added: spectrum (4 numbers per structure, unit: none), read from the last layer;" in log
    assert "Added: alpha (" in log and "read from the last layer but one" in log
    assert "Energies, forces and stress stay as they are" in log and "Warning" not in log
    rows = (head / "metrics.csv").read_text().splitlines()
    header, *rows = (row.split(",") for row in rows)
    loss = [float(row[header.index("train_loss")]) for row in rows]
    assert loss[-1] < 0.95 * loss[0]


def test_their_deployed_file(source, head):
    folder, _ = source
    deploy(head / BEST, folder / "head.pt")
    report = check(folder / "head.pt", "cpu")
    assert report.passed, report.error or [str(item) for item in report.items if not item.passed]
    atoms = labelled(42)
    results = []
    for file in ("potential.pt", "head.pt"):
        atoms.calc = EquipotCalculator(folder / file, engine="torch")
        results.append((atoms.get_potential_energy(), atoms.get_forces()))
    assert results[0][0] == results[1][0]
    np.testing.assert_array_equal(results[0][1], results[1][1])


def test_heads_begin_at_the_fit_to_the_composition(source):
    """Of one composition, at the mean of the labels; a spectrum within what its softplus leaves out."""
    folder, kind = source
    loss = {"spectrum": 1e-12, "alpha": 1e-12, "dipole": 1e-12}
    settings = {"training": {"epochs": 1, "batch_size": 12, "learning_rate": 2e-6, "loss": loss}}
    after = load_checkpoint(train(tuning(folder, kind, run="begin", **settings)).directory / BEST).potential
    labels = np.mean(
        [np.trace(a.info["alpha"].reshape(3, 3)) for a in ase.io.read(folder / "methane.xyz", ":")]
    )
    found = of(after, labelled(40)).outputs
    assert float(found["dipole"].abs().max()) < 1e-6
    assert float(found["alpha"][0].trace()) == pytest.approx(labels, rel=0.05)
    assert torch.allclose(found["alpha"][0], found["alpha"][0].trace() / 3 * torch.eye(3).double(), atol=1e-5)


def test_a_head_beside_a_head_and_a_resumed_training(source):
    """Weights, scales and shifts of the first go along."""
    folder, kind = source
    first = load_checkpoint(train(tuning(folder, kind, SPECTRUM, run="one")).directory / BEST).potential
    loss = {"spectrum": 0.0}
    settings = {"training": {"epochs": 2, "batch_size": 3, "loss": loss}}
    more = tuning(folder, kind, ADDED, start="one", run="two", **settings)
    second = load_checkpoint(train(more).directory / BEST).potential
    atoms = labelled(43)
    torch.testing.assert_close(of(second, atoms).outputs["spectrum"], of(first, atoms).outputs["spectrum"])
    longer = more.model_copy(update={"training": more.training.model_copy(update={"epochs": 3})})
    resumed = train(longer, resume=folder / "two")
    assert load_checkpoint(resumed.directory / BEST).potential.species == SPECIES


def test_energies_left_out(without_energy):
    """All weights but the readout of energies go along, and what is left goes on being trained."""
    after = load_checkpoint(without_energy / BEST).potential
    assert of(after, labelled(40)[[0, 1]]).energy is None and after.species == ["H", "C"]
    assert "Left out: energies, forces and stress" in (without_energy / "log.txt").read_text()


def test_what_is_said_and_refused(source, without_energy):
    folder, kind = source
    silent = {"training": {"epochs": 1, "loss": {"energy": 0, "forces": 0}}}
    labels = {"labels": {"energy": None, "forces": None, "dipole": "mu"}, "units": {"dipole": "Debye"}}
    data = {"data": {"train": str(folder / "methane.xyz"), "validation": 3, **labels}}
    result = train(tuning(folder, kind, freeze=["embedding"], run="warned", **silent, **data))
    assert "are not trained on, but what they depend on is: they get worse" in (
        (result.directory / "log.txt").read_text().replace("\n", " ")
    )
    last = {"dipole": ADDED["dipole"] | {"layer": "last"}}
    with pytest.raises(ConfigError, match=r"dipole shall be read from the last layer .* has no 1o: leave"):
        train(tuning(folder, kind, last, run="refused"))
    with pytest.raises(ConfigError, match=r"has no energies: repeat its model\.energy: false"):
        train(
            tuning(
                folder,
                kind,
                freeze=[],
                start=without_energy.name,
                run="refused",
                data=data["data"] | {"labels": {"dipole": "mu"}},
            )
        )
    assert not (folder / "refused").exists()


def test_an_added_derivative_is_read_from_no_layer():
    outputs = {
        "dipole": {"per": "structure", "tensor": "vector", "unit": "e*Ang"},
        "z": {"per": "atom", "tensor": "matrix", "unit": "e", "derivative_of": "dipole"},
    }
    config = make_config({"type": "nequip"}, outputs, fine_tune={"model": "run"})
    lines = _what_is_added(config, SimpleNamespace(config=make_config({"type": "nequip"}, {})))
    assert lines[0].startswith("Added: dipole (") and "read from the last layer;" in lines[0]
    assert lines[1] == "Added: z (9 numbers per atom, unit: e), the derivative of dipole by the positions."
