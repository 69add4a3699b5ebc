import numpy as np
import pytest

from equipot.evaluation.metrics import ErrorRow, error_rows, grouped_rows, worst_frames
from equipot.evaluation.predict import predict_frames
from equipot.units import EV_A3_TO_GPA


def row(rows, quantity, unit):
    (found,) = [r for r in rows if (r.quantity, r.unit) == (quantity, unit)]
    return found


def test_statistics_of_known_errors():
    errors = np.array([[3.0, -4.0, 0.0], [np.nan, 0.0, 0.0], [0.0, 0.0, -5.0]])
    result = ErrorRow.from_errors("forces", "meV/Å", errors, "atoms")
    assert result.count == 2  # the row with a NaN has no label
    assert result.mae == pytest.approx(12 / 6)
    assert result.rmse == pytest.approx(np.sqrt(50 / 6))
    assert result.largest == 5.0


def test_nothing_labelled_gives_no_number():
    result = ErrorRow.from_errors("stress", "GPa", np.full((4, 3, 3), np.nan), "frames")
    assert (result.mae, result.rmse, result.largest, result.count) == (None, None, None, 0)


def test_rows_of_a_model_ten_percent_too_strong(frames, morse_model):
    """Every prediction is 1.1 times its label, so each error is a tenth of the labels' own mean."""
    comparison = predict_frames(morse_model(fault=1.1), frames)
    rows = error_rows(comparison)
    per_atom = comparison.reference_energy / comparison.num_atoms
    silver = comparison.reference_forces[comparison.atomic_numbers == 47]
    stress = comparison.reference_stress[:-1]
    expected = {
        ("energy", "meV/atom"): (100 * np.abs(per_atom).mean(), 7),
        ("forces", "meV/Å"): (100 * np.abs(comparison.reference_forces).mean(), 51),
        ("forces Ag", "meV/Å"): (100 * np.abs(silver).mean(), 24),
        ("stress", "meV/Å³"): (100 * np.abs(stress).mean(), 6),
        ("stress", "GPa"): (0.1 * EV_A3_TO_GPA * np.abs(stress).mean(), 6),
    }
    for (quantity, unit), (mae, count) in expected.items():
        found = row(rows, quantity, unit)
        assert found.mae == pytest.approx(mae, rel=1e-6)  # labels are read back from 8 decimals
        assert found.count == count


def test_groups_only_where_there_are_several(frames, morse_model):
    assert grouped_rows(predict_frames(morse_model(), frames)) == {}


def test_worst_frame_is_the_one_made_wrong(frames, morse_model):
    comparison = predict_frames(morse_model(), frames)
    comparison.forces[comparison.atoms_of(4)] += 0.2
    comparison.energy[4] += 0.8
    worst = worst_frames(comparison, count=3)
    assert len(worst) == 3
    assert (worst[0].index, worst[0].file) == (4, str(frames[4].file))
    assert worst[0].energy == pytest.approx(100.0, abs=1e-5)  # 0.8 eV on 8 atoms
    assert worst[0].forces_rmse == pytest.approx(200.0, abs=1e-5)
