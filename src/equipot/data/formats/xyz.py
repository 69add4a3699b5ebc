"""Extended XYZ, plain or .gz: looked through before ASE parses it, for messages that name the line."""

import gzip
import io
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TextIO

import ase
import ase.io

from equipot.data.formats.base import PART_ATOMS, PART_FRAMES, Contents, Format
from equipot.data.text import counted
from equipot.errors import DataError

_PROPERTIES = re.compile(r'\bproperties\s*=\s*"?([^\s"]+)', re.IGNORECASE)


def _matches(path: Path) -> bool:
    return path.is_file() and path.name.lower().removesuffix(".gz").endswith((".xyz", ".extxyz"))


@dataclass(frozen=True)
class _Piece:
    """Whole frames of a file, as text."""

    text: str
    num_frames: int

    def parse(self) -> Iterator[ase.Atoms]:
        return ase.io.iread(io.StringIO(self.text), ":", format="extxyz")


def _read(path: Path) -> Contents:
    """ASE gets the text piece by piece: it seeks back and forth, which is slow in a .gz, and it stops without
    a word at a blank line, which would lose the rest of the file.
    """
    total = sum(piece.num_frames for piece in _pieces(path))  # the whole file is looked through first
    structures = chain.from_iterable(piece.parse() for piece in _pieces(path))
    return Contents(structures, total, texts=_pieces(path))


def _pieces(path: Path) -> Iterator[_Piece]:
    """The text of the frames, some at a time.

    Raises:
        DataError: a frame is cut short, a line that should hold an atom count does not, or text follows a
            blank line between frames.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt") as stream:
            lines: list[str] = []
            frames, atoms = 0, 0
            for frame in _frames(path, stream):
                if frames == PART_FRAMES or (frames and atoms + len(frame) > PART_ATOMS):
                    yield _Piece("".join(lines), frames)
                    lines, frames, atoms = [], 0, 0
                lines += frame
                frames, atoms = frames + 1, atoms + len(frame)
            if frames:
                yield _Piece("".join(lines), frames)
    except (EOFError, zlib.error, gzip.BadGzipFile, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read: {error}. It is truncated, damaged, or not what its name says."
        ) from error


def _frames(path: Path, stream: TextIO) -> Iterator[list[str]]:
    """The lines of one frame after the other."""
    line, number = 0, 0
    frame: list[str] = []
    while header := stream.readline():
        text = header.strip()
        if not text:
            _check_only_blank(path, stream, line, number)
            break
        if text.startswith("VEC") and number:  # a lattice vector of the frame before
            frame.append(header)
            line += 1
            continue
        if frame:
            yield frame
        if not text.isdigit():
            raise DataError(
                f"{path}, line {line + 1}: expected the number of atoms of the next frame, found "
                f"'{_shortened(text)}'. {_complete(number)} The atom count of the frame before may be "
                "wrong, or lines are missing."
            )
        frame = [header, *islice(stream, int(text) + 1)]
        _check_frame(path, frame, line, int(text), number)
        line += len(frame)
        number += 1
    if frame:
        yield frame


def _check_frame(path: Path, frame: Sequence[str], start: int, num_atoms: int, number: int) -> None:
    """A frame whose atom count is in line ``start`` has all its atoms, with all their columns."""
    place = f"frame {number} (the first is 0) begins in line {start + 1} and should have "
    rows = frame[2:]
    if len(rows) < num_atoms or len(frame) < 2:
        raise DataError(
            f"{path}: {place}{counted(num_atoms, 'atom')}, but the file ends after {len(rows)} of them, in "
            f"line {start + len(frame)}. {_complete(number)} The file is truncated; complete it or remove "
            "that frame."
        )
    columns = _columns(frame[1]) if num_atoms else 0
    for i, row in enumerate(rows):
        if len(row.split()) < columns:
            raise DataError(
                f"{path}, line {start + 3 + i}: {place}{columns} columns, but atom {i} has "
                f"{len(row.split())}. {_complete(number)} The file is truncated or damaged there."
            )


def _columns(comment: str) -> int:
    """Columns of an atom line: what Properties says, otherwise the element and its position."""
    match = _PROPERTIES.search(comment)
    counts = match.group(1).split(":")[2::3] if match else []
    return sum(map(int, counts)) if counts and all(count.isdigit() for count in counts) else 4


def _check_only_blank(path: Path, stream: TextIO, line: int, frames: int) -> None:
    for i, rest in enumerate(stream, start=line + 2):
        if rest.strip():
            raise DataError(
                f"{path}: line {line + 1}, after frame {frames - 1}, is blank, but text follows in line "
                f"{i}. Readers stop there and lose the rest; remove the blank line."
            )


def _complete(frames: int) -> str:
    verb = "is" if frames == 1 else "are"
    return f"{counted(frames, 'frame')} before it {verb} complete." if frames else "No frame is complete."


def _shortened(text: str, length: int = 40) -> str:
    return text if len(text) <= length else text[:length] + "..."


FORMAT = Format("xyz", "extended XYZ", _matches, _read)
