"""The run directory: the one place that knows where each file of a training lies, and who may write there."""

import fcntl
import logging
import shutil
from pathlib import Path
from typing import TextIO

from equipot.errors import TrainingError

logger = logging.getLogger("equipot")

EVALUATED = ("validation", "test")  # sets with a folder in RunDirectory.evaluation


class RunDirectory:
    """Paths of everything a training writes below ``root``."""

    def __init__(self, root: Path):
        self.root = Path(root)
        self.config = self.root / "config.yaml"
        self.split = self.root / "split.json"
        self.statistics = self.root / "statistics.json"
        self.log = self.root / "log.txt"
        self.history = self.root / "metrics.csv"
        self.metrics = self.root / "metrics.json"
        self.checkpoints = self.root / "checkpoints"
        self.best = self.checkpoints / "best.ckpt"
        self.last = self.checkpoints / "last.ckpt"
        self.plots = self.root / "plots"
        self.data = self.root / "data"
        self.tensorboard = self.root / "tensorboard"
        self.wandb = self.root / "wandb"
        self.evaluation = self.root / "evaluation"
        self.replay = self.root / "replay.xyz"
        self.forgetting = self.evaluation / "replay.json"
        self.forgetting_plot = self.plots / "replay.png"
        self.sessions = self.root / "sessions.json"
        self.report = self.root / "report.html"
        self.learning_curve = self.plots / "learning_curve.png"
        self.lock_file = self.root / ".lock"
        self._lock: TextIO | None = None

    @classmethod
    def of_checkpoint(cls, checkpoint: Path) -> "RunDirectory":
        """The run directory that ``checkpoint`` (``RUN/checkpoints/last.ckpt``) lies in."""
        return cls(checkpoint.absolute().parent.parent)

    def refuse_if_occupied(self, overwrite: bool = False) -> None:
        """Raise TrainingError if a new training may not write here.

        It may if the directory is absent or empty or, with ``overwrite``, holds an earlier training.
        """
        if self.root.exists() and not self.root.is_dir():
            raise TrainingError(f"Run directory '{self.root}' is a file. Choose another run.directory.")
        # Several processes keep what they have read in data, before the training begins.
        harmless = (self.lock_file, self.data)
        if not self.root.is_dir() or all(path in harmless for path in self.root.iterdir()):
            return
        if not self.holds_training():
            raise TrainingError(
                f"Run directory '{self.root}' is not empty, and it holds no earlier training: "
                "choose another run.directory."
            )
        if overwrite:
            return
        remedy = "replace it with --overwrite, or choose another run.directory"
        if self.last.exists():
            remedy = f"go on with that training with --resume {self.root}, {remedy}"
        raise TrainingError(f"Run directory '{self.root}' is not empty: {remedy}.")

    def holds_training(self) -> bool:
        """Whether a training has left its description or a checkpoint here."""
        described = self.config.is_file() and self.split.is_file()
        return described or self.best.is_file() or self.last.is_file()

    def lock(self) -> None:
        """Keep other trainings out until ``unlock`` or the end of this process; makes the directory.

        Raises:
            TrainingError: another training holds the lock.
        """
        if self._lock is not None:
            return
        self.root.mkdir(parents=True, exist_ok=True)
        file = self.lock_file.open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise TrainingError(
                f"Another training is writing to '{self.root}'. "
                "Wait until it ends, stop it, or choose another run.directory."
            ) from None
        except OSError as error:  # some network file systems have no locks
            logger.warning("Cannot lock %s (%s): start no second training in it.", self.root, error.strerror)
        self._lock = file

    def unlock(self) -> None:
        """Let other trainings in. The lock file stays: removing it could race with one that is starting."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def clear(self) -> None:
        """Remove the files of an earlier training; other files stay."""
        described = (self.config, self.split, self.statistics, self.log, self.history, self.metrics)
        described += (self.replay, self.forgetting, self.forgetting_plot)
        for path in (*described, self.sessions, self.report, self.best, self.last, self.learning_curve):
            path.unlink(missing_ok=True)
        for folder in (self.tensorboard, self.wandb, *(self.evaluation / name for name in EVALUATED)):
            if folder.is_dir():
                shutil.rmtree(folder)

    def create(self) -> None:
        """Make the folders and remove what a killed checkpoint write has left."""
        for folder in (self.checkpoints, self.plots):
            folder.mkdir(parents=True, exist_ok=True)
        for final in (self.best, self.last):
            for leftover in self.checkpoints.glob(f".{final.stem}-*{final.suffix}"):
                leftover.unlink(missing_ok=True)
