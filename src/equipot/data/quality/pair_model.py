"""A pair potential fitted to the forces of some frames: crude in size, clear about signs and orders."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from ase.data import covalent_radii
from numpy.typing import NDArray
from scipy.sparse import csr_array

from equipot.data.edges import edge_vectors
from equipot.data.frames import Frame
from equipot.data.neighbors import neighbor_list
from equipot.units import stress_to_voigt

CUTOFF = 6.0  # Å
_CENTERS = np.linspace(0.8, CUTOFF, 16)  # of the basis functions for each pair of elements
_WIDTH = 1.2 * (_CENTERS[1] - _CENTERS[0])
_GRID = np.linspace(0.0, CUTOFF, 1201)
_MAX_ELEMENTS = 5
_MAX_FRAMES = 60
_MAX_EDGES = 400_000  # in all; more frames than fit are left out
_FEWEST_FRAMES = 10
_BOND = 1.3  # times the sum of the covalent radii
_RIDGE = 1e-6


@dataclass(frozen=True)
class Basis:
    """What each of B basis functions gives for a frame."""

    energy: NDArray[np.float64]  # (B,)
    forces: NDArray[np.float64]  # (3N, B)
    stress: NDArray[np.float64]  # (6, B); zeros without a cell
    bonds: NDArray[np.float64]  # (b, 2) length and kind of the pairs that are near
    ends: NDArray[np.int64]  # (b, 2) their atoms
    directions: NDArray[np.float64]  # (b, 3) from the first to the second
    num_edges: int


@dataclass(frozen=True)
class PairModel:
    """The potential that gives the forces of ``frames`` best; F frames."""

    frames: list[Frame]
    basis: list[Basis]

    @cached_property
    def _weights(self) -> NDArray[np.float64]:
        """(F,) so that no frame of huge forces outweighs the others."""
        size = force_sizes(self.frames)
        return 1 / np.maximum(size, np.median(size)) ** 2

    @cached_property
    def _normal(self) -> NDArray[np.float64]:
        return sum(w * b.forces.T @ b.forces for w, b in zip(self._weights, self.basis, strict=True))

    def fit(self, forces: Sequence[NDArray]) -> tuple[NDArray, float]:
        """(B,) coefficients for these forces of the frames; the share of their variance they explain."""
        rows = list(zip(self._weights, self.basis, forces, strict=True))
        right = sum(w * b.forces.T @ f.ravel() for w, b, f in rows)
        ridge = _RIDGE * np.trace(self._normal) / len(right) * np.eye(len(right))
        coefficients = np.linalg.solve(self._normal + ridge, right)
        total = sum(w * np.sum(f**2) for w, _, f in rows)
        return coefficients, float(coefficients @ right / total) if total else 0.0

    @cached_property
    def _fitted(self) -> tuple[NDArray, float]:
        coefficients, explained = self.fit([frame.forces for frame in self.frames])
        # Frames that the others contradict take no part in a second fit.
        corr = correlations(self.frames, [b.forces @ coefficients for b in self.basis])
        good = corr > 0.5
        if good.all() or good.sum() < max(_FEWEST_FRAMES, 0.5 * len(good)):
            return coefficients, explained
        keep = np.flatnonzero(good)
        again = PairModel([self.frames[i] for i in keep], [self.basis[i] for i in keep])
        return again.fit([frame.forces for frame in again.frames])

    @property
    def explained(self) -> float:
        """Share of the variance of the forces."""
        return self._fitted[1]

    @property
    def energies(self) -> NDArray[np.float64]:
        """(F,) eV, but for what depends on the composition."""
        return np.array([b.energy @ self._fitted[0] for b in self.basis])

    @property
    def forces(self) -> list[NDArray[np.float64]]:
        """(3N,) eV/Å of each frame."""
        return [b.forces @ self._fitted[0] for b in self.basis]

    @property
    def stresses(self) -> NDArray[np.float64]:
        """(F, 6) eV/Å³."""
        return np.array([b.stress @ self._fitted[0] for b in self.basis])

    @property
    def basis_text(self) -> str:
        """On what a verdict rests, in words."""
        return (
            f"pair potential fitted to the forces of {len(self.frames)} frames, explains "
            f"{100 * self.explained:.0f} %"
        )

    @cached_property
    def stiffness(self) -> float:
        """Correlation of what bonds are longer than usual with the forces that pull their ends together.

        Positive in everything that holds together, negative for gradients given as forces; 0 without bonds.
        """
        stretch, pull, kinds = [], [], []
        for frame, b, w in zip(self.frames, self.basis, self._weights, strict=True):
            relative = frame.forces[b.ends[:, 0]] - frame.forces[b.ends[:, 1]]
            pull.append(np.sqrt(w) * np.sum(relative * b.directions, axis=1))
            stretch.append(b.bonds[:, 0])
            kinds.append(b.bonds[:, 1])
        stretch, pull, kinds = (np.concatenate(x) for x in (stretch, pull, kinds))
        for kind in np.unique(kinds):
            of_kind = kinds == kind
            stretch[of_kind] -= np.median(stretch[of_kind])
            pull[of_kind] -= np.median(pull[of_kind])
        return correlation(stretch, pull) if len(stretch) >= 50 else 0.0


def fit_pair_model(frames: Sequence[Frame]) -> PairModel | None:
    """The model of frames with forces; None with too few of them or no pairs, or too many elements."""
    usable = [f for f in frames if f.forces is not None and f.num_atoms > 1 and np.abs(f.forces).max() > 1e-4]
    if len(usable) < _FEWEST_FRAMES:
        return None
    size = force_sizes(usable)
    # Those that symmetry leaves with hardly any forces say nothing.
    usable = [f for f, s in zip(usable, size, strict=True) if s > 0.05 * np.quantile(size, 0.9)]
    usable = usable[:: -(-len(usable) // _MAX_FRAMES)]
    elements = np.unique(np.concatenate([frame.atomic_numbers for frame in usable]))
    if len(elements) > _MAX_ELEMENTS:
        return None
    basis, edges = [], 0
    for frame in usable:
        basis.append(make_basis(frame, elements))
        edges += basis[-1].num_edges
        if edges > _MAX_EDGES:
            break
    rows = sum(len(b.forces) for b in basis)
    if not edges or len(basis) < _FEWEST_FRAMES or rows < 3 * basis[0].forces.shape[1]:
        return None
    return PairModel(usable[: len(basis)], basis)


def force_sizes(frames: Sequence[Frame]) -> NDArray[np.float64]:
    """(F,) eV/Å, RMS over components."""
    return np.array([np.sqrt(np.mean(frame.forces**2)) for frame in frames])


def correlations(frames: Sequence[Frame], predicted: Sequence[NDArray]) -> NDArray[np.float64]:
    """(F,) of the forces with those predicted."""
    return np.array([_cosine(f.forces.ravel(), p) for f, p in zip(frames, predicted, strict=True)])


def correlation(one: NDArray, other: NDArray) -> float:
    """Of two arrays of the same shape, columns about their means."""
    return _cosine((one - one.mean(axis=0)).ravel(), (other - other.mean(axis=0)).ravel())


def _cosine(one: NDArray, other: NDArray) -> float:
    norm = np.sqrt((one @ one) * (other @ other))
    return float(one @ other / norm) if norm > 1e-12 else 0.0


def _slopes(length: NDArray) -> NDArray:
    """(E, 16): dE/dr of a pair is a bump at some distance."""
    bumps = np.exp(-(((length[:, None] - _CENTERS) / _WIDTH) ** 2))
    return bumps * (1 - (length[:, None] / CUTOFF) ** 2)


_INTEGRAL = np.cumsum(_slopes(_GRID), axis=0) * _GRID[1]
_INTEGRAL -= _INTEGRAL[-1] + 0.5 * _GRID[1] * (_slopes(_GRID) - _slopes(_GRID[-1:]))  # trapezoidal rule


def make_basis(frame: Frame, elements: NDArray, pbc: NDArray | None = None) -> Basis:
    """Of a frame with these elements, perhaps with another periodicity than it says."""
    pbc = frame.pbc if pbc is None else pbc
    (center, neighbor), shift = neighbor_list(frame.positions, frame.cell, pbc, CUTOFF)
    vector = edge_vectors(frame.positions, frame.cell, (center, neighbor), shift)
    length = np.maximum(np.linalg.norm(vector, axis=1), 1e-9)
    index = np.searchsorted(elements, frame.atomic_numbers)
    low, high = np.minimum(index[center], index[neighbor]), np.maximum(index[center], index[neighbor])
    kind = high * (high + 1) // 2 + low
    kinds = len(elements) * (len(elements) + 1) // 2
    slope = _slopes(length)
    unit = vector / length[:, None]
    # dE/dr > 0 pulls the center towards the neighbor.
    pull = unit[:, :, None] * slope[:, None, :]
    columns = 3 * len(_CENTERS)  # which a frame without pairs does not say
    forces = _added(center * kinds + kind, frame.num_atoms * kinds, pull.reshape(len(length), columns))
    forces = forces.reshape(frame.num_atoms, kinds, 3, -1).transpose(0, 2, 1, 3)
    place = length / _GRID[1]
    below = np.minimum(place.astype(int), len(_GRID) - 2)
    part = (place - below)[:, None]
    energy = 0.5 * _added(kind, kinds, _INTEGRAL[below] * (1 - part) + _INTEGRAL[below + 1] * part)
    stress = np.zeros((6, kinds * len(_CENTERS)))
    if pbc.all():
        virial = np.einsum("ea,ebk->eabk", vector, pull).reshape(len(length), 3 * columns)
        tensors = _added(kind, kinds, virial).reshape(kinds, 3, 3, len(_CENTERS)) / (
            2 * abs(np.linalg.det(frame.cell))
        )
        stress = stress_to_voigt(tensors.transpose(0, 3, 1, 2)).reshape(-1, 6).T
    radii = covalent_radii[frame.atomic_numbers]
    near = (center < neighbor) & (length < _BOND * (radii[center] + radii[neighbor]))
    return Basis(
        energy=energy.ravel(),
        forces=forces.reshape(3 * frame.num_atoms, -1),
        stress=stress,
        bonds=np.stack([length[near], kind[near]], axis=1),
        ends=np.stack([center[near], neighbor[near]], axis=1),
        directions=unit[near],
        num_edges=len(length),
    )


def _added(index: NDArray, size: int, rows: NDArray) -> NDArray:
    """(size, ...) sums of the rows with the same index."""
    ones = np.ones(len(index))
    return csr_array((ones, (index, np.arange(len(index)))), shape=(size, len(index))) @ rows
