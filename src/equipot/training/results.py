"""The end of a training: the validation and test sets get what ``equipot evaluate`` does."""

import io
from collections.abc import Iterable
from functools import partial

import torch
from rich.console import Console
from rich.table import Table

from equipot.data.dataset import GraphDataset
from equipot.data.load import Datasets
from equipot.data.splits import FrameId
from equipot.deploy.checkpoint import Checkpoint
from equipot.errors import EvaluationError
from equipot.evaluation.metrics import summary
from equipot.evaluation.predict import Comparison, Source, compare
from equipot.evaluation.report import error_tables, worst_tables, write_evaluation
from equipot.models.potential import predict
from equipot.training.directory import RunDirectory
from equipot.training.report import WARNING, Report

_WIDTH = 110


def evaluate_sets(
    best: Checkpoint, datasets: Datasets, device: torch.device, directory: RunDirectory, report: Report
) -> dict[str, dict[str, float]]:
    """Evaluate, write ``errors.json`` and ``parity.png`` of each set, report the tables.

    Returns:
        The errors of each set that could be evaluated, as ``summary`` names them.
    """
    sets = {"validation": (datasets.validation, datasets.split.validation)}
    if datasets.test is not None and len(datasets.test):
        sets["test"] = (datasets.test, datasets.split.test)
    errors = {}
    for name, (dataset, ids) in sets.items():
        try:
            comparison = compare_dataset(best, dataset, ids, device)
        except EvaluationError as error:
            report.line(f"{WARNING}no errors on the {name} set. {error}")
            continue
        errors[name] = summary(comparison)
        write_evaluation(comparison, best.path, directory.evaluation / name)
        # The last set is the one to look at first; the log has everything.
        say = report.line if name == list(sets)[-1] else report.keep
        for line in _lines(error_tables(comparison, f"Best weights on the {name} set,"), report):
            say(line)
        for line in _lines(worst_tables(comparison), report):
            report.keep(line)
    return errors


def compare_dataset(
    best: Checkpoint, dataset: GraphDataset, ids: Iterable[FrameId], device: torch.device
) -> Comparison:
    """Predictions for every frame of ``dataset`` beside its labels; ``ids`` names the frames.

    Raises:
        EvaluationError: a prediction is not finite.
    """
    sources = [Source(*of, group) for of, group in zip(ids, dataset.config_types, strict=True)]
    graphs = (dataset[i] for i in range(len(dataset)))
    potential = best.potential.to(device).eval()
    return compare(partial(predict, potential), graphs, sources, potential.species, device)


def _lines(tables: list[Table], report: Report) -> list[str]:
    width = _WIDTH if report.console is None else min(_WIDTH, report.console.width)
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(*tables)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]
