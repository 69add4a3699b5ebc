"""Frames from memory and from stores as one sequence, with what is known of each without reading it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from equipot.config.data import Source
from equipot.data.columns import Columns, columns_of, join
from equipot.data.frames import Frame, frame_of
from equipot.data.splits import FrameId
from equipot.data.store.file import Store
from equipot.quantities import LABELS

T = TypeVar("T")


class Part(Protocol):
    """Frames of one origin."""

    columns: Columns
    files: list[str]

    def __getitem__(self, number: int) -> Frame: ...

    def ids(self, numbers: NDArray) -> list[FrameId]: ...

    def config_types(self, numbers: NDArray) -> list[str | None]: ...


class MemoryPart:
    """Frames in a list."""

    def __init__(self, frames: Sequence[Frame]):
        self.frames = frames
        self.columns = columns_of(frames)
        self.files = list(dict.fromkeys(frame.file for frame in frames))

    def __getitem__(self, number: int) -> Frame:
        return self.frames[number]

    def ids(self, numbers: NDArray) -> list[FrameId]:
        return [(self.frames[i].file, self.frames[i].index) for i in numbers]

    def config_types(self, numbers: NDArray) -> list[str | None]:
        return [self.frames[i].config_type for i in numbers]


class StorePart:
    """Frames of a store, as ``source`` says: without labels that are not to be read, weighted.

    ``names``: the files the store was made from, under whose names and numbers the frames then go, with runs
    (first, how many) of these numbers; otherwise they go under the name of the store.
    """

    def __init__(
        self,
        store: Store,
        source: Source,
        names: Sequence[tuple[str, Sequence[tuple[int, int]]]] | None = None,
    ):
        self.store, self.source = store, source
        names = [(str(store.path), [(0, len(store))])] if names is None else names
        self.files = [file for file, _ in names]
        self._runs = [(file, first) for file, runs in names for first, _ in runs]
        self._starts = np.cumsum([0, *(count for _, runs in names for _, count in runs)])
        columns = store.columns(source.parsing.fixed_atoms == "leave_out")
        own = columns.weight
        if source.labels.weight is None:
            own = np.ones(len(columns))
            columns = replace(columns, label_weights=(columns.label_weights > 0).astype(np.float64))
        columns = columns.without(kind for kind in LABELS if not source.labels.names(kind))
        level = np.full(len(own), source.level or "")
        self.columns = replace(columns, weight=source.weight * own, level=level)

    def __getitem__(self, number: int) -> Frame:
        ((file, index),) = self.ids(np.array([number]))
        return frame_of(self.store.frame(number), self.source, file, index)

    def ids(self, numbers: NDArray) -> list[FrameId]:
        which = np.searchsorted(self._starts, numbers, side="right") - 1
        places = zip(which.tolist(), (numbers - self._starts[which]).tolist(), strict=True)
        return [(self._runs[run][0], self._runs[run][1] + offset) for run, offset in places]

    def config_types(self, numbers: NDArray) -> list[str | None]:
        groups = [*self.store.groups, None]  # -1 is the last one
        return [groups[group] for group in self.store.rows["group"][numbers].tolist()]


class Pool(Sequence[Frame]):
    """F frames; each is read when it is asked for.

    Args:
        parts: where they are.
        part, number: (F,) which part a frame is in, and its number there; by default all frames, in order.
        factor: (F,) multiplies the weight of a frame; None: 1.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        part: NDArray | None = None,
        number: NDArray | None = None,
        factor: NDArray | None = None,
    ):
        sizes = [len(p.columns) for p in parts]
        if part is None or number is None:
            part = np.repeat(np.arange(len(parts), dtype=np.int32), sizes)
            number = np.concatenate([np.arange(size) for size in sizes] or [np.empty(0, np.int64)])
        self.parts, self._part, self._number = tuple(parts), part, number
        starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        columns = join([p.columns for p in parts]).take(starts[part] + number)
        self._factor = np.ones(len(number)) if factor is None else factor
        self.columns = replace(columns, weight=columns.weight * self._factor)

    @classmethod
    def of(cls, frames: Sequence[Frame]) -> "Pool":
        """Frames that are in memory; a pool stays what it is."""
        return frames if isinstance(frames, Pool) else cls([MemoryPart(frames)])

    def __len__(self) -> int:
        return len(self._number)

    def __getitem__(self, index: int) -> Frame:
        frame = self.parts[self._part[index]][int(self._number[index])]
        factor = float(self._factor[index])
        return frame if factor == 1 else replace(frame, weight=frame.weight * factor)

    def __iter__(self) -> Iterator[Frame]:
        return (self[i] for i in range(len(self)))

    def take(self, rows: NDArray) -> "Pool":
        """The frames ``rows``, numbers or a mask."""
        return Pool(self.parts, self._part[rows], self._number[rows], self._factor[rows])

    def weighted(self, group_weights: Mapping[str, float]) -> "Pool":
        """The frames with the weights of those of some groups (``config_type``) multiplied."""
        if not group_weights:
            return self
        factor = np.array([group_weights.get(group, 1.0) for group in self.config_types()], dtype=np.float64)
        return Pool(self.parts, self._part, self._number, self._factor * factor)

    def ids(self) -> list[FrameId]:
        """File and number in it of every frame."""
        return self._of_parts(lambda part, numbers: part.ids(numbers))

    def config_types(self) -> list[str | None]:
        """The group of every frame, to report errors by."""
        return self._of_parts(lambda part, numbers: part.config_types(numbers))

    def _of_parts(self, ask: Callable[[Part, NDArray], list[T]]) -> list[T]:
        """What the parts say of their frames, in the order of the pool."""
        found: list = [None] * len(self)
        for i, part in enumerate(self.parts):
            rows = np.flatnonzero(self._part == i)
            for row, value in zip(rows.tolist(), ask(part, self._number[rows]), strict=True):
                found[row] = value
        return found

    @property
    def files(self) -> list[str]:
        """Names of the files that the parts are from."""
        return [file for part in self.parts for file in part.files]

    def num_edges(self, cutoff: float) -> NDArray[np.int64] | None:
        """(F,), if all frames are in stores with neighbor lists for just this cutoff (Å)."""
        counts = np.zeros(len(self), dtype=np.int64)
        for i, part in enumerate(self.parts):
            if not isinstance(part, StorePart) or part.store.cutoff != cutoff:
                return None
            rows = self._part == i
            counts[rows] = part.store.rows["num_edges"][self._number[rows]]
        return counts


def joined(pools: Sequence[Pool]) -> Pool:
    """All frames of some pools that hold all frames of their parts."""
    return Pool([part for pool in pools for part in pool.parts])
