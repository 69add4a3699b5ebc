"""Ensembles evaluated: members that are wrong by known factors."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from equipot.errors import ModelFileError
from equipot.evaluation import run
from equipot.evaluation.ensemble import (
    Disagreement,
    calibration,
    disagreement_rows,
    member_paths,
    predict_members,
    print_disagreement,
    write_disagreement,
)

FAULTS = (1.0, 1.1, 1.2)  # their mean is wrong by a tenth, and so is their standard deviation

FILE = 1e-6  # labels come from a file with eight digits


@pytest.fixture
def predicted(frames, morse_model):
    return predict_members([morse_model(fault) for fault in FAULTS], frames)


def test_mean_and_deviation_of_members(frames, morse_model, predicted):
    mean, spread = predicted
    single, alone = predict_members([morse_model(1.1)], frames)
    assert alone is None
    for name in ("energy", "forces", "stress"):
        # rounding of a mean over three
        np.testing.assert_allclose(getattr(mean, name), getattr(single, name), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(
        spread.energy, 0.1 * np.abs(mean.reference["energy"]) / mean.num_atoms, rtol=FILE
    )
    np.testing.assert_allclose(
        spread.forces, 0.1 * np.linalg.norm(mean.reference["forces"], axis=1), rtol=FILE
    )
    largest = [spread.forces[mean.atoms_of(i)].max() for i in range(len(frames))]
    assert spread.largest_force.tolist() == largest


def test_disagreement_that_equals_the_error_is_called_calibrated(predicted):
    mean, spread = predicted
    for row in disagreement_rows(mean, spread):
        assert row.spearman == pytest.approx(1.0, abs=1e-12), row.quantity
        assert row.error_ratio == pytest.approx(1.0, rel=FILE), row.quantity
    counts = [row.count for row in disagreement_rows(mean, spread)]
    assert counts == [7, 51, 7]


def test_disagreement_that_says_nothing_of_the_error(predicted, rng):
    mean, spread = predicted
    shuffled = Disagreement(spread.energy, rng.permutation(spread.forces) / 4, spread.offsets)
    row = disagreement_rows(mean, shuffled)[1]
    assert abs(row.spearman) < 0.4  # of 51 atoms: three standard deviations of the correlation of noise
    assert row.error_ratio == pytest.approx(4.0, rel=FILE)


def test_without_labels_there_is_disagreement_but_no_correlation(predicted, frames, morse_model):
    from dataclasses import replace

    bare = [replace(frame, values={}) for frame in frames]
    mean, spread = predict_members([morse_model(fault) for fault in FAULTS], bare)
    for row in disagreement_rows(mean, spread):
        assert row.mean > 0
        assert (row.spearman, row.error_ratio, row.count) == (None, None, 0)


def test_calibration_bins_hold_the_same_number_from_least_to_most():
    deviations = np.arange(40)[::-1].astype(float)
    x, y = calibration(deviations, 2 * deviations)
    assert len(x) == 10
    assert x[0] == pytest.approx(np.sqrt(np.mean(np.arange(4) ** 2)))
    np.testing.assert_allclose(y, 2 * x)


def test_files_and_table(predicted, frames, tmp_path):
    mean, spread = predicted
    files = write_disagreement(mean, spread, frames, 3, tmp_path)
    assert [file.name for file in files] == ["disagreement.json", "calibration.png"]
    assert files[1].read_bytes()[:4] == b"\x89PNG"
    content = json.loads(files[0].read_text())
    assert content["members"] == 3
    assert [row["index"] for row in content["frames"]] == list(range(7))
    first = content["frames"][0]
    assert first["largest_force_std_meV_per_A"] == pytest.approx(1e3 * spread.largest_force[0])
    console = Console(width=120, record=True, file=io.StringIO())
    print_disagreement(disagreement_rows(mean, spread), 3, console)
    text = console.export_text()
    assert "Disagreement of 3 members" in text
    assert "force per atom" in text
    assert "1.00" in text


def test_evaluate_takes_a_folder_of_members(monkeypatch, morse_model, data_file, tmp_path):
    for index in range(3):
        (tmp_path / "runs" / f"member_{index}" / "checkpoints").mkdir(parents=True)
        (tmp_path / "runs" / f"member_{index}" / "checkpoints" / "best.ckpt").touch()
    monkeypatch.setattr(run, "load_model", lambda path, *_: morse_model(FAULTS[int(path.name[-1])]))
    result = run.evaluate(tmp_path / "runs", [data_file], output=tmp_path / "out", device="cpu")
    assert {file.name for file in result.files} == {
        "errors.json", "parity.png", "disagreement.json", "calibration.png",
    }  # fmt: skip
    assert json.loads((tmp_path / "out" / "errors.json").read_text())["model"] == str(tmp_path / "runs")
    assert result.disagreement is not None


def test_untrained_members_are_named(tmp_path):
    for index in range(3):
        (tmp_path / f"member_{index}" / "checkpoints").mkdir(parents=True)
    (tmp_path / "member_0" / "checkpoints" / "best.ckpt").touch()
    with pytest.raises(ModelFileError, match=r"of which member_1, member_2 have no weights yet: go on with"):
        member_paths(tmp_path)
