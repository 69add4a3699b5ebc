"""scripts/benchmark fine-tuning: what it compares, and going on where it stopped."""

import importlib.util
import json
from pathlib import Path

import pytest

from equipot.evaluation.metrics import summary
from equipot.evaluation.run import evaluate

ROOT = Path(__file__).parents[2]
CRYSTALS = ROOT / "examples" / "02_crystal"
TINY = ["model.channels=2", "model.layers=1", "model.cutoff=4.0", "model.radial_hidden=[4]"]


@pytest.fixture
def script(monkeypatch):
    path = ROOT / "scripts" / "benchmarks" / "fine_tuning.py"
    spec = importlib.util.spec_from_file_location("fine_tuning", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    real = module.load_config
    for_cpu = "run.device=cpu", "training.epochs=2"

    def short(file, overrides):
        more = (*for_cpu, "fine_tune.replay=10") if file.name == "fine_tune.yaml" else for_cpu[:1]
        return real(file, [*overrides, *more])

    monkeypatch.setattr(module, "load_config", short)
    monkeypatch.setattr(module, "_PILOT_FRAMES", 1)
    for name in ("plot_learning_curve", "plot_elements", "write_report"):  # which take longer than the rest
        monkeypatch.setattr(f"equipot.training.results.{name}", lambda *_: None)
    monkeypatch.setattr("equipot.evaluation.report.plot_parity", lambda *_: False)
    return module


def test_both_are_tested_on_the_same_frames_and_kept(script, small_model, tmp_path, monkeypatch):
    files = ["silicon", str(CRYSTALS / "train.xyz"), str(CRYSTALS / "test.xyz")]
    options = ["--model", str(small_model), "--sizes", "5", "--test-frames", "2", "--output", str(tmp_path)]
    results = script.main(script.parse([*files, *options, *TINY]))
    assert [row["model"] for row in results] == ["as imported", "fine-tuned", "from scratch"]
    assert all(row["test"]["forces_mae"] > 0 for row in results)
    assert results[1]["replay"]["before"]["all"]["frames"] == 10
    tuned, scratch = (row["processor_seconds"] for row in results[1:])
    assert scratch < 3 * tuned + 5  # about as long; the rest is start-up, on a machine with other work
    assert (tmp_path / "fine_tuning.svg").stat().st_size > 5000
    monkeypatch.setattr(script, "timed", None)  # nothing is trained again
    assert script.main(script.parse([*files, *options, *TINY])) == results
    assert json.loads((tmp_path / "results.json").read_text())["results"] == results


def test_sets_are_nested_and_tests_lie_evenly(script, small_model, tmp_path):
    source, test = CRYSTALS / "train.xyz", CRYSTALS / "test.xyz"
    (small, tests), (large, _) = (script.draw(source, test, size, 3, tmp_path) for size in (2, 4))
    contents = [
        [a.positions.tobytes() for a in script.ase.io.read(file, ":")] for file in (small, large, tests)
    ]
    assert len(contents[0]) == 2 and contents[1][:2] == contents[0] and len(contents[2]) == 3
    assert not set(contents[1]) & set(contents[2])
    assert script.errors_on(small_model, tests) == summary(evaluate(small_model, [tests]).comparison)
