"""The Lightning trainer, told what this project needs and nothing else."""

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import SLURMEnvironment

from equipot.config import Config
from equipot.training import stopping
from equipot.training.batches import Batches
from equipot.training.checkpoint_io import AtomicCheckpointIO
from equipot.training.directory import RunDirectory
from equipot.training.module import PotentialModule
from equipot.training.monitor import TrainingMonitor
from equipot.training.sessions import SessionRecord


def fit(
    config: Config,
    kind: str,
    directory: RunDirectory,
    module: PotentialModule,
    batches: Batches,
    monitor: TrainingMonitor,
    session: SessionRecord,
    loggers: list[Logger],
    checkpoint: Path | None,
) -> str:
    """Train; the reason why it ended, of those in ``stopping``.

    Args:
        config: the whole configuration.
        kind: ``cpu`` or ``cuda``.
        directory: what Lightning is told to be its root.
        module, batches, monitor, session, loggers: what takes part.
        checkpoint: to go on from; None: from the start.

    Raises:
        TrainingError: the loss diverged, or the checkpoint does not fit; KeyboardInterrupt: a second Ctrl-C.
    """
    plugins: list[Any] = [AtomicCheckpointIO()]
    if SLURMEnvironment.detect():
        # Lightning would otherwise save and requeue by itself, beside our own handling of signals.
        plugins.append(SLURMEnvironment(auto_requeue=False))
    trainer = L.Trainer(
        accelerator="gpu" if kind == "cuda" else "cpu",
        devices=config.run.devices,
        num_nodes=config.run.nodes,
        strategy=config.run.strategy,
        max_epochs=config.training.epochs,
        reload_dataloaders_every_n_epochs=int(batches.epochs_differ),
        inference_mode=False,  # forces are a gradient
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_autolog_hparams=False,
        logger=loggers or False,
        callbacks=[monitor, session],
        plugins=plugins,
        default_root_dir=directory.root,
    )
    try:
        trainer.fit(module, datamodule=batches, ckpt_path=checkpoint)
    except stopping.TrainingInterrupted:
        return stopping.INTERRUPTED
    except SystemExit:  # what Lightning makes of a second Ctrl-C
        raise KeyboardInterrupt from None
    finally:
        monitor.close()
    return monitor.stop_reason
