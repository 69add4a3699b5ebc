"""A store: frames in eV and Å, with their neighbor lists, in one file that is mapped into memory.

    64 bytes  preamble: magic EQUIPOT3; place (8), length (8) and CRC-32 (4) of the header, little-endian
              chunks of records (`layout`), as they were built
              index: a row for each frame with place and CRC-32 of its record, atoms of each element, weights
              of its labels; where atoms are held fixed, how many are not, and the squares of their forces
              header, JSON: what the store was made from, its cutoff, names of groups, place of the index

Opening it reads the index alone. A record is tested against its checksum whenever it is read. EQUIPOT2, which
is read, too, has no weights of labels.
"""

import hashlib
import json
import mmap
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipot.data.columns import Columns
from equipot.data.frames import Frame
from equipot.data.store.layout import (
    ISOLATED,
    PBC,
    ROW,
    known_flags,
    read_record,
    record_length,
    stored_labels,
)
from equipot.errors import DataError
from equipot.quantities import ENERGY, FIELD, LABELS, QUANTITIES, declare

SUFFIX = ".equipot"
MAGIC = b"EQUIPOT3"
_READ = (b"EQUIPOT2", MAGIC)
PREAMBLE = 64
_ADVICE = "Remove it and write it again with `equipot data convert`, or copy it again."


class OtherVersionError(DataError):
    """A store that this version of equipot does not read."""


class Store:
    """An open store; frame i is read at ``store.frame(i)``. May be pickled: it is opened anew then.

    Raises:
        OtherVersionError: written by a version of equipot with another layout.
        DataError: not a store; cut off; its header or index is damaged.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.header, self.digest = header_and_digest(self.path)
        with self.path.open("rb") as stream:
            self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        self.cutoff: float | None = self.header["cutoff"]
        self.groups: list[str] = self.header["groups"]
        self.rows = self._index("rows", ROW, (self.header["num_frames"],))
        self._labels = stored_labels(self.header)
        if FIELD.name in (label.name for label in self._labels):
            declare(FIELD)  # so that labels in a field are not read as if they were in none
        if np.any(self.rows["flags"] & ~np.uint32(known_flags(self._labels))):
            raise OtherVersionError(f"{self.path} holds labels that this version of equipot does not know.")
        shape = (len(self), len(self.header["elements"]))
        self._composition = self._index("composition", np.dtype("<i4"), shape)
        self._label_weights = np.ones((len(self), len(LABELS)))
        if "label_weights" in self.header["index"]:
            labels = self.header["labels"]
            stored = self._index("label_weights", np.dtype("<f8"), (len(self), len(labels)))
            read = [column for column, name in enumerate(labels) if name in QUANTITIES]
            self._label_weights[:, [LABELS.index(labels[column]) for column in read]] = stored[:, read]
        self._free = None
        if "free" in self.header["index"]:
            self._free = self._index("free", np.dtype("<f8"), (len(self), 2))

    @property
    def unread(self) -> list[str]:
        """Labels of its frames that are no quantities of this process."""
        flags = np.bitwise_or.reduce(self.rows["flags"], initial=0)
        return [label.name for label in self._labels if label.flag & flags and not label.is_read]

    def __len__(self) -> int:
        return self.header["num_frames"]

    def __reduce__(self):
        return _reopen, (self.path, self.digest)

    def frame(self, number: int) -> Frame:
        """Frame ``number``, from 0, without file and number.

        Raises:
            DataError: its checksum is wrong.
        """
        row = self.rows[number]
        record = self._record(row)
        if zlib.crc32(record) != row["crc32"]:
            raise DataError(f"{self.path}: frame {number} (the first is 0) is damaged (checksum). {_ADVICE}")
        group = None if row["group"] < 0 else self.groups[row["group"]]
        weights = zip(LABELS, self._label_weights[number].tolist(), strict=True)
        frame = read_record(record, row, group, self.cutoff, self._labels)
        return replace(frame, label_weights={name: weight for name, weight in weights if weight != 1})

    def damaged(self, number: int) -> bool:
        """Whether the record of frame ``number`` does not fit its checksum."""
        row = self.rows[number]
        return zlib.crc32(self._record(row)) != row["crc32"]

    @property
    def num_edges(self) -> NDArray[np.int64]:
        """(F,), within the store's cutoff."""
        return self.rows["num_edges"].astype(np.int64)

    def columns(self, free_only: bool = False) -> Columns:
        """What the index says of every frame; ``free_only``: forces on fixed atoms are no labels."""
        flags = self.rows["flags"]
        free = np.stack([self.rows["num_atoms"], self.rows["force_squares"]], axis=1)
        free = self._free if free_only and self._free is not None else free
        bits = {label.name: label.flag for label in self._labels if label.is_read}
        has = np.stack([(flags & bits.get(name, 0)) > 0 for name in LABELS], axis=1)
        return Columns(
            elements=np.array(self.header["elements"], dtype=np.int64),
            composition=np.asarray(self._composition),
            energy=np.where(flags & ENERGY.flag, self.rows["energy"], np.nan),
            has=has,
            free_atoms=free[:, 0].astype(np.int64),
            force_squares=free[:, 1].copy(),
            weight=self.rows["weight"].copy(),
            periodic=(flags & sum(PBC)) == sum(PBC),
            isolated=(flags & ISOLATED) > 0,
            fingerprint=self.rows["fingerprint"].copy(),
            level=np.full(len(self), ""),
            label_weights=self._label_weights,
        )

    def _record(self, row: NDArray) -> bytes:
        start = int(row["offset"])
        return self._map[start : start + record_length(row, self._labels)]

    def _index(self, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> NDArray:
        place = self.header["index"][name]
        size = int(np.prod(shape)) * dtype.itemsize
        content = memoryview(self._map)[place["offset"] : place["offset"] + size]
        if len(content) != size or zlib.crc32(content) != place["crc32"]:
            raise DataError(f"{self.path}: the index is damaged or cut off (wrong checksum). {_ADVICE}")
        return np.frombuffer(content, dtype).reshape(shape)


def _reopen(path: Path, digest: str) -> Store:
    store = Store(path)
    if store.digest != digest:
        raise DataError(f"{path} was replaced while it was in use. Start again.")
    return store


def is_store(path: Path) -> bool:
    """Whether a file is a store, of this or another version."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(len(MAGIC) - 1) == MAGIC[:-1]


def read_header(path: Path) -> dict[str, Any]:
    """What a store says of itself. Raises as ``Store``."""
    return header_and_digest(path)[0]


def header_and_digest(path: Path) -> tuple[dict[str, Any], str]:
    """The header, and its SHA-256: it holds the checksums of everything else. Raises as ``Store``."""
    with path.open("rb") as stream:
        preamble = stream.read(PREAMBLE)
        magic = preamble[: len(MAGIC)]
        if magic[:-1] == MAGIC[:-1] and magic not in _READ:
            raise OtherVersionError(
                f"{path} is a store of another version: it begins with {magic!r}, and this equipot reads "
                f"{MAGIC!r}. Make it again with `equipot data convert` under a new name."
            )
        if magic not in _READ:
            raise DataError(
                f"{path} is not a store that equipot reads: it begins with {magic!r}, not {MAGIC!r}. "
                "Write it with `equipot data convert` under a new name."
            )
        offset, length, checksum = (
            int.from_bytes(preamble[a:b], "little") for a, b in ((8, 16), (16, 24), (24, 28))
        )
        whole = offset + length == path.stat().st_size
        stream.seek(offset if whole else 0)
        text = stream.read(length if whole else 0)
    if not whole or zlib.crc32(text) != checksum:
        raise DataError(f"{path}: the header is damaged or cut off (wrong checksum). {_ADVICE}")
    return json.loads(text), hashlib.sha256(text).hexdigest()


def preamble(offset: int, text: bytes) -> bytes:
    """The first bytes of a store whose header ``text`` is at ``offset``."""
    numbers = ((offset, 8), (len(text), 8), (zlib.crc32(text), 4))
    return (MAGIC + b"".join(n.to_bytes(size, "little") for n, size in numbers)).ljust(PREAMBLE, b"\0")
