"""The run directory: where each file of a training lies, and who may write there."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from equipot.errors import TrainingError
from equipot.files import atomic_write


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
        self.learning_curve = self.plots / "learning_curve.png"

    @classmethod
    def of_checkpoint(cls, checkpoint: Path) -> "RunDirectory":
        """The run directory that ``checkpoint`` (``RUN/checkpoints/last.ckpt``) lies in."""
        return cls(checkpoint.absolute().parent.parent)

    def refuse_if_occupied(self) -> None:
        """Raise TrainingError if the directory holds anything, or is not a directory."""
        if self.root.exists() and not self.root.is_dir():
            raise TrainingError(f"Run directory '{self.root}' is a file. Choose another run.directory.")
        if self.root.is_dir() and any(self.root.iterdir()):
            remedy = "choose another run.directory, or allow overwriting"
            if self.last.exists():
                remedy = f"resume it from {self.last}, {remedy}"
            raise TrainingError(f"Run directory '{self.root}' is not empty: {remedy}.")

    def clear(self) -> None:
        """Remove the files of an earlier training; other files stay."""
        for path in (self.config, self.split, self.statistics, self.log, self.history, self.metrics):
            path.unlink(missing_ok=True)
        for folder in (self.checkpoints, self.plots):
            shutil.rmtree(folder, ignore_errors=True)

    def create(self) -> None:
        """Make the folders and remove what a killed checkpoint write has left."""
        for folder in (self.checkpoints, self.plots):
            folder.mkdir(parents=True, exist_ok=True)
        for final in (self.best, self.last):
            for leftover in self.checkpoints.glob(f".{final.stem}-*{final.suffix}"):
                leftover.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, data: Mapping) -> None:
    """Write a JSON file whole or not at all."""
    write_text(path, json.dumps(data, indent=2) + "\n")
