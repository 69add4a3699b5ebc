"""Last-layer prediction rigidity: the algebra against other routes, and files deployed with it."""

import io
import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import ase.io
import numpy as np
import pytest
import safetensors.numpy
import torch
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from rich.console import Console
from scipy.stats import norm
from standin import make_potential

from equipot.config import config_from_dict
from equipot.data import graph_from_atoms
from equipot.data.dataset import GraphDataset
from equipot.data.digests import file_digest
from equipot.data.frames import frame_from_atoms
from equipot.data.splits import Split
from equipot.data.statistics import Statistics
from equipot.deploy.check import check
from equipot.deploy.checkpoint import built_from_statistics, describe, load_checkpoint
from equipot.deploy.ensemble import deploy_any
from equipot.deploy.export import deploy
from equipot.deploy.info import info
from equipot.deploy.load import load_deployed
from equipot.deploy.rigidity import (
    REGULARISERS,
    Energies,
    add_uncertainty,
    agreement,
    calibrated,
    collect,
    engine_of,
)
from equipot.engine.library import Engine
from equipot.errors import DataError, ModelFileError
from equipot.graph import edge_vectors
from equipot.models.build import build_potential
from equipot.ops.build import kernels_available

needs_engine = pytest.mark.skipif(not kernels_available(), reason="no compiler")


def energies(frames, width, seed=0, noise=0.01):
    """Frames of a linear model with weights that are a little wrong, and its errors."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(frames, width)) * np.logspace(0, -2, width)
    return Energies(features, noise * rng.normal(size=frames), np.ones(frames))


@pytest.mark.parametrize("frames", [200, 12])  # more and fewer than features
def test_variance_is_that_of_a_gaussian_process(frames):
    """The dual of Bayesian ridge regression: with the kernel x·x' and noise ς², k** − k*(K + ς²)⁻¹k*."""
    train, validation = energies(frames, 30), energies(50, 30, seed=1)
    found = calibrated(train, validation)
    noise = found.figures["regulariser"] * np.linalg.eigvalsh(train.features.T @ train.features)[-1]
    new = energies(20, 30, seed=2).features
    kernel = train.features @ train.features.T + noise * np.eye(frames)
    cross = new @ train.features.T
    left = (new**2).sum(axis=1) - np.einsum("nf,fn->n", cross, np.linalg.solve(kernel, cross.T))
    right = found.figures["alpha"] * np.sqrt(left / noise)
    np.testing.assert_allclose(np.linalg.norm(new @ found.factor.T, axis=1), right, rtol=1e-5)
    np.testing.assert_array_equal(found.factor, np.tril(found.factor))


def test_calibration_is_the_likeliest():
    """Of all regularisers and factors, by the density of the validation errors."""
    train, validation = energies(300, 8), energies(60, 8, seed=1)
    found = calibrated(train, validation)
    covariance = train.features.T @ train.features

    def likelihood(relative, alpha):
        inverse = np.linalg.inv(covariance + relative * np.linalg.norm(covariance, 2) * np.eye(8))
        sigma = alpha * np.sqrt(np.einsum("nk,kl,nl->n", validation.features, inverse, validation.features))
        return norm.logpdf(validation.errors, scale=sigma).sum()

    best = likelihood(found.figures["regulariser"], found.figures["alpha"])
    for relative in REGULARISERS:
        for alpha in found.figures["alpha"] * np.array([0.3, 0.9, 1.1, 3.0]):
            assert likelihood(relative, alpha) <= best + 1e-6
    assert found.figures["ratio_rms"] == pytest.approx(1, rel=1e-6)


def test_errors_that_do_not_follow_the_rigidity_are_said(caplog):
    """Errors as large as the features themselves, whatever the training set has seen."""
    train, validation = energies(300, 8), energies(60, 8, seed=1)
    calibrated(train, validation)
    assert "largest regulariser" not in caplog.text
    sizes = np.linalg.norm(validation.features, axis=1)
    calibrated(train, Energies(validation.features, validation.errors * sizes, validation.weights))
    assert "largest regulariser" in caplog.text


def test_a_weight_counts_as_so_many_frames():
    train, validation = energies(40, 5), energies(30, 5, seed=1)
    twice = Energies(*(np.concatenate([a, a[:10]]) for a in vars(train).values()))
    weights = np.where(np.arange(40) < 10, 2.0, 1.0)
    weighted = Energies(train.features, train.errors, weights)
    np.testing.assert_allclose(
        calibrated(weighted, validation).factor, calibrated(twice, validation).factor, rtol=1e-9, atol=1e-12
    )


def test_errors_of_the_predicted_size_are_calibrated():
    """Errors drawn from the predicted distributions: ratio 1, no miscalibration; three times as large: no."""
    rng = np.random.default_rng(0)
    sigma = rng.uniform(0.5, 2.0, 4000)
    errors = sigma * rng.normal(size=4000)
    figures = agreement(sigma, errors)
    assert figures["ratio_rms"] == pytest.approx(1, abs=0.03) and figures["miscalibration"] < 0.02
    assert figures["rank_correlation"] > 0.3
    figures = agreement(sigma, 3 * errors)
    assert figures["ratio_rms"] == pytest.approx(3, abs=0.1) and figures["miscalibration"] > 0.2


def test_what_cannot_be_calibrated_is_refused(caplog):
    train = energies(40, 5)
    silent = Energies(np.zeros((3, 5)), np.ones(3), np.ones(3))
    with pytest.raises(DataError, match="do not depend on the model's last layer"):
        calibrated(train, silent)
    with pytest.raises(DataError, match="cannot be calibrated: the energies of the validation set have no"):
        calibrated(train, energies(20, 5, noise=0))
    # A frame without features (an isolated atom of an Allegro) does not count.
    some = energies(20, 5, seed=1)
    more = Energies(*(np.concatenate([vars(some)[name], vars(silent)[name]]) for name in vars(some)))
    figures = calibrated(train, more).figures
    assert figures == calibrated(train, some).figures and figures["validation_frames"] == 20
    assert "validation" not in caplog.text
    calibrated(train, energies(3, 5, seed=1))
    assert "calibrated on 3 validation frames only" in caplog.text


# Files -----------------------------------------------------------------------------------------------------

MODELS = {
    "nequip": {"type": "nequip", "layers": 2, "channels": 4, "l_max": 1, "radial_hidden": [8], "cutoff": 4.0},
    "allegro": {"type": "allegro", "layers": 1, "scalar_channels": 8, "channels": 4, "l_max": 1},
}
SPECIES, SHIFT = ["H", "C", "O"], [-13.0, -1030.0, -2040.0]
STATISTICS = Statistics(SPECIES, SHIFT, "given", 0.1, 7.5, 1.5, 24, 216, [144, 48, 24], {"energy": 24})


@pytest.fixture
def run(tmp_path):
    """A function that makes the run directory of an untrained model: 12 frames trained on, 12 held out."""

    def make(model="nequip", labelled=24, levels=(), **settings):
        rng, frames = np.random.default_rng(0), []
        for number in range(24):
            atoms = molecule("CH3CH2OH")
            atoms.rattle(0.05, seed=number)
            energy = {"energy": -4200 + rng.normal()} if 24 - number <= labelled else {}
            atoms.calc = SinglePointCalculator(atoms, forces=np.zeros((9, 3)), **energy)
            frames.append(atoms)
        file = tmp_path / "data" / "ethanol.xyz"
        file.parent.mkdir()
        ase.io.write(file, frames)
        folder = tmp_path / "run"
        data = {"train": str(file), "seed": 1}
        config = config_from_dict(
            {"data": data, "model": MODELS[model] | settings, "run": {"directory": str(folder)}}
        )
        torch.manual_seed(0)
        built_from = built_from_statistics(STATISTICS, SPECIES, ())
        weights = build_potential(config.model, **built_from).state_dict()
        content = {
            "state_dict": {f"potential.{name}": weight for name, weight in weights.items()},
            "equipot": describe(config, STATISTICS, built_from) | {"validation": {}, "ema": None},
        }
        (folder / "checkpoints").mkdir(parents=True)
        torch.save(content, folder / "checkpoints" / "best.ckpt")
        ids = [(str(file), number) for number in range(24)]
        split = Split(tuple(ids[:12]), tuple(ids[12:]), file_digests={str(file): file_digest(str(file))})
        split.save(folder / "split.json")
        (folder / "config.yaml").write_text(config.to_yaml())
        return folder

    return make


def quick_deploy(run, output, **options):
    return deploy(run / "checkpoints" / "best.ckpt", output, uncertainty=True, **options)


def entries(path, *names):
    with zipfile.ZipFile(path) as archive:
        folder = archive.namelist()[0].partition("/")[0]
        return [archive.read(f"{folder}/{name}") for name in names]


@needs_engine
@pytest.mark.parametrize("model", MODELS)
def test_deployed_uncertainty_follows_from_the_eager_model(run, tmp_path, model):
    """From the frames on: features by a hook on the eager readout, the rest with NumPy, in float64."""
    folder = run(model, dtype="float64")
    metadata = quick_deploy(folder, tmp_path / "model.pt")
    potential = load_checkpoint(folder / "checkpoints" / "best.ckpt").potential
    readout, given, sums, errors = potential.network.readout, [], [], []
    module = readout.layers[-1] if model == "allegro" else readout
    module.register_forward_pre_hook(lambda _, arguments: given.append(arguments[0]))
    for atoms in ase.io.read(tmp_path / "data" / "ethanol.xyz", ":"):
        graph = graph_from_atoms(atoms, SPECIES, potential.cutoff)
        inputs = edge_vectors(graph), graph.edge_index, graph.atom_types
        with torch.no_grad():
            energy = potential.atom_energies(*inputs).sum()
        features = given.pop() * (potential.network.norm if model == "allegro" else 1)
        sums.append(1.5 * features.sum(dim=0).numpy() / 9)  # the scale is that of the forces
        errors.append((energy.item() - atoms.get_potential_energy()) / 9)
    train, held_out = np.array(sums[:12]), np.array(sums[12:])
    covariance = train.T @ train
    regulariser = metadata.uncertainty["regulariser"] * np.linalg.norm(covariance, 2)
    inverse = np.linalg.inv(covariance + regulariser * np.eye(len(covariance)))
    unscaled = np.einsum("nk,kl,nl->n", held_out, inverse, held_out)
    alpha2 = np.mean(np.array(errors[12:]) ** 2 / unscaled)
    assert metadata.uncertainty["alpha"] == pytest.approx(alpha2**0.5, rel=1e-4)
    engine = load_deployed(tmp_path / "model.pt", "cpu").engine
    found = engine.uncertainty(9 * held_out)
    np.testing.assert_allclose(found, 9 * np.sqrt(alpha2 * unscaled), rtol=1e-4)
    assert metadata.uncertainty["error_rms"] == pytest.approx(np.sqrt(np.mean(np.square(errors[12:]))))


@needs_engine
def test_a_file_without_is_as_before(run, tmp_path):
    """But for its uncertainty a file is the same; without one the program does not speak of it."""
    folder = run()
    quick_deploy(folder, tmp_path / "with.pt")
    deploy(folder / "checkpoints" / "best.ckpt", tmp_path / "without.pt")
    names = "engine/program.json", "engine/weights.safetensors", "extra/capsule", "extra/uncertainty"
    program, weights, capsule, figures = entries(tmp_path / "without.pt", *names)
    other_program, other_weights, other_capsule, _ = entries(tmp_path / "with.pt", *names)
    other_program = json.loads(other_program)
    assert other_program.pop("uncertainty")["weights"] == "uncertainty.weights"
    assert json.loads(program) == other_program and capsule == other_capsule and figures == b"{}"
    other_weights = safetensors.numpy.load(other_weights)
    assert other_weights.pop("uncertainty.weights").dtype == np.float64
    assert safetensors.numpy.save(other_weights) == weights
    engine = load_deployed(tmp_path / "without.pt", "cpu").engine
    assert engine.feature_width == 0
    for features in (np.zeros((1, 4)), np.zeros((1, 0))):
        with pytest.raises(DataError, match=r"deployed without an uncertainty\. Run 'equipot deploy"):
            engine.uncertainty(features)


@needs_engine
def test_it_is_said_and_checked(run, tmp_path):
    quick_deploy(run(), tmp_path / "model.pt")
    console = Console(file=io.StringIO(), width=200)
    console.print(info(tmp_path / "model.pt"))
    assert "from 4 features of 12 frames, calibrated on 12: predicted" in console.file.getvalue()
    item = next(i for i in check(tmp_path / "model.pt", "cpu").items if "uncertainty" in i.name)
    assert item.passed and item.name == "reference uncertainty"

    with zipfile.ZipFile(tmp_path / "model.pt") as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in content if name.endswith("/engine/weights.safetensors"))
    weights = safetensors.numpy.load(content[name])
    weights["uncertainty.weights"] *= 1.1
    content[name] = safetensors.numpy.save(weights)
    with zipfile.ZipFile(tmp_path / "wrong.pt", "w") as archive:
        for entry, data in content.items():
            archive.writestr(entry, data)
    item = next(i for i in check(tmp_path / "wrong.pt", "cpu").items if "uncertainty" in i.name)
    assert not item.passed and item.value == pytest.approx(0.1, rel=1e-3)
    assert "eV, uncertainties by 0 %" in Engine(tmp_path / "model.pt").check()
    with pytest.raises(ModelFileError, match=r"does not reproduce .* uncertainties by 10 %"):
        Engine(tmp_path / "wrong.pt").check()


@needs_engine
def test_only_frames_with_energies_count(run, tmp_path):
    figures = quick_deploy(run(labelled=15), tmp_path / "model.pt").uncertainty
    assert (figures["training_frames"], figures["validation_frames"]) == (3, 12)


def test_no_energies_in_a_set(run, tmp_path):
    with pytest.raises(DataError, match="none of the 12 frames in the training set has one"):
        quick_deploy(run(labelled=12), tmp_path / "model.pt")
    assert not (tmp_path / "model.pt").exists()


@needs_engine
def test_data_that_are_gone_or_elsewhere(run, tmp_path):
    folder = run()
    (tmp_path / "data").rename(tmp_path / "moved")
    with pytest.raises(DataError, match=r"needs the frames of the training: .*/ethanol.xyz.* by --config"):
        quick_deploy(folder, tmp_path / "model.pt")
    (tmp_path / "new.yaml").write_text((folder / "config.yaml").read_text().replace("/data/", "/moved/"))
    figures = quick_deploy(folder, tmp_path / "model.pt", config=tmp_path / "new.yaml").uncertainty
    assert figures["training_frames"] == 12
    file = tmp_path / "moved" / "ethanol.xyz"
    file.write_text(file.read_text().replace("O ", "O  ", 1))
    with pytest.raises(DataError, match="none of the files that section data names now has its content"):
        quick_deploy(folder, tmp_path / "model.pt", config=tmp_path / "new.yaml")
    (folder / "split.json").unlink()
    with pytest.raises(ModelFileError, match=r"there is no .*split.json that names them"):
        quick_deploy(folder, tmp_path / "model.pt")


def test_settings_with_other_units(run, tmp_path):
    """Errors in another unit would calibrate something, too."""
    folder = run()
    found = quick_deploy(folder, tmp_path / "model.pt").uncertainty["error_rms"]
    checkpoint = folder / "checkpoints" / "best.ckpt"
    content = torch.load(checkpoint, weights_only=False)
    content["equipot"]["validation"] = {"energy_rmse": 1.2 * found}
    torch.save(content, checkpoint)
    settings, text = tmp_path / "new.yaml", (folder / "config.yaml").read_text()
    settings.write_text(text)
    quick_deploy(folder, tmp_path / "model.pt", config=settings)
    settings.write_text(text.replace("energy: eV", "energy: kcal/mol"))
    with pytest.raises(DataError, match="must have the labels and units of the training"):
        quick_deploy(folder, tmp_path / "model.pt", config=settings)


def test_what_has_no_uncertainty(run, tmp_path):
    for member in ("member_0", "member_1"):
        shutil.copytree(run() if member == "member_0" else tmp_path / "run", tmp_path / "ensemble" / member)
    with pytest.raises(ModelFileError, match=r"is an ensemble, .* such as .*member_0"):
        deploy_any(tmp_path / "ensemble", tmp_path / "models", uncertainty=True)
    with pytest.raises(ModelFileError, match="This architecture has no program with a last layer"):
        add_uncertainty(make_potential().program(), lambda program: None, [], Path("model.pt"))


@needs_engine
def test_only_frames_of_the_level_count():
    """Of a training on several levels of theory."""
    torch.manual_seed(0)
    config = config_from_dict({"data": {"train": "x.xyz"}, "model": MODELS["nequip"]}).model
    potential = build_potential(config, SPECIES, 7.5, SHIFT, 1.5).eval()
    program = potential.program()
    program.add_uncertainty(torch.eye(4, dtype=torch.float64))
    frames = []
    for number in range(6):
        atoms = molecule("H2O")
        atoms.rattle(0.05, seed=number)
        frame = replace(frame_from_atoms(atoms), values={"energy": -2000.0 - number})
        frames.append(replace(frame, level="pbe" if number % 3 else "ccsd"))
    dataset = GraphDataset(frames, ["H", "O"], 4.0, ["pbe", "ccsd"])
    engine = engine_of(program, Path("x"))
    found = collect(engine, dataset, np.array([0, 2]), "ccsd")
    for sums, error, frame in zip(found.features, found.errors, frames[::3], strict=True):
        # By the model's types, which are not the set's.
        right = engine.evaluate(frame.positions, frame.cell, frame.pbc, [2, 0, 0])
        np.testing.assert_allclose(sums, right.features.mean(axis=0), rtol=1e-5)
        assert error == pytest.approx((right.atom_energies.sum() - frame.energy) / 3, rel=1e-6)
    with pytest.raises(DataError, match="none of the 6 frames in the data set has one of the level 'mp2'"):
        collect(engine, dataset, np.array([0, 2]), "mp2")
