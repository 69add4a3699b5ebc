"""Extended XYZ, plain or .gz: looked through before ASE parses it, for messages that name the line."""

import gzip
import io
import re
import zlib
from collections.abc import Sequence
from pathlib import Path

import ase.io

from equipot.data.formats.base import Contents, Format
from equipot.data.text import counted
from equipot.errors import DataError

_PROPERTIES = re.compile(r'\bproperties\s*=\s*"?([^\s"]+)', re.IGNORECASE)


def _matches(path: Path) -> bool:
    return path.is_file() and path.name.lower().removesuffix(".gz").endswith((".xyz", ".extxyz"))


def _read(path: Path) -> Contents:
    """The text is read into memory first: ASE seeks back and forth in it, which is slow in a .gz, and it
    stops without a word at a blank line, which would lose the rest of the file.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt") as stream:
            text = stream.read()
    except (EOFError, zlib.error, gzip.BadGzipFile, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read: {error}. It is truncated, damaged, or not what its name says."
        ) from error
    total = count_xyz_frames(path, text)
    return Contents(ase.io.iread(io.StringIO(text), ":", format="extxyz"), total)


def count_xyz_frames(path: Path, text: str) -> int:
    """Frames in (extended) XYZ text, by the atom counts.

    Raises:
        DataError: a frame is cut short, a line that should hold an atom count does not, or text follows a
            blank line between frames.
    """
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    line, frames = 0, 0
    while line < len(lines):
        header = lines[line].strip()
        if not header:
            _check_only_blank(path, lines, line, frames)
            break
        if header.startswith("VEC") and frames:  # a lattice vector of the frame before
            line += 1
            continue
        if not header.isdigit():
            raise DataError(
                f"{path}, line {line + 1}: expected the number of atoms of the next frame, found "
                f"'{_shortened(header)}'. {_complete(frames)} The atom count of the frame before may be "
                "wrong, or lines are missing."
            )
        _check_frame(path, lines, line, int(header), frames)
        line += int(header) + 2
        frames += 1
    return frames


def _check_frame(path: Path, lines: Sequence[str], start: int, num_atoms: int, frames: int) -> None:
    """The frame whose atom count is in ``lines[start]`` has all its atoms, with all their columns."""
    place = f"frame {frames} (the first is 0) begins in line {start + 1} and should have "
    rows = lines[start + 2 : start + 2 + num_atoms]
    if len(rows) < num_atoms:
        raise DataError(
            f"{path}: {place}{counted(num_atoms, 'atom')}, but the file ends after {len(rows)} of them, in "
            f"line {len(lines)}. {_complete(frames)} The file is truncated; complete it or remove that frame."
        )
    columns = _columns(lines[start + 1]) if num_atoms else 0
    for i, row in enumerate(rows):
        if len(row.split()) < columns:
            raise DataError(
                f"{path}, line {start + 3 + i}: {place}{columns} columns, but atom {i} has "
                f"{len(row.split())}. {_complete(frames)} The file is truncated or damaged there."
            )


def _columns(comment: str) -> int:
    """Columns of an atom line: what Properties says, otherwise the element and its position."""
    match = _PROPERTIES.search(comment)
    counts = match.group(1).split(":")[2::3] if match else []
    return sum(map(int, counts)) if counts and all(count.isdigit() for count in counts) else 4


def _check_only_blank(path: Path, lines: Sequence[str], line: int, frames: int) -> None:
    rest = next((i for i in range(line, len(lines)) if lines[i].strip()), None)
    if rest is not None:
        raise DataError(
            f"{path}: line {line + 1}, after frame {frames - 1}, is blank, but text follows in line "
            f"{rest + 1}. Readers stop there and lose the rest; remove the blank line."
        )


def _complete(frames: int) -> str:
    verb = "is" if frames == 1 else "are"
    return f"{counted(frames, 'frame')} before it {verb} complete." if frames else "No frame is complete."


def _shortened(text: str, length: int = 40) -> str:
    return text if len(text) <= length else text[:length] + "..."


FORMAT = Format("xyz", "extended XYZ", _matches, _read)
