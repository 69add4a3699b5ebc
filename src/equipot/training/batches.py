"""Steps and validation batches for Lightning; an epoch that was interrupted starts in its middle."""

import lightning as L
from torch.utils.data import DataLoader

from equipot.config import TrainingConfig
from equipot.config.training import BatchLimit
from equipot.data.batching import BatchSampler, Budget, StepSampler, batch_loader, step_loader
from equipot.data.dataset import GraphDataset


def budget_of(size: int | BatchLimit) -> Budget:
    """What ``training.batch_size`` says."""
    if isinstance(size, int):
        return Budget(size)
    return Budget(size.max_atoms, "atoms") if size.max_atoms else Budget(size.max_edges, "edges")


class Batches(L.LightningDataModule):
    """Loaders of the training set, in an order that follows from ``seed``, and of the validation set.

    ``workers`` processes make graphs ahead of their use; 0: the main process does.
    """

    def __init__(
        self,
        train: GraphDataset,
        validation: GraphDataset,
        training: TrainingConfig,
        seed: int,
        workers: int = 0,
    ):
        super().__init__()
        self.train, self.validation = train, validation
        self.budget = budget_of(training.batch_size)
        self.validation_budget = budget_of(training.validation_batch_size or training.batch_size)
        self.accumulate = training.accumulate
        self.seed, self.workers = seed, workers
        self._interrupted = (-1, 0)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of the first epoch; with a budget of atoms or edges others may differ a little."""
        return len(StepSampler(self.train, self.budget, self.seed))

    def resume_within(self, epoch: int, steps: int) -> None:
        """Start ``epoch`` after its first ``steps`` steps."""
        self._interrupted = (epoch, steps)

    def train_dataloader(self) -> DataLoader:
        sampler = StepSampler(
            self.train, self.budget, self.seed, accumulate=self.accumulate, **self._process()
        )
        # Lightning counts the steps, and workers take the first, before it sets the epoch; that of a training
        # which goes on is not yet its own then.
        sampler.set_epoch(max(self.trainer.current_epoch, self._interrupted[0]))
        sampler.skip(*self._interrupted)
        return step_loader(self.train, sampler, self.workers, self._for_gpu)

    def val_dataloader(self) -> DataLoader:
        sampler = BatchSampler(self.validation, self.validation_budget, **self._process())
        return batch_loader(self.validation, sampler, self.workers, self._for_gpu)

    @property
    def _for_gpu(self) -> bool:
        return self.trainer.strategy.root_device.type == "cuda"

    def _process(self) -> dict[str, int]:
        return {"rank": self.trainer.global_rank, "num_replicas": self.trainer.world_size}
