"""Which frames each optimizer step takes, and which process computes which of them.

A step is the same set of frames whatever the number of processes: they share it. Its composition is a
function of the seed, the epoch and the sizes of the frames alone, so a resumed run, even on more or fewer
processes, sees what an uninterrupted one would have seen.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from equipot.data.dataset import GraphDataset
from equipot.errors import DataError
from equipot.graph import AtomicGraph, collate, each_tensor, move


@dataclass(frozen=True)
class Budget:
    """How much goes together: at most ``limit`` of ``unit`` (``frames``, ``atoms`` or ``edges``)."""

    limit: int
    unit: str = "frames"

    def __str__(self) -> str:
        return f"{self.limit} {self.unit}"

    def costs(self, dataset: GraphDataset) -> NDArray[np.int64]:
        """(F,) what each frame takes of it.

        Raises:
            DataError: a single frame takes more than there is.
        """
        if self.unit == "frames":
            return np.ones(len(dataset), dtype=np.int64)
        costs = dataset.num_atoms if self.unit == "atoms" else dataset.num_edges
        if len(costs) and costs.max() > self.limit:
            largest = int(costs.argmax())
            raise DataError(
                f"A batch may hold {self.limit} {self.unit}, but frame number {largest} of the data set has "
                f"{costs[largest]} of its own. Raise training.batch_size.max_{self.unit} to that at least."
            )
        return costs

    def largest(self, dataset: GraphDataset) -> tuple[int, int]:
        """Atoms and edges that one batch can have at most."""
        sizes = dataset.num_atoms, dataset.num_edges
        if self.unit == "frames":
            atoms, edges = (int(np.sort(size)[-self.limit :].sum()) for size in sizes)
            return atoms, edges
        mine, other = sizes if self.unit == "atoms" else sizes[::-1]
        limit = min(self.limit, int(mine.sum()))
        # Of the other as much as in the frames that are richest in it.
        most = min(int(limit * float((other / np.maximum(mine, 1)).max())), int(other.sum()))
        return (limit, most) if self.unit == "atoms" else (most, limit)


def pack(order: NDArray[np.int64], costs: NDArray[np.int64], limit: int) -> list[NDArray[np.int64]]:
    """Cut ``order`` into consecutive pieces, each as long as the sum of its costs allows."""
    reached = np.cumsum(costs[order])
    pieces, start = [], 0
    while start < len(order):
        before = reached[start - 1] if start else 0
        stop = int(np.searchsorted(reached, before + limit, side="right"))
        pieces.append(order[start:stop])
        start = stop
    return pieces


def share(frames: NDArray[np.int64], costs: NDArray[np.int64], num_shares: int) -> list[NDArray[np.int64]]:
    """Deal frames out so that the shares cost about the same: the dearest first, to whoever has least.

    Within a share the frames keep their order. Shares are empty where there are too few frames.
    """
    if num_shares == 1:
        return [frames]
    loads = np.zeros(num_shares, dtype=np.int64)
    owner = np.empty(len(frames), dtype=np.int64)
    for position in np.argsort(-costs[frames], kind="stable"):
        least = int(loads.argmin())
        owner[position] = least
        loads[least] += costs[frames[position]]
    return [frames[owner == index] for index in range(num_shares)]


@dataclass(frozen=True)
class StepFrames:
    """The frames of one optimizer step: those of this process, in parts, and what all processes have."""

    parts: tuple[NDArray[np.int64], ...]  # none where a step has fewer frames than there are processes
    counts: NDArray[np.int64]  # (Q,) known components of each quantity over all processes
    epoch: int = 0


@dataclass(frozen=True)
class Step:
    """``StepFrames`` with graphs in place of numbers."""

    parts: tuple[AtomicGraph, ...]
    counts: torch.Tensor  # (Q,) float64

    def to(self, device: torch.device | str) -> "Step":
        """The same step on another device."""
        return move(self, device)

    def pin_memory(self) -> "Step":
        """The same step in memory that GPUs read by themselves. A ``DataLoader`` asks for it by name."""
        return each_tensor(self, torch.Tensor.pin_memory)

    def __reduce__(self):
        # By value: a worker process would hand over every tensor as a file of shared memory, which takes
        # longer than to copy the small ones that graphs are made of.
        return _from_arrays, each_tensor((self.parts, self.counts), torch.Tensor.numpy)


def _from_arrays(*content: tuple | NDArray) -> Step:
    return Step(*each_tensor(content, torch.from_numpy))


class StepSampler(Sampler[StepFrames]):
    """The optimizer steps of one epoch, as one of ``num_replicas`` processes sees them.

    Frames that are replayed take turns with the others: an epoch has as many of them as of the others, and
    goes on among them where the last one ended.

    Args:
        dataset: what to draw from.
        budget: what one step holds, over all processes.
        seed: of the permutation that every epoch draws anew; not negative.
        accumulate: parts of a process's share of a step, computed one after the other.
        rank: this process.
        num_replicas: number of processes.

    Raises:
        DataError: a frame does not fit into the budget.
    """

    def __init__(
        self,
        dataset: GraphDataset,
        budget: Budget,
        seed: int,
        *,
        accumulate: int = 1,
        rank: int = 0,
        num_replicas: int = 1,
    ):
        if not 0 <= rank < num_replicas:
            raise ValueError(f"rank must be in [0, {num_replicas}), not {rank}.")
        self.budget = budget
        self.seed, self.accumulate = seed, accumulate
        self.rank, self.num_replicas = rank, num_replicas
        self.epoch = 0
        self._costs = budget.costs(dataset)
        self._work = dataset.num_edges + dataset.num_atoms
        self._label_counts = dataset.label_counts
        self._num_replayed = dataset.num_replayed
        self._skipped = (-1, 0)
        self._packed: tuple[int, list[NDArray[np.int64]]] = (-1, [])  # the steps of one epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration runs through. Lightning calls this."""
        self.epoch = epoch

    def skip(self, epoch: int, steps: int) -> None:
        """Leave out the first ``steps`` steps of ``epoch``: an interrupted training has done them."""
        self._skipped = (epoch, steps)

    def __len__(self) -> int:
        # That of the whole epoch, also if steps are skipped: Lightning counts those that were done before.
        return len(self._steps())

    def __iter__(self) -> Iterator[StepFrames]:
        skipped, done = self._skipped
        epoch = self.epoch
        for frames in self._steps()[done if skipped == epoch else 0 :]:
            shares = share(frames, self._work, self.num_replicas * self.accumulate)
            mine = shares[self.rank * self.accumulate : (self.rank + 1) * self.accumulate]
            parts = tuple(part for part in mine if len(part))
            yield StepFrames(parts, self._label_counts[frames].sum(axis=0), epoch)

    def _steps(self) -> list[NDArray[np.int64]]:
        if self._packed[0] != self.epoch:
            own = len(self._costs) - self._num_replayed
            order = np.random.default_rng([self.seed, self.epoch]).permutation(own)
            if self._num_replayed:
                order = np.stack([order, own + self._replayed(own)], axis=1).ravel()
            self._packed = (self.epoch, pack(order, self._costs, self.budget.limit))
        return self._packed[1]

    def _replayed(self, number: int) -> NDArray[np.int64]:
        """(number,) which of the replayed frames this epoch has: all of them, shuffled, again and again."""
        rounds, places = np.divmod(self.epoch * number + np.arange(number), self._num_replayed)
        shuffled = {
            r: np.random.default_rng([self.seed, int(r), 1]).permutation(self._num_replayed)
            for r in np.unique(rounds)
        }
        return np.array([shuffled[r][place] for r, place in zip(rounds, places, strict=True)])


class BatchSampler(Sampler[list[int]]):
    """Batches in the order of the data set; of several processes each takes every ``num_replicas``-th batch.

    No frame is repeated or left out, so that sums over processes count each once.
    """

    def __init__(self, dataset: GraphDataset, budget: Budget, *, rank: int = 0, num_replicas: int = 1):
        batches = pack(np.arange(len(dataset)), budget.costs(dataset), budget.limit)
        while len(batches) < min(num_replicas, len(dataset)):  # each process needs one
            largest = max(range(len(batches)), key=lambda n: len(batches[n]))
            batches[largest : largest + 1] = np.array_split(batches[largest], 2)
        self._batches = batches[rank::num_replicas]

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[int]]:
        return (batch.tolist() for batch in self._batches)


class _Steps(Dataset):
    """The data set that a loader asks for whole steps."""

    def __init__(self, graphs: GraphDataset):
        self.graphs = graphs

    def __getitem__(self, step: StepFrames) -> Step:
        parts = tuple(collate([self.graphs.at(int(i), step.epoch) for i in part]) for part in step.parts)
        return Step(parts, torch.from_numpy(step.counts).double())


def step_loader(
    dataset: GraphDataset, sampler: StepSampler, workers: int = 0, pin: bool = False
) -> DataLoader:
    """A loader of ``Step``; ``sampler`` says of which frames.

    It draws nothing from torch's global random state. ``workers`` processes make graphs ahead of their use;
    ``pin``: in memory that GPUs read by themselves.
    """
    # collate_fn: the default one would look for tensors in a Step and convert what it finds.
    return DataLoader(
        _Steps(dataset), batch_size=None, sampler=sampler, collate_fn=_unchanged, **_loading(workers, pin)
    )


def batch_loader(
    dataset: GraphDataset, sampler: BatchSampler, workers: int = 0, pin: bool = False
) -> DataLoader:
    """A loader of collated graphs, for evaluation; ``workers`` and ``pin`` as of ``step_loader``."""
    return DataLoader(dataset, batch_sampler=sampler, collate_fn=collate, **_loading(workers, pin))


def _unchanged(step: Step) -> Step:
    return step


def _loading(workers: int, pin: bool) -> dict:
    # Without a generator of its own a loader draws a seed for its workers from the global random state.
    own = {"generator": torch.Generator(), "persistent_workers": workers > 0}
    return {"num_workers": workers, "pin_memory": pin, **own}
