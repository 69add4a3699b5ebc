"""A neighbor list with a skin: built for a longer cutoff, reused until an atom may have come too close.

Its atoms are put in an order in which neighbors in space are mostly neighbors in memory too: what a model
reads of an atom's neighbors is then still in a cache, however large and however mixed up the structure is.

Edges are arrays on a CPU, and tensors on a GPU, which finds them itself and keeps them there.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, Union

import numpy as np
from ase.geometry import wrap_positions

from equipot.data.edges import edge_vectors, rows, squared_lengths
from equipot.data.neighbors import check_geometry, neighbor_list, torch_neighbor_list
from equipot.engine.library import GPU_SKIN

if TYPE_CHECKING:
    import torch

Array: TypeAlias = Union[np.ndarray, "torch.Tensor"]


class Edges(NamedTuple):
    """Edges of atoms that are counted in ``order``: their n-th atom is atom order[n] of the positions."""

    vec: Array  # (E, 3) float64 Å
    index: Array  # (2, E) int64, center and neighbor; sorted by center
    squared: Array  # (E,) float64 Å², of the lengths
    order: np.ndarray  # (N,)
    place: np.ndarray  # (N,) its inverse


def as_array(values: Array) -> np.ndarray:
    """Of a tensor, wherever it is."""
    return values if isinstance(values, np.ndarray) else values.detach().cpu().numpy()


@dataclass
class _Built:
    """The geometry a list was built for, and the list."""

    positions: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray
    order: np.ndarray  # (N,) which atom each row of the edges is
    place: np.ndarray  # (N,) which row each atom is
    edge_index: Array | None = None  # None: an engine has the edges
    edge_shift: Array | None = None  # float64, to be multiplied by the cell


class VerletList:
    """Edges shorter than ``cutoff`` (Å) for a structure that moves in small steps.

    ``skin`` (Å) is what the list reaches beyond the cutoff; 0 rebuilds at every call. `builds` counts.
    """

    def __init__(self, cutoff: float, skin: float, device: str = "cpu"):
        self.cutoff, self.skin, self.device = cutoff, skin, device
        self.builds = 0
        self._built: _Built | None = None

    @property
    def geometry(self) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """positions (N, 3) Å, cell (3, 3) Å and pbc (3,) that the list was built for, if there is one."""
        return (built.positions, built.cell, built.pbc) if (built := self._built) else None

    def restore(self, geometry: tuple[np.ndarray, np.ndarray, np.ndarray] | None) -> None:
        """Build the list of another VerletList from its `geometry`: the same edges in the same order."""
        builds = self.builds
        self._built = None if geometry is None else self._build(*geometry)
        self.builds = builds

    def __getstate__(self) -> dict:
        return vars(self) | {"_built": self.geometry}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self.restore(state["_built"])

    def edges(self, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> Edges:
        """On the device. positions (N, 3) Å, unwrapped or not; cell (3, 3) Å; pbc (3,)."""
        built = self._built
        if built is None or not self._still_complete(built, positions, cell, pbc):
            self._built = built = self._build(positions, cell, pbc)
        places = self.there(positions[built.order]), self.there(cell)
        edge_vec = edge_vectors(*places, built.edge_index, built.edge_shift)
        squared = squared_lengths(edge_vec)
        near = squared < self.cutoff**2
        (inside,) = np.nonzero(near) if self.device == "cpu" else near.nonzero(as_tuple=True)
        index = rows(built.edge_index, inside, axis=1)
        return Edges(rows(edge_vec, inside), index, rows(squared, inside), built.order, built.place)

    def there(self, array: Array) -> Array:
        """On the device."""
        if self.device == "cpu":
            return array
        import torch

        return torch.as_tensor(array, device=self.device)

    def _build(self, positions, cell, pbc) -> _Built:
        built = self._ordered(positions, cell, pbc)
        order = built.order
        structure = positions[order], cell, pbc, self.cutoff + self.skin
        if self.device == "cpu":
            built.edge_index, edge_shift = neighbor_list(*structure)
            built.edge_shift = edge_shift.astype(np.float64)
        else:
            built.edge_index, edge_shift = torch_neighbor_list(*structure, device=self.device)
            built.edge_shift = edge_shift.double()
        return built

    def _ordered(self, positions, cell, pbc) -> _Built:
        check_geometry(positions, cell, pbc)
        self.builds += 1
        order = spatial_order(positions, cell, pbc, self.cutoff / 2)
        return _Built(positions.copy(), cell.copy(), pbc.copy(), order, np.argsort(order))

    def _still_complete(self, built: _Built, positions, cell, pbc) -> bool:
        """True if no pair outside the list can have come within the cutoff.

        Write the change as a deformation D of cell and positions, then displacements d of single atoms. A
        pair that is not in the list was at least cutoff + skin apart, so it is now at least
        σ_min(D) (cutoff + skin) − 2 max|d| apart. An atom that was wrapped into the cell shows a large d.
        """
        if self.skin <= 0 or positions.shape != built.positions.shape or not np.array_equal(pbc, built.pbc):
            return False
        if np.array_equal(cell, built.cell):
            moved, shrink = positions - built.positions, 1.0
        elif abs(np.linalg.det(built.cell)) < 1e-6:
            return False
        else:
            deformation = np.linalg.solve(built.cell, cell)
            moved = positions - built.positions @ deformation
            shrink = self._least_stretch(deformation)
        # Of two atoms each moves at most as far as the farthest mover. Rounding must not decide.
        largest = np.sqrt((moved * moved).sum(axis=1).max(initial=0.0))
        return bool(shrink * (self.cutoff + self.skin) - 2.0 * largest > self.cutoff + 1e-9)

    def _least_stretch(self, deformation: np.ndarray) -> float:
        return np.linalg.svd(deformation, compute_uv=False)[-1]


class EngineList(VerletList):
    """The order of atoms for an engine that finds edges itself, and when its list is to be made anew.

    It is as strict as the engine and has a little less skin, so that it alone decides: a run that is resumed
    then has the lists of one that was never stopped.
    """

    def __init__(self, cutoff: float, skin: float):
        super().__init__(cutoff, min(skin, GPU_SKIN - 1e-3))
        self._restored = False

    def restore(self, geometry: tuple[np.ndarray, np.ndarray, np.ndarray] | None) -> None:
        super().restore(geometry)
        self._restored = geometry is not None

    def structures(
        self, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, bool]]:
        """positions (N, 3) Å in `order`, cell, pbc, and whether the list is to be made anew.

        The last is the structure that was asked for. After `restore` one comes first for which the engine's
        list is made again.
        """
        built = self._built
        incomplete = built is None or not self._still_complete(built, positions, cell, pbc)
        if incomplete:
            self._built = built = self._build(positions, cell, pbc)
        elif self._restored:
            yield built.positions[built.order], built.cell, built.pbc, True
        self._restored = False
        yield positions[built.order], cell, pbc, incomplete

    @property
    def order(self) -> np.ndarray:
        """(N,) which atom each row of the last structure is."""
        return self._built.order

    @property
    def place(self) -> np.ndarray:
        """(N,) its inverse."""
        return self._built.place

    def _still_complete(self, built: _Built, positions, cell, pbc) -> bool:
        # What an engine takes for the cell of a slab turns with the slab.
        if not pbc.all() and not np.array_equal(cell, built.cell):
            return False
        return super()._still_complete(built, positions, cell, pbc)

    def _build(self, positions, cell, pbc) -> _Built:
        return self._ordered(positions, cell, pbc)

    def _least_stretch(self, deformation: np.ndarray) -> float:
        return 1.0 - float(np.linalg.norm(deformation - np.eye(3)))


def spatial_order(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, spacing: float) -> np.ndarray:
    """(N,) int64: the atoms along a Z-order curve through cubes of edge ``spacing`` (Å).

    positions (N, 3) Å; atoms are wrapped into the cell along periodic directions. Atoms of one cube keep
    their order. Source: G. M. Morton, A computer oriented geodetic data base and a new technique in file
    sequencing (1966).
    """
    # The vectors of open directions mean nothing: they may be zero, or parallel to others.
    wrapped = wrap_positions(positions, np.where(np.asarray(pbc)[:, None], cell, 0.0), pbc)
    bits = 20  # of each coordinate; farther out than a million cubes the order does not matter
    cubes = (wrapped - wrapped.min(axis=0, initial=np.inf)) / spacing
    cubes = np.minimum(cubes, 2**bits - 1).astype(np.int64)
    curve = np.zeros(len(positions), dtype=np.int64)
    for bit in range(bits):
        for axis in range(3):
            curve |= ((cubes[:, axis] >> bit) & 1) << (3 * bit + axis)
    return np.argsort(curve, kind="stable")
