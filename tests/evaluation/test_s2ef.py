"""The Open Catalyst challenge's measures, by hand-made numbers and by the functions its evaluator uses."""

import io
import json

import numpy as np
import pytest
import torch
from rich.console import Console

from equipot.data.frames import FIXED
from equipot.evaluation.metrics import worst_frames
from equipot.evaluation.predict import Comparison, FrameOrigin
from equipot.evaluation.report import as_dict, print_report
from equipot.evaluation.s2ef import s2ef_rows

MARKS = np.array([FIXED, 1, 2, FIXED, 1, 2, FIXED, 1, 2], dtype=np.uint8)


def comparison(energy_errors, force_errors, files=("id/0.lmdb", "id/1.lmdb", "ood/0.lmdb"), marks=MARKS):
    """Three frames of three atoms (N, 3 errors by component); the reference forces are (1, 0, 0)."""
    reference = {"energy": np.array([1.0, 2.0, 3.0]), "forces": np.tile([1.0, 0, 0], (9, 1))}
    values = {
        "energy": reference["energy"] + energy_errors,
        "forces": reference["forces"] + np.asarray(force_errors),
    }
    sources = [FrameOrigin(file, index) for index, file in enumerate(files)]
    return Comparison(sources, np.full(3, 3), np.full(9, 29), values, reference, None, marks)


def test_by_hand():
    errors = np.zeros((9, 3))
    errors[[0, 3, 6]] = 5.0  # fixed atoms: nowhere in it
    errors[1] = (0.029, -0.029, 0.0)  # first frame, surface: within
    errors[5] = (0.0, 0.0, 0.031)  # second frame, adsorbate: not
    errors[8] = (-2.0, 0.0, 0.0)  # third frame: points the other way, and is not within either
    every, ids, oods = s2ef_rows(comparison([0.019, -0.001, 0.021], errors))
    assert [row["name"] for row in (every, ids, oods)] == ["all", "id", "ood"]
    assert [row["frames"] for row in (every, ids, oods)] == [3, 2, 1]
    assert every["energy_mae"] == pytest.approx(1e3 * (0.019 + 0.001 + 0.021) / 3)
    assert every["force_mae"] == pytest.approx(1e3 * (2 * 0.029 + 0.031 + 2.0) / 18)
    by_tag = {"1": 1e3 * 2 * 0.029 / 9, "2": 1e3 * (0.031 + 2.0) / 9}
    assert every["force_mae_by_tag"] == pytest.approx(by_tag)
    cosines = [1.029 / np.hypot(1.029, 0.029), 1, 1, 1 / np.hypot(1, 0.031), 1, -1]
    assert every["force_cosine"] == pytest.approx(np.mean(cosines))
    assert (every["efwt"], ids["efwt"], oods["efwt"]) == (pytest.approx(1 / 3), 0.5, 0.0)


@pytest.mark.parametrize(("energy", "force", "within"), [(0.0199, 0.0299, 1), (0.0201, 0, 0), (0, 0.0301, 0)])
def test_both_thresholds(energy, force, within):
    errors = np.zeros((9, 3))
    errors[[1, 4, 7], 1] = force
    assert s2ef_rows(comparison(np.full(3, -energy), errors))[0]["efwt"] == within


def test_against_the_functions_of_the_evaluator():
    random = np.random.default_rng(0)
    made = comparison(0.02 * random.normal(size=3), random.normal(size=(9, 3)))
    made.values["forces"][1] = 0.0  # a cosine with nothing is 0
    free = MARKS < FIXED
    predicted, reference = (torch.from_numpy(f["forces"][free]) for f in (made.values, made.reference))
    row = s2ef_rows(made)[0]
    assert row["force_mae"] == pytest.approx(1e3 * (predicted - reference).abs().mean().item())
    assert row["force_cosine"] == pytest.approx(torch.cosine_similarity(predicted, reference).mean().item())


def test_fixed_atoms_left_out_or_not_say_the_same():
    random = np.random.default_rng(1)
    made = comparison(random.normal(size=3), random.normal(size=(9, 3)))
    rows = s2ef_rows(made)
    made.reference["forces"][MARKS >= FIXED] = np.nan
    assert s2ef_rows(made) == rows
    worst = worst_frames(made)["forces"]
    errors = made.error("forces").reshape(3, 3, 3)[:, 1:]
    order = np.argsort(-(errors**2).mean(axis=(1, 2)))
    assert [frame.index for frame in worst] == order.tolist()
    assert worst[0].forces_rmse == pytest.approx(1e3 * np.sqrt((errors[order[0]] ** 2).mean()))
    assert worst[0].worst_atom in (1, 2)


def test_missing_labels():
    made = comparison(np.zeros(3), np.zeros((9, 3)))
    made.reference["energy"][0] = np.nan
    made.reference["forces"][3:6] = np.nan
    row = s2ef_rows(made)[0]
    assert row["efwt"] == 1 and row["energy_mae"] == 0  # of the one frame that has both
    made.reference["energy"][:] = np.nan
    assert s2ef_rows(made)[0]["efwt"] is None and s2ef_rows(made)[0]["energy_mae"] is None


def test_only_for_data_with_tags():
    assert s2ef_rows(comparison(np.zeros(3), np.zeros((9, 3)), marks=None)) == []
    fixed = np.where(MARKS >= FIXED, FIXED, 0).astype(np.uint8)
    assert s2ef_rows(comparison(np.zeros(3), np.zeros((9, 3)), marks=fixed)) == []


def test_sets_are_folders_or_files():
    made = comparison(np.zeros(3), np.zeros((9, 3)), files=("a/0.lmdb", "a/0.lmdb", "a/1.lmdb"))
    assert [row["name"] for row in s2ef_rows(made)] == ["all", "a/0.lmdb", "a/1.lmdb"]
    assert len(s2ef_rows(made.select(np.array([True, True, False])))) == 1


def test_table_and_json(tmp_path):
    made = comparison([0.0, 0.1, 0.3], np.zeros((9, 3)))
    console = Console(file=io.StringIO(), width=110)
    print_report(made, console)
    printed = console.file.getvalue()
    assert "Open Catalyst S2EF: MAE of total energies and of forces on free atoms" in printed
    line = next(line for line in printed.splitlines() if line.startswith("│ ood "))
    assert [cell.strip() for cell in line.split("│")[1:-1]] == [
        "ood", "1", "300.0", "0.000", "0.000", "0.000", "1.000", "0.00",
    ]  # fmt: skip
    assert json.loads(json.dumps(as_dict(made, tmp_path)))["s2ef"][0]["efwt"] == pytest.approx(1 / 3)
