"""Reading that goes on after an unusable frame."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from equipot.config.data import Source
from equipot.data.formats import find_format, open_contents
from equipot.data.frames import Frame, frame_of, label_candidates
from equipot.data.progress import track
from equipot.data.quality.findings import Finding
from equipot.data.readers import expand_paths
from equipot.data.stated_units import check_units
from equipot.data.store.file import Store
from equipot.data.text import counted
from equipot.errors import DataError
from equipot.quantities import KEYS


@dataclass
class Collected:
    """One file: its usable frames, what was wrong with the others, and names that could be labels."""

    path: Path
    format: str
    frames: list[Frame] = field(default_factory=list)
    problems: list[Finding] = field(default_factory=list)
    names: dict[str, Counter] = field(default_factory=dict)  # kind -> name -> number of frames with it


def collect(paths: Sequence[str | Path], source: Source) -> list[Collected]:
    """Read files; a frame that cannot be used becomes a problem, and so does a file that breaks off.

    Args:
        paths: files, patterns, folders of a format.
        source: how to read them.

    Raises:
        DataError: a file does not exist or is listed twice.
    """
    return [_collect(path, source) for path in expand_paths(paths, source.format)]


def _collect(path: Path, source: Source) -> Collected:
    found = Collected(path, find_format(path, source.format).name)
    found.names = {key: Counter() for key in KEYS}
    try:
        contents = open_contents(path, source.format, source.parsing)
        try:
            check_units(path, contents.units, source.labels, source.units, path.name)
        except DataError as error:
            found.problems.append(Finding("error", "units", str(error)))
        structures = _undamaged(found) if found.format == "store" else contents.numbered
        for index, atoms in track(structures, f"reading {path.name}", contents.total):
            for key, names in label_candidates(atoms).items():
                found.names[key].update(names)
            try:
                found.frames.append(frame_of(atoms, source, str(path), index))
            except DataError as error:
                found.problems.append(Finding("error", "unusable frame", str(error), ((str(path), index),)))
    except DataError as error:
        found.problems.append(Finding("error", "unreadable", str(error)))
    return found


def _undamaged(found: Collected) -> Iterator[tuple[int, Frame]]:
    """The frames of a store with their numbers; those with a wrong checksum become a problem."""
    store = Store(found.path)
    damaged = []
    for number in range(len(store)):
        if store.damaged(number):
            damaged.append((str(found.path), number))
        else:
            yield number, store.frame(number)
    if damaged:
        message = (
            f"{len(damaged)} of {counted(len(store), 'frame')} have a wrong checksum: the file is damaged."
        )
        found.problems.append(Finding("error", "unusable frame", message, tuple(damaged)))
