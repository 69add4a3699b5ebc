"""What is known of frames without reading one: small arrays, one entry for each frame."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from equipot.data.frames import Frame
from equipot.quantities import ENERGY, FORCES, LABELS, QUANTITIES


@dataclass(frozen=True, eq=False)
class Columns:
    """F frames with K elements between them; units eV and Å."""

    elements: NDArray[np.int64]  # (K,) atomic numbers, ascending
    composition: NDArray[np.int32]  # (F, K) atoms of each element
    energy: NDArray[np.float64]  # (F,), NaN where there is none
    has: NDArray[np.bool_]  # (F, Q) a label of each quantity
    free_atoms: NDArray[np.int64]  # (F,) whose forces are labels, if there are forces
    force_squares: NDArray[np.float64]  # (F,) sum over their components; 0 without forces
    weight: NDArray[np.float64]  # (F,)
    periodic: NDArray[np.bool_]  # (F,) in all three directions
    isolated: NDArray[np.bool_]  # (F,) as Frame.is_isolated_atom
    fingerprint: NDArray[np.uint64]  # (F,) as `fingerprint`
    level: NDArray[np.str_]  # (F,) level of theory; empty where it has no name
    label_weights: NDArray[np.float64]  # (F, Q) of each quantity in the loss; 0: a label that is not used

    def __len__(self) -> int:
        return len(self.energy)

    @property
    def symbols(self) -> list[str]:
        """(K,) of the elements."""
        return [chemical_symbols[number] for number in self.elements]

    @property
    def num_atoms(self) -> NDArray[np.int64]:
        """(F,)"""
        return self.composition.sum(axis=1, dtype=np.int64)

    def known(self, name: str) -> NDArray[np.bool_]:
        """(F,) which frames have a label of this name."""
        return self.has[:, LABELS.index(name)]

    @property
    def label_counts(self) -> NDArray[np.int64]:
        """(F, Q) known components of each quantity."""
        ones, atoms = np.ones(len(self), dtype=np.int64), self.num_atoms
        rows = [
            self.free_atoms if name == FORCES.name else q.choose(ones, atoms)
            for name, q in QUANTITIES.items()
        ]
        return self.has * np.stack(
            [q.components * n for q, n in zip(QUANTITIES.values(), rows, strict=True)], 1
        )

    @property
    def force_rms(self) -> float | None:
        """eV/Å, over all known components; None without forces."""
        components = 3 * self.free_atoms[self.known(FORCES.name)].sum()
        return float(np.sqrt(self.force_squares.sum() / components)) if components else None

    def composition_of(self, numbers: Sequence[int]) -> NDArray[np.int64]:
        """(F, len(numbers)) atoms of these elements."""
        found = np.zeros((len(self), len(numbers)), dtype=np.int64)
        for column, number in enumerate(numbers):
            found[:, column] = self.composition[:, self.elements == number].sum(axis=1)
        return found

    def take(self, rows: NDArray) -> "Columns":
        """Those of the frames ``rows``, numbers or a mask; elements that are left without atoms go."""
        composition = self.composition[rows]
        present = composition.any(axis=0)
        per_frame = {name: getattr(self, name)[rows] for name in _PER_FRAME}
        return Columns(elements=self.elements[present], composition=composition[:, present], **per_frame)

    def without(self, kinds: Iterable[str]) -> "Columns":
        """As if there were no labels of these kinds."""
        kinds = set(kinds)
        gone = np.array([kind in kinds for kind in LABELS])
        return replace(
            self,
            has=self.has & ~gone,
            energy=np.full(len(self), np.nan) if ENERGY.name in kinds else self.energy,
            force_squares=np.zeros(len(self)) if FORCES.name in kinds else self.force_squares,
        )


_PER_FRAME = tuple(f.name for f in fields(Columns) if f.name not in ("elements", "composition"))


def columns_of(frames: Sequence[Frame]) -> Columns:
    """The columns of frames that are in memory."""
    elements = np.unique(np.concatenate([frame.atomic_numbers for frame in frames] or [np.empty(0, int)]))
    lookup = np.zeros(elements.max(initial=0) + 1, dtype=np.int64)
    lookup[elements] = np.arange(len(elements))
    counts = [np.bincount(lookup[frame.atomic_numbers], minlength=len(elements)) for frame in frames]
    weights = [[frame.label_weights.get(kind, 1.0) for kind in LABELS] for frame in frames]
    free = [slice(None) if frame.free is None else frame.free for frame in frames]
    forces = [
        np.zeros(0) if f.forces is None else np.ravel(f.forces[i]) for f, i in zip(frames, free, strict=True)
    ]
    return Columns(
        elements=elements.astype(np.int64),
        composition=np.array(counts, dtype=np.int32).reshape(len(frames), len(elements)),
        energy=np.array([np.nan if f.energy is None else f.energy for f in frames], dtype=np.float64),
        has=np.array([[kind in f.values for kind in LABELS] for f in frames], bool).reshape(-1, len(LABELS)),
        free_atoms=np.array(
            [f.num_atoms if f.free is None else f.free.sum() for f in frames], dtype=np.int64
        ),
        force_squares=np.array([force @ force for force in forces], dtype=np.float64),
        weight=np.array([frame.weight for frame in frames], dtype=np.float64),
        periodic=np.array([frame.pbc.all() for frame in frames], dtype=bool),
        isolated=np.array([frame.is_isolated_atom for frame in frames], dtype=bool),
        fingerprint=np.array([fingerprint(frame) for frame in frames], dtype=np.uint64),
        level=np.array([frame.level or "" for frame in frames], dtype=np.str_),
        label_weights=np.array(weights, dtype=np.float64).reshape(-1, len(LABELS)),
    )


def join(parts: Sequence[Columns]) -> Columns:
    """The frames of all parts, one after the other."""
    if not parts:
        return columns_of([])
    elements = np.unique(np.concatenate([part.elements for part in parts]))
    composition = np.zeros((sum(map(len, parts)), len(elements)), dtype=np.int32)
    start = 0
    for part in parts:
        composition[start : start + len(part), np.searchsorted(elements, part.elements)] = part.composition
        start += len(part)
    per_frame = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _PER_FRAME}
    return Columns(elements=elements, composition=composition, **per_frame)


def fingerprint(frame: Frame) -> int:
    """64 bits that are equal for equal elements, positions (to 1e-4 Å), cell and pbc.

    Among a million structures two different ones have the same with a probability of 3e-8.
    """
    rounded = [np.round(array, 4) + 0.0 for array in (frame.positions, frame.cell)]  # + 0.0: no negative zero
    parts = [frame.atomic_numbers, *rounded, frame.pbc]
    digest = hashlib.sha256(b"".join(part.tobytes() for part in parts)).digest()
    return int.from_bytes(digest[:8], "little")
