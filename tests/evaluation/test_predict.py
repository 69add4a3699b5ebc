import numpy as np
import pytest

from equipot.errors import UnknownSpeciesError
from equipot.evaluation.predict import predict_frames

# The file has positions and forces with 8 decimals: 5e-9, times stiffness (below 10 eV/Å²) and bonds (12).
TOLERANCE = 1e-6


def test_exact_model_has_no_error(frames, morse_model):
    comparison = predict_frames(morse_model(), frames, batch_size=3)
    assert np.abs(comparison.energy_error_per_atom()).max() < TOLERANCE
    assert np.abs(comparison.forces_error()).max() < TOLERANCE
    assert np.nanmax(np.abs(comparison.stress_error())) < TOLERANCE


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_batches_do_not_matter(frames, morse_model, batch_size):
    """Frames of different sizes, periodic and not, give the same numbers however they are grouped."""
    reference = predict_frames(morse_model(), frames, batch_size=4)
    comparison = predict_frames(morse_model(), frames, batch_size)
    # The order of float64 sums is the only difference.
    np.testing.assert_allclose(comparison.energy, reference.energy, atol=1e-12)
    np.testing.assert_allclose(comparison.forces, reference.forces, atol=1e-12)
    np.testing.assert_allclose(comparison.stress, reference.stress, atol=1e-12)


def test_missing_labels_and_stress_are_nan(frames, morse_model):
    comparison = predict_frames(morse_model(), frames)
    assert np.isnan(comparison.reference_stress[-1]).all()
    assert np.isnan(comparison.stress[-1]).all()  # the cluster has no volume
    assert not np.isnan(comparison.reference_stress[:-1]).any()


def test_select_keeps_atoms_with_their_frames(frames, morse_model):
    comparison = predict_frames(morse_model(), frames)
    chosen = comparison.select([6, 1])
    assert list(chosen.num_atoms) == [3, 8]
    np.testing.assert_array_equal(chosen.forces[:3], comparison.forces[comparison.atoms_of(6)])
    np.testing.assert_array_equal(
        chosen.reference_forces[3:], comparison.reference_forces[comparison.atoms_of(1)]
    )


def test_unknown_species_names_the_frame(frames, morse_model, data_file):
    with pytest.raises(UnknownSpeciesError, match=r"crystals\.xyz, frame 0 .*contains Ag"):
        predict_frames(morse_model(species=["Cu"]), frames)
