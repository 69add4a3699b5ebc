from dataclasses import replace

import numpy as np
import pytest
import torch

from equipot.data.dataset import to_graph
from equipot.errors import EvaluationError, UnknownSpeciesError
from equipot.evaluation.predict import predict_frames

# The file has positions and forces with 8 decimals: 5e-9, times stiffness (below 10 eV/Å²) and bonds (12).
TOLERANCE = 1e-6


def test_exact_model_has_no_error(frames, morse_model):
    comparison = predict_frames(morse_model(), frames, max_edges=200)
    assert np.abs(comparison.error("energy")).max() < TOLERANCE
    assert np.abs(comparison.error("forces")).max() < TOLERANCE
    assert np.nanmax(np.abs(comparison.error("stress"))) < TOLERANCE


@pytest.mark.parametrize(("max_edges", "batches"), [(1, 7), (360, 3), (10**9, 1)])
def test_batches_do_not_matter(frames, morse_model, max_edges, batches):
    """Frames of different sizes, periodic and not, give the same numbers however they are grouped."""
    model = morse_model()
    sizes = [to_graph(frame, model.species, model.cutoff).num_edges for frame in frames]
    assert min(sizes[:6]) > 160 and max(sizes) < 180  # two periodic frames fit into 360 edges
    reference = predict_frames(model, frames)
    seen = []

    def predict(graph):
        seen.append(graph.num_edges)
        return model.predict(graph)

    comparison = predict_frames(replace(model, predict=predict), frames, max_edges)
    assert len(seen) == batches and sum(seen) == sum(sizes)
    assert max(seen) <= max(max_edges, *sizes)
    # The order of float64 sums is the only difference.
    np.testing.assert_allclose(comparison.energy, reference.energy, atol=1e-12)
    np.testing.assert_allclose(comparison.forces, reference.forces, atol=1e-12)
    np.testing.assert_allclose(comparison.stress, reference.stress, atol=1e-12)


def test_missing_labels_and_stress_are_nan(frames, morse_model):
    comparison = predict_frames(morse_model(), frames)
    assert np.isnan(comparison.reference["stress"][-1]).all()
    assert np.isnan(comparison.stress[-1]).all()  # the cluster has no volume
    assert not np.isnan(comparison.reference["stress"][:-1]).any()


def test_select_keeps_atoms_with_their_frames(frames, morse_model):
    comparison = predict_frames(morse_model(), frames)
    chosen = comparison.select(np.isin(np.arange(7), [1, 6]))
    assert list(chosen.num_atoms) == [8, 3]
    assert [source.index for source in chosen.sources] == [1, 6]
    assert list(chosen.atomic_numbers[8:]) == [29, 29, 29]
    np.testing.assert_array_equal(chosen.forces[8:], comparison.forces[comparison.atoms_of(6)])
    np.testing.assert_array_equal(
        chosen.reference["forces"][:8], comparison.reference["forces"][comparison.atoms_of(1)]
    )


def test_unknown_species_names_the_frame(frames, morse_model, data_file):
    with pytest.raises(UnknownSpeciesError, match=r"crystals\.xyz, frame 0 .*contains Ag"):
        predict_frames(morse_model(species=["Cu"]), frames)


@pytest.mark.parametrize("name", ["energy", "forces"])
def test_prediction_that_is_not_finite_is_refused(frames, morse_model, name):
    """It must not pass for a missing label, which is a NaN, too. The frame is the last of its batch."""
    model, calls = morse_model(), []

    def predict(graph):
        prediction = model.predict(graph)
        calls.append(graph)
        if len(calls) == 2:
            values = getattr(prediction, name).clone()
            values[-1] = torch.nan
            prediction = replace(prediction, **{name: values})
        return prediction

    with pytest.raises(EvaluationError, match=r"not finite for .*crystals\.xyz, frame 3 "):
        predict_frames(replace(model, predict=predict), frames, max_edges=360)


def test_batch_is_halved_when_memory_runs_out(frames, morse_model, caplog):
    model = morse_model()
    reference = predict_frames(model, frames)

    def predict(graph):
        if graph.num_structures > 2:
            raise torch.OutOfMemoryError("simulated")
        return model.predict(graph)

    comparison = predict_frames(replace(model, predict=predict), frames)
    # other batches: sums in another order
    np.testing.assert_allclose(comparison.forces, reference.forces, atol=1e-12)
    assert "Out of memory" in caplog.text


def test_single_frame_that_does_not_fit_is_an_error(frames, morse_model):
    def predict(graph):
        raise torch.OutOfMemoryError("simulated")

    with pytest.raises(torch.OutOfMemoryError):
        predict_frames(replace(morse_model(), predict=predict), frames)
