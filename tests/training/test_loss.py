"""The loss against numbers worked out by hand, with masks and absent labels."""

from dataclasses import replace

import pytest
import torch

from equipot.config import LossConfig
from equipot.errors import TrainingError
from equipot.graph import AtomicGraph, Label, Labels, collate, halves
from equipot.models.predict import Prediction, predict
from equipot.training.loss import LABELS, Loss, label_errors


def two_structures(weight=None, **labels) -> AtomicGraph:
    """One atom and two atoms; only what the loss looks at is meaningful."""
    return AtomicGraph(
        positions=torch.zeros(3, 3, dtype=torch.float64),
        cell=torch.zeros(2, 3, 3, dtype=torch.float64),
        pbc=torch.zeros(2, 3, dtype=torch.bool),
        atom_types=torch.zeros(3, dtype=torch.int64),
        structure=torch.tensor([0, 1, 1]),
        edge_index=torch.zeros(2, 0, dtype=torch.int64),
        edge_shift=torch.zeros(0, 3, dtype=torch.int64),
        labels=Labels(labels, weight),
    )


def prediction(energy=(0.0, 0.0), forces=0.0, stress=0.0) -> Prediction:
    return Prediction(
        energy=torch.tensor(energy, dtype=torch.float64, requires_grad=True),
        atom_energies=torch.zeros(3, dtype=torch.float64),
        forces=torch.full((3, 3), forces, dtype=torch.float64),
        stress=torch.full((2, 3, 3), stress, dtype=torch.float64),
        atom_virials=torch.zeros(3, 3, 3, dtype=torch.float64),
    )


def total(settings: LossConfig, guess: Prediction, graph: AtomicGraph) -> torch.Tensor:
    return total_at(Loss(settings), guess, graph)


def total_at(loss: Loss, guess: Prediction, graph: AtomicGraph, weights=None) -> torch.Tensor:
    errors = label_errors(guess, graph)
    counts = torch.stack([errors[name].count if name in errors else zeros(()) for name in LABELS])
    return loss.total(loss.sums(errors), counts, guess, weights)


def zeros(*shape) -> torch.Tensor:
    return torch.zeros(*shape, dtype=torch.float64)


def test_energy_is_per_atom_and_averaged_over_structures():
    graph = two_structures(energy=Label(zeros(2), torch.tensor([True, True])))
    # (3/1)² and (4/2)², mean 6.5, weight 2
    value = total(LossConfig(energy=2.0, forces=0.0), prediction(energy=(3.0, 4.0)), graph)
    assert value.item() == 13.0


def test_masked_values_do_not_count():
    forces = Label(zeros(3, 3), torch.tensor([True, False, True]))
    energy = Label(zeros(2), torch.tensor([False, True]))
    graph = two_structures(energy=energy, forces=forces)
    guess = prediction(energy=(7.0, 4.0), forces=2.0)
    # energy (4/2)² of one structure, forces 2² over the six known components
    assert total(LossConfig(energy=1.0, forces=10.0), guess, graph).item() == 4.0 + 40.0
    assert label_errors(guess, graph)["forces"].count.item() == 6


def test_weights_multiply_the_terms_of_a_structure_and_not_the_number_of_terms():
    known = torch.ones(3, dtype=torch.bool)
    labels = {"energy": Label(zeros(2), known[:2]), "forces": Label(zeros(3, 3), known),
              "stress": Label(zeros(2, 3, 3), known[:2])}  # fmt: skip
    graph = two_structures(**labels, weight=torch.tensor([3.0, 0.5], dtype=torch.float64))
    guess = prediction(energy=(3.0, 4.0), forces=2.0, stress=1.0)
    # energy (3 · 3² + 0.5 · 2²)/2; forces 2² (3 + 0.5 + 0.5)/3 over atoms; stress (3 + 0.5)/2
    for settings, expected in (
        (LossConfig(energy=1.0, forces=0.0), 14.5),
        (LossConfig(energy=0.0, forces=1.0), 16 / 3),
        (LossConfig(energy=0.0, forces=0.0, stress=1.0), 1.75),
    ):
        # rounding of a division by 3
        assert total(settings, guess, graph).item() == pytest.approx(expected, rel=1e-15)
    unweighted = label_errors(guess, two_structures(**labels))
    for name, label in label_errors(guess, graph).items():
        assert torch.equal(label.error, unweighted[name].error)  # what metrics are made of
        assert label.count == unweighted[name].count


def test_weights_of_labels_multiply_those_of_structures():
    known = torch.ones(3, dtype=torch.bool)
    forces = Label(zeros(3, 3), known, torch.tensor([5.0, 2.0, 2.0], dtype=torch.float64))
    energy = Label(zeros(2), known[:2])
    graph = two_structures(energy=energy, forces=forces, weight=torch.tensor([1.0, 3.0], dtype=torch.float64))
    guess = prediction(energy=(3.0, 4.0), forces=2.0)
    # forces 2² (5 + 3 · 2 + 3 · 2)/3 over atoms; energy (3² + 3 · 2²)/2, without a weight of its own
    assert total(LossConfig(energy=0.0, forces=1.0), guess, graph).item() == pytest.approx(
        4 * 17 / 3, rel=1e-15
    )
    assert total(LossConfig(energy=1.0, forces=0.0), guess, graph).item() == 10.5


def test_weights_of_labels_survive_collation_and_halving():
    known = torch.ones(3, dtype=torch.bool)
    own = torch.tensor([5.0, 2.0, 2.0], dtype=torch.float64)
    weighted = two_structures(forces=Label(zeros(3, 3), known, own))
    joined = collate([two_structures(forces=Label(zeros(3, 3), known)), two_structures(), weighted])
    assert joined.labels.forces.weight.tolist() == [1, 1, 1, 1, 1, 1, 5, 2, 2]
    parts = halves(weighted)
    assert [part.labels.forces.weight.tolist() for part in parts] == [[5.0], [2.0, 2.0]]
    assert collate(parts).labels.forces.weight.tolist() == own.tolist()


def test_weight_of_a_structure_alone_in_its_batch_does_not_cancel():
    known = torch.ones(1, dtype=torch.bool)
    graph = AtomicGraph(
        positions=zeros(1, 3), cell=zeros(1, 3, 3), pbc=torch.zeros(1, 3, dtype=torch.bool),
        atom_types=torch.zeros(1, dtype=torch.int64), structure=torch.zeros(1, dtype=torch.int64),
        edge_index=torch.zeros(2, 0, dtype=torch.int64), edge_shift=torch.zeros(0, 3, dtype=torch.int64),
        labels=Labels({"energy": Label(zeros(1), known)}, torch.full((1,), 5.0, dtype=torch.float64)),
    )  # fmt: skip
    guess = prediction(energy=(2.0,))
    assert total(LossConfig(kind="mse", energy=1.0, forces=0.0), guess, graph).item() == 20.0


def test_weights_survive_collation_beside_structures_without_one():
    weighted = two_structures(weight=torch.tensor([3.0, 0.5], dtype=torch.float64))
    assert collate([two_structures(), weighted]).labels.weight.tolist() == [1.0, 1.0, 3.0, 0.5]
    assert collate([two_structures()]).labels.weight is None


def test_huber_is_quadratic_then_linear():
    graph = two_structures(energy=Label(zeros(2), torch.tensor([True, True])))
    settings = LossConfig(kind="huber", huber_delta=0.5, energy=1.0, forces=0.0)
    # ½ 0.2² and 0.5 (3 − 0.25), mean over two; 1e-15 for the rounding of decimal fractions
    value = total(settings, prediction(energy=(0.2, 6.0)), graph)
    assert value.item() == pytest.approx((0.02 + 1.375) / 2, abs=1e-15)


def test_scheduled_weights_jump_or_change_by_equal_factors():
    settings = LossConfig(
        energy={"start": 1.0, "end": 100.0, "from_epoch": 2, "to_epoch": 6},
        forces={"start": 3.0, "end": 0.5, "from_epoch": 4},
    )
    loss = Loss(settings)
    at = {epoch: loss.weights_at(epoch) for epoch in (0, 2, 3.99, 4, 5, 6, 100)}
    # 1e-12: rounding of the power
    assert [at[e]["energy"] for e in (0, 2, 4, 5, 6, 100)] == pytest.approx(
        [1, 1, 10, 10**1.5, 100, 100], rel=1e-12
    )
    assert [at[e]["forces"] for e in (0, 3.99, 4, 100)] == [3.0, 3.0, 0.5, 0.5]
    assert settings.settled_epoch == 6
    # what is reported and judged
    assert loss.weights == {"energy": 100.0, "forces": 0.5, "stress": 0.0}


def test_total_takes_the_weights_of_the_moment():
    graph = two_structures(energy=Label(zeros(2), torch.tensor([True, True])))
    guess = prediction(energy=(3.0, 4.0))
    loss = Loss(LossConfig(energy={"start": 2.0, "end": 5.0, "from_epoch": 1}, forces=0.0))
    assert total_at(loss, guess, graph, loss.weights_at(0)).item() == 2.0 * 6.5
    assert total_at(loss, guess, graph, loss.weights_at(1)).item() == 5.0 * 6.5
    assert total_at(loss, guess, graph).item() == 5.0 * 6.5


def test_weight_of_what_the_model_does_not_predict():
    guess = replace(prediction(), stress=None)
    assert total(LossConfig(), guess, two_structures()).item() == 0.0
    with pytest.raises(TrainingError, match=r"training.loss.stress is 2, but the model predicts no stress"):
        total(LossConfig(stress=2.0), guess, two_structures())


def test_batch_without_labels_gives_zero_and_zero_gradient():
    guess = prediction(energy=(1.0, 2.0))
    value = total(LossConfig(), guess, two_structures())
    value.backward()
    assert value.item() == 0.0
    assert guess.energy.grad.tolist() == [0.0, 0.0]


def test_all_masked_label_gives_zero_not_nan():
    graph = two_structures(forces=Label(zeros(3, 3), torch.zeros(3, dtype=torch.bool)))
    assert total(LossConfig(), prediction(forces=5.0), graph).item() == 0.0


def test_stress_of_a_molecule_in_the_batch_leaves_gradients_finite(frames, pair_potential):
    crystal = frames(1, names=("energy", "forces", "stress"), periodic=True)[0]
    molecule = frames(1, names=("energy", "forces"))[0]
    graph = collate([crystal, molecule])
    potential = pair_potential().train()
    value = total(LossConfig(stress=1.0), predict(potential, graph), graph)
    value.backward()
    assert all(weight.grad.isfinite().all() for weight in potential.parameters())
    alone = total(LossConfig(energy=0.0, forces=0.0, stress=1.0), predict(potential, crystal), crystal)
    mixed = total(LossConfig(energy=0.0, forces=0.0, stress=1.0), predict(potential, graph), graph)
    # the molecule has no stress label, so the mean is the crystal's own; rounding of sums only
    assert mixed.item() == pytest.approx(alone.item(), rel=1e-12)
