"""The bytes of a store: a record for each frame, and chunks of records with what is known of their frames.

A record holds the arrays of one frame one after the other, those with the longest numbers first:
positions, labels*, cell*, edge shifts*, edge index, elements, marks* (* where the row says so). Labels
stand in the order of their flags, those of atoms first; the energy is in the row.
"""

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from equipot.data.columns import columns_of
from equipot.data.frames import Edges, Frame, check_distances
from equipot.data.neighbors import neighbor_list
from equipot.errors import DataError
from equipot.quantities import BASIC, ENERGY, QUANTITIES

# One for each frame. In a chunk `offset` counts from the first record, in the index from the file's start.
ROW = np.dtype(
    [
        ("offset", "<i8"),
        ("energy", "<f8"),
        ("force_squares", "<f8"),
        ("weight", "<f8"),
        ("fingerprint", "<u8"),
        ("crc32", "<u4"),  # of the record
        ("num_atoms", "<i4"),
        ("num_edges", "<i4"),
        ("group", "<i4"),  # index into the list of names, -1 for none
        ("flags", "<u4"),
        ("index_size", "<u2"),  # bytes of a number in the edge index
        ("shift_size", "<u2"),  # bytes of a number in the edge shifts; 0: all are zero
    ]
)
CELL, ISOLATED, PBC, MARKS = 8, 16, (32, 64, 128), 1 << 31  # and those of the quantities
_OF_STRUCTURES = CELL | ISOLATED | sum(PBC) | MARKS
_UNSIGNED = {1: "u1", 2: "<u2", 4: "<u4"}
_SIGNED = {1: "i1", 2: "<i2", 4: "<i4"}
_CHUNKS = 2  # version of chunks, which only files that are not finished need
CHUNK_PREAMBLE = 16  # length of the rest (8 bytes), its CRC-32 (4), length of the JSON text in it (4)


class Stored(NamedTuple):
    """A label in records: its bit in the flags of rows, and where and in what shape it stands."""

    name: str
    flag: int
    per_atom: bool
    shape: tuple[int, ...]  # of one value

    @property
    def is_read(self) -> bool:
        """Whether this process knows it by its name, as the same thing."""
        known = QUANTITIES.get(self.name)
        return known is not None and (known.per_atom, known.shape) == (self.per_atom, self.shape)


def stored_labels(header: Mapping[str, Any] | None = None) -> list[Stored]:
    """Of a store with this header, or of one that is written now, in the order of `QUANTITIES`."""
    outputs = None if header is None else header.get("outputs", [])
    if outputs is None:
        return [Stored(q.name, q.flag, q.per_atom, q.shape) for q in QUANTITIES.values()]
    basic = [Stored(q.name, q.flag, q.per_atom, q.shape) for q in (QUANTITIES[name] for name in BASIC)]
    return basic + [Stored(name, flag, per_atom, tuple(shape)) for name, flag, per_atom, shape in outputs]


def _in_record(labels: Sequence[Stored]) -> list[Stored]:
    """Those that a record holds, in their order there."""
    inside = [label for label in labels if label.name != ENERGY.name]
    return sorted(inside, key=lambda label: (not label.per_atom, label.flag))


def known_flags(labels: Sequence[Stored]) -> int:
    """All bits that mean something."""
    return sum(label.flag for label in labels) | _OF_STRUCTURES


@dataclass(frozen=True)
class Chunk:
    """Consecutive frames: their records, and what the index needs to know."""

    rows: NDArray  # of ROW
    file: str  # that the frames are from
    elements: list[int]
    composition: NDArray[np.int32]  # (F, K)
    label_weights: NDArray[np.float64]  # (F, Q)
    free: NDArray[np.float64]  # (F, 2) free_atoms and force_squares of columns without fixed atoms
    groups: list[str]
    names: dict[str, list[str]]  # of what could be labels in the source, by kind
    numbers: list[list[int]]  # runs [first, how many] of the frames' numbers in their file
    records: bytes | memoryview


def encode(frames: Sequence[Frame], cutoff: float | None, names: dict[str, list[str]]) -> bytes:
    """A chunk of frames of one file as bytes, neighbor lists for ``cutoff`` (Å) included.

    Raises:
        DataError: two atoms of a frame coincide; a frame is too large.
    """
    columns = columns_of(frames)
    free = columns_of([replace(frame, free_only=True) for frame in frames])
    groups = sorted({frame.config_type for frame in frames if frame.config_type is not None})
    rows = np.zeros(len(frames), ROW)
    records = []
    offset = 0
    for row, frame in zip(rows, frames, strict=True):
        record = _record(row, frame, cutoff)
        row["offset"], row["crc32"] = offset, zlib.crc32(record)
        row["group"] = -1 if frame.config_type is None else groups.index(frame.config_type)
        records.append(record)
        offset += len(record)
    for name in ("force_squares", "weight", "fingerprint", "num_atoms"):
        rows[name] = getattr(columns, name)
    rows["energy"] = np.nan_to_num(columns.energy)
    rows["flags"] |= np.where(columns.isolated, ISOLATED, 0).astype("<u4")
    meta = {"file": frames[0].file, "frames": len(frames), "elements": columns.elements.tolist()}
    meta |= {"groups": groups, "names": names, "numbers": _runs([frame.index for frame in frames])}
    meta |= {"labels": stored_labels(), "version": _CHUNKS}
    text = json.dumps(meta).encode()
    index = [rows, columns.composition.astype("<i4"), columns.label_weights.astype("<f8")]
    index.append(np.stack([free.free_atoms, free.force_squares], axis=1).astype("<f8"))
    body = b"".join([text, *(array.tobytes() for array in index), *records])
    return _preamble(body, len(text)) + body


def _runs(numbers: Sequence[int]) -> list[list[int]]:
    """Ascending numbers as [first, how many] of those that follow one another."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and sum(runs[-1]) == number:
            runs[-1][1] += 1
        else:
            runs.append([number, 1])
    return runs


def _preamble(body: bytes, text: int) -> bytes:
    numbers = ((len(body), 8), (zlib.crc32(body), 4), (text, 4))
    return b"".join(number.to_bytes(size, "little") for number, size in numbers)


def chunk_body_length(preamble: bytes) -> int:
    """Bytes that follow the preamble of a chunk."""
    return int.from_bytes(preamble[:8], "little")


def decode(content: bytes) -> Chunk | None:
    """Inverse of ``encode``; None if the bytes are incomplete or damaged."""
    preamble, body = content[:CHUNK_PREAMBLE], memoryview(content)[CHUNK_PREAMBLE:]
    if len(preamble) < CHUNK_PREAMBLE or len(body) != chunk_body_length(preamble):
        return None
    if zlib.crc32(body) != int.from_bytes(preamble[8:12], "little"):
        return None
    text = int.from_bytes(preamble[12:], "little")
    meta = json.loads(bytes(body[:text]))
    if meta.get("version") != _CHUNKS or meta.get("labels") != json.loads(json.dumps(stored_labels())):
        return None  # begun by a process that knew others
    frames, elements = meta["frames"], len(meta["elements"])
    rows = np.frombuffer(body, ROW, frames, text)
    start = text + rows.nbytes
    composition = np.frombuffer(body, "<i4", frames * elements, start).reshape(frames, elements)
    start += composition.nbytes
    kinds = len(meta["labels"])
    weights = np.frombuffer(body, "<f8", frames * kinds, start).reshape(frames, kinds)
    start += weights.nbytes
    free = np.frombuffer(body, "<f8", frames * 2, start).reshape(frames, 2)
    records = body[start + free.nbytes :]
    known = (meta[name] for name in ("file", "elements"))
    about = (meta[name] for name in ("groups", "names", "numbers"))
    return Chunk(rows, *known, composition, weights, free, *about, records)


def _record(row: NDArray, frame: Frame, cutoff: float | None) -> bytes:
    flags = sum(QUANTITIES[name].flag for name in frame.values)
    flags |= sum(bit for bit, periodic in zip(PBC, frame.pbc, strict=True) if periodic)
    arrays = [frame.positions.astype("<f8")]
    labels = [label for label in _in_record(stored_labels()) if label.name in frame.values]
    arrays += [np.asarray(frame.values[label.name]).astype("<f8") for label in labels]
    if frame.cell.any():
        flags |= CELL
        arrays.append(frame.cell.astype("<f8"))
    if cutoff is not None:
        index, shift = neighbor_list(frame.positions, frame.cell, frame.pbc, cutoff)
        check_distances(frame, index, shift)
        row["num_edges"] = index.shape[1]
        row["index_size"] = _size(frame, index, _UNSIGNED)
        row["shift_size"] = _size(frame, shift, _SIGNED) if shift.any() else 0
        if row["shift_size"]:
            arrays.append(shift.astype(_SIGNED[int(row["shift_size"])]))
        arrays.append(index.astype(_UNSIGNED[int(row["index_size"])]))
    arrays.append(frame.atomic_numbers.astype("u1"))
    if frame.marks is not None:
        flags |= MARKS
        arrays.append(frame.marks)
    row["flags"] = flags
    return b"".join(array.tobytes() for array in arrays)


def _size(frame: Frame, values: NDArray, types: dict[int, str]) -> int:
    """Bytes that hold each of the numbers."""
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    for size, name in types.items():
        if np.iinfo(name).min <= low and high <= np.iinfo(name).max:
            return size
    raise DataError(f"{frame.where}: too many atoms, or an atom too far outside its cell, for a store.")


def record_length(row: NDArray, labels: Sequence[Stored]) -> int:
    """Bytes of the record that ``row`` describes."""
    atoms, edges, flags = int(row["num_atoms"]), int(row["num_edges"]), int(row["flags"])
    numbers = 3 * atoms + 9 * bool(flags & CELL)
    inside = [label for label in _in_record(labels) if flags & label.flag]
    numbers += sum(math.prod(label.shape) * (atoms if label.per_atom else 1) for label in inside)
    marked = 1 + bool(flags & MARKS)
    return 8 * numbers + edges * (3 * int(row["shift_size"]) + 2 * int(row["index_size"])) + marked * atoms


def read_record(
    record: bytes, row: NDArray, group: str | None, cutoff: float | None, labels: Sequence[Stored]
) -> Frame:
    """The frame of a record; its arrays are its own and may be written to."""
    atoms, edges, flags = int(row["num_atoms"]), int(row["num_edges"]), int(row["flags"])
    place = 0

    def array(dtype: str, *shape: int) -> NDArray:
        nonlocal place
        found = np.frombuffer(record, dtype, int(np.prod(shape)), place).reshape(shape)
        place += found.nbytes
        return found

    positions = array("<f8", atoms, 3).copy()
    values = {ENERGY.name: float(row["energy"])} if flags & ENERGY.flag else {}
    for label in _in_record(labels):
        if flags & label.flag:
            value = array("<f8", *((atoms,) if label.per_atom else ()), *label.shape).copy()
            if label.is_read:
                values[label.name] = value if value.shape else value.item()
    cell = array("<f8", 3, 3).copy() if flags & CELL else np.zeros((3, 3))
    found = None
    if cutoff is not None:
        shift_size, index_size = int(row["shift_size"]), int(row["index_size"])
        shift = array(_SIGNED[shift_size], edges, 3) if shift_size else np.zeros((edges, 3), np.int64)
        found = Edges(cutoff, array(_UNSIGNED[index_size], 2, edges), shift)
    atomic_numbers = array("u1", atoms).astype(np.int64)
    return Frame(
        positions=positions,
        cell=cell,
        pbc=np.array([bool(flags & bit) for bit in PBC]),
        atomic_numbers=atomic_numbers,
        values=values,
        config_type=group,
        weight=float(row["weight"]),
        edges=found,
        marks=array("u1", atoms).copy() if flags & MARKS else None,
    )
