"""scripts/benchmark denoising: what is held out, and what it goes on with."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import ase.io
import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
FRAMES = ROOT / "examples" / "01_molecule" / "train.xyz"


@pytest.fixture
def script(monkeypatch):
    path = ROOT / "scripts" / "benchmarks" / "denoising.py"
    spec = importlib.util.spec_from_file_location("denoising", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_sets_are_nested_and_nothing_is_seen_before(script, tmp_path):
    files = script.split(FRAMES, [5, 10], tmp_path)
    sets = {name: [a.positions.tobytes() for a in ase.io.read(file, ":")] for name, file in files.items()}
    assert sets["10"][:5] == sets["5"] and sets["pool"][:10] == sets["10"]
    assert sets["validation"][:20] == sets["few"] and len(sets["test"]) == 50
    assert not set(sets["test"]) & {*sets["pool"], *sets["validation"]}
    assert not set(sets["validation"]) & set(sets["pool"])


def test_validation_chooses_and_the_test_set_is_evaluated_once(script, tmp_path, monkeypatch):
    fitted, evaluated = [], []

    def fit(start, size, rate, *_):
        fitted.append((start, size, rate))
        errors = {"loss": rate, "forces_rmse": rate, "energy_rmse": 0.001}
        return {
            "start": start, "frames": size, "rate": rate, "epochs": 1, "processor_seconds": 1.0,
            "run": "run", "validation": errors,
        }  # fmt: skip

    def tested(row, *_):
        evaluated.append((row["start"], row["frames"], row["rate"]))
        return {"test": {"forces_rmse": 0.1, "energy_rmse": 0.01}}

    made = [
        {"sigma": None, "rms": 0.03},
        {"sigma": 0.1, "number": 2, "converged": 2, "right": 0, "steps": []},
    ]
    made[1]["rms"] = None
    for name, replaced in {
        "pretrain": lambda *_: None, "fit": fit, "tested": tested, "deploy": lambda *_: None,
        "structures": lambda *_: made,
    }.items():  # fmt: skip
        monkeypatch.setattr(script, name, replaced)
    arguments = script.parse(
        [str(FRAMES), "--sizes", "5", "--rates", "0.02", "0.01", "--output", str(tmp_path)]
    )
    results = script.main(arguments)
    assert fitted == [(start, 5, rate) for start in ("from scratch", "denoised") for rate in (0.02, 0.01)]
    assert evaluated == [("from scratch", 5, 0.01), ("denoised", 5, 0.01)]
    assert script.main(arguments) == results == json.loads((tmp_path / "results.json").read_text())
    assert len(fitted) == 4 and len(evaluated) == 2


def test_nothing_follows_from_an_interrupted_training(script, tmp_path):
    done = script.TrainResult(tmp_path, None, tmp_path, {}, "finished")
    assert script.whole(done) is done
    with pytest.raises(SystemExit):
        script.whole(replace(done, stopped="interrupted"))


def test_bonds_are_those_of_the_molecule(script):
    ethanol = ase.io.read(FRAMES, "0")
    bonds = script.bonds_of(ethanol)
    assert len(bonds) == 8  # a tree of nine atoms
    far = ethanol.copy()
    far.positions = far.positions * 3
    assert script.bonds_of(far) == set() and np.all([i < j for i, j in bonds])
