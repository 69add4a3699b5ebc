"""Epoch metrics are exact sums, whatever the batches."""

import math

import pytest
import torch

from equipot.config import LossConfig
from equipot.graph import collate
from equipot.models.predict import predict
from equipot.training.loss import Loss, label_errors
from equipot.training.metrics import ErrorSums, summarize


def errors_in_batches(potential, graphs, batch_size):
    loss, totals = Loss(LossConfig(energy=3.0, forces=2.0)), ErrorSums()
    for start in range(0, len(graphs), batch_size):
        graph = collate(graphs[start : start + batch_size])
        errors = label_errors(predict(potential, graph), graph)
        totals.update(errors, loss.sums(errors))
    return summarize(totals.compute(), loss.weights)


def test_metrics_equal_a_direct_computation_for_any_batch_size(frames, pair_potential):
    graphs, potential = frames(7), pair_potential().eval()
    energy, forces = [], []
    for graph in graphs:
        guess = predict(potential, graph)
        energy.append((guess.energy - graph.labels.energy.value) / graph.num_atoms)
        forces.append((guess.forces - graph.labels.forces.value).flatten())
    energy, forces = torch.cat(energy), torch.cat(forces)
    expected = {
        "loss": 3 * energy.square().mean().item() + 2 * forces.square().mean().item(),
        "energy_mae": energy.abs().mean().item(),
        "energy_rmse": math.sqrt(energy.square().mean().item()),
        "forces_mae": forces.abs().mean().item(),
        "forces_rmse": math.sqrt(forces.square().mean().item()),
    }
    for batch_size in (1, 3, 7):
        # float64 sums in another order
        assert errors_in_batches(potential, graphs, batch_size) == pytest.approx(expected, rel=1e-12)


def test_reset_forgets(frames, pair_potential):
    totals, graph = ErrorSums(), frames(1)[0]
    errors = label_errors(predict(pair_potential().eval(), graph), graph)
    totals.update(errors, Loss(LossConfig()).sums(errors))
    assert totals.sums[0, 3] == 1
    totals.reset()
    assert totals.sums.count_nonzero() == 0
    assert totals.sums.dtype == torch.float64
