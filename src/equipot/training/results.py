"""The end of a training: plots, errors of the best weights, as of ``equipot evaluate``, and the summary."""

import io
import math
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from equipot.config import TrainingConfig
from equipot.data.dataset import GraphDataset
from equipot.data.load import Datasets
from equipot.data.splits import FrameId
from equipot.data.text import counted
from equipot.deploy.checkpoint import Checkpoint, load_checkpoint, metric_of_level, metrics_of_level
from equipot.errors import EvaluationError
from equipot.evaluation.elements import plot_elements
from equipot.evaluation.metrics import summary
from equipot.evaluation.predict import Comparison, FrameOrigin, compare
from equipot.evaluation.report import error_tables, worst_tables, write_evaluation
from equipot.files import read_json, write_json
from equipot.models.potential import Potential
from equipot.models.predict import predict
from equipot.run_directory import RunDirectory
from equipot.training import stopping
from equipot.training.checkpoints import check_progress, progress_in
from equipot.training.history import plot_learning_curve
from equipot.training.html_report import write_report
from equipot.training.monitor import TrainingMonitor
from equipot.training.preparation import Preparation
from equipot.training.replay import Replay, forgetting_table
from equipot.training.report import WARNING, RunLog, describe_failure, describe_metrics

_WIDTH = 110
_WHY = {
    stopping.FINISHED: "All epochs done",
    stopping.OUT_OF_TIME: "Stopped: training.max_minutes used up",
    stopping.NO_PROGRESS: "Stopped early: the validation loss no longer falls",
    stopping.INTERRUPTED: "Interrupted; everything is saved",
}


def read_metrics(directory: RunDirectory) -> dict[str, Any]:
    """Content of metrics.json; empty if there is none."""
    return read_json(directory.metrics) if directory.metrics.is_file() else {}


def is_finished(directory: RunDirectory, training: TrainingConfig) -> bool:
    """Whether a training has come to the end of its schedule, or stopped early, and has been evaluated."""
    metrics = read_metrics(directory)
    stopped = metrics.get("stopped")  # None if it was killed before its evaluation was done
    if stopped in (None, stopping.NO_PROGRESS):
        return stopped is not None
    if stopped == stopping.OUT_OF_TIME and training.schedule.in_time and directory.last.is_file():
        try:
            check_progress(progress_in(directory.last), training)
        except stopping.AllEpochsDone:
            return True
    return metrics["epochs"] >= training.epochs


def finish(
    prepared: Preparation, directory: RunDirectory, monitor: TrainingMonitor, stopped: str, report: RunLog
) -> dict[str, Any]:
    """Plot, evaluate the best weights, write the report, say what came out; the content of metrics.json."""
    config, datasets = prepared.config, prepared.datasets
    epochs = {"epochs": monitor.epochs_done, "best_epoch": monitor.best_epoch}
    metrics: dict[str, Any] = dict(epochs)
    if monitor.history.rows:
        plot_learning_curve(monitor.history.rows, directory.learning_curve, monitor.best_epoch)
        metrics["steps"] = int(monitor.history.rows[-1]["step"])
        metrics["training_seconds"] = monitor.history.rows[-1]["time_s"]
    if directory.best.exists():
        best = load_checkpoint(directory.best)
        metrics["validation"] = best.validation
        write_json(directory.metrics, metrics)  # what follows can take long
        if stopped != stopping.INTERRUPTED:
            errors = evaluate_sets(best, datasets, torch.device(prepared.device), directory, report)
            metrics |= {name: errors[name] for name in errors if name != "validation"}
            if prepared.replay is not None:
                metrics |= _forgetting(prepared.replay, best, directory, report)
    metrics = {"stopped": stopped, **metrics}
    write_json(directory.metrics, metrics)
    falls = monitor.history.rows and config.training.schedule.kind == "cosine"
    rate = float(monitor.history.rows[-1]["learning_rate"]) if falls else 0.0
    for line in _summary(metrics, directory, datasets.levels, config.training, rate):
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


def evaluate_sets(
    best: Checkpoint, datasets: Datasets, device: torch.device, directory: RunDirectory, report: RunLog
) -> dict[str, dict[str, float]]:
    """Evaluate, write ``errors.json`` and ``parity.png`` of each set, report the tables.

    Returns:
        The errors of each set that could be evaluated, as ``summary`` names them; where there are several
        levels of theory, also those of each (``forces_mae[pbe0]``).
    """
    sets = {"validation": (datasets.validation, datasets.split.validation)}
    if datasets.test is not None and len(datasets.test):
        sets["test"] = (datasets.test, datasets.split.test)
    errors = {}
    for name, (dataset, ids) in sets.items():
        try:
            comparison = compare_dataset(best.potential, dataset, ids, device)
        except EvaluationError as error:
            report.line(f"{WARNING}no errors on the {name} set. {error}")
            continue
        errors[name] = summary(comparison) | _of_levels(comparison, dataset)
        write_evaluation(comparison, best.path, directory.evaluation / name)
        # The last set is the one to look at first; the log has everything.
        say = report.line if name == list(sets)[-1] else report.keep
        for line in _lines(error_tables(comparison, f"Best weights on the {name} set,"), report):
            say(line)
        for line in _lines(worst_tables(comparison), report):
            report.keep(line)
    return errors


def describe_errors_of_start(prepared: Preparation) -> str:
    """What a training has to improve on, of a model that is no longer random."""
    datasets, device = prepared.datasets, torch.device(prepared.device)
    potential, frames = prepared.start.potential, (datasets.validation, datasets.split.validation)
    try:
        errors = summary(compare_dataset(potential, *frames, device))
    except EvaluationError as error:
        return f"{WARNING}no errors of the model to start from. {error}"
    finally:
        potential.train()
    return f"Before the first step, validation: {describe_metrics(errors)}"


def _forgetting(
    replay: Replay, best: Checkpoint, directory: RunDirectory, report: RunLog
) -> dict[str, dict[str, float]]:
    """Errors on the replay frames before the training and of the best weights: file, plot, table."""
    try:
        found = replay.finish(best.potential, directory)
    except EvaluationError as error:
        report.line(f"{WARNING}no errors on the replay frames. {error}")
        return {}
    plot_elements(found["after"]["elements"], directory.forgetting_plot)
    for line in _lines([forgetting_table(found)], report):
        report.line(line)
    return {f"replay_{when}": found[when]["groups"]["all"] for when in ("before", "after")}


def compare_dataset(
    potential: Potential, dataset: GraphDataset, ids: Iterable[FrameId], device: torch.device
) -> Comparison:
    """Predictions for every frame of ``dataset`` beside its labels; ``ids`` names the frames.

    Raises:
        EvaluationError: a prediction is not finite.
    """
    dataset = dataset.as_read if dataset.paired else dataset
    sources = [FrameOrigin(*of, group) for of, group in zip(ids, dataset.config_types, strict=True)]
    graphs = (dataset[i] for i in range(len(dataset)))
    potential = potential.to(device).eval()
    return compare(partial(predict, potential), graphs, sources, potential.species, device)


def _of_levels(comparison: Comparison, dataset: GraphDataset) -> dict[str, float]:
    if len(dataset.levels) < 2:
        return {}
    parts = {level: dataset.columns.level == level for level in dataset.levels}
    return {
        metric_of_level(metric, level): value
        for level, chosen in parts.items()
        if chosen.any()
        for metric, value in summary(comparison.select(chosen)).items()
    }


def _lines(tables: list[Table], report: RunLog) -> list[str]:
    width = _WIDTH if report.console is None else min(_WIDTH, report.console.width)
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(*tables)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def _by_level(metrics: dict[str, float], levels: list[str]) -> list[str]:
    found = {level: describe_metrics(metrics_of_level(metrics, level)) for level in levels}
    return [f"  {level}: {text}" for level, text in found.items() if text]


def _summary(
    metrics: dict[str, Any],
    directory: RunDirectory,
    levels: list[str],
    training: TrainingConfig,
    rate: float,
) -> list[str]:
    """``rate``: at the end, where it should have fallen."""
    lines = [f"{_WHY[metrics['stopped']]}, after {counted(metrics['epochs'], 'epoch')}."]
    if "validation" in metrics:
        errors = describe_metrics(metrics["validation"])
        lines.append(f"Best epoch {metrics['best_epoch']:.4g}, validation: {errors}")
        lines += _by_level(metrics["validation"], levels)
    if "test" in metrics:
        lines.append(f"Test, best weights: {describe_metrics(metrics['test'])}")
        lines += _by_level(metrics["test"], levels)
    if directory.best.exists():
        lines += [f"Best model: {directory.best}", f"Learning curve: {directory.learning_curve}"]
    if metrics["stopped"] == stopping.OUT_OF_TIME and rate > 0.1 * training.learning_rate:
        lines.append(
            f"The learning rate was still {rate:.2g}. In a new training with training.schedule.in_time=true "
            "it would fall in the time there is, and errors with it."
        )
    done = metrics["stopped"] == stopping.OUT_OF_TIME and is_finished(directory, training)
    if metrics["stopped"] != stopping.FINISHED and not done:
        lines.append(f"Resume with: equipot train {directory.config} --resume {directory.root}")
    return lines
