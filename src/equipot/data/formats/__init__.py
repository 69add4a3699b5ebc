"""File formats: one module each, listed here. A new format gets a module and a line in ``FORMATS``.

The first format that matches a path reads it; ``ase`` matches every file and is the last. A new name also
goes into ``equipot.config.data.FORMATS``, from where the YAML and its reference page take it.
"""

from collections.abc import Iterator
from pathlib import Path

import ase

from equipot.data.formats import ase_db, ase_file, deepmd, hdf5, lmdb_pickle, npz, store, vasp, xyz
from equipot.data.formats.base import Contents, Format
from equipot.data.frames import Frame
from equipot.data.progress import track
from equipot.errors import DataError

FORMATS: tuple[Format, ...] = (
    xyz.FORMAT,
    ase_db.FORMAT,
    lmdb_pickle.FORMAT,
    hdf5.FORMAT,
    npz.FORMAT,
    deepmd.FORMAT,
    vasp.FORMAT,
    store.FORMAT,
    ase_file.FORMAT,
)

__all__ = ["FORMATS", "Contents", "Format", "find_format", "open_contents", "read_structures"]


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
    return Contents(_guarded(path, chosen, contents), contents.total, contents.units)


def read_structures(path: Path, name: str | None = None) -> Iterator[tuple[int, ase.Atoms | Frame]]:
    """Yield the structures of a file or folder, read one at a time, with their numbers from 0.

    Raises:
        DataError: as ``open_contents``; a frame that cannot be read, with its number; no frame at all.
    """
    contents = open_contents(path, name)
    yield from enumerate(track(contents.structures, f"reading {path.name}", contents.total))


def _guarded(path: Path, chosen: Format, contents: Contents) -> Iterator[ase.Atoms | Frame]:
    number = 0
    try:
        for atoms in contents.structures:
            yield atoms
            number += 1
    except DataError:
        raise
    except Exception as error:
        raise DataError(_unreadable(path, chosen, error, number)) from error
    if number == 0:
        raise DataError(f"{path} contains no frames (read as {chosen.what}).")


def _unreadable(path: Path, chosen: Format, error: Exception, number: int | None = None) -> str:
    place = f"{path}" if number is None else f"{path}, frame {number} (the first is 0)"
    return (
        f"{place}: cannot be read as {chosen.what}: {type(error).__name__}: {error}. It may be truncated, "
        "damaged, or not what its name says; `format:` of the entry in the YAML names another format."
    )
