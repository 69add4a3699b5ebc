"""The vectors of edges of one structure; ``graph.edge_vectors`` has those of a graph of several."""

from typing import TypeVar

Array = TypeVar("Array")


def edge_vectors(positions: Array, cell: Array, edge_index: Array, edge_shift: Array) -> Array:
    """(E, 3) Å: r_j + edge_shift @ cell − r_i, from the center i to the image of the neighbor j.

    Args:
        positions: (N, 3) Å.
        cell: (3, 3) Å, rows are lattice vectors.
        edge_index: (2, E) center and neighbor; a pair of arrays will do.
        edge_shift: (E, 3); torch wants the dtype of ``cell``.
    """
    center, neighbor = edge_index
    return positions[neighbor] + edge_shift @ cell - positions[center]
