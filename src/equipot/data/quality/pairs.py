"""Pairs of frames that are small deformations of one another, and the work that their labels say it takes."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from equipot.data.frames import Frame
from equipot.units import stress_to_voigt

_MAX_FAMILY = 400  # frames with the same atoms that are compared with each other
_NEAREST = 8  # partners of each frame
_STRAINS = (1e-5, 0.05)  # beyond the latter the mean of the two ends is no good integral of the stress
_SAME_CELL = 1e-7
_STRAINED_DISPLACEMENT = 0.05  # Å, of the atoms beyond the strain
_DISPLACEMENTS = (1e-4, 0.3)  # Å, where the cell is the same


@dataclass(frozen=True)
class StrainedPair:
    """Two frames with different cells. Work is by the trapezoidal rule: exact up to the third order."""

    frames: tuple[Frame, Frame]
    size: float  # norm of the strain
    volume: float  # Å³, the mean
    energy: float  # eV, of the second minus of the first
    internal: float  # eV, work of the forces on what the atoms move beyond the strain
    internal_change: float  # eV, between both ends: how far from linear the forces on that way may be
    strain: NDArray[np.float64]  # (2, 6) ε at both ends, shear doubled: stress · strain is an energy density
    stress: NDArray[np.float64]  # (2, 6) eV/Å³ at both ends
    volumes: NDArray[np.float64]  # (2,) Å³


@dataclass(frozen=True)
class DisplacedPair:
    """Two frames with the same cell and atoms a little apart."""

    frames: tuple[Frame, Frame]
    displacement: float  # Å, the largest
    energy: float  # eV, of the second minus of the first
    work: float  # eV, -1/2 (F1 + F2) · displacement


def strained_pairs(frames: Sequence[Frame]) -> list[StrainedPair]:
    """Pairs of periodic frames with energy, forces and stress: each with those it is strained from least."""
    usable = [f for f in frames if f.stress is not None and f.energy is not None and f.forces is not None]
    pairs = []
    for family in _families(usable):
        cells = np.array([frame.cell for frame in family])
        for i in range(len(family) - 1):
            mean = 0.5 * (cells[i] + cells[i + 1 :])
            gradient = np.linalg.solve(mean, cells[i + 1 :] - cells[i])
            size = np.linalg.norm(0.5 * (gradient + gradient.transpose(0, 2, 1)), axis=(1, 2))
            inside = np.flatnonzero((size > _STRAINS[0]) & (size < _STRAINS[1]))
            for j in inside[np.argsort(size[inside], kind="stable")[:_NEAREST]]:
                pair = _strained(family[i], family[i + 1 + j], float(size[j]))
                pairs += [] if pair is None else [pair]
    return pairs


def displaced_pairs(frames: Sequence[Frame]) -> list[DisplacedPair]:
    """Pairs of frames with energy and forces in the same cell: each with those it is nearest to."""
    usable = [f for f in frames if f.energy is not None and f.forces is not None and f.num_atoms > 1]
    pairs = []
    for family in _families(usable):
        cells = np.array([frame.cell for frame in family])
        positions = np.array([frame.positions for frame in family])
        for i in range(len(family) - 1):
            same = np.abs(cells[i + 1 :] - cells[i]).max(axis=(1, 2)) < _SAME_CELL
            moved = _nearest_image(positions[i + 1 :] - positions[i], family[i])
            largest = np.abs(moved).max(axis=(1, 2))
            inside = np.flatnonzero(same & (largest > _DISPLACEMENTS[0]) & (largest < _DISPLACEMENTS[1]))
            for j in inside[np.argsort(largest[inside], kind="stable")[:_NEAREST]]:
                a, b = family[i], family[i + 1 + j]
                work = -0.5 * float(np.sum((a.forces + b.forces) * moved[j]))
                pairs.append(DisplacedPair((a, b), float(largest[j]), b.energy - a.energy, work))
    return pairs


def _families(frames: Sequence[Frame]) -> Iterator[list[Frame]]:
    """Frames with the same atoms in the same order; every k-th one where there are very many."""
    groups = defaultdict(list)
    for frame in frames:
        groups[frame.atomic_numbers.tobytes() + frame.pbc.tobytes()].append(frame)
    for group in groups.values():
        if len(group) > 1:
            yield group[:: -(-len(group) // _MAX_FAMILY)]


def _nearest_image(moved: NDArray, frame: Frame) -> NDArray:
    """Displacements (..., N, 3) without whole lattice vectors and without a shift of everything."""
    if frame.pbc.any():
        cell = np.where(frame.pbc[:, None], frame.cell, np.eye(3) * 1e6)
        moved = moved - np.round(moved @ np.linalg.inv(cell)) @ cell
    return moved - moved.mean(axis=-2, keepdims=True)


def _strained(a: Frame, b: Frame, size: float) -> StrainedPair | None:
    scaled = b.positions @ np.linalg.inv(b.cell) - a.positions @ np.linalg.inv(a.cell)
    scaled -= np.round(scaled)
    scaled -= scaled.mean(axis=0)
    if np.abs(scaled @ (0.5 * (a.cell + b.cell))).max() > _STRAINED_DISPLACEMENT:
        return None
    strain, internal = [], []
    for frame in (a, b):
        gradient = np.linalg.solve(frame.cell, b.cell - a.cell)
        strain.append(stress_to_voigt(gradient) * [1, 1, 1, 2, 2, 2])  # the symmetric half
        internal.append(-float(np.sum(frame.forces * (scaled @ frame.cell))))
    volumes = np.array([abs(np.linalg.det(frame.cell)) for frame in (a, b)])
    stress = np.array([stress_to_voigt(frame.stress) for frame in (a, b)])
    energy = b.energy - a.energy
    return StrainedPair(
        (a, b), size, volumes.mean(), energy, float(np.mean(internal)), abs(internal[1] - internal[0]),
        np.array(strain), stress, volumes,
    )  # fmt: skip
