"""Loggers beside the CSV file: Weights & Biases and TensorBoard."""

from importlib.util import find_spec

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from equipot.config import Config
from equipot.errors import TrainingError
from equipot.training.directory import RunDirectory


def make_loggers(config: Config, directory: RunDirectory) -> list[Logger]:
    """The loggers that section ``run.logging`` asks for.

    Raises:
        TrainingError: a package is missing.
    """
    settings = config.run.logging
    loggers: list[Logger] = []
    if settings.wandb is not None:
        _require("wandb", "run.logging.wandb")
        import wandb

        logger = WandbLogger(
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
        loggers.append(TensorBoardLogger(str(directory.root), name=directory.tensorboard.name, version=""))
    return loggers


def close_loggers(loggers: list[Logger]) -> None:
    """End the runs of loggers that would otherwise go on, in the same process, with the next training."""
    if any(isinstance(logger, WandbLogger) for logger in loggers):
        import wandb

        wandb.finish()


def _require(package: str, key: str) -> None:
    if find_spec(package) is None:
        raise TrainingError(
            f"{key} needs the package {package}: pip install 'equipot[{package}]', or switch {key} off."
        )
