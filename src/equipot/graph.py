"""The one data type everyone shares: atoms with their neighbor edges, one structure or many."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from equipot.quantities import QUANTITIES, Named


@dataclass(frozen=True)
class Label:
    """A reference value and where it is known. Values where ``mask`` is false are zero and mean nothing."""

    value: Tensor
    mask: Tensor  # bool, one per structure or per atom
    weight: Tensor | None = None  # float64, of each row in the loss, beside that of its structure; None: 1


@dataclass(frozen=True)
class Labels(Named):
    """Reference values by the names of their quantities; none where no structure of the graph has one."""

    values: dict[str, Label] = field(default_factory=dict)  # (S, ...) or (N, ...) float64
    weight: Tensor | None = None  # (S,) float64, of each structure's terms of the loss; None: 1


@dataclass(frozen=True)
class AtomicGraph:
    """S structures with N atoms and E directed edges in all.

    An edge points from a center atom i, which receives, to a neighbor j, which sends; j is the image of
    the atom ``edge_index[1]`` that is translated by ``edge_shift @ cell``.
    """

    positions: Tensor  # (N, 3) float64, Å
    cell: Tensor  # (S, 3, 3) float64, Å, rows are lattice vectors; zeros without a cell
    pbc: Tensor  # (S, 3) bool
    atom_types: Tensor  # (N,) int64, index into the model's species list
    structure: Tensor  # (N,) int64, sorted: which structure an atom belongs to
    edge_index: Tensor  # (2, E) int64: [0] center, [1] neighbor; sorted by center
    edge_shift: Tensor  # (E, 3) int64
    labels: Labels = field(default_factory=Labels)
    level: Tensor | None = None  # (S,) int64, index into the model's levels of theory; None: it has one
    marks: Tensor | None = None  # (N,) uint8, as those of frames; None: all zero

    @property
    def num_structures(self) -> int:
        return self.cell.shape[0]

    @property
    def num_atoms(self) -> int:
        return self.positions.shape[0]

    @property
    def num_edges(self) -> int:
        return self.edge_index.shape[1]

    def to(self, device: torch.device | str) -> "AtomicGraph":
        """The same graph on another device."""
        return move(self, device)

    def pin_memory(self) -> "AtomicGraph":
        """The same graph in memory that GPUs read by themselves. A ``DataLoader`` asks for it by name."""
        return each_tensor(self, Tensor.pin_memory)


def each_tensor(value: Any, function: Callable) -> Any:
    """``value`` with ``function`` of every tensor or array in it, in dataclasses, tuples and dicts too."""
    if isinstance(value, (Tensor, np.ndarray)):
        return function(value)
    if isinstance(value, tuple):
        return tuple(each_tensor(item, function) for item in value)
    if isinstance(value, dict):
        return {name: each_tensor(item, function) for name, item in value.items()}
    if dataclasses.is_dataclass(value):
        names = [one.name for one in dataclasses.fields(value)]
        return type(value)(**{name: each_tensor(getattr(value, name), function) for name in names})
    return value


def move(value: Any, device: torch.device | str) -> Any:
    """``value`` with all its tensors on ``device``; to a GPU, from pinned memory, beside the host's work."""
    # From a GPU the host has to wait: it would read numbers that have not come yet.
    beside = torch.device(device).type == "cuda"
    return each_tensor(value, lambda tensor: tensor.to(device, non_blocking=beside))


def structure_sizes(graph: AtomicGraph) -> Tensor:
    """(S,) int64: how many atoms each structure has; a GPU does not wait for them, as it does in bincount."""
    starts = torch.arange(graph.num_structures + 1, device=graph.structure.device)
    return torch.searchsorted(graph.structure, starts).diff()


def edge_vectors(graph: AtomicGraph) -> Tensor:
    """(E, 3) float64, Å: r_j + edge_shift @ cell − r_i."""
    center, neighbor = graph.edge_index
    cell = graph.cell[graph.structure[center]]
    translation = torch.einsum("ea,eab->eb", graph.edge_shift.to(graph.cell.dtype), cell)
    return graph.positions[neighbor] + translation - graph.positions[center]


def volume(graph: AtomicGraph) -> Tensor:
    """(S,) float64, Å³; 0 for structures that are not periodic in all three directions."""
    determinant = torch.linalg.det(graph.cell).abs()
    return torch.where(graph.pbc.all(dim=1), determinant, torch.zeros_like(determinant))


def nearest_branch(value: Tensor, near: Tensor, graph: AtomicGraph, quantum: float) -> Tensor:
    """(S, 3), (S, 3) → (S, 3): ``value`` plus the multiples of ``quantum`` times lattice vectors (of periodic
    directions) that bring it closest to ``near``: a polarization on the branch of another.
    """
    cell = quantum * torch.where(graph.pbc.unsqueeze(2), graph.cell, 0.0)
    turns = torch.einsum("sa,sak->sk", near - value, torch.linalg.pinv(cell)).round()
    # In a skew cell the nearest one may be a neighbor of what rounding finds.
    ones = torch.arange(-1.0, 2.0, dtype=cell.dtype, device=cell.device)
    steps = turns.unsqueeze(1) + torch.cartesian_prod(ones, ones, ones)
    moved = value.unsqueeze(1) + steps @ cell
    nearest = (moved - near.unsqueeze(1)).square().sum(2).argmin(1)
    return moved[torch.arange(len(value), device=cell.device), nearest]


def collate(graphs: Sequence[AtomicGraph]) -> AtomicGraph:
    """Join graphs into one with all their structures, in order."""
    atom_offsets, structure_offsets = [0], [0]
    for graph in graphs:
        atom_offsets.append(atom_offsets[-1] + graph.num_atoms)
        structure_offsets.append(structure_offsets[-1] + graph.num_structures)

    shifted_edges = [g.edge_index + n for g, n in zip(graphs, atom_offsets, strict=False)]
    shifted_structure = [g.structure + s for g, s in zip(graphs, structure_offsets, strict=False)]
    return AtomicGraph(
        **{name: torch.cat([getattr(graph, name) for graph in graphs]) for name in _ROWS},
        structure=torch.cat(shifted_structure),
        edge_index=torch.cat(shifted_edges, dim=1),
        labels=_collate_labels(graphs),
        level=_collate_levels(graphs),
        marks=_collate_marks(graphs),
    )


# Fields that are joined and cut as they are: 0 structures, 1 atoms, 2 edges.
_ROWS = {"positions": 1, "cell": 0, "pbc": 0, "atom_types": 1, "edge_shift": 2}


def _collate_levels(graphs: Sequence[AtomicGraph]) -> Tensor | None:
    levels = [graph.level for graph in graphs if graph.level is not None]
    if levels and len(levels) < len(graphs):
        raise ValueError("Some of the graphs to be joined say their level of theory, others do not.")
    return torch.cat(levels) if levels else None


def _collate_marks(graphs: Sequence[AtomicGraph]) -> Tensor | None:
    if all(graph.marks is None for graph in graphs):
        return None
    return torch.cat(
        [torch.zeros_like(g.atom_types, dtype=torch.uint8) if g.marks is None else g.marks for g in graphs]
    )


def halves(graph: AtomicGraph) -> tuple[AtomicGraph, AtomicGraph]:
    """Two graphs that ``collate`` joins to ``graph`` again, each with about half of the edges.

    Raises:
        ValueError: there is only one structure.
    """
    if graph.num_structures < 2:
        raise ValueError("One structure cannot be halved.")
    edges = torch.bincount(graph.structure[graph.edge_index[0]], minlength=graph.num_structures)
    reached = edges.cumsum(0)
    first = int(torch.searchsorted(reached, reached[-1] // 2)) + 1
    first = min(first, graph.num_structures - 1)
    num_atoms = int((graph.structure < first).sum())
    num_edges = int(reached[first - 1])
    return (
        _part(graph, slice(0, first), slice(0, num_atoms), slice(0, num_edges)),
        _part(graph, slice(first, None), slice(num_atoms, None), slice(num_edges, None)),
    )


def _part(graph: AtomicGraph, structures: slice, atoms: slice, edges: slice) -> AtomicGraph:
    labels = {}
    for name, whole in graph.labels.values.items():
        rows = QUANTITIES[name].choose(structures, atoms)
        labels[name] = Label(
            whole.value[rows], whole.mask[rows], None if whole.weight is None else whole.weight[rows]
        )
    weight = graph.labels.weight
    return AtomicGraph(
        **{name: getattr(graph, name)[(structures, atoms, edges)[rows]] for name, rows in _ROWS.items()},
        structure=graph.structure[atoms] - structures.start,
        edge_index=graph.edge_index[:, edges] - atoms.start,
        labels=Labels(labels, None if weight is None else weight[structures]),
        level=None if graph.level is None else graph.level[structures],
        marks=None if graph.marks is None else graph.marks[atoms],
    )


def _collate_labels(graphs: Sequence[AtomicGraph]) -> Labels:
    def join(name: str) -> Label:
        labels = []
        for graph in graphs:
            label = graph.labels.values.get(name)
            if label is None:
                rows = QUANTITIES[name].choose(graph.num_structures, graph.num_atoms)
                value = graph.positions.new_zeros((rows, *QUANTITIES[name].shape))
                label = Label(value, torch.zeros(rows, dtype=torch.bool, device=value.device))
            labels.append(label)
        value, mask = (torch.cat([getattr(label, part) for label in labels]) for part in ("value", "mask"))
        rows = [label.value.new_ones(len(label.value)) for label in labels]
        return Label(value, mask, _collate_weights([label.weight for label in labels], rows))

    names = [name for name in QUANTITIES if any(name in graph.labels.values for graph in graphs)]
    ones = [graph.positions.new_ones(graph.num_structures) for graph in graphs]
    weight = _collate_weights([graph.labels.weight for graph in graphs], ones)
    return Labels({name: join(name) for name in names}, weight)


def _collate_weights(weights: Sequence[Tensor | None], ones: Sequence[Tensor]) -> Tensor | None:
    if all(weight is None for weight in weights):
        return None
    return torch.cat([one if weight is None else weight for weight, one in zip(weights, ones, strict=True)])
