from dataclasses import replace

import numpy as np
import pytest

from equipot.evaluation.metrics import ErrorRow, error_groups, error_rows, summary, worst_frames
from equipot.evaluation.predict import predict_frames
from equipot.units import EV_A3_TO_GPA


def without(frame, name):
    return replace(frame, values={kind: value for kind, value in frame.values.items() if kind != name})


def row(rows, quantity, unit):
    (found,) = [r for r in rows if (r.quantity, r.unit) == (quantity, unit)]
    return found


def test_statistics_of_known_errors():
    errors = np.array([[3.0, -4.0, 0.0], [np.nan, 0.0, 0.0], [0.0, 0.0, -5.0]])
    result = ErrorRow.from_errors("forces", "meV/Å", errors, "atoms")
    assert result.count == 2  # the row with a NaN has no label
    assert result.mae == pytest.approx(12 / 6)
    assert result.rmse == pytest.approx(np.sqrt(50 / 6))
    assert result.largest == 5.0 and result.spread is None
    labels = np.array([[9.0, 1.0, 7.0], [0.0, 0.0, 0.0], [11.0, 1.0, 1.0]])
    known = ErrorRow.from_errors("forces", "meV/Å", errors, "atoms", labels)
    assert known.spread == pytest.approx(np.sqrt((1 + 0 + 9) / 3))  # each about its own mean


def test_nothing_labelled_gives_no_number():
    result = ErrorRow.from_errors("stress", "GPa", np.full((4, 3, 3), np.nan), "frames")
    assert (result.mae, result.rmse, result.largest, result.count) == (None, None, None, 0)


def test_rows_of_a_model_ten_percent_too_strong(frames, morse_model):
    """Every prediction is 1.1 times its label, so each error is a tenth of the labels' own mean."""
    comparison = predict_frames(morse_model(fault=1.1), frames)
    rows = error_rows(comparison)
    per_atom = comparison.reference["energy"] / comparison.num_atoms
    silver = comparison.reference["forces"][comparison.atomic_numbers == 47]
    stress = comparison.reference["stress"][:-1]
    expected = {
        ("energy", "meV/atom"): (100 * np.abs(per_atom).mean(), 7),
        ("forces", "meV/Å"): (100 * np.abs(comparison.reference["forces"]).mean(), 51),
        ("forces Ag", "meV/Å"): (100 * np.abs(silver).mean(), 24),
        ("stress", "meV/Å³"): (100 * np.abs(stress).mean(), 6),
        ("stress", "GPa"): (0.1 * EV_A3_TO_GPA * np.abs(stress).mean(), 6),
    }
    for (quantity, unit), (mae, count) in expected.items():
        found = row(rows, quantity, unit)
        assert found.mae == pytest.approx(mae, rel=1e-6)  # labels are read back from 8 decimals
        assert found.count == count


def test_groups_only_where_there_are_several(frames, morse_model):
    assert error_groups(predict_frames(morse_model(), frames)) == []


def test_groups_by_file_and_by_config_type(frames, morse_model):
    """Kept apart even where a file and a config_type have the same name; frames without one are a group."""
    named = [
        replace(frame, file="ab"[i % 2], config_type="a" if i < 3 else None) for i, frame in enumerate(frames)
    ]
    comparison = predict_frames(morse_model(fault=1.1), named)
    groups = {(group.kind, group.name): group for group in error_groups(comparison)}
    assert {key: group.num_frames for key, group in groups.items()} == {
        ("file", "a"): 4,
        ("file", "b"): 3,
        ("config_type", "a"): 3,
        ("config_type", None): 4,
    }
    energy = 100 * np.abs(comparison.reference["energy"] / comparison.num_atoms)
    assert row(groups["file", "b"].rows, "energy", "meV/atom").mae == pytest.approx(energy[1::2].mean())
    assert row(groups["config_type", "a"].rows, "energy", "meV/atom").mae == pytest.approx(energy[:3].mean())
    forces = 100 * np.abs(comparison.reference["forces"][: 3 * 8])
    assert row(groups["config_type", "a"].rows, "forces", "meV/Å").mae == pytest.approx(forces.mean())


def test_summary_has_the_units_of_training(frames, morse_model):
    comparison = predict_frames(morse_model(fault=1.1), frames)
    found = summary(comparison)
    assert set(found) == {f"{name}_{k}" for name in ("energy", "forces", "stress") for k in ("mae", "rmse")}
    assert found["forces_rmse"] == pytest.approx(np.sqrt((comparison.error("forces") ** 2).mean()))
    cluster = summary(comparison.select(np.arange(7) == 6))
    assert "stress_mae" not in cluster


def test_worst_frame_is_the_one_made_wrong(frames, morse_model):
    comparison = predict_frames(morse_model(), frames)
    comparison.forces[comparison.atoms_of(4)] += 0.2
    comparison.forces[comparison.offsets[4] + 5, 1] -= 0.5
    comparison.energy[2] += 0.8
    worst = worst_frames(comparison, count=3)
    assert [len(worst["forces"]), len(worst["energy"])] == [3, 3]
    forces, energy = worst["forces"][0], worst["energy"][0]
    assert (forces.index, forces.file, energy.index) == (4, str(frames[4].file), 2)
    assert energy.energy == pytest.approx(100.0, abs=1e-5)  # 0.8 eV on 8 atoms
    # 23 components of 0.2 and one of -0.3 eV/Å
    assert forces.forces_rmse == pytest.approx(1e3 * np.sqrt((23 * 0.04 + 0.09) / 24), abs=1e-3)
    assert forces.forces_largest == pytest.approx(300.0, abs=1e-3)
    assert (forces.worst_atom, forces.worst_species) == (5, "Cu")


def test_frames_without_a_label_are_not_the_worst(frames, morse_model):
    bare = [without(frames[0], "forces"), without(frames[1], "energy"), frames[2]]
    worst = worst_frames(predict_frames(morse_model(), bare))
    assert {frame.index for frame in worst["forces"]} == {1, 2}
    assert {frame.index for frame in worst["energy"]} == {0, 2}
    assert next(f for f in worst["energy"] if f.index == 0).forces_rmse is None
