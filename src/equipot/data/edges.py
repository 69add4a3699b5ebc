"""The vectors of edges of one structure; ``graph.edge_vectors`` has those of a graph of several."""

from typing import TypeVar

import numpy as np

Array = TypeVar("Array")  # of numpy or torch

# Å: no two nuclei come this close in a structure that means anything: atoms listed twice, or a wrong unit.
MIN_DISTANCE = 0.1


def edge_vectors(positions: Array, cell: Array, edge_index: Array, edge_shift: Array) -> Array:
    """(E, 3) Å: r_j + edge_shift @ cell − r_i, from the center i to the image of the neighbor j.

    Args:
        positions: (N, 3) Å.
        cell: (3, 3) Å, rows are lattice vectors.
        edge_index: (2, E) center and neighbor; a pair of arrays will do.
        edge_shift: (E, 3); torch wants the dtype of ``cell``.
    """
    center, neighbor = edge_index
    edge_vec = rows(positions, neighbor)
    edge_vec += edge_shift @ cell
    edge_vec -= rows(positions, center)
    return edge_vec


def squared_lengths(edge_vec: Array) -> Array:
    """(E, 3) Å → (E,) Å²."""
    if isinstance(edge_vec, np.ndarray):
        return np.einsum("ea,ea->e", edge_vec, edge_vec)
    return (edge_vec * edge_vec).sum(dim=1)


def rows(values: Array, index: Array, axis: int = 0) -> Array:
    """Those with this index; several times faster than values[index] in numpy."""
    return values.take(index, axis) if isinstance(values, np.ndarray) else values.index_select(axis, index)
