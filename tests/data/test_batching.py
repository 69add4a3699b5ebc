"""Collating graphs with and without labels; the order of batches."""

import itertools
import random

import numpy as np
import pytest
import torch

from equipot.data import EpochSampler, GraphDataset, make_loader
from equipot.graph import collate, edge_vectors, volume


@pytest.fixture
def dataset(make_frame):
    """A labelled molecule, a crystal with stress only, a lone atom without labels, an atom with an energy."""
    frames = [
        make_frame(
            "OH2", [[0, 0, 0], [1, 0, 0], [0, 1, 0]], energy=-14.0, forces=np.arange(9.0).reshape(3, 3)
        ),
        make_frame("CuO", [[0, 0, 0], [1.5, 1.5, 1.5]], 3 * np.eye(3), True, stress=np.eye(3)),
        make_frame("H", [[5, 5, 5]]),
        make_frame("O", [[0, 0, 0]], energy=-432.0),
    ]
    return GraphDataset(frames, ["H", "O", "Cu"], 3.1)


def test_collate_joins_structures(dataset):
    batch = collate(dataset.graphs)
    assert (batch.num_structures, batch.num_atoms) == (4, 7)
    assert batch.num_edges == sum(graph.num_edges for graph in dataset.graphs)
    assert batch.structure.tolist() == [0, 0, 0, 1, 1, 2, 3]
    assert batch.atom_types.tolist() == [1, 0, 0, 2, 1, 0, 1]
    assert (batch.structure[batch.edge_index[0]] == batch.structure[batch.edge_index[1]]).all()
    assert (batch.edge_index[0].diff() >= 0).all()
    assert volume(batch).tolist() == pytest.approx([0, 27, 0, 0], rel=1e-14)  # rounding of a determinant
    assert torch.equal(edge_vectors(batch), torch.cat([edge_vectors(graph) for graph in dataset.graphs]))


def test_collate_masks_missing_labels(dataset):
    labels = collate(dataset.graphs).labels
    assert labels.energy.value.tolist() == [-14.0, 0, 0, -432.0]
    assert labels.energy.mask.tolist() == [True, False, False, True]
    assert labels.forces.mask.tolist() == [True] * 3 + [False] * 4
    assert labels.forces.value[:3].tolist() == np.arange(9.0).reshape(3, 3).tolist()
    assert (labels.forces.value[3:] == 0).all()
    assert labels.stress.mask.tolist() == [False, True, False, False]
    assert labels.stress.value[1].tolist() == np.eye(3).tolist()


def test_collate_keeps_a_label_that_no_graph_has_absent(dataset):
    labels = collate([dataset[2], dataset[3]]).labels
    assert labels.forces is None
    assert labels.stress is None
    assert labels.energy.mask.tolist() == [False, True]


def test_loader_yields_every_frame_once(dataset):
    batches = list(make_loader(dataset, batch_size=3))
    assert [batch.num_structures for batch in batches] == [3, 1]
    assert (
        torch.cat([batch.atom_types for batch in batches]).tolist()
        == collate(dataset.graphs).atom_types.tolist()
    )


def test_order_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        sampler = EpochSampler(50, shuffle=True, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    # A run that has gone through other epochs, and one that starts there.
    sampler = EpochSampler(50, shuffle=True, seed=3)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        before = list(sampler)
    assert before == order(3, 2)
    assert sorted(before) == list(range(50))
    assert len({tuple(order(seed, epoch)) for seed in (3, 4) for epoch in (0, 1)}) == 4


def test_global_random_states_are_left_alone(dataset):
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    list(make_loader(dataset, batch_size=2, shuffle=True))
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1] == np.random.get_state()[1]).all()  # noqa: NPY002
    assert states[2] == random.getstate()


def test_sampler_is_where_lightning_looks_for_set_epoch(dataset):
    loader = make_loader(dataset, batch_size=2, shuffle=True)
    assert isinstance(loader.sampler, EpochSampler)
    assert loader.batch_sampler.sampler is loader.sampler
    loader.sampler.set_epoch(7)
    assert [batch.num_atoms for batch in loader] == _atoms_in_batches(dataset, epoch=7)


def _atoms_in_batches(dataset, epoch):
    sampler = EpochSampler(len(dataset), shuffle=True)
    sampler.set_epoch(epoch)
    order = list(sampler)
    return [sum(dataset[i].num_atoms for i in order[start : start + 2]) for start in (0, 2)]


@pytest.mark.parametrize("num_frames", [1, 2, 10, 12])
def test_training_shards_are_of_equal_length_and_drop_nothing(num_frames):
    shards = [EpochSampler(num_frames, shuffle=True, rank=rank, num_replicas=3) for rank in range(3)]
    orders = [list(shard) for shard in shards]
    assert len({len(order) for order in orders}) == 1
    assert [len(shard) for shard in shards] == [len(order) for order in orders]
    counts = np.bincount(np.concatenate(orders), minlength=num_frames)
    assert counts.min() >= 1
    assert counts.sum() == num_frames + -num_frames % 3


@pytest.mark.parametrize("num_frames", [1, 2, 10, 12])
def test_evaluation_shards_count_each_frame_once(num_frames):
    shards = [EpochSampler(num_frames, rank=rank, num_replicas=3) for rank in range(3)]
    orders = [list(shard) for shard in shards]
    assert sorted(itertools.chain(*orders)) == list(range(num_frames))
    assert [len(shard) for shard in shards] == [len(order) for order in orders]


def test_rank_outside_the_replicas():
    with pytest.raises(ValueError, match="rank"):
        EpochSampler(10, rank=2, num_replicas=2)
