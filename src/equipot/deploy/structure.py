"""One structure with its edges, and what a model says about it; used by the capsule and the checks."""

from dataclasses import dataclass, replace

import numpy as np

from equipot.data.edges import edge_vectors
from equipot.data.neighbors import neighbor_list
from equipot.quantities import rows_by_name


@dataclass(frozen=True)
class Structure:
    """Atoms and their directed edges, in numpy."""

    name: str
    positions: np.ndarray  # (N, 3) Å
    cell: np.ndarray  # (3, 3) Å, rows are lattice vectors
    pbc: np.ndarray  # (3,) bool
    atom_types: np.ndarray  # (N,) int
    edge_index: np.ndarray  # (2, E) int: center, neighbor
    edge_shift: np.ndarray  # (E, 3) int

    @property
    def num_atoms(self) -> int:
        return len(self.positions)

    @property
    def edge_vec(self) -> np.ndarray:
        """(E, 3) Å: from the center to the neighbor's image."""
        return edge_vectors(self.positions, self.cell, self.edge_index, self.edge_shift)

    def moved(self, positions: np.ndarray, cutoff: float) -> "Structure":
        """The same atoms at other positions, with new edges."""
        edge_index, edge_shift = neighbor_list(positions, self.cell, self.pbc, cutoff)
        return replace(self, positions=positions, edge_index=edge_index, edge_shift=edge_shift)


def make_structure(name, positions, cell, pbc, atom_types, cutoff: float) -> Structure:
    """A structure with its edges shorter than ``cutoff`` (Å)."""
    positions, cell = np.asarray(positions, dtype=np.float64), np.asarray(cell, dtype=np.float64)
    pbc = np.asarray(pbc, dtype=bool)
    edge_index, edge_shift = neighbor_list(positions, cell, pbc, cutoff)
    return Structure(name, positions, cell, pbc, np.asarray(atom_types), edge_index, edge_shift)


@dataclass(frozen=True)
class ModelRows:
    """A model's answer, float64: the rows per atom of the deployed contract, by their names."""

    rows: dict[str, np.ndarray]  # (N, ...)

    @property
    def energy(self) -> float:
        return float(self.rows["atom_energies"].sum())

    @property
    def forces(self) -> np.ndarray:
        return self.rows["forces"]

    @property
    def finite(self) -> bool:
        return all(np.isfinite(x).all() for x in self.rows.values())


def evaluate(module, structure: Structure) -> ModelRows:
    """Evaluate an eager or a deployed potential, in eval mode, on one structure."""
    return evaluate_edges(module, structure.edge_vec, structure.edge_index, structure.atom_types)


def evaluate_edges(module, edge_vec, edge_index, atom_types) -> ModelRows:
    """Evaluate on edges that need not come from a structure (rotated, or with some left out).

    Shapes: edge_vec (E, 3) Å, edge_index (2, E), atom_types (N,).
    """
    types = np.asarray(atom_types, dtype=np.int64)
    edges = np.asarray(edge_vec, dtype=np.float64), np.asarray(edge_index, dtype=np.int64)
    inputs = (*edges, types, np.ones(len(types), dtype=bool))
    if hasattr(module, "metadata"):  # deployed
        results = module(*inputs)
    else:
        from equipot.deploy.jit import on_arrays

        results = on_arrays(module, inputs, "cpu")
    return ModelRows(rows_by_name(results, getattr(module, "output_names", [])))
