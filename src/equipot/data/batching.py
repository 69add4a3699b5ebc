"""Batches of graphs, in an order that depends on the seed and the epoch alone."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from equipot.graph import AtomicGraph, collate


class EpochSampler(Sampler[int]):
    """Frame numbers of one epoch, for one of ``num_replicas`` processes.

    The order of epoch e is a function of ``(seed, e)``: it needs no random state from before, so a resumed
    run sees the frames in the order of an uninterrupted one. Lightning calls ``set_epoch`` at every epoch.

    With several processes each takes every ``num_replicas``-th frame of the common order. If shuffled, the
    order is first filled up from its start so that all processes make the same number of steps, and no frame
    is left out. If not, nothing is repeated, so that each frame counts once in an evaluation.

    Args:
        num_frames: frames in the data set.
        shuffle: permute them anew each epoch.
        seed: of the permutations, not negative.
        rank: this process.
        num_replicas: number of processes.
    """

    def __init__(
        self, num_frames: int, *, shuffle: bool = False, seed: int = 0, rank: int = 0, num_replicas: int = 1
    ):
        if not 0 <= rank < num_replicas:
            raise ValueError(f"rank must be in [0, {num_replicas}), not {rank}.")
        self.num_frames = num_frames
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.num_replicas = num_replicas
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration runs through."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return iter(self._order()[self.rank :: self.num_replicas].tolist())

    def __len__(self) -> int:
        length = self.num_frames
        if self.shuffle:
            length += -length % self.num_replicas
        return len(range(self.rank, length, self.num_replicas))

    def _order(self) -> np.ndarray:
        if not self.shuffle:
            return np.arange(self.num_frames)
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.num_frames)
        # np.resize repeats the order from its start as often as needed.
        return np.resize(order, self.num_frames + -self.num_frames % self.num_replicas)


def make_loader(
    dataset: Dataset[AtomicGraph] | Sequence[AtomicGraph],
    batch_size: int,
    shuffle: bool = False,
    seed: int = 0,
    *,
    rank: int = 0,
    num_replicas: int = 1,
) -> DataLoader:
    """A loader of collated graphs, ``batch_size`` frames at a time; the last batch may be smaller.

    It draws nothing from torch's global random state. The graphs are in memory already, so no worker
    processes are used. See ``EpochSampler`` for the order and for several processes; with Lightning, pass
    ``use_distributed_sampler=False`` to the trainer, which would otherwise replace the sampler.
    """
    sampler = EpochSampler(len(dataset), shuffle=shuffle, seed=seed, rank=rank, num_replicas=num_replicas)
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        collate_fn=collate,
        generator=torch.Generator(),  # the loader draws a worker seed from it even without workers
    )
