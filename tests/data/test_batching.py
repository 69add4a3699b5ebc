"""Collating graphs with and without labels; what each optimizer step takes."""

import dataclasses
import random
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from equipot.data import GraphDataset
from equipot.data.batching import BatchSampler, Budget, StepSampler, batch_loader, step_loader
from equipot.errors import DataError
from equipot.graph import collate, edge_vectors, halves, volume


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


def test_evaluation_takes_every_frame_once_and_in_order(dataset):
    batches = list(batch_loader(dataset, BatchSampler(dataset, Budget(3))))
    assert [batch.num_structures for batch in batches] == [3, 1]
    together = torch.cat([batch.atom_types for batch in batches])
    assert torch.equal(together, collate(dataset.graphs).atom_types)


@dataclass
class Sizes:
    """What a sampler looks at, without graphs."""

    num_atoms: np.ndarray
    num_edges: np.ndarray
    num_replayed: int = 0

    def __len__(self):
        return len(self.num_atoms)

    @property
    def label_counts(self):
        # Every third frame has no forces, every second a stress.
        number = np.arange(len(self))
        return np.stack(
            [np.ones_like(number), 3 * self.num_atoms * (number % 3 > 0), 9 * (number % 2)], axis=1
        )


@pytest.fixture
def sizes():
    generator = np.random.default_rng(5)
    num_atoms = generator.integers(1, 60, size=53)
    return Sizes(num_atoms, num_atoms * generator.integers(5, 40, size=53))


BUDGETS = (Budget(1), Budget(5), Budget(100), Budget(80, "atoms"), Budget(3000, "edges"))


def frames_of(step):
    return np.concatenate([*step.parts, np.empty(0, dtype=int)])


def steps_of(dataset, budget, epoch=0, seed=0, **options):
    sampler = StepSampler(dataset, budget, seed, **options)
    sampler.set_epoch(epoch)
    steps = list(sampler)
    assert len(sampler) == len(steps)
    return steps


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
def test_an_epoch_takes_every_frame_once_within_the_budget(sizes, budget):
    steps = steps_of(sizes, budget)
    taken = [frames_of(step) for step in steps]
    assert sorted(np.concatenate(taken)) == list(range(len(sizes)))
    costs = budget.costs(sizes)
    totals = np.array([costs[frames].sum() for frames in taken])
    assert totals.max() <= budget.limit
    # No step could have taken the first frame of the next one.
    first = np.array([costs[frames[0]] for frames in taken[1:]])
    assert (totals[:-1] + first > budget.limit).all()


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
@pytest.mark.parametrize(("processes", "accumulate"), [(1, 3), (3, 1), (2, 2), (7, 2)])
def test_processes_and_parts_share_the_same_steps(sizes, budget, processes, accumulate):
    whole = steps_of(sizes, budget, epoch=4)
    shares = [
        steps_of(sizes, budget, epoch=4, rank=rank, num_replicas=processes, accumulate=accumulate)
        for rank in range(processes)
    ]
    for number, step in enumerate(whole):
        pieces = [share[number] for share in shares]
        assert sorted(np.concatenate([frames_of(p) for p in pieces])) == sorted(frames_of(step))
        assert all(len(p.parts) <= accumulate and all(map(len, p.parts)) for p in pieces)
        assert all((p.counts == sizes.label_counts[frames_of(step)].sum(axis=0)).all() for p in pieces)


def test_shares_cost_about_the_same(sizes):
    step = steps_of(sizes, Budget(53), num_replicas=4, rank=0)[0]
    work = [
        (sizes.num_edges + sizes.num_atoms)[frames_of(steps_of(sizes, Budget(53), num_replicas=4, rank=r)[0])]
        for r in range(4)
    ]
    totals = np.array([w.sum() for w in work])
    # Dealing out the dearest first ends within a fraction of the cheapest frames' cost.
    assert totals.max() < 1.02 * totals.mean()
    assert len(step.parts) == 1


def test_order_depends_on_seed_and_epoch_alone(sizes):
    def order(seed, epoch):
        return np.concatenate([frames_of(step) for step in steps_of(sizes, Budget(4), epoch, seed)])

    sampler = StepSampler(sizes, Budget(4), 3)
    for epoch in range(3):  # one that has gone through other epochs, and one that starts there
        sampler.set_epoch(epoch)
        before = np.concatenate([frames_of(step) for step in sampler])
    assert (before == order(3, 2)).all()
    assert len({tuple(order(seed, epoch)) for seed in (3, 4) for epoch in (0, 1)}) == 4


def test_skipped_steps_are_left_out_of_their_epoch_only(sizes):
    sampler = StepSampler(sizes, Budget(4), 3)
    sampler.skip(1, 2)
    for epoch, left_out in ((0, 0), (1, 2), (2, 0)):
        sampler.set_epoch(epoch)
        expected = steps_of(sizes, Budget(4), epoch, 3)
        assert [frames_of(s).tolist() for s in sampler] == [
            frames_of(s).tolist() for s in expected[left_out:]
        ]
        assert len(sampler) == len(expected)


def test_a_frame_larger_than_the_budget_is_refused(sizes):
    largest = sizes.num_edges.argmax()
    message = rf"10 edges, but frame number {largest} .* has {sizes.num_edges.max()} of .*max_edges"
    with pytest.raises(DataError, match=message):
        StepSampler(sizes, Budget(10, "edges"), 0)


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
def test_no_step_is_larger_than_the_largest_that_is_foreseen(sizes, budget):
    atoms, edges = budget.largest(sizes)
    for epoch in range(20):
        for step in steps_of(sizes, budget, epoch):
            assert sizes.num_atoms[frames_of(step)].sum() <= atoms
            assert sizes.num_edges[frames_of(step)].sum() <= edges


def test_loader_gives_the_graphs_of_its_steps(dataset):
    sampler = StepSampler(dataset, Budget(3), 0, accumulate=2)
    steps = list(step_loader(dataset, sampler))
    for step, frames in zip(steps, sampler, strict=True):
        assert [p.num_structures for p in step.parts] == [len(part) for part in frames.parts]
        assert step.counts.tolist() == dataset.label_counts[frames_of(frames)].sum(axis=0).tolist()
        for part, numbers in zip(step.parts, frames.parts, strict=True):
            assert torch.equal(part.positions, collate([dataset[i] for i in numbers]).positions)


def test_worker_processes_give_the_same_steps(dataset):
    def positions(workers):
        loader = step_loader(dataset, StepSampler(dataset, Budget(2), 0), workers)
        return [part.positions for step in loader for part in step.parts]

    for here, there in zip(positions(0), positions(2), strict=True):
        assert torch.equal(here, there)


def test_steps_for_gpus_are_pinned_and_copied_beside_the_hosts_work(dataset, monkeypatch):
    """Every tensor of a step, its labels' too. Without a GPU, so what torch is asked for is written down."""
    pinned, copied = [], []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    monkeypatch.setattr(
        torch.Tensor, "to", lambda tensor, *where, **how: copied.append((where, how)) or tensor
    )
    step = next(iter(step_loader(dataset, StepSampler(dataset, Budget(2), 0))))
    tensors = list(tensors_in((step.parts, step.counts)))
    assert len(tensors) > 10
    for one in (step, step.parts[0]):
        pinned.clear()
        one.pin_memory()
        assert {id(tensor) for tensor in pinned} == {id(tensor) for tensor in tensors_in(vars(one))}
    step.to("cuda")
    assert copied == [(("cuda",), {"non_blocking": True})] * len(tensors)
    copied.clear()
    step.to("cpu")  # what comes from a GPU is waited for
    assert copied == [(("cpu",), {"non_blocking": False})] * len(tensors)


def tensors_in(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (dict, tuple)) or hasattr(value, "__dataclass_fields__"):
        parts = (
            value.values()
            if isinstance(value, dict)
            else value
            if isinstance(value, tuple)
            else vars(value).values()
        )
        for part in parts:
            yield from tensors_in(part)


def test_global_random_states_are_left_alone(dataset):
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    list(step_loader(dataset, StepSampler(dataset, Budget(2), 0)))
    list(batch_loader(dataset, BatchSampler(dataset, Budget(2))))
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1] == np.random.get_state()[1]).all()  # noqa: NPY002
    assert states[2] == random.getstate()


def test_sampler_is_where_lightning_looks_for_set_epoch(dataset):
    sampler = StepSampler(dataset, Budget(2), 0)
    assert step_loader(dataset, sampler).sampler is sampler


@pytest.mark.parametrize(("limit", "num_frames"), [(5, 3), (5, 8), (100, 12), (2, 4)])
def test_each_process_has_a_batch_to_evaluate(limit, num_frames):
    frames = Sizes(np.ones(num_frames, dtype=int), np.ones(num_frames, dtype=int))
    shards = [list(BatchSampler(frames, Budget(limit), rank=rank, num_replicas=3)) for rank in range(3)]
    assert all(shards) and max(len(batch) for shard in shards for batch in shard) <= limit
    assert sorted(i for shard in shards for batch in shard for i in batch) == list(range(num_frames))


@pytest.mark.parametrize("num_frames", [1, 2, 10, 12])
def test_evaluation_shards_count_each_frame_once(num_frames):
    frames = Sizes(np.ones(num_frames, dtype=int), np.ones(num_frames, dtype=int))
    shards = [BatchSampler(frames, Budget(2), rank=rank, num_replicas=3) for rank in range(3)]
    orders = [list(shard) for shard in shards]
    assert sorted(i for order in orders for batch in order for i in batch) == list(range(num_frames))
    assert [len(shard) for shard in shards] == [len(order) for order in orders]


def test_rank_outside_the_replicas(sizes):
    with pytest.raises(ValueError, match="rank"):
        StepSampler(sizes, Budget(1), 0, rank=2, num_replicas=2)


def test_levels_of_theory_stay_with_their_structures(dataset):
    graphs = [dataclasses.replace(dataset[i], level=torch.tensor([i % 2])) for i in range(4)]
    whole = collate(graphs)
    assert whole.level.tolist() == [0, 1, 0, 1]
    assert torch.cat([half.level for half in halves(whole)]).tolist() == [0, 1, 0, 1]
    with pytest.raises(ValueError, match="others do not"):
        collate([graphs[0], dataset[1]])


def test_halves_join_to_the_whole(dataset):
    whole = collate([*dataset.graphs, *dataset.graphs[:2]])
    one, other = halves(whole)
    assert abs(one.num_edges - other.num_edges) <= max(graph.num_edges for graph in dataset.graphs)
    joined = collate([one, other])
    for name in ("positions", "cell", "pbc", "atom_types", "structure", "edge_index", "edge_shift"):
        assert torch.equal(getattr(joined, name), getattr(whole, name)), name
    for name in ("energy", "forces", "stress"):
        assert torch.equal(getattr(joined.labels, name).value, getattr(whole.labels, name).value)
        assert torch.equal(getattr(joined.labels, name).mask, getattr(whole.labels, name).mask)
    with pytest.raises(ValueError, match="One structure"):
        halves(dataset[0])
