"""Reading that goes on after an unusable frame."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from equipot.config.data import LabelsConfig, Parsing, UnitsConfig
from equipot.data.formats import find_format, open_contents
from equipot.data.frames import Frame, frame_of, label_candidates
from equipot.data.progress import track
from equipot.data.quality.findings import Finding
from equipot.data.readers import expand_paths
from equipot.data.store.file import Store
from equipot.data.text import counted
from equipot.errors import DataError
from equipot.quantities import LABELS

_DEFAULT_PARSING = Parsing()


@dataclass
class Collected:
    """One file: its usable frames, what was wrong with the others, and names that could be labels."""

    path: Path
    format: str
    frames: list[Frame] = field(default_factory=list)
    problems: list[Finding] = field(default_factory=list)
    names: dict[str, Counter] = field(default_factory=dict)  # kind -> name -> number of frames with it
    units: dict[str, str] = field(default_factory=dict)  # that the file itself names


def collect(
    paths: Sequence[str | Path],
    labels: LabelsConfig,
    units: UnitsConfig,
    format_name: str | None = None,
    parsing: Parsing = _DEFAULT_PARSING,
) -> list[Collected]:
    """Read files; a frame that cannot be used becomes a problem, and so does a file that breaks off.

    Raises:
        DataError: a file does not exist or is listed twice.
    """
    return [_collect(path, labels, units, format_name, parsing) for path in expand_paths(paths, format_name)]


def _collect(
    path: Path, labels: LabelsConfig, units: UnitsConfig, format_name: str | None, parsing: Parsing
) -> Collected:
    found = Collected(path, find_format(path, format_name).name)
    found.names = {kind: Counter() for kind in LABELS}
    try:
        contents = open_contents(path, format_name, parsing)
        found.units = contents.units
        structures = _undamaged(found) if found.format == "store" else contents.numbered
        for index, atoms in track(structures, f"reading {path.name}", contents.total):
            for kind, names in label_candidates(atoms).items():
                found.names[kind].update(names)
            try:
                found.frames.append(frame_of(atoms, labels, units, 1.0, str(path), index))
            except DataError as error:
                found.problems.append(Finding("error", "unusable frame", str(error), ((str(path), index),)))
    except DataError as error:
        found.problems.append(Finding("error", "unreadable", str(error)))
    for kind, unit in found.units.items():
        if getattr(units, kind) != unit:
            message = f"{path} names {unit} as its unit of {kind}, but it was read in {getattr(units, kind)}."
            found.problems.append(Finding("error", "units", message))
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
