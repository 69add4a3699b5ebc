"""scripts/pareto: the same time for every model, the front by validation, and going on where it stopped."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.io import write

from equipot.engine.library import Engine
from equipot.errors import ConfigError, DataError

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmarks" / "pareto.py"
MODELS = [
    "type=nequip l_max=1 layers=1 channels=2 radial_hidden=[4]",
    "type=allegro l_max=1 layers=1 channels=2",
]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("pareto", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPT.parent)
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def trainings(script):
    """The module that it shares with scripts/learning_curves."""
    return sys.modules[script.run_one.__module__]


@pytest.fixture(scope="module")
def done(script, trainings, workspace, tmp_path_factory):
    """What the whole command leaves for two models, its rows and its command line."""
    output = tmp_path_factory.mktemp("pareto")
    command = [str(workspace.data), "--test", str(workspace.test), "--validation", "3", "--held-out", "0"]
    command += [word for model in MODELS for word in ("--model", model)]
    command += ["--minutes", "0.05", "--output", str(output), "model.cutoff=4.0", "run.device=cpu"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainings, "epoch_seconds", lambda config: 1.0)
        rows = script.main(script.parse(command))
    return output, rows, command


def test_every_model_is_trained_deployed_and_timed(done):
    output, rows, _ = done
    results = json.loads((output / "results.json").read_text())
    assert results["models"] == rows and results["atoms"] == 256  # 4 atoms, repeated
    assert [row["label"].split(", ")[0] for row in rows] == ["NequIP", "Allegro"]
    for row in rows:
        written = (output / "runs" / row["run"] / "config.yaml").read_text()
        assert "epochs: 5" in written and "max_minutes: 0.05" in written and "in_time: true" in written
        assert row["steps"] > 0 and row["microseconds"] > 0
        assert set(row["errors"]) == {"test"} and row["quantities"] == ["energy", "forces", "stress"]
        assert Engine(output / "runs" / row["run"] / "model.pt").species == ("Cu",)
    assert (output / "pareto.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_done_is_kept_and_timed_again(done, script, trainings, monkeypatch, capsys):
    for name in ("train", "epoch_seconds"):
        monkeypatch.setattr(trainings, name, lambda *_, **__: pytest.fail("done again"))
    monkeypatch.setattr(script, "deploy", lambda *_: pytest.fail("deployed again"))
    monkeypatch.setattr(script, "microseconds", lambda files, atoms: [20.0, 5.0][: len(files)])
    rows = script.main(script.parse(done[2]))
    assert [row["microseconds"] for row in rows] == [20.0, 5.0]
    said = capsys.readouterr().out
    assert said.index("5 µs  Allegro, l_max 1, 1 × 2: ") > said.index("Take the last of these")
    with pytest.raises(ConfigError, match="other settings"):
        script.main(script.parse([*done[2], "--minutes", "1"]))
    with pytest.raises(DataError, match="other frames"):
        script.main(script.parse([*done[2], "--frames", "5"]))


def test_the_time_of_an_epoch_is_that_of_its_steps_and_validation(trainings, workspace, monkeypatch):
    seconds, calls = iter((1.0, 10.0)), []  # of a step, of a validation batch

    def clock(call, items):
        calls.append([call(item) for item in items])
        return next(seconds)

    monkeypatch.setattr(trainings, "_seconds", clock)
    found = trainings.epoch_seconds(trainings.load_config(workspace.config))
    # 12 frames in steps of 4, 4 frames of validation at once; a tenth more for what is neither.
    assert calls[0] and len(calls[1]) == 1
    assert found == pytest.approx(1.1 * (3 * 1.0 + 10.0))


def test_a_budget_without_two_epochs_is_refused(script, trainings, workspace, tmp_path, monkeypatch):
    monkeypatch.setattr(trainings, "epoch_seconds", lambda config: 40.0)
    command = [str(workspace.data), "--model", MODELS[0], "--minutes", "1", "--output", str(tmp_path)]
    with pytest.raises(ConfigError, match=r"two epochs take 1.33 minutes. Raise --minutes \(1\)"):
        script.main(script.parse(command))
    assert not (tmp_path / "runs").exists()


def test_the_front_is_chosen_by_validation_alone(script):
    def row(name, time, validation, test):
        errors = {"forces_mae": validation}, {"test": {"forces_mae": test}}
        return {"run": name, "microseconds": time, "validation": errors[0], "errors": errors[1]}

    rows = [row("best", 9, 1, 5), row("beaten", 5, 7, 1), row("fast", 1, 9, 9), row("good", 3, 4, 6)]
    assert [row["run"] for row in script.front(rows, "mae")] == ["fast", "good", "best"]


def test_what_is_timed(script, tmp_path):
    write(tmp_path / "crystals.xyz", [bulk("Cu"), bulk("Cu", cubic=True)])
    atoms = script.timed_structure(tmp_path / "crystals.xyz", 100)
    assert len(atoms) == 64 and sorted(np.rint(atoms.cell.lengths() / 3.61)) == [2, 2, 4]
    write(tmp_path / "molecules.xyz", [molecule("H2O"), molecule("C6H6")])
    assert len(script.timed_structure(tmp_path / "molecules.xyz", 100)) == 12


@pytest.mark.parametrize(
    "wrong",
    [["--minutes", "0"], ["--frames", "0"], ["model.l_max=2"], ["training.epochs=3"], ["--held-out", "0"]],
)
def test_contradicting_options_are_usage_errors(script, workspace, wrong):
    with pytest.raises(SystemExit):
        script.parse([str(workspace.data), *wrong])


@pytest.mark.parametrize(
    "model, message",
    [("nequip", "expected keys of section model"), ("cutoff=5'", "No closing quotation")],
)
def test_a_model_that_is_no_model_is_refused(script, workspace, model, message):
    with pytest.raises(ConfigError, match=message):
        script.parse([str(workspace.data), "--model", model])


def test_trainings_without_forces_are_refused(script, trainings, workspace, tmp_path, monkeypatch):
    monkeypatch.setattr(trainings, "epoch_seconds", lambda config: 1.0)
    command = [str(workspace.data), "--output", str(tmp_path), "training.loss.forces=0", "--model", MODELS[0]]
    with pytest.raises(ConfigError, match=r"chosen by the error of forces"):
        script.main(script.parse(command))
