"""Structures with reference values: reading, checking, splitting, statistics, graphs, batches."""

import importlib

_MODULES = {
    "dataset": ("GraphDataset", "LazyDataset", "graph_from_atoms", "to_graph"),
    "frames": ("Frame", "frame_from_atoms"),
    "load": ("Datasets", "load_datasets"),
    "neighbors": ("neighbor_list",),
    "pool": ("Pool",),
    "readers": ("expand_paths", "read_frame", "read_frames"),
    "sources": ("read_sources",),
    "species": ("atom_types", "species_of"),
    "splits": ("Split", "draw_split"),
    "statistics": ("Statistics", "compute_statistics"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
__all__ = list(_MODULE_OF)


def __getattr__(name: str):
    # Imported on first use: processes that read and convert files need no torch.
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f"equipot.data.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module 'equipot.data' has no attribute '{name}'")
