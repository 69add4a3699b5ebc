"""From a configuration to a run directory with a trained potential."""

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

from equipot.config import LABELS, Config
from equipot.data.dataset import GraphDataset
from equipot.data.load import Datasets, load_datasets
from equipot.data.splits import Split
from equipot.deploy.checkpoint import describe, load_checkpoint, metrics_of_level
from equipot.errors import TrainingError
from equipot.training import stopping
from equipot.training.batches import Batches
from equipot.training.devices import choose_device, quiet_lightning
from equipot.training.directory import RunDirectory, write_json, write_text
from equipot.training.fine_tune import begin_training, model_to_start_from
from equipot.training.fit import fit
from equipot.training.history import History, plot_learning_curve
from equipot.training.html_report import write_report
from equipot.training.loggers import log_results, open_loggers
from equipot.training.memory import describe_memory, forecast_memory, free_memory
from equipot.training.module import PotentialModule
from equipot.training.monitor import TrainingMonitor
from equipot.training.processes import adopt_launcher, find_launcher
from equipot.training.progress import ProgressDisplay
from equipot.training.report import (
    WARNING,
    Report,
    count_of,
    describe_device,
    describe_failure,
    describe_metrics,
    describe_session,
    describe_start,
)
from equipot.training.results import evaluate_sets
from equipot.training.resume import (
    check_same_statistics,
    check_same_training,
    describe_changes,
    find_last,
)
from equipot.training.sessions import SessionRecord

AUTO = Path("auto")


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
            differ from before. ``auto``: the run directory if it has a checkpoint, otherwise start anew.
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
    with quiet_lightning(), Report(console) as report:
        if configured.resolve() != directory.root.resolve():
            report.line(f"Resuming in {directory.root}; run.directory ({configured}) is ignored.")
        try:
            if first_process and directory.root.is_dir():
                directory.lock()  # otherwise once the data are read: bad data leave no directory behind
            return _train(config, directory, checkpoint, overwrite, report, console, first_process)
        finally:
            directory.unlock()


def _train(
    config: Config,
    directory: RunDirectory,
    checkpoint: Path | None,
    overwrite: bool,
    report: Report,
    console: Console | None,
    first_process: bool,
) -> TrainResult:
    kind = choose_device(config.run)
    if config.run.threads is not None:
        torch.set_num_threads(config.run.threads)
    torch.set_float32_matmul_precision(config.run.matmul_precision)
    start = source = None
    if checkpoint is not None:
        start = check_same_training(checkpoint, config)
        # The same data, under the names that the split knows them by, and the same model, written out.
        data = start.config.data.model_copy(update={"cache": config.data.cache})
        config = config.model_copy(update={"data": data, "model": start.config.model})
    else:
        config, source = model_to_start_from(config)
    split = None if start is None else Split.load(directory.split)
    datasets = load_datasets(config.data, config.model.cutoff, split)
    check_labels(datasets, config)
    if start is not None:
        check_same_statistics(checkpoint, start.statistics, datasets.statistics)
    torch.manual_seed(config.run.seed)
    begin = begin_training(config, datasets, source, start, kind)
    potential = begin.potential
    if first_process:
        directory.lock()
        if start is None:
            directory.refuse_if_occupied(overwrite)  # once more: reading the data has taken its time
            directory.clear()
        _prepare(directory, config, datasets)
        report.open(directory.log)
    batches = Batches(
        datasets.train, datasets.validation, config.training, config.run.seed, config.run.workers
    )
    sizes = {name: len(getattr(datasets, name) or ()) for name in ("train", "validation", "test")}
    steps, device = batches.steps_per_epoch, describe_device(config, kind)
    for line in describe_start(config, sizes, begin.statistics, potential, steps, device) + begin.lines:
        report.line(line)
    if first_process:
        devices = config.run.devices * config.run.nodes
        if batches.budget.unit == "frames" and batches.budget.limit < devices:
            report.line(
                f"{WARNING}a step of {count_of(batches.budget.limit, 'frame')} leaves some of {devices} "
                "devices without work. Raise training.batch_size, and the learning rate with it."
            )
        parts = config.training.accumulate * devices
        forecast = forecast_memory(potential, datasets.train, batches.budget, parts)
        report.line(describe_memory(forecast, free_memory(kind)))
    record = describe(config, datasets.statistics, begin.built_from)
    module = PotentialModule(potential, config.training, record, begin.factors)
    display = ProgressDisplay(console, report, config.training.epochs)
    monitor = TrainingMonitor(
        config.training,
        config.run.checkpoint_minutes,
        batches,
        directory,
        History(directory.history, datasets.levels),
        display,
    )
    if start is not None:
        for change in describe_changes(start.config, config):
            report.line(f"Changed since the checkpoint: {change}")
    if start is not None and start.config.training.loss != config.training.loss:
        report.line("training.loss has changed: the best epoch and early stopping are decided anew.")
        monitor.forget_best()
    facts = describe_session(potential, device, resumed=start is not None)
    session = SessionRecord(directory.sessions, facts)
    metrics = {}
    with open_loggers(config, directory) as loggers:
        stopped = fit(config, kind, directory, module, batches, monitor, session, loggers, checkpoint)
        if first_process:
            session.end(stopped, epochs=monitor.epochs_done)
            metrics = _finish(config, directory, datasets, monitor, stopped, kind, report)
            log_results(loggers, directory, metrics)
    best = directory.best if directory.best.exists() else None
    return TrainResult(directory.root, best, directory.last, metrics, stopped)


def check_labels(datasets: Datasets, config: Config) -> None:
    """Refuse to train on nothing.

    Raises:
        TrainingError: too few frames for training or validation; a label with a weight that no training frame
            has; no label with a weight in the validation set; no forces to take the model's scale from.
    """
    processes = config.run.devices * config.run.nodes
    for name in ("train", "validation"):
        frames = len(getattr(datasets, name))
        if frames < processes:
            raise TrainingError(
                f"The {name} set has {frames} frames; it needs one for each of {processes} devices at least."
            )
    loss = config.training.loss
    trained = count_labels(datasets.train)
    for name in LABELS:
        if loss.trains(name) and trained[name] == 0:
            raise TrainingError(
                f"training.loss.{name} is above 0, but none of the {len(datasets.train)} training frames "
                f"has {name} (looked for under the name '{getattr(config.data.labels, name)}'). "
                f"Correct data.labels.{name}, or set training.loss.{name} to 0."
            )
    if config.fine_tune is None and config.model.scale == "force_rms" and not datasets.statistics.force_rms:
        raise TrainingError(
            "model.scale is force_rms, but the training frames have no forces, or only zeros. "
            "Set model.scale to a number (eV), such as 1.0."
        )
    validated = count_labels(datasets.validation)
    judged = [name for name in LABELS if loss.final_weight(name) > 0]
    if not any(validated[name] for name in judged):
        raise TrainingError(
            f"None of the {len(datasets.validation)} validation frames has a label to train on "
            f"({', '.join(judged)})."
        )


def count_labels(dataset: GraphDataset) -> dict[str, int]:
    """How many frames have each label."""
    return dict(zip(LABELS, (dataset.label_counts > 0).sum(axis=0).tolist(), strict=True))


def _prepare(directory: RunDirectory, config: Config, datasets: Datasets) -> None:
    """Make the run directory and write what is known before the first step."""
    directory.create()
    write_text(directory.config, config.to_yaml())
    write_json(directory.statistics, datasets.statistics.to_dict())
    datasets.split.save(directory.split)


def _finish(
    config: Config,
    directory: RunDirectory,
    datasets: Datasets,
    monitor: TrainingMonitor,
    stopped: str,
    kind: str,
    report: Report,
) -> dict[str, Any]:
    """Plot, evaluate the best weights, say what came out; the content of metrics.json."""
    epochs = {"epochs": monitor.epochs_done, "best_epoch": monitor.best_epoch}
    metrics: dict[str, Any] = {"stopped": stopped, **epochs}
    if monitor.history.rows:
        plot_learning_curve(monitor.history.rows, directory.learning_curve, monitor.best_epoch)
        metrics["steps"] = int(monitor.history.rows[-1]["step"])
        metrics["training_seconds"] = monitor.history.rows[-1]["time_s"]
    if directory.best.exists():
        best = load_checkpoint(directory.best)
        metrics["validation"] = best.validation
        write_json(directory.metrics, metrics)  # what follows can take long
        if stopped != stopping.INTERRUPTED:
            errors = evaluate_sets(best, datasets, torch.device(kind), directory, report)
            metrics |= {name: errors[name] for name in errors if name != "validation"}
    write_json(directory.metrics, metrics)
    for line in _summary(metrics, directory, datasets.levels):
        report.line(line)
    force_rms = datasets.validation.columns.force_rms
    failure = describe_failure(
        metrics.get("validation", {}), math.inf if force_rms is None else force_rms, config.training
    )
    if failure:
        report.line(failure)
    write_report(directory.root)
    report.line(f"Report: {directory.report}")
    return metrics


_WHY = {
    stopping.FINISHED: "All epochs done",
    stopping.OUT_OF_TIME: "Stopped: training.max_minutes used up",
    stopping.NO_PROGRESS: "Stopped early: the validation loss no longer falls",
    stopping.INTERRUPTED: "Interrupted; everything is saved",
}


def _by_level(metrics: dict[str, float], levels: list[str]) -> list[str]:
    found = {level: describe_metrics(metrics_of_level(metrics, level)) for level in levels}
    return [f"  {level}: {text}" for level, text in found.items() if text]


def _summary(metrics: dict[str, Any], directory: RunDirectory, levels: list[str]) -> list[str]:
    lines = [f"{_WHY[metrics['stopped']]}, after {count_of(metrics['epochs'], 'epoch')}."]
    if "validation" in metrics:
        errors = describe_metrics(metrics["validation"])
        lines.append(f"Best epoch {metrics['best_epoch']:.4g}, validation: {errors}")
        lines += _by_level(metrics["validation"], levels)
    if "test" in metrics:
        lines.append(f"Test, best weights: {describe_metrics(metrics['test'])}")
        lines += _by_level(metrics["test"], levels)
    if directory.best.exists():
        lines += [f"Best model: {directory.best}", f"Learning curve: {directory.learning_curve}"]
    if metrics["stopped"] != stopping.FINISHED:
        lines.append(f"Resume with: equipot train {directory.config} --resume {directory.root}")
    return lines
