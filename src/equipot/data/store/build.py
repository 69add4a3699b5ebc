"""Making a store: parts of the sources, read and encoded by several processes, appended one after the other.

The file grows under another name, ``.NAME.equipot.unfinished``, held by a lock that the system lifts when the
process ends, and is renamed when it is complete. After a kill the chunks that are whole are kept.
"""

import fcntl
import json
import logging
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from equipot.config.data import Source
from equipot.data.digests import identity
from equipot.data.formats import FilePart, open_parts
from equipot.data.frames import frame_of, label_candidates
from equipot.data.progress import track
from equipot.data.stated_units import check_units
from equipot.data.store.file import PREAMBLE, Store, preamble
from equipot.data.store.layout import (
    CHUNK_PREAMBLE,
    MARKS,
    Chunk,
    chunk_body_length,
    decode,
    encode,
    stored_labels,
)
from equipot.data.text import counted
from equipot.data.workers import map_in_order
from equipot.errors import DataError
from equipot.files import naming_errors
from equipot.machine import available_cores
from equipot.quantities import BASIC, KEYS, LABELS, QUANTITIES, Quantity, declare

logger = logging.getLogger("equipot")

_UNFINISHED = b"UNFINISH"
_ALIGNMENT = 64


@dataclass(frozen=True)
class _Task:
    """What a worker gets."""

    part: FilePart
    source: Source
    cutoff: float | None
    quantities: tuple[Quantity, ...]  # that this process knows


def build_store(
    path: Path,
    files: Sequence[Path],
    source: Source,
    key: str,
    cutoff: float | None,
    is_complete: Callable[[], bool],
    accept: Callable[[Store], None] = lambda _: None,
    workers: int | None = None,
) -> bool:
    """Write the frames of ``files``, and their neighbor lists for ``cutoff`` (Å), to ``path``.

    Of two processes that build the same one waits, and goes on if the first one dies.

    Args:
        path: complete or as it was before, whatever happens.
        files: read as ``source`` says, except for its weight and its use of fixed atoms, which are applied
            when a store is read.
        key: hash of what the store depends on.
        is_complete: whether ``path`` holds what is wanted; asked once nobody else writes to it.
        accept: raises DataError if the finished store is not to be kept.
        workers: processes; None: one for each core.

    Returns:
        Whether it was written here.

    Raises:
        DataError: a file cannot be read or a frame cannot be used; a file changed meanwhile.
        OSError: the disk is full, or the folder cannot be written to.
    """
    unfinished = path.with_name(f".{path.name}.unfinished")
    with naming_errors(path), _locked(unfinished, path) as stream:
        if is_complete():
            unfinished.unlink()
            return False
        before = [identity(file) for file in files]
        source = replace(source, weight=1.0, parsing=replace(source.parsing, fixed_atoms="use"))
        try:
            with _saying_what_is_kept(unfinished):
                index = _Index(_resume(stream, key))
                if index.chunks:
                    logger.info("%s: going on after %s.", path, counted(index.num_frames, "frame"))
                _append(stream, index, files, source, cutoff, workers or available_cores())
                if [identity(file) for file in files] != before:
                    raise DataError(f"A file changed while {path} was made from it. Start again.")
                _finish(stream, index, key, cutoff)
                accept(Store(unfinished))
        except DataError:
            unfinished.unlink()  # what is right so far belongs to sources that have to change
            raise
        unfinished.replace(path)
    return True


@contextmanager
def _locked(unfinished: Path, path: Path) -> Iterator[BinaryIO]:
    """Open the unfinished file, made if it is not there, once no other process holds it."""
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    while True:
        stream = os.fdopen(os.open(unfinished, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        try:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logger.info("Another process is making %s; waiting for it.", path)
                fcntl.flock(stream, fcntl.LOCK_EX)
            except OSError as error:  # some network file systems have no locks
                logger.warning("Cannot lock %s (%s): make it in one process only.", path, error.strerror)
            try:
                ours = os.path.samestat(os.fstat(stream.fileno()), unfinished.stat())
            except FileNotFoundError:
                ours = False
            if ours:  # otherwise renamed or removed by the one that held it
                yield stream
                return
        finally:
            with suppress(OSError):  # what a full disk did not take; it was reported
                stream.close()


@contextmanager
def _saying_what_is_kept(unfinished: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(
            error.errno,
            f"{error.strerror}. What is done is kept in {unfinished.name}: the same command goes on from "
            "there, or remove it",
        ) from error


class _Index:
    """What is known of the frames so far, chunk by chunk."""

    def __init__(self, chunks: Iterable[tuple[int, Chunk]]):
        self.chunks: list[tuple[NDArray, list[int], NDArray, NDArray, NDArray]] = []
        self.files: dict[str, list[list[int]]] = {}  # runs of the numbers of the frames of each
        self.groups: dict[str, int] = {}
        self.names: dict[str, set[str]] = {key: set() for key in KEYS}
        self.num_frames = 0
        for end, chunk in chunks:
            self.add(end, chunk)

    def add(self, end: int, chunk: Chunk) -> None:
        """A chunk that ends at byte ``end`` of the file."""
        rows = chunk.rows.copy()
        rows["offset"] += end - len(chunk.records)
        numbers = [self.groups.setdefault(name, len(self.groups)) for name in chunk.groups]
        rows["group"] = np.array([*numbers, -1], dtype="<i4")[rows["group"]]  # -1 is the last one
        own = np.array(chunk.composition), np.array(chunk.label_weights), np.array(chunk.free)
        self.chunks.append((rows, chunk.elements, *own))
        self.num_frames += len(rows)
        runs = self.files.setdefault(chunk.file, [])
        for run in chunk.numbers:
            if runs and sum(runs[-1]) == run[0]:
                runs[-1][1] += run[1]
            else:
                runs.append(list(run))
        for kind, names in chunk.names.items():
            self.names[kind] |= set(names)

    def arrays(self) -> tuple[list[int], dict[str, NDArray]]:
        """Elements, and the arrays of the index: the composition in terms of all of them."""
        elements = sorted({number for _, numbers, *_ in self.chunks for number in numbers})
        composition = np.zeros((self.num_frames, len(elements)), dtype="<i4")
        start = 0
        for rows, numbers, counts, *_ in self.chunks:
            composition[start : start + len(rows), np.searchsorted(elements, numbers)] = counts
            start += len(rows)
        rows, weights, free = (np.concatenate([chunk[i] for chunk in self.chunks]) for i in (0, 3, 4))
        arrays = {"rows": rows, "composition": composition, "label_weights": weights}
        return elements, arrays | ({"free": free} if (rows["flags"] & np.uint32(MARKS)).any() else {})


def _resume(stream: BinaryIO, key: str) -> Iterator[tuple[int, Chunk]]:
    """Yield the whole chunks of the unfinished file with their ends, and cut off what follows them.

    A file begun with another key is emptied.
    """
    start = (_UNFINISHED + bytes.fromhex(key)).ljust(PREAMBLE, b"\0")
    if stream.read(PREAMBLE) != start:
        stream.seek(0)
        stream.truncate()
        stream.write(start)
    end = PREAMBLE
    while True:
        stream.seek(end)
        head = stream.read(CHUNK_PREAMBLE)
        content = head + stream.read(chunk_body_length(head)) if len(head) == CHUNK_PREAMBLE else b""
        chunk = decode(content)
        if chunk is None:
            break
        end += len(content)
        yield end, chunk
    stream.seek(end)
    stream.truncate()


def _append(
    stream: BinaryIO, index: _Index, files: Sequence[Path], source: Source, cutoff: float | None, workers: int
) -> None:
    """Read, encode and write the chunks that are not there yet."""
    opened = [open_parts(file, source.format, source.parsing) for file in files]
    for file, (contents, _) in zip(files, opened, strict=True):
        check_units(file, contents.units, source.labels, source.units, file.name)
    totals = [contents.total for contents, _ in opened]
    total = None if None in totals else sum(totals)
    done = len(index.chunks)
    known = tuple(QUANTITIES.values())
    tasks = (_Task(part, source, cutoff, known) for _, parts in opened for part in parts)
    for _ in range(done):
        next(tasks)
    before = index.num_frames
    encoded = map_in_order(_encode, tasks, workers)
    sizes = ((content, decode(content)) for content in encoded)
    for content, chunk in track(sizes, "converting", total, size=lambda item: len(item[1].rows), done=before):
        stream.write(content)
        stream.flush()
        index.add(stream.tell(), chunk)


def _encode(task: _Task) -> bytes:
    """The chunk of a part."""
    for quantity in task.quantities[len(BASIC) :]:
        declare(quantity)
    names: dict[str, set[str]] = {key: set() for key in KEYS}
    frames = []
    file = str(task.part.path)
    for number, structure in task.part.structures():
        for key, found in label_candidates(structure).items():
            names[key] |= found
        frames.append(frame_of(structure, task.source, file, number))
    return encode(frames, task.cutoff, {kind: sorted(found) for kind, found in names.items()})


def _finish(stream: BinaryIO, index: _Index, key: str, cutoff: float | None) -> None:
    """Write index, header and, last, the preamble that makes it a store."""
    elements, arrays = index.arrays()
    header: dict[str, Any] = {"key": key, "cutoff": cutoff, "num_frames": index.num_frames}
    header |= {"files": list(index.files.items()), "elements": elements, "groups": list(index.groups)}
    header["index"], header["labels"] = {}, list(LABELS)
    header["outputs"] = [label for label in stored_labels() if label.name not in BASIC]
    header["names"] = {kind: sorted(names) for kind, names in index.names.items()}
    for name, array in arrays.items():
        stream.write(b"\0" * (-stream.tell() % _ALIGNMENT))
        content = memoryview(np.ascontiguousarray(array)).cast("B") if array.size else b""
        header["index"][name] = {"offset": stream.tell(), "crc32": zlib.crc32(content)}
        stream.write(content)
    text = json.dumps(header).encode()
    start = preamble(stream.tell(), text)
    stream.write(text)
    stream.flush()
    os.fsync(stream.fileno())  # before the preamble says that all of it is there
    stream.seek(0)
    stream.write(start)
    stream.flush()
    os.fsync(stream.fileno())
