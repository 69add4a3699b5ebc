"""From a configuration to a run directory with a trained potential."""

import atexit
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import lightning.fabric.utilities.distributed as lightning_distributed
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

from equipot.config import Config
from equipot.data.load import count_labels
from equipot.data.text import counted
from equipot.deploy.checkpoint import describe
from equipot.files import write_json, write_text
from equipot.run_directory import RunDirectory
from equipot.training import auto, stopping
from equipot.training.batches import Batches
from equipot.training.checkpoints import (
    AtomicCheckpointIO,
    check_progress,
    describe_changes,
    find_last,
    progress_in,
)
from equipot.training.devices import adopt_launcher, find_launcher
from equipot.training.history import History, SessionRecord
from equipot.training.loggers import log_results, open_loggers
from equipot.training.memory import describe_memory, forecast_memory, free_memory
from equipot.training.module import PotentialModule
from equipot.training.monitor import TrainingMonitor
from equipot.training.preparation import Preparation, prepare, quiet
from equipot.training.progress import ProgressDisplay
from equipot.training.report import (
    WARNING,
    RunLog,
    describe_device,
    describe_noise,
    describe_products,
    describe_start,
    describe_unused,
)
from equipot.training.results import describe_errors_of_start, finish, is_finished, read_metrics

AUTO = Path("auto")
_CHATTY = ("lightning", "lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")


@dataclass(frozen=True)
class TrainResult:
    """Where a training has left what."""

    directory: Path
    best_checkpoint: Path | None  # None if it was interrupted before the first validation
    last_checkpoint: Path
    metrics: dict[str, Any]  # content of metrics.json; empty on processes other than the first
    stopped: str  # "finished", "max_minutes", "early_stopping" or "interrupted"


def train(config: Config, resume: Path | None = None, overwrite: bool = False) -> TrainResult:
    """Train a potential.

    Args:
        config: the whole configuration.
        resume: a run directory, or a checkpoint in one, to go on with; its directory is used, whatever
            ``config.run.directory`` says. Only section ``training`` and what ``run`` says of the machine may
            differ from before. ``auto``: the run directory if it has a checkpoint, otherwise start anew;
            a training that is done is left alone.
        overwrite: replace what an earlier training left in the run directory; other files stay.

    Raises:
        TrainingError: occupied run directory, no usable data, diverged loss, full disk, nothing to resume,
            or another training than the one to resume.
        DeviceError: the device asked for is not there.
        DataError: the data cannot be used.
    """
    config = config.model_copy(update={"run": adopt_launcher(config.run, find_launcher())})
    first_process = rank_zero_only.rank == 0
    console = Console(file=sys.stdout) if first_process else None
    directory = RunDirectory(config.run.directory)
    if resume is not None:
        config = auto.as_before(
            config, directory if resume == AUTO else RunDirectory.of_checkpoint(find_last(resume))
        )
    if resume == AUTO and is_finished(directory, config.training):
        if first_process:
            print(f"The training in {directory.root} is done. Its report: {directory.report}")
            print("To go on: a larger training.epochs, or max_minutes where that has stopped it.")
        return _result(directory, read_metrics(directory), stopping.FINISHED)
    if resume == AUTO:
        resume = directory.root if directory.last.is_file() else None
        # A training that was killed before its first checkpoint has left nothing to lose.
        overwrite = overwrite or resume is None
    checkpoint = None if resume is None else find_last(resume)
    configured = directory.root
    if checkpoint is not None:
        directory = RunDirectory.of_checkpoint(checkpoint)
        run = config.run.model_copy(update={"directory": directory.root})
        config = config.model_copy(update={"run": run})
    elif first_process:
        directory.refuse_if_occupied(overwrite)
    if config.run.devices * config.run.nodes > 1 and config.data.cache is None:
        # So that the files are read, and neighbors searched, by one process and not by each.
        cached = config.data.model_copy(update={"cache": directory.data})
        config = config.model_copy(update={"data": cached})
    with _quiet_lightning(), RunLog(console) as report:
        if configured.resolve() != directory.root.resolve():
            report.line(f"Resuming in {directory.root}; run.directory ({configured}) is ignored.")
        try:
            if first_process and directory.root.is_dir():
                directory.lock()  # otherwise once the data are read: bad data leave no directory behind
            return _train(config, directory, checkpoint, overwrite, report, first_process)
        finally:
            directory.unlock()


def _train(
    config: Config,
    directory: RunDirectory,
    checkpoint: Path | None,
    overwrite: bool,
    report: RunLog,
    first_process: bool,
) -> TrainResult:
    prepared = prepare(config, checkpoint, directory)
    config, datasets, start, resumed = prepared.config, prepared.datasets, prepared.start, prepared.resumed
    if resumed is not None:  # before anything is written
        try:
            check_progress(progress_in(checkpoint), config.training)
        except stopping.AllEpochsDone:
            if is_finished(directory, config.training):
                raise
    if first_process:
        _open_directory(directory, prepared, overwrite)
        report.open(directory.log)
    batches = Batches(
        prepared.training_set, datasets.validation, config.training, config.run.seed, config.run.workers
    )
    _announce(prepared, batches, report, first_process)
    if first_process and resumed is None and config.fine_tune is not None:
        report.line(describe_errors_of_start(prepared))
    record = describe(config, datasets.statistics, start.built_from, start.shortest_distances, start.origin)
    module = PotentialModule(start.potential, config.training, record, start.factors)
    monitor = TrainingMonitor(
        config.training,
        config.run.checkpoint_minutes,
        batches,
        directory,
        History(directory.history, datasets.levels),
        ProgressDisplay(report.console, report, config.training.epochs),
    )
    before = resumed and resumed.config.training
    changed = [k for k in ("loss", "denoise") if before and getattr(before, k) != getattr(config.training, k)]
    if changed:
        report.line(f"training.{changed[0]} has changed: the best epoch and early stopping are decided anew.")
        monitor.forget_best()
    device = describe_device(config, prepared.device)
    parameters = sum(weight.numel() for weight in start.potential.parameters())
    facts = {"device": device, "resumed": resumed is not None, "parameters": parameters}
    session = SessionRecord(directory.sessions, facts | {"products": describe_products()})
    metrics = {}
    with open_loggers(config, directory) as loggers:
        try:
            stopped = _fit(
                config, prepared.device, directory, module, batches, monitor, session, loggers, checkpoint
            )
        except stopping.AllEpochsDone as done:
            report.line("The training is done; what was missing is the evaluation.")
            monitor.history.read()
            stopped = done.stopped
        if first_process:
            session.end(stopped, epochs=monitor.epochs_done)
            metrics = finish(prepared, directory, monitor, stopped, report)
            log_results(loggers, directory, metrics)
    return _result(directory, metrics, stopped)


def _fit(
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
    """Train on ``kind`` (cpu or cuda), perhaps from a checkpoint; why it ended, as named in ``stopping``.

    Raises TrainingError if the loss diverged or the checkpoint does not fit, KeyboardInterrupt at a second
    Ctrl-C.
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
        reload_dataloaders_every_n_epochs=int(batches.budget.unit != "frames"),  # the steps may be others
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
    except Exception:
        # At its exit this process would wait for the others (NCCL), which wait for it.
        atexit.unregister(getattr(lightning_distributed, "_destroy_dist_connection", None))
        raise
    finally:
        monitor.close()
    return monitor.stop_reason


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Inside the block Lightning's tips, device table and advice stay unsaid; its errors do not."""
    with quiet(*_CHATTY), warnings.catch_warnings():
        for module in (r"lightning\..*", r"torchmetrics\..*", r"torch\.utils\.data.*"):
            warnings.filterwarnings("ignore", module=module)
        yield


def _result(directory: RunDirectory, metrics: dict[str, Any], stopped: str) -> TrainResult:
    best = directory.best if directory.best.exists() else None
    return TrainResult(directory.root, best, directory.last, metrics, stopped)


def _open_directory(directory: RunDirectory, prepared: Preparation, overwrite: bool) -> None:
    """Make the run directory and write what is known before the first step."""
    directory.lock()
    if prepared.resumed is None:
        directory.refuse_if_occupied(overwrite)  # once more: reading the data has taken its time
        directory.clear()
    directory.create()
    write_text(directory.config, prepared.config.to_yaml())
    if prepared.resumed is None or not directory.statistics.is_file():
        write_json(directory.statistics, prepared.start.statistics.to_dict())
    prepared.datasets.split.save(directory.split)
    if prepared.replay is not None and prepared.resumed is None:
        prepared.replay.save(directory)


def _announce(prepared: Preparation, batches: Batches, report: RunLog, first_process: bool) -> None:
    """What the user reads before the first epoch."""
    config, datasets, start = prepared.config, prepared.datasets, prepared.start
    sizes = {name: len(getattr(datasets, name) or ()) for name in ("train", "validation", "test")}
    device = describe_device(config, prepared.device)
    lines = describe_start(config, sizes, start.statistics, start.potential, batches.steps_per_epoch, device)
    lines += describe_unused(config.training.loss, count_labels(datasets.train))
    if config.training.denoise is not None:
        lines.append(describe_noise(config.training.denoise, datasets.train.paired))
    if prepared.replay is not None:
        lines.append(prepared.replay.describe())
    for line in prepared.choices + lines + start.lines:
        report.line(line)
    if first_process:
        devices = config.run.devices * config.run.nodes
        if batches.budget.unit == "frames" and batches.budget.limit < devices:
            report.line(
                f"{WARNING}a step of {counted(batches.budget.limit, 'frame')} leaves some of {devices} "
                "devices without work. Raise training.batch_size, and the learning rate with it."
            )
        parts = config.training.accumulate * devices
        of_energies = config.training.loss.of_energies
        forecast = forecast_memory(start.potential, batches.train, batches.budget, parts, of_energies)
        report.line(describe_memory(forecast, free_memory(prepared.device)))
    if prepared.resumed is not None:
        for change in describe_changes(prepared.resumed.config, config):
            report.line(f"Changed since the checkpoint: {change}")
