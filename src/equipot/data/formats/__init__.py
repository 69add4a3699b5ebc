"""File formats: one module each, in this folder; ``config.data.FORMATS`` says in which order they are tried.

The first format of that list that matches a path reads it; ``ase`` matches every file and is the last.
"""

import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import ase

from equipot.config.data import FORMATS as NAMES
from equipot.data.formats.base import PART_ATOMS, PART_FRAMES, Contents, Format, Text
from equipot.data.frames import Frame
from equipot.errors import DataError

_MODULES = [import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
_FOUND = {module.FORMAT.name: module.FORMAT for module in _MODULES if hasattr(module, "FORMAT")}
FORMATS: tuple[Format, ...] = tuple(_FOUND[name] for name in NAMES)

__all__ = [
    "FORMATS",
    "Contents",
    "FilePart",
    "Format",
    "find_format",
    "open_contents",
    "open_parts",
]


def find_format(path: Path, name: str | None = None) -> Format | None:
    """The format called ``name``, otherwise the first that matches ``path``; None for a folder of none."""
    if name is not None:
        return next(format for format in FORMATS if format.name == name)
    return next((format for format in FORMATS if format.matches(path)), None)


def open_contents(path: Path, name: str | None = None) -> Contents:
    """Open a file or folder with the format called ``name``, or the one that matches.

    Raises:
        DataError: empty, unknown, damaged, or a library is missing.
    """
    if path.is_file() and path.stat().st_size == 0:
        raise DataError(f"{path} is empty.")
    chosen = find_format(path, name)
    if chosen is None:
        raise DataError(f"{path} is a folder of no known format. To read its files, write {path}/*.xyz.")
    try:
        contents = chosen.read(path)
    except DataError:
        raise
    except Exception as error:  # parsers raise whatever they run into
        raise DataError(_unreadable(path, chosen, error)) from error
    structures = _guarded(path, chosen, contents.structures)
    return Contents(structures, contents.total, contents.units, contents.texts)


@dataclass(frozen=True)
class FilePart:
    """Consecutive structures of a file, perhaps still as text, for another process to work on."""

    path: Path
    format: str
    first: int  # number of the first in the file, from 0
    content: Text | list[ase.Atoms | Frame]

    def structures(self) -> Iterator[ase.Atoms | Frame]:
        """Yield them. Raises DataError for one that cannot be read, with its number."""
        if isinstance(self.content, list):
            return iter(self.content)
        return _guarded(self.path, find_format(self.path, self.format), self.content.parse(), self.first)


def open_parts(path: Path, name: str | None = None) -> tuple[Contents, Iterator[FilePart]]:
    """A file and its structures in parts, the same parts every time. Raises as ``open_contents``."""
    contents = open_contents(path, name)
    return contents, _parts(path, find_format(path, name).name, contents)


def _parts(path: Path, name: str, contents: Contents) -> Iterator[FilePart]:
    first = 0
    for text in contents.texts or ():
        yield FilePart(path, name, first, text)
        first += text.num_frames
    if contents.texts is not None:
        if first == 0:
            raise DataError(_no_frames(path, find_format(path, name)))
        return
    collected: list[ase.Atoms | Frame] = []
    atoms = 0
    for structure in contents.structures:
        size = structure.num_atoms if isinstance(structure, Frame) else len(structure)
        if len(collected) == PART_FRAMES or (collected and atoms + size > PART_ATOMS):
            yield FilePart(path, name, first, collected)
            first, collected, atoms = first + len(collected), [], 0
        collected.append(structure)
        atoms += size
    yield FilePart(path, name, first, collected)


def _guarded(
    path: Path, chosen: Format, structures: Iterator[ase.Atoms | Frame], first: int = 0
) -> Iterator[ase.Atoms | Frame]:
    number = first
    try:
        for atoms in structures:
            yield atoms
            number += 1
    except DataError:
        raise
    except Exception as error:
        raise DataError(_unreadable(path, chosen, error, number)) from error
    if number == 0:
        raise DataError(_no_frames(path, chosen))


def _no_frames(path: Path, chosen: Format) -> str:
    return f"{path} contains no frames (read as {chosen.what})."


def _unreadable(path: Path, chosen: Format, error: Exception, number: int | None = None) -> str:
    place = f"{path}" if number is None else f"{path}, frame {number} (the first is 0)"
    return (
        f"{place}: cannot be read as {chosen.what}: {type(error).__name__}: {error}. It may be truncated, "
        "damaged, or not what its name says; `format:` of the entry in the YAML (--format) names another."
    )
