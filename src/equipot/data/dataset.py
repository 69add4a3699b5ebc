"""Frames as graphs."""

from collections.abc import Sequence

import ase
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from equipot.data.columns import Columns, columns_of
from equipot.data.frames import Frame, check_distances, frame_from_atoms
from equipot.data.neighbors import neighbor_list
from equipot.data.pool import Pool
from equipot.data.progress import track
from equipot.data.species import look_up, type_table
from equipot.graph import AtomicGraph, Label, Labels
from equipot.quantities import FORCES, QUANTITIES


class GraphDataset(Dataset):
    """Graphs of a list of frames, built once and kept in memory; item i is the graph of frame i.

    It says of its F frames, without reading one: ``num_atoms`` (F,) int64, ``num_edges`` (F,) int64 and
    ``label_counts`` (F, Q) int64, the known components of each quantity.

    Args:
        frames: what to build graphs of.
        species: chemical symbols; an atom's type is its element's index here.
        cutoff: Å, length of the longest edge.
        levels: names of the model's levels of theory; if there are several, a graph has its level's index.

    Raises:
        UnknownSpeciesError: a frame contains an element that is not in ``species``.
        DataError: two atoms coincide.
    """

    num_replayed = 0  # of its frames; see ReplayingDataset
    paired = False  # whether its graphs hold a frame twice; see equipot.data.noise

    def __init__(
        self, frames: Sequence[Frame], species: Sequence[str], cutoff: float, levels: Sequence[str] = ()
    ):
        frames = list(frames)
        self._describe(frames, columns_of(frames), species, cutoff, levels)
        self.graphs = [self._graph(frame) for frame in track(frames, "neighbor lists", len(frames))]
        self.num_edges = np.array([graph.num_edges for graph in self.graphs], dtype=np.int64)

    def _describe(self, frames: Sequence[Frame], columns: Columns, species, cutoff, levels) -> None:
        self.frames, self.columns = frames, columns
        self.species, self.cutoff, self.levels = list(species), float(cutoff), list(levels)
        self.num_atoms, self.label_counts = columns.num_atoms, columns.label_counts
        self._types = type_table(self.species)

    def __len__(self) -> int:
        return len(self.num_edges)

    def __getitem__(self, index: int) -> AtomicGraph:
        return self.graphs[index]

    @property
    def config_types(self) -> list[str | None]:
        """The group of each frame, to report errors by."""
        return [frame.config_type for frame in self.frames]

    def at(self, index: int, epoch: int) -> AtomicGraph:
        """What an epoch of a training has of frame ``index``."""
        return self[index]

    def structures(self, index: int) -> list[AtomicGraph]:
        """Those of ``self[index]``, each in a graph of its own."""
        return [self[index]]

    @property
    def as_read(self) -> "GraphDataset":
        """Its frames as the files have them, one structure in each graph."""
        return self

    def _graph(self, frame: Frame) -> AtomicGraph:
        return _graph(frame, self._types, self.species, self.cutoff, self.levels)


class LazyDataset(GraphDataset):
    """Graphs of frames that are read, with their neighbor lists, when they are asked for; memory for one.

    Args:
        frames: F frames, each with its neighbor list for ``cutoff``.
        columns: what is known of them.
        num_edges: (F,)
        species, cutoff, levels: as for ``GraphDataset``, and so are the errors.
    """

    def __init__(
        self,
        frames: Pool,
        columns: Columns,
        num_edges: NDArray[np.int64],
        species: Sequence[str],
        cutoff: float,
        levels: Sequence[str] = (),
    ):
        self._describe(frames, columns, species, cutoff, levels)
        self.num_edges = num_edges
        unknown = columns.composition[:, self._types[columns.elements] < 0].any(axis=1)
        if unknown.any():
            self[int(unknown.argmax())]

    def __getitem__(self, index: int) -> AtomicGraph:
        return self._graph(self.frames[index])

    @property
    def config_types(self) -> list[str | None]:
        return self.frames.config_types()


class ReplayingDataset(Dataset):
    """Graphs to train on, and at the end others that are replayed in turns with them (``StepSampler``)."""

    def __init__(self, own: GraphDataset, replayed: GraphDataset):
        self._own, self._replayed, self.num_replayed = own, replayed, len(replayed)
        for name in ("num_atoms", "num_edges", "label_counts"):
            setattr(self, name, np.concatenate([getattr(own, name), getattr(replayed, name)]))

    def __len__(self) -> int:
        return len(self._own) + len(self._replayed)

    def __getitem__(self, index: int) -> AtomicGraph:
        return self.at(index, 0)

    def at(self, index: int, epoch: int) -> AtomicGraph:
        own = len(self._own)
        return self._own.at(index, epoch) if index < own else self._replayed[index - own]


def to_graph(frame: Frame, species: Sequence[str], cutoff: float) -> AtomicGraph:
    """The graph of one frame with its labels. Raises as ``GraphDataset``."""
    return _graph(frame, type_table(species), list(species), cutoff)


def graph_from_atoms(atoms: ase.Atoms, species: Sequence[str], cutoff: float) -> AtomicGraph:
    """The graph of an ASE structure (Å), no labels. Raises as ``GraphDataset`` and ``frame_from_atoms``."""
    return to_graph(frame_from_atoms(atoms), species, cutoff)


def _graph(
    frame: Frame, types: NDArray, species: list[str], cutoff: float, levels: Sequence[str] = ()
) -> AtomicGraph:
    frame_types = look_up(frame.atomic_numbers, types, species, frame.where)
    if frame.edges is not None and frame.edges.cutoff == cutoff:
        edge_index, edge_shift = (a.astype(np.int64) for a in (frame.edges.index, frame.edges.shift))
    else:
        edge_index, edge_shift = neighbor_list(frame.positions, frame.cell, frame.pbc, cutoff)
        check_distances(frame, edge_index, edge_shift)
    return AtomicGraph(
        positions=torch.from_numpy(frame.positions),
        cell=torch.from_numpy(frame.cell).reshape(1, 3, 3),
        pbc=torch.from_numpy(frame.pbc).reshape(1, 3),
        atom_types=torch.from_numpy(frame_types),
        structure=torch.zeros(frame.num_atoms, dtype=torch.int64),
        edge_index=torch.from_numpy(edge_index),
        edge_shift=torch.from_numpy(edge_shift),
        labels=_labels(frame),
        level=torch.tensor([levels.index(frame.level)]) if len(levels) > 1 else None,
        marks=None if frame.marks is None else torch.from_numpy(frame.marks),
    )


def _labels(frame: Frame) -> Labels:
    labels = {}
    for name, value in frame.values.items():
        rows = np.asarray(value)[QUANTITIES[name].choose(None, slice(None))]  # None: an axis of one structure
        known = torch.ones(len(rows), dtype=torch.bool)
        if name == FORCES.name and frame.free is not None:
            known = torch.from_numpy(frame.free)
        value = torch.as_tensor(rows, dtype=torch.float64)
        own = frame.label_weights.get(name, 1.0)
        labels[name] = Label(value, known, None if own == 1 else value.new_full((len(rows),), own))
    weight = None if frame.weight == 1 else torch.tensor([frame.weight], dtype=torch.float64)
    return Labels(labels, weight)
