"""Loggers beside the CSV file: Weights & Biases and TensorBoard."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from equipot.config import Config
from equipot.errors import TrainingError
from equipot.evaluation.report import PARITY
from equipot.run_directory import EVALUATED, RunDirectory
from equipot.training import stopping

_PARTS = ("train", "validation", "test")


class _ByMetric:
    """Names ``forces_mae/train`` what metrics.csv calls ``train_forces_mae``: one panel for each metric."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        super().log_metrics({_by_metric(name): value for name, value in metrics.items()}, step)


class _Wandb(_ByMetric, WandbLogger):
    def log_results(self, errors: Mapping[str, float], plots: Mapping[str, Path], step: int) -> None:
        self.experiment.summary.update(dict(errors))
        for name, path in plots.items():
            self.log_image(name, [str(path)], step)


class _TensorBoard(_ByMetric, TensorBoardLogger):
    def log_results(self, errors: Mapping[str, float], plots: Mapping[str, Path], step: int) -> None:
        from matplotlib.image import imread

        for name, value in errors.items():
            self.experiment.add_scalar(name, value, step)
        for name, path in plots.items():
            self.experiment.add_image(name, imread(path), step, dataformats="HWC")
        self.experiment.close()


@contextmanager
def open_loggers(config: Config, directory: RunDirectory) -> Iterator[list[Logger]]:
    """The loggers that section ``run.logging`` asks for, until the end of the training.

    Raises:
        TrainingError: a package is missing.
    """
    loggers = make_loggers(config, directory)
    try:
        yield loggers
    finally:
        # It would otherwise go on, in the same process, with the next training.
        if any(isinstance(logger, WandbLogger) for logger in loggers):
            import wandb

            wandb.finish()


def make_loggers(config: Config, directory: RunDirectory) -> list[Logger]:
    """The loggers that section ``run.logging`` asks for. Raises as ``open_loggers``."""
    settings = config.run.logging
    loggers: list[Logger] = []
    if settings.wandb is not None:
        _require("wandb", "run.logging.wandb")
        import wandb

        logger = _Wandb(
            project=settings.wandb.project,
            name=settings.wandb.name or directory.root.name,
            save_dir=str(directory.root),
            # Not Lightning's offline=True, which sets an environment variable for the whole process.
            mode=settings.wandb.mode,
            config=config.to_dict(),
            settings=wandb.Settings(silent=True, console="off"),
        )
        # Lightning passes on anonymous=None, and wandb warns of any value.
        logger._wandb_init.pop("anonymous", None)
        loggers.append(logger)
    if settings.tensorboard:
        _require("tensorboard", "run.logging.tensorboard")
        logger = _TensorBoard(str(directory.root), name=directory.tensorboard.name, version="")
        logger.experiment.add_text("config", f"```yaml\n{config.to_yaml()}\n```")
        loggers.append(logger)
    return loggers


def log_results(loggers: list[Logger], directory: RunDirectory, metrics: Mapping[str, Any]) -> None:
    """Errors of the best weights, from ``metrics`` (the content of metrics.json), and the plots."""
    names = {"validation": "best_validation", "test": "test"}
    errors = {
        f"{metric}/{name}": value
        for part, name in names.items()
        for metric, value in metrics.get(part, {}).items()
    }
    plots = {"learning_curve": directory.learning_curve}
    if metrics["stopped"] != stopping.INTERRUPTED:
        plots |= {f"parity/{part}": directory.evaluation / part / PARITY for part in EVALUATED}
    plots = {name: path for name, path in plots.items() if path.is_file()}
    for logger in loggers:
        logger.log_results(errors, plots, metrics.get("steps", 0))


def _by_metric(name: str) -> str:
    part, _, metric = name.partition("_")
    return f"{metric}/{part}" if part in _PARTS else name


def _require(package: str, key: str) -> None:
    if find_spec(package) is None:
        raise TrainingError(
            f"{key} needs the package {package}: pip install 'equipot[{package}]', or switch {key} off."
        )
