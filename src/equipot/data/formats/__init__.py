"""File formats: one module each, in this folder; ``config.data.FORMATS`` says in which order they are tried.

The first format of that list that matches a path reads it; ``ase`` matches every file and is the last.
"""

import logging
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import ase
import numpy as np

from equipot.config.data import FORMATS as NAMES
from equipot.config.data import Parsing
from equipot.data.formats.base import LEFT_OUT, PART_ATOMS, PART_FRAMES, UNCONVERGED, Contents, Format, Text
from equipot.data.frames import Frame
from equipot.data.text import counted
from equipot.errors import DataError

logger = logging.getLogger("equipot")

_MODULES = [import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
_FOUND = {module.FORMAT.name: module.FORMAT for module in _MODULES if hasattr(module, "FORMAT")}
FORMATS: tuple[Format, ...] = tuple(_FOUND[name] for name in NAMES)

_DEFAULT_PARSING = Parsing()
Numbered = Iterator[tuple[int, ase.Atoms | Frame]]

__all__ = [
    "FORMATS",
    "Contents",
    "FilePart",
    "Format",
    "Opened",
    "find_format",
    "open_contents",
    "open_parts",
]


def find_format(path: Path, name: str | None = None) -> Format | None:
    """The format called ``name``, otherwise the first that matches ``path``; None for a folder of none."""
    if name is not None:
        return next(format for format in FORMATS if format.name == name)
    return next((format for format in FORMATS if format.matches(path)), None)


@dataclass(frozen=True)
class Opened:
    """What is in a file, but for frames that are left out."""

    numbered: Numbered  # each with its number in the file, from 0
    total: int | None  # as of Contents
    units: dict[str, str]
    texts: Iterator[Text] | None = None

    @property
    def structures(self) -> Iterator[ase.Atoms | Frame]:
        """Without their numbers."""
        return (structure for _, structure in self.numbered)


def open_contents(path: Path, name: str | None = None, parsing: Parsing = _DEFAULT_PARSING) -> Opened:
    """Open a file or folder with the format called ``name``, or the one that matches.

    Frames that did not converge are left out, unless ``parsing`` keeps them, and one line names them.

    Raises:
        DataError: empty, unknown, damaged, or a library is missing.
    """
    if path.is_file() and path.stat().st_size == 0:
        raise DataError(f"{path} is empty.")
    chosen = find_format(path, name)
    if chosen is None:
        raise DataError(f"{path} is a folder of no known format. To read its files, write {path}/*.xyz.")
    try:
        contents = chosen.read(path, parsing)
    except DataError:
        raise
    except Exception as error:  # parsers raise whatever they run into
        raise DataError(_unreadable(path, chosen, error)) from error
    return Opened(
        _guarded(path, chosen, contents.structures, parsing), contents.total, contents.units, contents.texts
    )


@dataclass(frozen=True)
class FilePart:
    """Some structures of a file, perhaps still as text, for another process to work on."""

    path: Path
    format: str
    first: int  # number of the first in the file, from 0
    content: Text | list[tuple[int, ase.Atoms | Frame]]
    parsing: Parsing

    def structures(self) -> Numbered:
        """Yield them with their numbers in the file. Raises DataError for one that cannot be read."""
        if isinstance(self.content, list):
            return iter(self.content)
        chosen = find_format(self.path, self.format)
        return _guarded(self.path, chosen, self.content.parse(), self.parsing, self.first)


def open_parts(
    path: Path, name: str | None = None, parsing: Parsing = _DEFAULT_PARSING
) -> tuple[Opened, Iterator[FilePart]]:
    """A file and its structures in parts, the same parts every time. Raises as ``open_contents``."""
    contents = open_contents(path, name, parsing)
    return contents, _parts(path, find_format(path, name), contents, parsing)


def _parts(path: Path, chosen: Format, contents: Opened, parsing: Parsing) -> Iterator[FilePart]:
    first = 0
    for text in contents.texts or ():
        yield FilePart(path, chosen.name, first, text, parsing)
        first += text.num_frames
    if contents.texts is not None:
        if first == 0:
            raise DataError(_no_frames(path, chosen))
        return
    collected: list[tuple[int, ase.Atoms | Frame]] = []
    atoms = 0
    for number, structure in contents.numbered:
        size = structure.num_atoms if isinstance(structure, Frame) else len(structure)
        if len(collected) == PART_FRAMES or (collected and atoms + size > PART_ATOMS):
            yield FilePart(path, chosen.name, collected[0][0], collected, parsing)
            collected, atoms = [], 0
        collected.append((number, structure))
        atoms += size
    yield FilePart(path, chosen.name, collected[0][0], collected, parsing)


def _guarded(
    path: Path, chosen: Format, structures: Iterator[ase.Atoms | Frame], parsing: Parsing, first: int = 0
) -> Numbered:
    """Number the structures, leave out and report those not to be used, and name the place of an error."""
    number = first
    marked: dict[str, list[int]] = {}
    differences = _EnergyDifferences()
    try:
        for structure in structures:
            reason = None if isinstance(structure, Frame) else structure.info.pop(LEFT_OUT, None)
            if reason is not None:
                marked.setdefault(reason, []).append(number)
            if reason is None or (reason == UNCONVERGED and parsing.keep_unconverged):
                differences.add(structure)
                yield number, structure
            number += 1
    except DataError:
        raise
    except Exception as error:
        raise DataError(_unreadable(path, chosen, error, number)) from error
    if number == 0:
        raise DataError(_no_frames(path, chosen))
    for reason, numbers in marked.items():
        _report_left_out(path, reason, numbers, number - first, parsing)
    differences.report(path, number - first)


def _report_left_out(path: Path, reason: str, numbers: list[int], total: int, parsing: Parsing) -> None:
    """Raises DataError if nothing is left."""
    listed = ", ".join(map(str, numbers[:10])) + (", ..." if len(numbers) > 10 else "")
    text = f"{path}: {len(numbers)} of {counted(total, 'frame')} {reason} ({listed}; the first is 0)"
    advice = "`keep_unconverged: true` in `data` or --keep-unconverged uses them."
    if reason == UNCONVERGED and parsing.keep_unconverged:
        logger.warning("%s; used all the same, as keep_unconverged says.", text)
        return
    advice = f" {advice}" if reason == UNCONVERGED else ""
    if len(numbers) == total:
        raise DataError(f"{text}, so none is left.{advice}")
    logger.warning("%s, left out.%s", text, advice)


class _EnergyDifferences:
    """Frames that have both an energy and a free energy, which are not the same."""

    def __init__(self) -> None:
        self.count, self.largest = 0, 0.0

    def add(self, structure: ase.Atoms | Frame) -> None:
        calculator = None if isinstance(structure, Frame) else structure.calc
        results = {} if calculator is None else calculator.results
        values = [results.get(name) for name in ("energy", "free_energy")]
        if all(isinstance(value, int | float | np.number) for value in values):
            difference = abs(float(values[1] - values[0])) / max(len(structure), 1)
            self.count += difference > 1e-6  # eV/atom: digits of text files
            self.largest = max(self.largest, difference)

    def report(self, path: Path, total: int) -> None:
        if self.count:
            logger.info(
                "%s: in %d of %d frames `free_energy` differs from `energy`, by up to %.3g meV/atom. Forces "
                "are the derivative of the free energy: data.labels.energy (--energy-key) chooses.",
                path, self.count, total, 1e3 * self.largest,
            )  # fmt: skip


def _no_frames(path: Path, chosen: Format) -> str:
    return f"{path} contains no frames (read as {chosen.what})."


def _unreadable(path: Path, chosen: Format, error: Exception, number: int | None = None) -> str:
    place = f"{path}" if number is None else f"{path}, frame {number} (the first is 0)"
    said = f"{type(error).__name__}: {error}".removesuffix(".")
    before = (
        f" {_complete(number)}"
        if number
        else " Nothing of it was read. `format:` of its entry in the YAML (--format) names another format."
    )
    return f"{place}: cannot be read as {chosen.what}: {said}.{before}"


def _complete(frames: int) -> str:
    return f"{counted(frames, 'frame')} before it {'was' if frames == 1 else 'were'} read."
