"""What each start of a training ran on and how it ended: ``sessions.json`` in the run directory."""

import json
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import lightning as L

from equipot import __version__
from equipot.machine import available_cores, processor_name
from equipot.training.directory import write_json

_PACKAGES = ("torch", "lightning", "e3nn", "numpy", "ase", "matscipy")


class SessionRecord(L.Callback):
    """Adds an entry when the training starts, and completes it when it ends; a killed one stays incomplete.

    Args:
        path: the JSON file.
        facts: what else to say, such as the device; plain values.
    """

    def __init__(self, path: Path, facts: dict[str, Any]):
        self.path = path
        self.facts = facts
        self._sessions: list[dict[str, Any]] = []

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            self._sessions = [*read_sessions(self.path), _new_session(self.facts)]
            self._write()

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, error: BaseException) -> None:
        self.end("failed", error=str(error) or type(error).__name__)

    def end(self, stopped: str, **facts: Any) -> None:
        """Say how it ended; does nothing for a training that never started."""
        if self._sessions:
            self._sessions[-1] |= {"ended": _now(), "stopped": stopped, "error": None, **facts}
            self._write()

    def _write(self) -> None:
        write_json(self.path, {"sessions": self._sessions})


def read_sessions(path: Path) -> list[dict[str, Any]]:
    """The entries, oldest first; none without the file."""
    return json.loads(path.read_text(encoding="utf-8"))["sessions"] if path.is_file() else []


def _new_session(facts: dict[str, Any]) -> dict[str, Any]:
    return {
        "started": _now(),
        "ended": None,
        "stopped": None,
        "host": platform.node(),
        "system": platform.platform(),
        "processor": processor_name(),
        "cores": available_cores(),
        "versions": {"equipot": __version__, "python": platform.python_version(), **_versions()},
        **facts,
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # such as lightning under its other name
            continue
    return found
