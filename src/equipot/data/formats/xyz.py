"""Extended XYZ, plain or packed: frames are found first, and each is parsed with the numbers of its lines.

What a comment line means is in ``xyz_header.py``.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import TextIO

import ase
import numpy as np
from ase.constraints import FixAtoms, FixCartesian
from ase.io.extxyz import set_calc_and_arrays
from numpy.typing import NDArray

from equipot.config.data import Parsing
from equipot.data.formats.base import PART_ATOMS, PART_FRAMES, Contents, Format, element_number
from equipot.data.formats.reference_energies import Reference, read_references, references_of
from equipot.data.formats.text_file import UNPACKING_ERRORS, open_text, unpacked_name
from equipot.data.formats.xyz_header import Header, fortran_number, read_header
from equipot.data.text import counted
from equipot.errors import DataError

logger = logging.getLogger("equipot")

_ARRAYS = {"charge": "charges"}  # ASE's names of columns where they are others
_LOGICAL = {"T": True, "F": False, "TRUE": True, "FALSE": False, "1": True, "0": False}


def _matches(path: Path) -> bool:
    return path.is_file() and unpacked_name(path).endswith((".xyz", ".extxyz"))


@dataclass(frozen=True)
class _Lines:
    """The lines of one frame, and where they are."""

    path: Path
    number: int  # of the frame, from 0
    start: int  # number of the line with its atom count, from 0
    lines: Sequence[str]
    reference: Reference | None = None

    def at(self, line: int) -> str:
        return f"{self.path}, frame {self.number} (the first is 0), line {self.start + line + 1}"


@dataclass(frozen=True)
class _Piece:
    """Whole frames of a file, as text."""

    frames: tuple[_Lines, ...]
    parsing: Parsing

    @property
    def num_frames(self) -> int:
        return len(self.frames)

    def parse(self) -> Iterator[ase.Atoms]:
        return (_atoms(frame, self.parsing) for frame in self.frames)


def _read(path: Path, parsing: Parsing) -> Contents:
    total = sum(piece.num_frames for piece in _pieces(path, parsing))  # it is looked through first, whole
    for piece in islice(_pieces(path, parsing), 1):
        _report_extra_columns(piece.frames[0])
    structures = chain.from_iterable(piece.parse() for piece in _pieces(path, parsing))
    return Contents(structures, total, texts=_pieces(path, parsing))


def _pieces(path: Path, parsing: Parsing) -> Iterator[_Piece]:
    """The frames, some at a time.

    Raises:
        DataError: a frame is cut short, a line that should hold an atom count does not, or text follows a
            blank line between frames.
    """
    stream = open_text(path)
    with stream:
        frames: list[_Lines] = []
        atoms = 0
        for frame in _with_references(path, _frames(path, stream)):
            if len(frames) == PART_FRAMES or (frames and atoms + len(frame.lines) > PART_ATOMS):
                yield _Piece(tuple(frames), parsing)
                frames, atoms = [], 0
            frames.append(frame)
            atoms += len(frame.lines)
        if frames:
            yield _Piece(tuple(frames), parsing)


def _with_references(path: Path, frames: Iterator[_Lines]) -> Iterator[_Lines]:
    """Each with its own, where they stand in a file beside. Raises DataError for other numbers of them."""
    beside = references_of(path)
    if beside is None:
        yield from frames
        return
    references = read_references(beside)
    number = 0
    for number, frame in enumerate(frames, start=1):
        reference = next(references, None)
        if reference is None:
            raise DataError(_not_as_many(path, beside, f"only {counted(number - 1, 'line')}", "more frames"))
        yield replace(frame, reference=reference)
    if next(references, None) is not None:
        raise DataError(
            _not_as_many(path, beside, f"more than {counted(number, 'line')}", counted(number, "frame"))
        )


def _not_as_many(path: Path, beside: Path, lines: str, frames: str) -> str:
    return (
        f"{beside} has {lines}, but {path.name} {frames}: they do not belong together, or one is truncated. "
        "Copy both again, or move the .txt away to read total energies alone."
    )


def _frames(path: Path, stream: TextIO) -> Iterator[_Lines]:
    """One frame after the other. Blank lines may come before the first and after the last, ``#`` anywhere."""
    line, number = 0, 0
    frame: _Lines | None = None
    lines = _unpacked(path, stream)
    for header in lines:
        text = header.strip()
        if text.startswith("VEC") and frame is not None:  # a lattice vector of the frame before
            frame.lines.append(header)
            line += 1
            continue
        before, frame = frame, None
        if before is not None:
            yield before
        if text.startswith("#") or (not text and not number):
            line += 1
            continue
        if not text:
            _check_only_blank(path, lines, line, number)
            return
        if not text.isdecimal():
            if before is not None:
                _rows(before, _header(before))  # perhaps it is that frame that lacks lines
            raise DataError(
                f"{path}, line {line + 1}: expected the number of atoms of the next frame, found "
                f"'{_shortened(text)}'. {_complete(number)} The atom count of the frame before may be "
                "wrong, or lines are missing."
                if number
                else f"{path}, line {line + 1}: expected the number of atoms, found '{_shortened(text)}'. "
                "This is not extended XYZ; `format:` of its entry in the YAML (--format) names another."
            )
        frame = _Lines(path, number, line, [header, *islice(lines, int(text) + 1)])
        _check_length(frame, int(text))
        line += len(frame.lines)
        number += 1
    if frame is not None:
        yield frame


def _unpacked(path: Path, stream: TextIO) -> Iterator[str]:
    """Its lines. Raises DataError where a packed file is cut short or damaged."""
    line = 0
    try:
        for text in stream:
            yield text
            line += 1
    except UNPACKING_ERRORS as error:
        raise DataError(
            f"{path} cannot be read after line {line}: {error}. It is truncated or damaged there; copy it "
            "again."
        ) from error


def _check_length(frame: _Lines, num_atoms: int) -> None:
    rows = len(frame.lines) - 2
    if rows < num_atoms:
        raise DataError(
            f"{frame.path}: {_begins(frame)}{counted(num_atoms, 'atom')}, but the file ends after "
            f"{max(rows, 0)} of them, in line {frame.start + len(frame.lines)}. {_complete(frame.number)} "
            "The file is truncated; complete it or remove that frame."
        )


def _begins(frame: _Lines) -> str:
    return f"frame {frame.number} (the first is 0) begins in line {frame.start + 1} and should have "


def _check_only_blank(path: Path, lines: Iterator[str], line: int, frames: int) -> None:
    for i, rest in enumerate(lines, start=line + 2):
        if rest.strip() and not rest.lstrip().startswith("#"):
            raise DataError(
                f"{path}: line {line + 1}, after frame {frames - 1}, is blank, but text follows in line "
                f"{i}. Readers stop there and lose the rest; remove the blank line."
            )


def _complete(frames: int) -> str:
    verb = "is" if frames == 1 else "are"
    return f"{counted(frames, 'frame')} before it {verb} complete." if frames else "No frame is complete."


def _shortened(text: str, length: int = 40) -> str:
    return text if len(text) <= length else text[:length] + "..."


def _report_extra_columns(frame: _Lines) -> None:
    rows = frame.lines[2:3]
    if rows and len(rows[0].split()) > 4 and not _header(frame).has_columns:
        logger.warning(
            "%s: columns 5 to %d of the atoms are not read: no Properties=... in the comment line says what "
            "they are.", frame.at(1), len(rows[0].split()),
        )  # fmt: skip


def _header(frame: _Lines) -> Header:
    try:
        return read_header(frame.lines[1].strip())
    except DataError as error:
        raise DataError(f"{frame.at(1)}: {error}") from None


def _atoms(frame: _Lines, parsing: Parsing) -> ase.Atoms:
    """Parse one frame. Raises DataError with the line of what cannot be read."""
    header = _header(frame)
    rows = _rows(frame, header)
    num_atoms = len(rows)
    arrays: dict[str, NDArray] = {}
    start = 0
    for name, kind, count in header.columns:
        block = [row[start : start + count] for row in rows]
        array = _column(frame, kind, block).reshape(num_atoms, count)
        arrays[_ARRAYS.get(name, name)] = array[:, 0] if count == 1 else array
        start += count
    numbers, positions = _numbers(frame, arrays, parsing), arrays.pop("pos")
    cell, pbc = _vectors(frame, num_atoms) if len(frame.lines) > num_atoms + 2 else (header.cell, header.pbc)
    pbc = (cell is not None) if pbc is None else pbc
    atoms = ase.Atoms(numbers=numbers, positions=positions, cell=cell, pbc=pbc, info=header.info)
    mask = arrays.pop("move_mask", None)
    if mask is not None:
        mask = mask.astype(bool)
        free = FixAtoms(mask=~mask) if mask.ndim == 1 else [FixCartesian(i, ~m) for i, m in enumerate(mask)]
        atoms.set_constraint(free)
    set_calc_and_arrays(atoms, arrays)  # would take one half of a stress of 3x3
    if frame.reference is not None:
        atoms.info |= {"system_id": frame.reference.system_id, "reference_energy": frame.reference.energy}
        if atoms.calc is not None and "energy" in atoms.calc.results:
            atoms.info["adsorption_energy"] = atoms.calc.results["energy"] - frame.reference.energy
    for values in (atoms.info, {} if atoms.calc is None else atoms.calc.results):
        values |= {
            key: values[key].reshape(3, 3) for key in ("stress", "virial") if np.size(values.get(key)) == 9
        }
    return atoms


def _rows(frame: _Lines, header: Header) -> list[list[str]]:
    """The words of each atom's line. Raises DataError if there are too few in one."""
    num_atoms = int(frame.lines[0])
    rows = [line.split() for line in frame.lines[2 : 2 + num_atoms]]
    width = sum(count for _, _, count in header.columns)
    short = next((i for i, row in enumerate(rows) if len(row) < width), None)
    if short is not None:
        raise DataError(
            f"{frame.path}, line {frame.start + 3 + short}: {_begins(frame)}{width} columns, but atom "
            f"{short} has {len(rows[short])}. {_complete(frame.number)} The file is truncated or damaged "
            "there."
        )
    return rows


def _column(frame: _Lines, kind: str, block: list[list[str]]) -> NDArray:
    """The words of a column as what they are."""
    convert = {"R": fortran_number, "I": int, "L": lambda word: _LOGICAL[word.upper()], "S": str}[kind]
    types = {"R": float, "I": int, "L": bool, "S": object}
    if kind in "RIS":
        try:
            return np.array(block, dtype=types[kind])
        except ValueError:
            pass  # a word at a time, for Fortran's numbers and to name the one that is none
    array = np.empty((len(block), len(block[0]) if block else 0), dtype=types[kind])
    for i, words in enumerate(block):
        for j, word in enumerate(words):
            try:
                array[i, j] = convert(word)
            except (ValueError, KeyError):
                what = {"R": "a number", "I": "a whole number", "L": "T or F"}[kind]
                stars = " (the program had no room to print it)" if word.startswith("*") else ""
                raise DataError(f"{frame.at(2 + i)}: expected {what}, found '{word}'{stars}.") from None
    return array


def _numbers(frame: _Lines, arrays: dict[str, NDArray], parsing: Parsing) -> NDArray[np.integer]:
    """(N,) atomic numbers, from symbols, numbers or both."""
    symbols, numbers = arrays.pop("species", None), arrays.pop("Z", None)
    if symbols is None:
        return numbers
    known: dict[str, int] = {}
    for i, symbol in enumerate(symbols):
        if symbol not in known:
            known[symbol] = element_number(symbol, parsing.species, frame.at(2 + i))
    found = np.array([known[symbol] for symbol in symbols], dtype=int)
    if numbers is not None and (found != numbers).any():
        i = int((found != numbers).argmax())
        raise DataError(
            f"{frame.at(2 + i)}: atom {i} is {symbols[i]} by its symbol, but has the atomic number "
            f"{numbers[i]}. Correct one of the columns, or remove it."
        )
    return found


def _vectors(frame: _Lines, num_atoms: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Cell and pbc from lines ``VEC1 x y z``, which follow the atoms."""
    cell, pbc = np.zeros((3, 3)), np.zeros(3, dtype=bool)
    for i, line in enumerate(frame.lines[num_atoms + 2 :], start=num_atoms + 2):
        name, *words = line.split()
        if name not in ("VEC1", "VEC2", "VEC3") or len(words) != 3:
            raise DataError(
                f"{frame.at(i)}: expected VEC1, VEC2 or VEC3 and 3 numbers, found '{line.strip()}'."
            )
        cell[int(name[3]) - 1] = _column(frame, "R", [words])[0]
        pbc[int(name[3]) - 1] = True
    return cell, pbc


FORMAT = Format("xyz", "extended XYZ", _matches, _read)
