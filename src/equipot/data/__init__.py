"""Structures with reference values: reading, checking, splitting, statistics, graphs, batches."""

from equipot.data.dataset import GraphDataset, atom_types, graph_from_atoms, species_of, to_graph
from equipot.data.frames import Frame, frame_from_atoms
from equipot.data.load import Datasets, load_datasets
from equipot.data.neighbors import neighbor_list
from equipot.data.readers import expand_paths, read_frame, read_frames, read_sources
from equipot.data.splits import Split, select, split_frames
from equipot.data.statistics import Statistics, compute_statistics

__all__ = [
    "Datasets",
    "Frame",
    "GraphDataset",
    "Split",
    "Statistics",
    "atom_types",
    "compute_statistics",
    "expand_paths",
    "frame_from_atoms",
    "graph_from_atoms",
    "load_datasets",
    "neighbor_list",
    "read_frame",
    "read_frames",
    "read_sources",
    "select",
    "species_of",
    "split_frames",
    "to_graph",
]
