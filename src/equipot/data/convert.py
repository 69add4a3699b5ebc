"""From files of any format to a store: what `equipot data convert` does."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from equipot.config.data import LabelsConfig, UnitsConfig
from equipot.data.formats.store import SUFFIX, read_header, write_store
from equipot.data.readers import expand_paths, read_frames
from equipot.data.splits import file_digest
from equipot.errors import DataError

_ADVICE = "Give the name the file uses with --{kind}-key, or none to do without."


@dataclass(frozen=True)
class Conversion:
    """What became of it."""

    path: Path
    num_frames: int
    written: bool  # False: the store was there, made from the same files in the same way


def convert(
    paths: Sequence[str | Path],
    output: Path,
    labels: LabelsConfig,
    units: UnitsConfig,
    cutoff: float | None = None,
) -> Conversion:
    """Write frames, and their neighbor lists for ``cutoff`` (Å), unless ``output`` holds just these already.

    Raises:
        DataError: a file cannot be read, a frame cannot be used, a label is missing; ``output`` is one of the
            files, or a file that is no store.
    """
    if output.suffix != SUFFIX:
        raise DataError(f"The name of a store ends in {SUFFIX}; {output} does not.")
    files = expand_paths(paths)
    if output.resolve() in [file.resolve() for file in files]:
        raise DataError(f"{output} is one of the files to convert; give another name.")
    key = _key(files, labels, units, cutoff)
    if output.exists():
        header = read_header(output)  # refuses to replace a file that is no store
        if header["key"] == key:
            return Conversion(output, header["num_frames"], written=False)
    frames = read_frames(files, labels, units, required=(), need_any=True, advice=_ADVICE)
    write_store(output, frames, key, cutoff)
    return Conversion(output, len(frames), written=True)


def _key(files: Sequence[Path], labels: LabelsConfig, units: UnitsConfig, cutoff: float | None) -> str:
    """Hash of everything the store depends on. Species do not belong to it: it holds elements, not types."""
    parts = {
        "files": [file_digest(file) for file in files],
        "labels": labels.model_dump(),
        "units": units.model_dump(),
        "cutoff": cutoff,
    }
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
