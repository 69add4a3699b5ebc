"""Batches for Lightning, which can start in the middle of an epoch that was interrupted."""

from collections.abc import Iterator
from itertools import islice

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset

from equipot.data.batching import EpochSampler, make_loader
from equipot.graph import collate


class ResumedSampler(EpochSampler):
    """Leaves out the first frames of one epoch, which an earlier, interrupted training has already seen."""

    def skip(self, epoch: int, frames: int) -> None:
        """In ``epoch``, leave out the first ``frames`` frames of this process."""
        self._skipped = (epoch, frames)

    def __iter__(self) -> Iterator[int]:
        epoch, frames = self._skipped
        # The length stays that of a whole epoch: Lightning counts the batches that were done before.
        return islice(super().__iter__(), frames if epoch == self.epoch else 0, None)


class Batches(L.LightningDataModule):
    """Loaders of the training and validation sets, with collation in the main process.

    Args:
        train, validation: data sets of AtomicGraph.
        batch_size, validation_batch_size: frames per batch and process.
        seed: of the order of training frames.
    """

    def __init__(
        self, train: Dataset, validation: Dataset, batch_size: int, validation_batch_size: int, seed: int
    ):
        super().__init__()
        self.train, self.validation = train, validation
        self.batch_size, self.validation_batch_size = batch_size, validation_batch_size
        self.seed = seed
        self._interrupted = (-1, 0)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one epoch."""
        return len(self.train_dataloader())

    def resume_within(self, epoch: int, batches: int) -> None:
        """Start ``epoch`` after its first ``batches`` batches."""
        self._interrupted = (epoch, batches)

    def train_dataloader(self) -> DataLoader:
        sampler = ResumedSampler(len(self.train), shuffle=True, seed=self.seed, **self._process())
        epoch, batches = self._interrupted
        sampler.skip(epoch, batches * self.batch_size)
        # Without a generator of its own a loader draws on the global random state.
        return DataLoader(
            self.train, self.batch_size, sampler=sampler, collate_fn=collate, generator=torch.Generator()
        )

    def val_dataloader(self) -> DataLoader:
        return make_loader(self.validation, self.validation_batch_size, **self._process())

    def _process(self) -> dict[str, int]:
        return {"rank": self.trainer.global_rank, "num_replicas": self.trainer.world_size}
