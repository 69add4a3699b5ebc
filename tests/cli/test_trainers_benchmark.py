"""scripts/benchmark trainers: budget of processor time, plan, errors and table, without the peers."""

import importlib.util
import json
import sys
import time
from pathlib import Path

import ase.io
import numpy as np
import pytest
from rich.console import Console

from equipot.errors import ConfigError

ROOT = Path(__file__).parents[2]
TRAIN = ROOT / "examples" / "01_molecule" / "train.xyz"
# Epochs of ten steps that take 0.1 s, 20 s in all if nobody ends it; the log is that of equipot.
TRAINER = """
import sys, time
with open(sys.argv[1], "w") as log:
    log.write("epoch,step\\n")
    for epoch in range(1, 200):
        end = time.process_time() + 0.1
        while time.process_time() < end: pass
        log.write(f"{epoch},{10 * epoch}\\n"); log.flush()
"""


@pytest.fixture
def script(monkeypatch):
    folder = ROOT / "scripts" / "benchmarks"
    spec = importlib.util.spec_from_file_location("trainers_benchmark", folder / "trainers.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.syspath_prepend(folder)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "_TICK", 0.02)
    return module


@pytest.fixture
def arguments(script, tmp_path):
    parsed = script.parse([str(TRAIN), "--validation", "10", "--minutes", "0.05", "--output", str(tmp_path)])
    script.draw(parsed)
    parsed.pythons = {name: Path(sys.executable) for name in script.PACKAGES}
    return parsed


def test_validation_frames_are_drawn_once_and_not_trained_on(arguments, script):
    parts = {n: ase.io.read(arguments.output / "data" / f"{n}.xyz", ":") for n in ("train", "validation")}
    positions = {name: {atoms.positions.tobytes() for atoms in part} for name, part in parts.items()}
    assert len(parts["validation"]) == 10 and not positions["train"] & positions["validation"]
    every = {atoms.positions.tobytes() for atoms in ase.io.read(TRAIN, ":")}
    assert positions["train"] | positions["validation"] == every
    arguments.validation = len(every)
    with pytest.raises(ConfigError, match="leave some"):
        script.draw(arguments)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--minutes", "nan"], "--minutes"),
        (["--seed", "-1"], "must be 0 or more, found -1"),
        (["--test", "nowhere.xyz"], "no file nowhere.xyz"),
    ],
)
def test_what_cannot_be_used_is_said_before_anything_is_trained(script, capsys, options, words):
    with pytest.raises(SystemExit):
        script.parse([str(TRAIN), *options])
    assert words in capsys.readouterr().err


def test_a_recipe_of_more_epochs_begins_and_ends_its_stages_at_the_same_share(script, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "training:\n  epochs: 40\n  loss: {energy: {start: 1, end: 9, from_epoch: 10, to_epoch: 20}}\n"
        "  swa: {from_epoch: 30}\n  schedule: {warmup_epochs: 1}\n"
    )
    energy = "training.loss.energy"
    moved = [f"{energy}.from_epoch=25", f"{energy}.to_epoch=50", "training.swa.from_epoch=75"]
    assert script.stretched(recipe, 100) == ["training.epochs=100", *moved]


def test_a_trainer_that_is_not_installed_is_named(script, monkeypatch):
    script.require_package(Path(sys.executable), "equipot")
    monkeypatch.setitem(script.PACKAGES, "mace", "no-such-package")
    with pytest.raises(ConfigError, match=r"no-such-package is not in .*--mace-python"):
        script.require_package(Path(sys.executable), "mace")


def test_a_command_and_its_children_are_stopped_by_their_processor_time(script, tmp_path):
    burn = "import time\nwhile time.process_time() < 20: pass"  # it ends, should nobody end it
    line = [sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}])"]
    start = time.process_time()
    used = script.run(line, tmp_path / "burn", 1, lambda seconds: seconds > 0.5)
    assert 0.5 < used < 2 and time.process_time() - start < used
    sleeping = script.run([sys.executable, "-c", "import time; time.sleep(0.6)"], tmp_path / "sleep", 1)
    assert sleeping < 0.5
    with pytest.raises(RuntimeError, match=r"status 3: see .*fail\.log"):
        script.run([sys.executable, "-c", "import sys; sys.exit(3)"], tmp_path / "fail", 1)


def test_epochs_are_planned_by_a_pilot(script, arguments, monkeypatch):
    folder = arguments.output / "pilot"
    folder.mkdir()
    line = [sys.executable, "-c", TRAINER, str(folder / "metrics.csv")]
    monkeypatch.setattr(script, "command", lambda *_: line)
    monkeypatch.setattr(script, "_PILOT_SECONDS", 0.5)
    # 0.97 of 3 s, and epochs of 0.1 s.
    assert 22 < script.plan(arguments, "equipot", folder) < 34
    arguments.minutes = 0.001
    with pytest.raises(ConfigError, match="raise --minutes"):
        script.plan(arguments, "equipot", folder)


LOGS = {
    "equipot": ("metrics.csv", "epoch,step,x\n1,90,0.5\n2,180,0.4\n"),
    "nequip": ("metrics.csv", "epoch,step,val0_epoch/weighted_sum\n0,89,\n0,89,0.4\n1,179,0.3\n1,199,\n"),
    "mace": (
        "results/mace_run-123_train.txt",
        "".join(
            json.dumps({"mode": mode, "epoch": epoch}) + "\n"
            for mode, epoch in [("eval", None), ("opt", 0), ("opt", 0), ("eval", 0), ("opt", 1)]
        )
        + '{"mode": "op',
    ),
}


@pytest.mark.parametrize(
    ("name", "expected"), [("equipot", (2, 180)), ("nequip", (2, 200)), ("mace", (1, 3))]
)
def test_progress_is_read_from_each_log(script, tmp_path, name, expected):
    assert script.progress(name, tmp_path) == (0, 0)
    file, text = LOGS[name]
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text)
    assert script.progress(name, tmp_path) == expected


def test_errors_of_known_deviations_stand_in_the_table(script, arguments, tmp_path):
    frames = ase.io.read(TRAIN, ":2")
    file = tmp_path / "two.xyz"
    ase.io.write(file, frames)
    forces = np.concatenate([atoms.get_forces() for atoms in frames])
    forces[0, 0] += 0.3
    energies = [atoms.get_potential_energy() + 0.009 for atoms in frames]  # of 9 atoms
    found = script.errors(file, {"forces": forces, "energies": energies})
    assert found["forces_mae"] == pytest.approx(0.3 / 54)
    assert found["forces_rmse"] == pytest.approx(0.3 / np.sqrt(54))
    assert found["energy_mae"] == pytest.approx(0.001) and found["energy_rmse"] == pytest.approx(0.001)
    row = {
        "epochs": 3,
        "steps": 90,
        "processor_seconds": 90.0,
        "versions": {"mace-torch": "0.3.16"},
        "settings": {},
    }
    console = Console(width=120, record=True, file=(tmp_path / "shown").open("w"))
    console.print(script.table({"mace": {**row, "errors": {"two": found}}}, "two"))
    text = console.export_text()
    assert "mace 0.3.16 │ mace.yaml" in text
    assert [word for word in text.splitlines()[-2].split() if word[0].isdigit()][1:] == [
        "3", "90", "1.5", "5.6", "40.8", "1.00",
    ]  # fmt: skip


def test_what_was_trained_is_not_trained_again(script, arguments, monkeypatch):
    monkeypatch.setattr(script, "plan", lambda *_: 1)
    monkeypatch.setattr(script, "command", lambda *_: [sys.executable, "-c", "pass"])
    with pytest.raises(ConfigError, match="no epoch ended"):
        script.compete(arguments, "mace")
    kept = json.loads((arguments.output / "mace" / "trained.json").read_text())
    assert kept["settings"]["minutes"] == 0.05
    monkeypatch.setattr(script, "run", lambda *_: pytest.fail("trained again"))
    with pytest.raises(ConfigError, match="no epoch ended"):
        script.compete(arguments, "mace")
    arguments.minutes = 1.0
    with pytest.raises(ConfigError, match="choose another --output"):
        script.compete(arguments, "mace")
