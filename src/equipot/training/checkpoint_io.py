"""Checkpoint files that are complete or absent, read without running code from them."""

import io
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import CheckpointIO

from equipot.errors import TrainingError
from equipot.files import atomic_write


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's checkpoint reading and writing, through a temporary file and a rename."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write ``checkpoint``; the file at ``path`` stays as it was unless everything has reached the disk.

        Raises:
            TrainingError: the disk is full, or the file cannot be written for another reason.
        """
        # Serialized in memory first: torch.save on a full disk says "unexpected pos", not "no space left".
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        try:
            with atomic_write(path) as temporary:
                temporary.write_bytes(buffer.getbuffer())
        except OSError as error:
            raise _cannot_write(Path(path), error) from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read a checkpoint onto the CPU: tensors and plain values only, whatever ``weights_only`` says."""
        return torch.load(path, map_location="cpu", weights_only=True)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a checkpoint."""
        Path(path).unlink(missing_ok=True)


def copy_checkpoint(source: Path, target: Path) -> None:
    """Copy a checkpoint, whole or not at all. Raises TrainingError if it cannot be written."""
    try:
        with atomic_write(target) as temporary:
            shutil.copyfile(source, temporary)
    except OSError as error:
        raise _cannot_write(target, error) from error


def _cannot_write(path: Path, error: OSError) -> TrainingError:
    message = f"Cannot write the checkpoint {path}: {os.strerror(error.errno) if error.errno else error}."
    if path.exists():
        message += " The previous one under that name is intact: mend this, then resume."
    return TrainingError(message)
