"""Ensembles, uncertainties and the learning-rate finder, by the commands a user types."""

import json

import ase.io
import numpy as np
import pytest

from equipot.ops.build import kernels_available
from equipot.training import learning_rate


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_ensemble_is_trained_evaluated_deployed_and_run(equipot, workspace, tmp_path):
    run, model = tmp_path / "run", tmp_path / "model"
    arguments = (workspace.config, f"run.directory={run}", "training.epochs=2", "--ensemble", 2)
    result = equipot("train", *arguments)
    assert result.code == 0, result.err
    assert "member_0 of 2 members, seed 0" in result.out and "member_1 of 2 members, seed 1" in result.out
    result = equipot("train", *arguments, "--resume", "auto")
    assert result.code == 0 and result.out.count("Finished before.") == 2
    result = equipot("train", *arguments)
    assert result.code == 1 and "--overwrite" in result.err

    result = equipot("deploy", run, "--output", model)
    assert result.code == 0 and "(2 members)" in result.out, result.err
    for folder, name in ((run, "trained"), (model, "deployed")):
        result = equipot("evaluate", folder, workspace.test, "--output", tmp_path / name)
        assert result.code == 0, result.err
        assert "Disagreement of 2 members" in result.out and "calibration.png" in result.out
    trained, deployed = (read(tmp_path / name / "disagreement.json") for name in ("trained", "deployed"))
    for one, other in zip(trained["quantities"], deployed["quantities"], strict=True):
        # the same float64 weights; tables of radial functions are as accurate as single precision
        assert one["mean"] == pytest.approx(other["mean"], rel=1e-4)
        assert one["mean"] > 0

    steps = ("--steps", 5, "--interval", 1, "--output", tmp_path / "md")
    result = equipot("md", f"{workspace.test}@0", "--model", model, *steps)
    assert result.code == 0, result.err
    result = equipot("deploy", run, "--output", model / "member_0.pt")
    assert result.code == 1 and "an ensemble becomes a folder" in result.err


@pytest.mark.skipif(not kernels_available(), reason="no compiler")
def test_uncertainty_is_deployed_shown_checked_evaluated_and_logged(equipot, workspace, tmp_path):
    model = tmp_path / "model.pt"
    result = equipot("deploy", workspace.run, "--uncertainty", "--output", model)
    assert result.code == 0, result.err
    assert "uncertainty: from 4 features of 12 frames, calibrated on 4: predicted" in result.out
    assert "calibrated on 4 validation frames only" in result.err
    assert "from 4 features of 12 frames" in equipot("info", model).out
    assert "none" in equipot("info", workspace.model).out
    result = equipot("check", model)
    assert result.code == 0 and "reference uncertainty" in result.out
    result = equipot("evaluate", model, workspace.test, "--output", tmp_path / "errors")
    assert result.code == 0 and "Uncertainty of the energy" in result.out and "uncertainty.json" in result.out
    frames = ase.io.read(workspace.test, ":")
    for frame in frames:
        frame.calc = None
        frame.rattle(0.3, seed=1)
    ase.io.write(tmp_path / "hot.xyz", frames)
    files = ("--output", tmp_path / "hot", "--predictions", tmp_path / "p.xyz")
    assert equipot("evaluate", model, tmp_path / "hot.xyz", *files).code == 0
    cold, hot = (
        np.mean([frame["uncertainty"] for frame in read(tmp_path / name / "uncertainty.json")["frames"]])
        for name in ("errors", "hot")
    )
    assert hot > 2 * cold  # far from what it was trained on
    steps = ("--steps", 2, "--interval", 1, "--output", tmp_path / "md")
    assert equipot("md", f"{workspace.test}@0", "--model", model, *steps).code == 0
    assert (tmp_path / "md" / "log.csv").read_text().splitlines()[0].endswith(",energy_uncertainty_eV")


def test_learning_rate_is_suggested_and_nothing_else_happens(equipot, workspace, tmp_path, monkeypatch):
    original = learning_rate.find_learning_rate
    monkeypatch.setattr(learning_rate, "find_learning_rate", lambda config: original(config, steps=40))
    monkeypatch.chdir(tmp_path)
    result = equipot("train", workspace.config, "run.directory=new", "--find-learning-rate")
    assert result.code == 0, result.err
    assert "Suggestion: training.learning_rate=" in result.out and "(now 0.02)" in result.out
    assert [path.name for path in tmp_path.iterdir()] == ["config_learning_rate.png"]
    result = equipot(
        "train", workspace.config, "run.directory=new", "--find-learning-rate", "--resume", "auto"
    )
    assert result.code == 2 and "leave out --resume" in result.err
