"""Fine-tuning that is told of what the model knew before, and says what it has forgotten."""

import dataclasses
import json
import os
import shutil
import signal

import ase
import ase.io
import numpy as np
import pytest
import torch
from ase.calculators.singlepoint import SinglePointCalculator
from clusters import MODEL, write_clusters

from equipot.config import config_from_dict
from equipot.data.batching import Budget, StepSampler
from equipot.data.dataset import graph_from_atoms
from equipot.deploy.checkpoint import load_checkpoint
from equipot.deploy.ensemble import deploy_any
from equipot.errors import ConfigError, DataError, TrainingError
from equipot.evaluation.elements import place, plot_elements
from equipot.evaluation.metrics import summary
from equipot.evaluation.run import evaluate
from equipot.models.predict import predict
from equipot.training.html_report import write_report
from equipot.training.learning_rate import find_learning_rate
from equipot.training.monitor import TrainingMonitor
from equipot.training.preparation import prepare
from equipot.training.run import train

pytestmark = pytest.mark.usefixtures("no_plot")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return {
        "alloy": write_clusters(folder / "alloy.xyz", ["Cu4", "Cu3Ag", "CuAgAu2"], 9, 0),
        "new": write_clusters(folder / "new.xyz", ["Cu4", "Cu3Ag"], 9, 1, 1.3, -7.0),
        "ni": write_clusters(folder / "ni.xyz", ["Ni4", "Cu4"], 2, 2),
    }


def make_config(directory, train_files, fine_tune=None, **training):
    model = {"model": MODEL} if fine_tune is None else {"fine_tune": fine_tune}
    return config_from_dict(
        {
            "data": {"train": train_files, "validation": 3},
            "training": {"epochs": 2, "batch_size": 4, **training},
            "run": {"directory": str(directory), "device": "cpu"},
            **model,
        }
    )


@pytest.fixture(scope="module")
def source(files, tmp_path_factory):
    """A model of Cu, Ag and Au; the new data have no Au."""
    return train(make_config(tmp_path_factory.mktemp("source") / "run", files["alloy"])).directory


@pytest.fixture(scope="module")
def tuned(source, files, tmp_path_factory):
    """Fine-tuned with replay; with replay to measure only."""
    folder, runs = tmp_path_factory.mktemp("tuned"), {}
    for weight in (30.0, 0.0):
        settings = {"model": str(source), "replay": 12, "replay_weight": weight}
        config = make_config(folder / str(weight), files["new"], settings, epochs=40, learning_rate=0.02)
        runs[weight] = train(config).directory
    return runs


def test_elements_of_the_replay_are_kept(source, files, tuned):
    for run in tuned.values():
        assert load_checkpoint(run / "checkpoints/best.ckpt").potential.species == ["Cu", "Ag", "Au"]
    log = (tuned[30.0] / "log.txt").read_text()
    assert "species Cu Ag, and 1 more that the model keeps" in log
    assert "Replay: 12 frames of 3 elements, 10 of them in the loss" in log
    assert "none of them in the loss" in (tuned[0.0] / "log.txt").read_text()


def test_energies_change_as_the_reference_energies_do(source, files, tmp_path):
    """Before the first step the model reproduces its replay, though its reference energies are others."""
    old = load_checkpoint(source / "checkpoints/best.ckpt").potential
    prepared = prepare(make_config(tmp_path, files["new"], {"model": str(source), "replay": 12}))
    shifts = prepared.start.potential.scale_shift.shift.detach() - old.scale_shift.shift.detach()
    assert (shifts[:2].abs() > 1).all() and shifts[2] == 0  # refitted; Au, of which nothing is new, is not
    dataset = prepared.replay.dataset
    for index, frame in enumerate(dataset.frames):
        atoms = ase.Atoms(frame.atomic_numbers, frame.positions, cell=frame.cell, pbc=frame.pbc)
        graph = graph_from_atoms(atoms, ["Cu", "Ag", "Au"], MODEL["cutoff"])
        direct = predict(old, graph)
        counts = torch.bincount(graph.atom_types, minlength=3)
        # 1e-12: rounding of some eV
        assert frame.energy == pytest.approx(
            float(direct.energy + counts.double() @ shifts), abs=1e-12 * len(atoms) * 10
        )
        now = predict(prepared.start.potential.eval(), dataset[index])
        assert float(now.energy) == pytest.approx(frame.energy, abs=1e-11)
        np.testing.assert_allclose(now.forces, frame.forces, rtol=0, atol=6e-9)  # digits of the file
    assert prepared.replay.before["groups"]["all"]["energy_mae"] < 1e-11
    assert prepared.replay.before["groups"]["all"]["forces_mae"] < 6e-9


def test_the_report_has_what_a_direct_evaluation_gives(tuned):
    for weight, run in tuned.items():
        metrics = json.loads((run / "metrics.json").read_text())
        comparison = evaluate(run, [run / "replay.xyz"]).comparison
        for name, value in summary(comparison).items():
            assert metrics["replay_after"][name] == pytest.approx(value, rel=1e-6)
        assert metrics["replay_before"]["forces_mae"] < 6e-9 < metrics["replay_after"]["forces_mae"]
        found = json.loads((run / "evaluation/replay.json").read_text())["after"]
        gold = comparison.atomic_numbers == 79
        error = np.abs(comparison.error("forces"))[gold].mean()
        assert found["elements"]["Au"] == pytest.approx(error, rel=1e-6)
        frames = {name: group["frames"] for name, group in found["groups"].items()}
        expected = {"all": 12, "crystal": 7, "slab": 1, "cluster": 4}
        assert frames == (expected | {"in the loss": 10, "not in the loss": 2} if weight else expected)
        page = write_report(run).read_text()
        shown = f"{metrics['replay_after']['forces_mae'] * 1000:.1f}"
        assert "Did it forget?" in page and f'<td class="n">{shown}</td>' in page
        assert "Did it forget?" in (run / "log.txt").read_text()


def test_what_is_replayed_is_remembered(tuned):
    errors = {
        weight: json.loads((run / "evaluation/replay.json").read_text()) for weight, run in tuned.items()
    }
    for column in ("energy_mae", "forces_mae"):
        with_replay, without = (errors[weight]["after"]["groups"]["all"][column] for weight in (30.0, 0.0))
        assert with_replay < 0.7 * without
    held_out = errors[30.0]["after"]["groups"]["not in the loss"]["forces_mae"]
    assert held_out > 0


def test_measuring_changes_nothing(source, files, tmp_path):
    """Without a weight the weights are those of a training without replay, bit for bit."""
    runs = []
    for name, more in {"plain": {}, "measured": {"replay": 5, "replay_weight": 0.0}}.items():
        settings = {"model": str(source), **more}
        runs.append(train(make_config(tmp_path / name, files["alloy"], settings)).best_checkpoint)
    states = [load_checkpoint(run).potential.state_dict() for run in runs]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_file_gives_the_same_as_a_number(source, files, tmp_path):
    """The frames of a training, put back to the reference energies of the model that they are of."""
    settings = {"model": str(source), "replay": 7}
    made = prepare(make_config(tmp_path, files["new"], settings)).replay
    old = load_checkpoint(source / "checkpoints/best.ckpt").potential
    frames = []
    for frame in made.dataset.frames:
        atoms = ase.Atoms(frame.atomic_numbers, frame.positions, cell=frame.cell, pbc=frame.pbc)
        direct = predict(old, graph_from_atoms(atoms, old.species, old.cutoff))
        atoms.calc = SinglePointCalculator(atoms, energy=float(direct.energy), forces=frame.forces)
        frames.append(atoms)
    ase.io.write(tmp_path / "mine.xyz", frames, format="extxyz")
    read = prepare(
        make_config(tmp_path, files["new"], settings | {"replay": str(tmp_path / "mine.xyz")})
    ).replay
    assert [f.energy for f in read.dataset.frames] == pytest.approx(
        [f.energy for f in made.dataset.frames], abs=1e-11
    )
    assert read.before["groups"]["all"]["energy_mae"] < 1e-11


def test_frames_of_a_level_that_is_known_stay_with_it(source, files, tmp_path):
    """Two levels start from the only one that the source has; replay is of the first, and consistent."""
    levels = [{"path": files["alloy"], "level": "old"}, {"path": files["new"], "level": "new"}]
    run = train(make_config(tmp_path / "two", levels, {"model": str(source)})).directory
    prepared = prepare(make_config(tmp_path, levels[::-1], {"model": str(run), "replay": 6}))
    assert {frame.level for frame in prepared.replay.dataset.frames} == {"new"}
    assert prepared.replay.before["groups"]["all"]["energy_mae"] < 1e-11
    newer = [{**levels[1], "level": "newer"}, levels[0]]
    prepared = prepare(make_config(tmp_path, newer, {"model": str(run), "replay": 6, "level": "new"}))
    assert {frame.level for frame in prepared.replay.dataset.frames} == {"old"}
    assert prepared.replay.before["groups"]["all"]["energy_mae"] < 1e-11
    with pytest.raises(ConfigError, match="does not say of which its labels are"):
        settings = {"model": str(run), "replay": files["alloy"]}
        prepare(make_config(tmp_path, levels, settings))


def test_interrupted_training_resumes_exactly(source, files, tmp_path, monkeypatch):
    """Without the model that it started from."""
    model = tmp_path / "start.ckpt"
    shutil.copy(source / "checkpoints/best.ckpt", model)

    def config(name):
        return make_config(tmp_path / name, files["new"], {"model": str(model), "replay": 6}, epochs=3)

    whole = train(config("whole"))
    original = TrainingMonitor.on_train_batch_end

    def with_signal(self, trainer, *arguments):
        if trainer.global_step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self, trainer, *arguments)

    monkeypatch.setattr(TrainingMonitor, "on_train_batch_end", with_signal)
    assert train(config("parts")).stopped == "interrupted"
    monkeypatch.undo()
    model.unlink()
    kept = (tmp_path / "parts/replay.xyz").read_text()
    (tmp_path / "parts/replay.xyz").unlink()
    with pytest.raises(TrainingError, match=r"replay\.xyz is missing"):
        train(config("parts"), resume=tmp_path / "parts")
    (tmp_path / "parts/replay.xyz").write_text(kept)
    parts = train(config("parts"), resume=tmp_path / "parts")
    states = [load_checkpoint(run.best_checkpoint).potential.state_dict() for run in (whole, parts)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert whole.metrics["replay_after"] == parts.metrics["replay_after"]
    assert whole.metrics["replay_before"] == parts.metrics["replay_before"]


@pytest.mark.parametrize(
    ("replay", "species", "error", "message"),
    [
        ("ni", None, ConfigError, "contains Ni, which .* does not know"),
        ("gone.xyz", None, DataError, r"fine_tune\.replay: There is no file .*gone\.xyz"),
        ("gold", ["Cu", "Ag"], ConfigError, "no frame of .* consists of Cu, Ag"),
        ("bare", None, DataError, r"fine_tune\.replay: .*energy"),
    ],
)
def test_unusable_files_are_refused(source, files, tmp_path, replay, species, error, message):
    write_clusters(tmp_path / "gold.xyz", ["Au4"], 2, 3)
    ase.io.write(tmp_path / "bare.xyz", ase.Atoms("Cu2", [[0, 0, 0], [2.5, 0, 0]]), format="extxyz")
    known = {"ni": files["ni"], "gold": str(tmp_path / "gold.xyz"), "bare": str(tmp_path / "bare.xyz")}
    settings = {"model": str(source), "replay": known.get(replay, str(tmp_path / replay))}
    config = make_config(tmp_path / "run", files["new"], settings)
    config = config.model_copy(update={"data": config.data.model_copy(update={"species": species})})
    with pytest.raises(error, match=message):
        train(config)
    assert not (tmp_path / "run").exists()


def test_species_that_are_chosen_leave_frames_out(source, files, tmp_path):
    config = make_config(tmp_path, files["new"], {"model": str(source), "replay": 9})
    config = config.model_copy(update={"data": config.data.model_copy(update={"species": ("Cu", "Ag")})})
    prepared = prepare(config)
    assert prepared.start.potential.species == ["Cu", "Ag"] and len(prepared.replay.dataset) == 9


def test_uncertainty_of_a_model_that_keeps_elements(source, files, tmp_path):
    """Gold is chosen, too, though only the replay has it."""
    config = make_config(tmp_path / "run", files["new"], {"model": str(source), "replay": 9})
    chosen = config.data.model_copy(update={"species": ("Cu", "Ag", "Au")})
    run = train(config.model_copy(update={"data": chosen})).directory
    assert "uncertainty" in deploy_any(run, tmp_path / "a.pt", uncertainty=True)[1]


def test_an_overwritten_run_keeps_nothing_of_the_old_replay(tuned, source, files, tmp_path):
    shutil.copytree(tuned[30.0], tmp_path / "run")
    train(make_config(tmp_path / "run", files["new"], {"model": str(source)}), overwrite=True)
    assert not (tmp_path / "run/replay.xyz").exists()
    assert "Did it forget?" not in write_report(tmp_path / "run").read_text()


def test_learning_rate_is_searched_with_the_replay(source, files, tmp_path):
    losses = [
        find_learning_rate(
            make_config(tmp_path, files["new"], {"model": str(source), **more}), steps=3
        ).losses
        for more in ({}, {"replay": 6})
    ]
    assert losses[0] != losses[1]


@dataclasses.dataclass
class Sizes:
    num_atoms: np.ndarray
    num_edges: np.ndarray
    label_counts: np.ndarray
    num_replayed: int

    def __len__(self):
        return len(self.num_atoms)


def test_replayed_frames_take_turns_with_the_others():
    sizes = Sizes(np.full(10, 4), np.full(10, 9), np.ones((10, 3), dtype=int), num_replayed=7)
    sampler = StepSampler(sizes, Budget(2), seed=0)
    seen = []
    for epoch in range(7):
        sampler.set_epoch(epoch)
        steps = [step.parts[0].tolist() for step in sampler]
        assert sorted(own for own, _ in steps) == [0, 1, 2]
        seen += [replayed for _, replayed in steps]
    for start in (0, 7, 14):  # each once before one comes again
        assert sorted(seen[start : start + 7]) == [3, 4, 5, 6, 7, 8, 9]
    assert seen[:7] != seen[7:14]


def test_places_in_the_periodic_table():
    found = {number: place(number) for number in (1, 2, 3, 5, 10, 13, 21, 31, 57, 70, 71, 79, 92, 94)}
    columns = {1: 1, 2: 18, 3: 1, 5: 13, 10: 18, 13: 13, 21: 3, 31: 13, 71: 3, 79: 11}
    assert {number: column for number, (column, row) in found.items() if row < 8} == columns
    assert found[57][0] - found[70][0] == 57 - 70 and found[92][1] == found[57][1] + 1


def test_a_periodic_table_of_any_errors(tmp_path):
    for errors in ({"H": 0.0}, {"H": 0.1, "U": 1e-9, "Og": 2.0, "Si": 30.0}):
        plot_elements(errors, tmp_path / "table.png")
        assert (tmp_path / "table.png").stat().st_size > 10_000
