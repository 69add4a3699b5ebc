"""A neighbor list in torch alone, on any device: atoms are sorted into bins of about one cutoff."""

import itertools

import torch
from torch import Tensor

from equipot.data.edges import edge_vectors, squared_lengths


def cell_list(
    positions: Tensor, cell: Tensor, box: Tensor, origin: Tensor, pbc: Tensor, cutoff: float
) -> tuple[Tensor, Tensor]:
    """All directed edges with length r < cutoff, those between an atom and its own images included.

    The edge vector is ``positions[j] + edge_shift @ cell - positions[i]``.

    Args:
        positions: (N, 3) float64, Å, inside the cell or not; on any device, where the edges are found.
        cell: (3, 3) float64, Å, rows are lattice vectors; only those of periodic directions are used.
        box: (3, 3) float64, Å, the lattice vectors of periodic directions, in the others edges of a box to
            divide into bins; atoms may lie outside it, which costs time only.
        origin: (3,) float64, Å, a corner of the box.
        pbc: (3,) bool.
        cutoff: Å.

    Returns:
        edge_index (2, E) int64 and edge_shift (E, 3) int64, sorted by center, then neighbor, then shift.
    """
    inverse = torch.linalg.inv(box)
    heights = 1 / torch.linalg.norm(inverse, dim=0)
    bins = _bins(heights, len(positions), cutoff)
    reach = torch.ceil(cutoff * (1 + 1e-9) * bins / heights).long().tolist()

    place = (positions - origin) @ inverse
    wrapped = torch.where(pbc, torch.floor(place), 0.0)
    bin_of = ((place - wrapped) * bins).long().clamp(torch.zeros_like(bins), bins - 1)
    number = _number(bin_of, bins)
    order = torch.argsort(number)
    count = torch.bincount(number, minlength=int(bins.prod()))
    start = torch.cumsum(count, 0) - count
    cell = torch.where(pbc[:, None], cell, 0.0)
    atoms = torch.arange(len(positions), device=positions.device)

    found = []
    for offset in itertools.product(*(range(-n, n + 1) for n in reach)):
        target = bin_of + torch.tensor(offset, device=positions.device)
        image = torch.div(target, bins, rounding_mode="floor")
        inside = (pbc | (image == 0)).all(dim=1)
        there = _number(target - image * bins, bins)
        candidates = torch.where(inside, count[torch.where(inside, there, 0)], 0)
        center = torch.repeat_interleave(atoms, candidates)
        rank = torch.arange(len(center), device=positions.device)
        rank -= torch.repeat_interleave(torch.cumsum(candidates, 0) - candidates, candidates)
        neighbor = order[start[there[center]] + rank]
        shift = image[center] + (wrapped[center] - wrapped[neighbor]).long()
        edge_vec = edge_vectors(positions, cell, (center, neighbor), shift.to(cell.dtype))
        near = squared_lengths(edge_vec) < cutoff**2
        near &= (center != neighbor) | (shift != 0).any(dim=1)
        found.append((center[near], neighbor[near], shift[near]))
    return _sorted(*(torch.cat(part) for part in zip(*found, strict=True)), len(positions))


def _bins(heights: Tensor, num_atoms: int, cutoff: float) -> Tensor:
    """(3,) how many in each direction: about a cutoff wide, and not many more than there are atoms."""
    bins = torch.floor(heights / cutoff).clamp(min=1)
    excess = float(bins.prod()) / max(8 * num_atoms, 1)
    return (bins / max(excess, 1.0) ** (1 / 3)).floor().clamp(min=1).long()


def _number(bin_of: Tensor, bins: Tensor) -> Tensor:
    return (bin_of[:, 0] * bins[1] + bin_of[:, 1]) * bins[2] + bin_of[:, 2]


def _sorted(center: Tensor, neighbor: Tensor, shift: Tensor, num_atoms: int) -> tuple[Tensor, Tensor]:
    if len(shift):
        low, size = shift.amin(dim=0), shift.amax(dim=0) - shift.amin(dim=0) + 1
        # Two keys, as one product of all the numbers could exceed 64 bits.
        by_shift = torch.argsort(_number(shift - low, size))
        pair = (center * num_atoms + neighbor)[by_shift]
        order = by_shift[torch.argsort(pair, stable=True)]
        center, neighbor, shift = center[order], neighbor[order], shift[order]
    return torch.stack([center, neighbor]), shift
