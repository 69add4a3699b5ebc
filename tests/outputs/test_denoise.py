"""Noise on positions, and what a model learns that undoes it."""

import os
import re
import signal
from dataclasses import replace
from statistics import NormalDist

import ase.io
import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.neighborlist import neighbor_list as ase_neighbor_list
from output_models import NEQUIP, make_potential, rotation

from equipot.cli import main
from equipot.config import config_from_dict
from equipot.data.dataset import GraphDataset, ReplayingDataset, graph_from_atoms
from equipot.data.frames import frame_from_atoms
from equipot.data.noise import NoisyDataset, mean_square
from equipot.deploy.checkpoint import load_checkpoint
from equipot.deploy.export import deploy
from equipot.deploy.load import DeployedModel, load_deployed
from equipot.errors import ConfigError, ModelFileError, SimulationError
from equipot.graph import edge_vectors
from equipot.integrations.denoise import Displacements, denoise
from equipot.integrations.denoise_settings import DenoiseSettings
from equipot.models.predict import predict
from equipot.quantities import declare, output
from equipot.training.learning_rate import find_learning_rate
from equipot.training.monitor import TrainingMonitor
from equipot.training.outputs import output_statistics
from equipot.training.preparation import prepare
from equipot.training.run import train

VECTOR = {"per": "atom", "tensor": "vector", "unit": "Ang"}
DISPLACEMENT = {"displacement": VECTOR}
BEST = "checkpoints/best.ckpt"


@pytest.fixture(autouse=True)
def _no_plots(monkeypatch):
    """They take longer than these trainings."""
    for name in ("results.plot_learning_curve", "results.write_report", "results.write_evaluation"):
        monkeypatch.setattr(f"equipot.training.{name}", lambda *_: None)


def dataset(structures, species, cutoff=4.0, values=(), **noise):
    declare(output("displacement", (3,), "Ang", True, rank=1))
    frames = [frame_from_atoms(atoms) for atoms in structures]
    frames = [replace(frame, values=dict(values)) for frame in frames]
    clean = GraphDataset(frames, species, cutoff)
    return clean, NoisyDataset(clean, "displacement", **{"seed": 5, "paired": False, **noise})


def test_noise_follows_from_seed_and_epoch_and_the_label_undoes_it(ethanol):
    clean, noisy = dataset([ethanol] * 300, ["H", "C", "O"], sigma=(0.1, 0.1))
    noise = []
    for index in range(300):
        graph = noisy.at(index, 1)
        label = graph.labels.values["displacement"]
        assert list(graph.labels.values) == ["displacement"] and label.weight is None
        torch.testing.assert_close(graph.positions + label.value, clean[index].positions, rtol=0, atol=1e-14)
        noise.append(label.value.numpy())
    noise = np.array(noise)
    np.testing.assert_allclose(noise.mean(axis=1), 0, atol=1e-15)
    # N − 1 of N degrees of freedom are left; 300 × 9 × 3 numbers: 1.1 % is one standard error
    assert np.sqrt((noise**2).mean()) == pytest.approx(0.1 * np.sqrt(8 / 9), rel=0.04)
    again = noisy.at(7, 1).labels.values["displacement"].value.numpy()
    np.testing.assert_array_equal(again, noise[7])
    assert len({noisy.at(7, epoch).positions.norm().item() for epoch in range(5)}) == 5
    other = NoisyDataset(clean, "displacement", (0.1, 0.1), 6, False)
    assert not torch.equal(other.at(7, 1).positions, noisy.at(7, 1).positions)


def test_frames_of_a_range_count_alike(ethanol):
    _, noisy = dataset([ethanol] * 400, ["H", "C", "O"], sigma=(0.02, 0.5))
    labels = [noisy.at(i, k).labels.values["displacement"] for i in range(400) for k in range(4)]
    sigma = np.sqrt(mean_square((0.02, 0.5)) / np.array([label.weight[0].item() for label in labels]))
    assert sigma.min() > 0.02 and sigma.max() < 0.5
    assert np.log(sigma).mean() == pytest.approx(np.log([0.02, 0.5]).mean(), abs=0.15)
    assert (sigma**2).mean() == pytest.approx(mean_square((0.02, 0.5)), rel=0.15)
    terms = [(label.weight[:, None] * label.value**2).mean() / mean_square((0.02, 0.5)) for label in labels]
    assert np.mean(terms) == pytest.approx(8 / 9, rel=0.04)


def test_neighbor_lists_are_those_of_displaced_positions():
    crystal = bulk("NaCl", "rocksalt", 4.6, cubic=True)
    _, noisy = dataset([crystal], ["Na", "Cl"], cutoff=3.4, sigma=(0.4, 0.4))
    graph = noisy.at(0, 3)
    crystal.positions = graph.positions.numpy()
    center, neighbor, vectors = ase_neighbor_list("ijD", crystal, 3.4)
    assert graph.num_edges == len(center) != graph_from_atoms(crystal, ["Na", "Cl"], 2.9).num_edges
    found = np.column_stack([*graph.edge_index.numpy(), edge_vectors(graph).numpy().round(9)])
    expected = np.column_stack([center, neighbor, vectors.round(9)])
    np.testing.assert_allclose(sorted(map(tuple, found)), sorted(map(tuple, expected)), atol=1e-8)


def test_frames_are_there_twice_where_their_labels_count(ethanol):
    values = {"energy": 1.0, "forces": np.ones((9, 3))}
    clean, noisy = dataset([ethanol] * 2, ["H", "C", "O"], values=values, sigma=(0.1, 0.1), paired=True)
    graph = noisy.at(1, 4)
    assert graph.num_structures == 2 and list(noisy.num_atoms) == [18, 18]
    assert torch.equal(graph.positions[:9], clean[1].positions)
    masks = {name: label.mask.tolist() for name, label in graph.labels.values.items()}
    halves = [True] * 9 + [False] * 9
    assert masks == {"energy": [True, False], "forces": halves, "displacement": halves[::-1]}
    assert noisy.label_counts[0, :2].tolist() == [1, 27] and noisy.label_counts[0, -1] == 27
    assert noisy.as_read is clean and noisy.label_counts is not clean.label_counts
    replaying = ReplayingDataset(noisy, clean)
    assert torch.equal(replaying.at(1, 4).positions, graph.positions)
    config = config_from_dict(with_sections(denoise={"sigma": 0.1}))
    alone = NoisyDataset(clean, "displacement", (0.1, 0.1), 5, False)
    assert output_statistics(noisy, config.outputs) == output_statistics(alone, config.outputs)


def test_turned_noise_gives_turned_displacements(ethanol):
    potential, turn = make_potential(NEQUIP, DISPLACEMENT), rotation(3) @ np.diag([1, 1, -1])
    given = predict(potential, graph_from_atoms(ethanol, potential.species, 4.0)).outputs["displacement"]
    ethanol.positions = ethanol.positions @ turn.T + [1.0, -2.0, 0.5]
    turned = predict(potential, graph_from_atoms(ethanol, potential.species, 4.0)).outputs["displacement"]
    assert given.abs().max() > 1e-3
    np.testing.assert_allclose(turned.numpy(), given.numpy() @ turn.T, atol=1e-12)


def posterior_shift(r):
    """E[change along the pair | distance r] if the clean distance is N(D0, SPREAD²), in every direction.

    By Tweedie's formula v ∂ ln p / ∂r, v = 2 sigma²: the noise of a difference of two positions; p by sums
    over the distance of a Gaussian averaged over a sphere.
    """
    d0, s, v = D0, SPREAD, 2 * SIGMA**2
    clean = np.linspace(d0 - 6 * s, d0 + 6 * s, 4001)

    def log_density(r):
        near, far = (np.exp(-((r[:, None] + sign * clean) ** 2) / (2 * v)) for sign in (-1, 1))
        of_clean = np.exp(-((clean - d0) ** 2) / (2 * s**2)) / clean
        return np.log((of_clean * (near - far)).sum(axis=1) / r)

    h = 1e-4
    return v * (log_density(r + h) - log_density(r - h)) / (2 * h)


def with_sections(files="x.xyz", model=(), data=(), run=(), **training):
    small = {"type": "nequip", "cutoff": 4.0, "l_max": 1, "layers": 1, "channels": 8, "radial_hidden": [16]}
    return {
        "data": {"train": str(files), **dict(data)},
        "model": {**small, "energy": False, "outputs": DISPLACEMENT, **dict(model)},
        "training": {"batch_size": 4, "optimizer": "adam", **training},
        "run": dict(run),
    }


D0, SPREAD, SIGMA = 1.5, 0.2, 0.15  # Å, of the pairs


def many_pairs(number=8):
    """Frames of 48 pairs far apart, whose distances are normally distributed."""
    quantiles = np.random.default_rng(0).permutation(48 * number).reshape(number, 48)
    lengths = np.vectorize(NormalDist(D0, SPREAD).inv_cdf)((quantiles + 0.5) / (48 * number))
    places = 8.0 * np.indices((4, 4, 3)).reshape(3, 48).T
    ends = [np.stack([places, places + length[:, None] * [0, 0, 1]], axis=1) for length in lengths]
    return [ase.Atoms("H96", positions=of.reshape(96, 3)) for of in ends]


def test_expected_label_is_that_of_theory():
    _, noisy = dataset(many_pairs(), ["H"], sigma=(SIGMA, SIGMA))
    distances, shifts = [], []
    for graph in (noisy.at(i, epoch) for i in range(8) for epoch in range(60)):
        vectors = np.diff(graph.positions.numpy().reshape(48, 2, 3), axis=1)[:, 0]
        labels = np.diff(graph.labels.values["displacement"].value.numpy().reshape(48, 2, 3), axis=1)[:, 0]
        distances.append(np.linalg.norm(vectors, axis=1))
        shifts.append((labels * vectors).sum(axis=1) / distances[-1])
    fit = np.polynomial.Polynomial.fit(np.concatenate(distances), np.concatenate(shifts), 5)
    r = np.linspace(1.0, 2.0, 11)
    # Of 23,000 draws whose standard deviation is 0.15 about the fit, which has six coefficients.
    np.testing.assert_allclose(fit(r), posterior_shift(r), atol=0.008)


def test_network_learns_what_is_expected(tmp_path):
    ase.io.write(tmp_path / "pairs.xyz", many_pairs())
    learning = {"epochs": 60, "batch_size": 1, "learning_rate": 0.02}
    config = with_sections(
        tmp_path / "pairs.xyz", data={"validation": 1}, model={"num_bessel": 4},
        run={"directory": str(tmp_path / "run")}, denoise={"sigma": SIGMA}, **learning,
    )  # fmt: skip
    potential = load_checkpoint(train(config_from_dict(config)).best_checkpoint).potential.eval()
    r = np.linspace(1.2, 1.8, 7)
    graphs = [graph_from_atoms(ase.Atoms("H2", [[0, 0, 0], [0, 0, d]]), ["H"], 4.0) for d in r]
    found = [predict(potential, graph).outputs["displacement"].detach().numpy() for graph in graphs]
    shift = np.array([row[1, 2] - row[0, 2] for row in found])
    expected = posterior_shift(r)
    assert abs(expected - (D0 - r)).max() > 0.15  # not simply back to the mean
    np.testing.assert_allclose(shift, expected, atol=0.03)
    for row in found:
        np.testing.assert_allclose(row[:, :2], 0, atol=1e-6)


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    """The deployed model of a training on noisy water."""
    folder = tmp_path_factory.mktemp("water")
    files = molecules(folder / "train.xyz", 24, rattle=0.0)
    config = with_sections(
        files, data={"validation": 4, "checks": "off"}, run={"directory": str(folder / "run")}, epochs=60,
        denoise={"sigma": [0.05, 0.3]}, batch_size=5, learning_rate=0.03,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("equipot.training.results.finish", lambda *_: {})
        deploy(train(config_from_dict(config)).directory / BEST, folder / "model.pt")
    return folder / "model.pt"


def shape_of(atoms):
    return [atoms.get_distance(0, 1), atoms.get_distance(0, 2), atoms.get_angle(1, 0, 2)]


def test_a_molecule_is_made_from_noise(learnt, tmp_path, capsys):
    ase.io.write(tmp_path / "start.xyz", molecule("H2O"))
    command = ["equipot", "denoise", str(tmp_path / "start.xyz"), "--model", str(learnt), "--sigma", "0.2"]
    command += ["--copies", "3", "--output", str(tmp_path / "out.xyz")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", command)
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == 0
    found = ase.io.read(tmp_path / "out.xyz", ":")
    printed = capsys.readouterr().out
    assert "3 of 3 converged" in printed and "RMSD" in printed
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", command)
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == 1 and "out.xyz exists" in capsys.readouterr().err
    for atoms in found:
        assert atoms.info["converged"] and atoms.info["denoise_rms"] <= 0.005
        np.testing.assert_allclose(shape_of(atoms), shape_of(molecule("H2O")), rtol=0.08)
    assert not np.allclose(found[0].positions, found[1].positions)
    settings = DenoiseSettings(sigma=0.2)
    one, again = (denoise(tmp_path / "start.xyz", learnt, settings)[0] for _ in range(2))
    np.testing.assert_array_equal(one.atoms.positions, again.atoms.positions)
    np.testing.assert_allclose(one.atoms.positions, found[0].positions, atol=1e-7)


def test_turned_start_turned_structure(learnt):
    turn, start = rotation(1), molecule("H2O")
    start.positions[1] += [0.1, 0.0, -0.15]
    turned = start.copy()
    turned.positions = start.positions @ turn.T
    settings = DenoiseSettings(noise=0.0)
    one, other = (denoise(atoms, learnt, settings)[0] for atoms in (start, turned))
    assert 0.03 < one.moved == pytest.approx(other.moved, abs=1e-4)
    np.testing.assert_allclose(other.atoms.positions, one.atoms.positions @ turn.T, atol=1e-4)


def test_constrained_atoms_stay(learnt):
    start = molecule("H2O")
    start.set_constraint(FixAtoms([0]))
    found = denoise(start, learnt, DenoiseSettings(sigma=0.1))[0]
    np.testing.assert_array_equal(found.atoms.positions[0], start.positions[0])
    assert not np.allclose(found.atoms.positions[1], start.positions[1])


def test_what_does_not_end_well_is_said(learnt, tmp_path, caplog):
    torn = molecule("H2O")
    torn.positions[2] += 30.0
    with pytest.raises(SimulationError, match=r"Atom 2 \(H; .* no neighbor within 4 Å"):
        denoise(torn, learnt)
    close = ase.Atoms("OH", [[0, 0, 0], [0, 0, 0.3]])
    with caplog.at_level("WARNING"):
        found = denoise(close, learnt, DenoiseSettings(steps=1, sigma=0.31))[0]
    assert not found.converged and len(found.rms) == 2
    assert "0.31 Å is more than the model has seen in its training (at most 0.3 Å)" in caplog.text
    field = Displacements(load_deployed(learnt))
    field.warn_of_short_distances(close)
    assert "atoms 0 and 1 (H-O) are 0.300 Å apart" in caplog.text
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Displacements, "of", lambda self, atoms: 1.5 * (atoms.positions + 0.3))
        with pytest.raises(SimulationError, match=r"diverged: after \d+ steps .* Use less"):
            denoise(molecule("H2O"), learnt, DenoiseSettings(step=1.0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DeployedModel, "rows", lambda self, *_: {"displacement": np.full((3, 3), np.nan)})
        with pytest.raises(SimulationError, match="not finite"):
            Displacements(load_deployed(learnt)).of(molecule("H2O"))


def test_other_models_are_refused(learnt):
    model = load_deployed(learnt)
    other = replace(model, metadata=replace(model.metadata, config="training: {denoise: null}"))
    with pytest.raises(ModelFileError, match=r"has not learnt to undo noise.*training\.denoise"):
        denoise(molecule("H2O"), other)


def test_learning_rate_is_sought_with_the_loss_of_the_training(tmp_path):
    files = molecules(tmp_path / "train.xyz")
    config = with_sections(files, data={"validation": 4}, denoise={"sigma": 0.01})
    assert find_learning_rate(config_from_dict(config), steps=2).losses[0] > 0.3  # in units of the spread


@pytest.mark.parametrize(
    "wrong", [{"sigma": -0.1}, {"copies": 0}, {"steps": 0}, {"step": 0.0}, {"noise": 1.0}, {"tolerance": 0.0}]
)
def test_settings_that_make_no_sense(wrong):
    with pytest.raises(ConfigError, match=f"--{next(iter(wrong))} must be"):
        DenoiseSettings(**wrong)


def molecules(path, number=14, rattle=0.05):
    frames = []
    for seed in range(number):
        atoms = molecule("H2O")
        atoms.rattle(rattle, seed=seed)
        forces = np.random.default_rng(seed).normal(size=(3, 3))
        atoms.calc = SinglePointCalculator(atoms, energy=float(seed), forces=forces)
        frames.append(atoms)
    ase.io.write(path, frames, format="extxyz")
    return path


def interrupt_after(monkeypatch, step):
    original = TrainingMonitor.on_train_batch_end

    def with_signal(self, trainer, *arguments):
        if trainer.global_step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self, trainer, *arguments)

    monkeypatch.setattr(TrainingMonitor, "on_train_batch_end", with_signal)


def weights_of(result):
    found = torch.load(result.last_checkpoint, weights_only=True)
    return found["state_dict"], found["equipot"]["validation"]


# 10 frames in batches of 4 are 3 steps per epoch: in the first epoch, and at the end of the second.
@pytest.mark.parametrize("step, workers, alone", [(2, 0, False), (6, 1, True)])
def test_resumed_equals_uninterrupted(tmp_path, monkeypatch, step, workers, alone):
    files = molecules(tmp_path / "train.xyz")

    def config(name, workers):
        return config_from_dict(
            with_sections(
                files,
                data={"validation": 4, "checks": "off"},
                run={"directory": str(tmp_path / name), "workers": workers},
                epochs=3,
                denoise={"sigma": [0.02, 0.2]},
                model={"energy": not alone},
            )
        )

    whole = train(config("whole", 0))
    with monkeypatch.context() as patch:
        interrupt_after(patch, step)
        assert train(config("broken", workers)).stopped == "interrupted"
    state, errors = weights_of(train(config("broken", workers), resume=tmp_path / "broken"))
    expected, expected_errors = weights_of(whole)
    assert errors == expected_errors
    assert ("forces_mae" in errors) != alone and errors["displacement_mae"] > 0
    for key, value in expected.items():
        assert torch.equal(state[key], value), key


def test_potential_starts_from_what_noise_taught(learnt, tmp_path, monkeypatch):
    given = with_sections(
        molecules(tmp_path / "train.xyz"), data={"validation": 4, "checks": "off"},
        run={"directory": str(tmp_path / "run")}, epochs=2,
    )  # fmt: skip
    given["model"] = {"type": "nequip", "energy": True}
    given["fine_tune"] = {"model": str(learnt.parent / "run")}
    config = config_from_dict(given)
    prepared, source = prepare(config), load_checkpoint(learnt.parent / "run" / BEST)
    start, body = prepared.start, source.potential.state_dict()
    new = start.potential.state_dict()
    for part in ("embedding", "layers.0.mix_channels", "layers.0.convolution.radial.network.hidden"):
        names = [name for name in new if name.startswith(f"network.{part}")]
        assert names and all(torch.equal(new[name], body[name]) for name in names), part
    assert any("readout" in name for name in new) and not any("further" in name for name in new)
    assert prepared.config.outputs == {} and prepared.config.model.channels == source.config.model.channels
    assert start.built_from["avg_num_neighbors"] == source.built_from["avg_num_neighbors"]
    assert start.built_from["force_rms"] == pytest.approx(1.0, rel=0.2)
    assert re.search(r"no energies: [\d,]+ weights .* [\d,]+ of readouts .* begin anew", start.lines[0])
    found = train(config)
    assert {"energy_mae", "forces_mae"} < set(found.metrics["validation"])
    expected, _ = weights_of(found)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 4)
        assert train(config, overwrite=True).stopped == "interrupted"
    resumed, _ = weights_of(train(config, resume=tmp_path / "run"))
    assert all(torch.equal(resumed[key], expected[key]) for key in expected)


def test_noise_beside_fine_tuning_leaves_reference_energies_alone(tmp_path):
    files = molecules(tmp_path / "train.xyz")
    given = with_sections(
        files, data={"validation": 4, "checks": "off"}, model={"energy": True},
        run={"directory": str(tmp_path / "run")}, epochs=1, denoise={"sigma": 0.1},
    )  # fmt: skip
    source = train(config_from_dict(given)).directory
    given["fine_tune"] = {"model": str(source), "atomic_energies": "refit"}
    noisy = prepare(config_from_dict(given))
    del given["training"]["denoise"]
    given["training"]["loss"] = {"displacement": 0}
    given["data"]["labels"] = {"displacement": None}
    plain = prepare(config_from_dict(given))
    assert noisy.start.statistics.atomic_energies == plain.start.statistics.atomic_energies
    assert noisy.start.shortest_distances == plain.start.shortest_distances


@pytest.mark.parametrize(
    "change, message",
    [
        ({"denoise": {"sigma": 0}}, r"training\.denoise\.sigma"),
        ({"denoise": {"sigma": -0.1}}, r"training\.denoise\.sigma"),
        ({"denoise": {"sigma": [0.1, 0.2, 0.3]}}, r"training\.denoise\.sigma"),
        ({"denoise": {"sigma": [0.3, 0.1]}}, r"one number or a rising pair, found \[0\.3, 0\.1\]"),
        ({"denoise": {}}, r"training\.denoise\.sigma"),
        (
            {"model": {"energy": True, "outputs": {}}},
            "has no `displacement`: write `displacement: {per: atom",
        ),
        ({"denoise": {"sigma": 0.1, "output": "shift"}}, r"has no `shift`"),
        ({"model": {"outputs": {"displacement": {"per": "atom", "tensor": "scalar"}}}}, "has another"),
        ({"model": {"outputs": {"displacement": VECTOR | {"unit": "nm"}}}}, "has another"),
        ({"model": {"energy": True}, "loss": {"displacement": 0}}, r"training\.loss\.displacement` above 0"),
        ({"data": {"labels": {"displacement": "shift"}}}, r"`data\.labels\.displacement` names a label"),
    ],
)
def test_what_cannot_be_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        config_from_dict(with_sections(**{"denoise": {"sigma": 0.1}, **change}))
