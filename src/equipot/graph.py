"""The one data type everyone shares: atoms with their neighbor edges, one structure or many."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Label:
    """A reference value and where it is known. Values where ``mask`` is false are zero and mean nothing."""

    value: Tensor
    mask: Tensor  # bool, one per structure (energy, stress) or per atom (forces)

    def to(self, device: torch.device | str) -> "Label":
        return Label(self.value.to(device), self.mask.to(device))


@dataclass(frozen=True)
class Labels:
    """Reference values; None where no structure of the graph has one."""

    energy: Label | None = None  # (S,) float64, eV
    forces: Label | None = None  # (N, 3) float64, eV/Å
    stress: Label | None = None  # (S, 3, 3) float64, eV/Å³, positive under tension
    weight: Tensor | None = None  # (S,) float64, of each structure's terms of the loss; None: 1

    def to(self, device: torch.device | str) -> "Labels":
        return Labels(**{f.name: _move(getattr(self, f.name), device) for f in dataclasses.fields(self)})


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
        return AtomicGraph(**{f.name: _move(getattr(self, f.name), device) for f in dataclasses.fields(self)})


def _move(value, device):
    return None if value is None else value.to(device)


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


def collate(graphs: Sequence[AtomicGraph]) -> AtomicGraph:
    """Join graphs into one with all their structures, in order."""
    atom_offsets, structure_offsets = [0], [0]
    for graph in graphs:
        atom_offsets.append(atom_offsets[-1] + graph.num_atoms)
        structure_offsets.append(structure_offsets[-1] + graph.num_structures)

    def join(name: str) -> Tensor:
        return torch.cat([getattr(graph, name) for graph in graphs])

    shifted_edges = [g.edge_index + n for g, n in zip(graphs, atom_offsets, strict=False)]
    shifted_structure = [g.structure + s for g, s in zip(graphs, structure_offsets, strict=False)]
    return AtomicGraph(
        positions=join("positions"),
        cell=join("cell"),
        pbc=join("pbc"),
        atom_types=join("atom_types"),
        structure=torch.cat(shifted_structure),
        edge_index=torch.cat(shifted_edges, dim=1),
        edge_shift=join("edge_shift"),
        labels=_collate_labels(graphs),
        level=_collate_levels(graphs),
    )


def _collate_levels(graphs: Sequence[AtomicGraph]) -> Tensor | None:
    levels = [graph.level for graph in graphs]
    if all(level is None for level in levels):
        return None
    if any(level is None for level in levels):
        raise ValueError("Some of the graphs to be joined say their level of theory, others do not.")
    return torch.cat(levels)


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
    labels = graph.labels

    def label(name: str, rows: slice) -> Label | None:
        whole = getattr(labels, name)
        return None if whole is None else Label(whole.value[rows], whole.mask[rows])

    return AtomicGraph(
        positions=graph.positions[atoms],
        cell=graph.cell[structures],
        pbc=graph.pbc[structures],
        atom_types=graph.atom_types[atoms],
        structure=graph.structure[atoms] - structures.start,
        edge_index=graph.edge_index[:, edges] - atoms.start,
        edge_shift=graph.edge_shift[edges],
        labels=Labels(
            energy=label("energy", structures),
            forces=label("forces", atoms),
            stress=label("stress", structures),
            weight=None if labels.weight is None else labels.weight[structures],
        ),
        level=None if graph.level is None else graph.level[structures],
    )


def _collate_labels(graphs: Sequence[AtomicGraph]) -> Labels:
    def shape(graph: AtomicGraph, name: str) -> tuple[int, ...]:
        s, n = graph.num_structures, graph.num_atoms
        return {"energy": (s,), "forces": (n, 3), "stress": (s, 3, 3)}[name]

    def join(name: str) -> Label | None:
        labels = [getattr(graph.labels, name) for graph in graphs]
        if all(label is None for label in labels):
            return None
        values, masks = [], []
        for graph, label in zip(graphs, labels, strict=True):
            size = shape(graph, name)
            values.append(graph.positions.new_zeros(size) if label is None else label.value)
            empty = torch.zeros(size[0], dtype=torch.bool, device=graph.positions.device)
            masks.append(empty if label is None else label.mask)
        return Label(torch.cat(values), torch.cat(masks))

    def join_weights() -> Tensor | None:
        if all(graph.labels.weight is None for graph in graphs):
            return None
        ones = [graph.positions.new_ones(graph.num_structures) for graph in graphs]
        return torch.cat(
            [g.labels.weight if g.labels.weight is not None else o for g, o in zip(graphs, ones, strict=True)]
        )

    return Labels(energy=join("energy"), forces=join("forces"), stress=join("stress"), weight=join_weights())
