"""Neighbor lists: which atoms, or periodic images of atoms, lie within the cutoff of each atom."""

import importlib
from typing import TYPE_CHECKING

import numpy as np
from matscipy.neighbours import neighbour_list as matscipy_neighbour_list
from numpy.typing import ArrayLike, NDArray

from equipot.data.edges import edge_vectors, rows, squared_lengths
from equipot.errors import DataError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# The search sorts atoms into bins of about one cutoff; a box of this many cutoffs per open direction bounds
# their number for structures with far-away fragments. Atoms outside the box are still found, more slowly.
_MAX_BOX_IN_CUTOFFS = 50.0

# Å; double precision resolves 1e-8 Å there, and the search counts lattice vectors in 32 bits.
_MAX_COORDINATE = 1e8

# Below this many atoms without periodicity all pairs are compared, which is faster than sorting into bins.
_FEW_ATOMS = 64

METHODS = ("matscipy", "vesin", "torch")


def neighbor_list(
    positions: ArrayLike, cell: ArrayLike, pbc: ArrayLike, cutoff: float, method: str = "matscipy"
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All directed edges with length r < cutoff, including those between an atom and its own images.

    The edge vector is ``positions[j] + edge_shift @ cell - positions[i]``. Atoms may lie outside the cell.
    Only the lattice vectors of periodic directions are used; the others may be zero.

    Args:
        positions: (N, 3), Å.
        cell: (3, 3), Å, rows are lattice vectors.
        pbc: (3,) bool.
        cutoff: Å, positive.
        method: what searches; the result is the same. ``matscipy``; ``vesin``, a package of its own; or
            ``torch``, which `torch_neighbor_list` also runs on a GPU.

    Returns:
        edge_index (2, E) int64, [0] center and [1] neighbor, and edge_shift (E, 3) int64; sorted by center,
        then neighbor, then shift.

    Raises:
        DataError: positions are not finite or beyond 1e8 Å, or the periodic lattice vectors are linearly
            dependent.
        ValueError: the cutoff is not positive; there is no such method.
    """
    if method not in METHODS:
        raise ValueError(f"The method must be one of {', '.join(METHODS)}, not {method!r}.")
    if not cutoff > 0:
        raise ValueError(f"The cutoff must be positive, not {cutoff}.")
    positions = np.ascontiguousarray(positions, dtype=np.float64).reshape(-1, 3)
    cell = np.asarray(cell, dtype=np.float64).reshape(3, 3)
    pbc = np.broadcast_to(np.asarray(pbc, dtype=bool), (3,))
    if len(positions) == 0:
        return np.zeros((2, 0), np.int64), np.zeros((0, 3), np.int64)
    check_geometry(positions, cell, pbc)

    if method == "torch":
        edges = torch_neighbor_list(positions, cell, pbc, cutoff)
        return tuple(part.numpy() for part in edges)
    if len(positions) <= _FEW_ATOMS and not pbc.any():
        return _all_pairs(positions, cutoff)
    search = {"matscipy": _matscipy, "vesin": _vesin}[method]
    # A slightly larger radius: the exact decision is made below, with the same expression models use.
    center, neighbor, shift = search(positions, cell, pbc, cutoff * (1 + 1e-9))
    edge_vec = edge_vectors(positions, cell, (center, neighbor), shift)
    inside = np.flatnonzero(squared_lengths(edge_vec) < cutoff**2)
    center, neighbor, shift = (rows(values, inside) for values in (center, neighbor, shift))
    order = np.lexsort((shift[:, 2], shift[:, 1], shift[:, 0], neighbor, center))
    edge_index = np.stack([center[order], neighbor[order]]).astype(np.int64)
    return edge_index, shift[order].astype(np.int64)


def torch_neighbor_list(
    positions: NDArray, cell: NDArray, pbc: NDArray, cutoff: float, device: "torch.device | str" = "cpu"
) -> "tuple[Tensor, Tensor]":
    """As ``neighbor_list``, searched in torch on ``device``, where the edges stay."""
    import torch  # only here: reading files does not wait for it

    from equipot.data.cell_list import cell_list

    check_geometry(positions, cell, pbc)
    box, origin = _search_box(positions, cell, pbc, cutoff)
    arrays = [torch.as_tensor(array, device=device) for array in (positions, cell, box, origin, pbc.copy())]
    return cell_list(*arrays, cutoff)


def _all_pairs(positions: NDArray, cutoff: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of a molecule."""
    vectors = positions[None] - positions[:, None]
    near = np.einsum("ija,ija->ij", vectors, vectors) < cutoff**2
    np.fill_diagonal(near, False)
    edge_index = np.stack(near.nonzero())
    return edge_index, np.zeros((edge_index.shape[1], 3), np.int64)


def _matscipy(positions, cell, pbc, cutoff):
    box, origin = _search_box(positions, cell, pbc, cutoff)
    return matscipy_neighbour_list(
        "ijS", positions=positions, cell=box, pbc=pbc, cell_origin=origin, cutoff=cutoff
    )


def _vesin(positions, cell, pbc, cutoff):
    box, origin = _search_box(positions, cell, pbc, cutoff)
    lengths = np.ptp(positions @ np.linalg.inv(box), axis=0) * np.linalg.norm(box, axis=1)
    if (lengths[~pbc] > _MAX_BOX_IN_CUTOFFS * cutoff).any():
        # It makes bins for all the empty space, and ends the process when these are too many.
        raise DataError(
            f"vesin cannot search structures that are wider than {_MAX_BOX_IN_CUTOFFS * cutoff:.0f} Å in a "
            "direction that is not periodic; use matscipy."
        )
    vesin = importlib.import_module("vesin")
    search = vesin.NeighborList(cutoff=cutoff, full_list=True, sorted=False)
    center, neighbor, shift = search.compute(
        points=positions - origin, box=box, periodic=pbc, quantities="ijS"
    )
    return center.astype(np.int64), neighbor.astype(np.int64), shift


def check_geometry(positions: NDArray, cell: NDArray, pbc: NDArray) -> None:
    """Raise DataError for positions (N, 3) or cells (3, 3), Å, that have no neighbor list."""
    farthest = np.abs(positions).max(initial=0.0)
    if not np.isfinite(farthest):
        raise DataError("The positions are not finite, so there is no neighbor list.")
    if farthest > _MAX_COORDINATE:
        raise DataError(
            f"A coordinate is {farthest:.3g} Å, too large for distances to be exact (limit "
            f"{_MAX_COORDINATE:.0e} Å): the run has diverged, or the file or its length unit is wrong."
        )
    if not np.isfinite(cell).all() or periodic_volume(cell, pbc) < 1e-6:
        directions = " ".join("FT"[int(p)] for p in pbc)
        raise DataError(
            f"pbc is {directions}, but the lattice vectors of the periodic directions are zero, parallel or "
            f"not finite: cell = {cell.tolist()}."
        )


def periodic_volume(cell: NDArray, pbc: NDArray) -> float:
    """Length, area or volume (Å, Å², Å³) spanned by the periodic lattice vectors; 1 if there are none."""
    vectors = cell[pbc]
    return float(np.sqrt(max(np.linalg.det(vectors @ vectors.T), 0.0))) if len(vectors) else 1.0


def _search_box(positions, cell, pbc, cutoff):
    """Cell and origin for the search: open directions get a box around the atoms, not the cell's."""
    if pbc.all():
        return cell, np.zeros(3)
    vectors = cell[pbc]  # what they do not span has these orthonormal rows
    directions = np.linalg.svd(vectors)[2][len(vectors) :] if len(vectors) else np.eye(3)
    coordinates = positions @ directions.T
    low, high = coordinates.min(axis=0), coordinates.max(axis=0)
    # A little larger, so that rounding leaves no atom outside.
    extent = np.clip((high - low) * (1 + 1e-9), cutoff, _MAX_BOX_IN_CUTOFFS * cutoff)
    box = np.where(pbc[:, None], cell, 0.0)
    box[~pbc] = extent[:, None] * directions
    return box, low @ directions
