"""Files with an uncertainty, evaluated: one number for each frame, and what it says of the errors."""

import json
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator

# tests/ is no package, so the neighboring folder is found by its path.
sys.path.insert(0, str(Path(__file__).parents[1] / "deploy"))
from standin import write_uncertain

from equipot import EquipotCalculator
from equipot.evaluation.ensemble import predict_members
from equipot.evaluation.model import load_model
from equipot.evaluation.predict import predict_frames
from equipot.evaluation.run import evaluate
from equipot.evaluation.uncertainty import uncertainty_rows
from equipot.ops.build import kernels_available

pytestmark = pytest.mark.skipif(not kernels_available(), reason="no compiler")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("uncertain") / "model.pt"
    write_uncertain(path, np.tril(np.random.default_rng(0).normal(size=(4, 4))))
    return path


@pytest.fixture(scope="module")
def data(model, tmp_path_factory):
    """Errors of 1, −2, 3, ... times the uncertainty, some frames without an energy, two groups."""
    frames, calculator = [], EquipotCalculator(model, device="cpu")
    for number in range(12):
        atoms = molecule(("H2O", "CH3CH2OH")[number % 2])
        atoms.rattle(0.02 * number, seed=number)
        calculator.calculate(atoms)
        error = (-1) ** number * (number % 3 + 1) * calculator.results["energy_uncertainty"]
        labels = {"energy": calculator.results["energy"] - error} if number < 9 else {}
        atoms.calc = SinglePointCalculator(atoms, forces=np.zeros((len(atoms), 3)), **labels)
        atoms.info["config_type"] = ("cold", "hot")[number > 5]
        frames.append(atoms)
    path = tmp_path_factory.mktemp("data") / "frames.xyz"
    ase.io.write(path, frames)
    return path


def test_uncertainties_of_frames_are_those_of_the_calculator(model, data):
    loaded = load_model(model, "cpu")
    frames = evaluate(model, [data], device="cpu").comparison
    calculator = EquipotCalculator(model, device="cpu")
    for sigma, atoms in zip(frames.uncertainty, ase.io.read(data, ":"), strict=True):
        right = calculator.get_property("energy_uncertainty", atoms) / len(atoms)
        assert sigma == pytest.approx(right, rel=1e-5)
    assert frames.select(np.arange(12) > 9).uncertainty.tolist() == frames.uncertainty[10:].tolist()
    # In small batches, too; and an ensemble has its disagreement instead.
    from equipot.data.readers import read_frames

    read = read_frames([data])
    batched = predict_frames(loaded, read, max_edges=20)
    np.testing.assert_allclose(batched.uncertainty, frames.uncertainty, rtol=1e-5)
    mean, spread = predict_members([loaded, loaded], read)
    assert mean.uncertainty is None and not spread.energy.any()


def test_rows_say_how_large_errors_are_beside_it(model, data):
    rows = {row["name"]: row for row in uncertainty_rows(evaluate(model, [data], device="cpu").comparison)}
    assert list(rows) == ["all", "cold", "hot"]
    assert [row["frames"] for row in rows.values()] == [9, 6, 3]  # those with an energy
    for row in rows.values():
        assert row["ratio_rms"] == pytest.approx(np.sqrt((1 + 4 + 9) / 3), rel=1e-4)


def test_output(model, data, tmp_path, capsys):
    from rich.console import Console

    console = Console(width=160)
    options = {"output": tmp_path / "out", "predictions": tmp_path / "p.xyz", "device": "cpu"}
    result = evaluate(model, [data], console=console, **options)
    out = capsys.readouterr().out
    assert "Uncertainty of the energy: RMS in meV/atom" in out and "2.16" in out
    written = json.loads((tmp_path / "out" / "uncertainty.json").read_text())
    assert written["unit"] == "eV/atom" and len(written["frames"]) == 12
    assert written["frames"][3]["uncertainty"] == result.comparison.uncertainty[3]
    assert (tmp_path / "out" / "calibration.png") in result.files
    frame = ase.io.read(tmp_path / "p.xyz", 3)
    sigma = frame.info["predicted_energy_uncertainty"]
    assert sigma == pytest.approx(9 * result.comparison.uncertainty[3])

    unlabelled = ase.io.read(data, ":")
    for atoms in unlabelled:
        atoms.calc = None
    ase.io.write(tmp_path / "unlabelled.xyz", unlabelled)
    result = evaluate(model, [tmp_path / "unlabelled.xyz"], console=console, **options)
    assert "Uncertainty of the energy" not in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "uncertainty.json").read_text())["groups"] == []
