"""Atoms closer than any two of their elements in the training set."""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np

from equipot.data.edges import MIN_DISTANCE, rows
from equipot.data.species import pair_name
from equipot.deploy.metadata import Metadata
from equipot.errors import DataError
from equipot.integrations.verlet import Array, Edges, as_array


@dataclass(frozen=True)
class TooClose:
    """The closest two atoms of a pair of elements, and what is known of it."""

    pair: str  # such as "H-O"
    atoms: tuple[int, int]
    distance: float  # Å
    shortest: float | None  # Å, in the training set; None: it has no such pair within the cutoff
    stop: bool  # whether it is below a limit of `DistanceWatch.stop_below`

    def __str__(self) -> str:
        seen = "no such pair is within the cutoff" if self.shortest is None else f"{self.shortest:.3f} Å"
        return (
            f"atoms {self.atoms[0]} and {self.atoms[1]} ({self.pair}) are {self.distance:.3f} Å apart; "
            f"shortest in the training set: {seen}"
        )


class DistanceWatch:
    """Finds, once for each pair of elements, distances below the shortest that ``models`` have seen.

    A model of an ensemble has seen what any of them has. Where none of them says what it has seen, nothing
    is found.
    """

    def __init__(self, models: Sequence[Metadata]):
        species, cutoff = models[0].species, models[0].cutoff
        self.shortest: dict[str, float] = {}
        for metadata in models:
            for pair, distance in metadata.shortest_distances.items():
                self.shortest[pair] = min(distance, self.shortest.get(pair, distance))
        self.pairs = [[pair_name(one, other) for other in species] for one in species]
        unseen = cutoff if self.shortest else 0.0
        # Rounding, of a file with eight digits too, must not make a training structure a new one.
        limits = {pair: self.shortest.get(pair, unseen) * (1 - 1e-6) for row in self.pairs for pair in row}
        self._warn = self._table(limits)
        self._stop = np.zeros_like(self._warn)
        self._limits: Array | None = None

    def __getstate__(self) -> dict:
        return vars(self) | {"_limits": None}  # which may be on a GPU

    def renewed(self) -> "DistanceWatch":
        """The same, with nothing said yet, if this one has found nothing so far."""
        other = copy(self)
        other._warn = self._warn.copy()
        return other

    def stop_below(self, limits: dict[str, float]) -> None:
        """Mark distances below these (Å, by pair) as reasons to stop."""
        self._stop, self._limits = self._table(limits), None

    @property
    def limits(self) -> np.ndarray:
        """(T, T) Å, what `find` would find below."""
        return np.maximum(self._warn, self._stop)

    def find(self, edges: Edges, types: Array) -> list[TooClose]:
        """What is below a limit, a pair of elements that was found before only if it is one to stop at.

        ``types`` (N,) in the order of the edges. Waits for the device once, unless something is found.

        Raises:
            DataError: two atoms coincide.
        """
        if not len(edges.squared):
            return []
        if self._limits is None:
            limits = np.maximum(self.limits, MIN_DISTANCE) ** -2.0
            on_cpu = isinstance(edges.squared, np.ndarray)
            self._limits = limits if on_cpu else edges.squared.new_tensor(limits)
        if len(self.pairs) == 1:
            nearest = edges.squared.min() * self._limits[0, 0]
        else:
            center, neighbor = rows(types, edges.index[0]), rows(types, edges.index[1])
            pair = center * len(self.pairs) + neighbor
            nearest = (edges.squared * rows(self._limits.reshape(-1), pair)).min()
        return self._describe(edges, types) if nearest.item() < 1.0 else []

    def _describe(self, edges: Edges, types: Array) -> list[TooClose]:
        (center, neighbor), squared, types = map(as_array, (edges.index, edges.squared, types))
        order = edges.order
        distance = np.sqrt(squared)
        nearest = int(distance.argmin())
        if distance[nearest] < MIN_DISTANCE:
            raise DataError(
                f"Atoms {order[center[nearest]]} and {order[neighbor[nearest]]} are "
                f"{distance[nearest]:.4f} Å apart, across a cell boundary or within the cell. "
                "Remove the duplicate, or correct the positions, the cell or the length unit."
            )
        one, other = (types[atoms] for atoms in (center, neighbor))
        below = np.flatnonzero(distance < self.limits[one, other])
        found: dict[str, TooClose] = {}
        for edge in below[np.argsort(distance[below])]:
            a, b = one[edge], other[edge]
            pair, atoms = self.pairs[a][b], (int(order[center[edge]]), int(order[neighbor[edge]]))
            stop = bool(distance[edge] < self._stop[a, b])
            closest = TooClose(pair, atoms, float(distance[edge]), self.shortest.get(pair), stop)
            found.setdefault(pair, closest)
            self._warn[a, b] = self._warn[b, a] = 0.0  # said once
        self._limits = None
        return list(found.values())

    def _table(self, limits: dict[str, float]) -> np.ndarray:
        """(T, T) of values by pair; 0 where there is none."""
        return np.array([[limits.get(pair, 0.0) for pair in row] for row in self.pairs])
