"""Structures, models and inputs of the check: the hyperparameters of `compare`, in three sizes."""

import functools
from dataclasses import dataclass

import numpy as np
import structures
import torch
from ase import Atoms
from pydantic import TypeAdapter
from torch import Tensor

from equipot.config.model import ModelConfig
from equipot.integrations.verlet import VerletList
from equipot.models.build import build_potential
from equipot.models.potential import Potential

CUTOFF = 5.0  # Å
_NEQUIP = {"type": "nequip", "cutoff": CUTOFF, "layers": 4, "channels": 64}
# Keys of the section ``model``. All have an l_max; "l2 parity" is the model of `compare`.
MODELS = {
    "l2 parity": _NEQUIP | {"l_max": 2, "parity": True},
    "l2": _NEQUIP | {"l_max": 2, "parity": False},
    "l3 parity": _NEQUIP | {"l_max": 3, "parity": True, "channels": [128, 64, 32, 32]},
    "l2 parity, radial network": _NEQUIP | {"l_max": 2, "parity": True, "radial_intervals": None},
    "l2 parity, ZBL": _NEQUIP | {"l_max": 2, "parity": True, "zbl": True},
    "allegro": {"type": "allegro", "cutoff": CUTOFF, "l_max": 2, "layers": 2, "channels": 32},
}
_TINY = {"nequip": {"channels": 3, "layers": 2, "radial_hidden": [8]}, "allegro": {"channels": 3}}
NEIGHBORS = {"silicon": 28.0, "water": 52.0, "molecule": 18.0}  # per atom within the cutoff, about
_WATER = {24: (2, 1), 192: (4, 1), 1536: (4, 2), 12_288: (4, 4), 81_000: (10, 3)}  # per edge, repeated
SPECIES = {"silicon": ["Si"], "water": ["H", "O"], "molecule": ["H", "C", "N", "O"]}


@dataclass(frozen=True)
class Inputs:
    """Of the deployed contract, on the device."""

    edge_vec: Tensor
    edge_index: Tensor
    atom_types: Tensor
    owned: Tensor

    def __iter__(self):
        return iter((self.edge_vec, self.edge_index, self.atom_types, self.owned))

    @property
    def num_atoms(self) -> int:
        return len(self.atom_types)

    @property
    def num_edges(self) -> int:
        return self.edge_index.shape[1]

    def to(self, device: str) -> "Inputs":
        return Inputs(*(tensor.to(device) for tensor in self))


def structure(kind: str, num_atoms: int) -> Atoms:
    """Rattled silicon of 8 n³ atoms, or one of the water boxes."""
    if kind == "silicon":
        side = round((num_atoms / 8) ** (1 / 3))
        atoms = structures.silicon(8).repeat(side)
    else:
        per_edge, side = _WATER[num_atoms]
        atoms = structures.water(None, per_edge).repeat(side)
    atoms.rattle(0.05, seed=2)  # copies alone would be a crystal of one cell
    return atoms


def molecules(count: int) -> list[Atoms]:
    """Blobs of the size of 3BPA: 27 atoms, C12 H12 N2 O, at least 1 Å apart, up to 10 Å across."""
    random = np.random.default_rng(0)
    frames = []
    for _ in range(count):
        places: list[np.ndarray] = []
        while len(places) < 27:
            place = random.uniform(-1, 1, 3) * (5.0, 3.2, 2.2)
            if all(np.linalg.norm(place - other) > 1.0 for other in places):
                places.append(place)
        frames.append(Atoms("C12H12N2O", np.array(places)))
    return frames


@functools.lru_cache(maxsize=1)  # the largest take gigabytes
def inputs(kind: str, num_atoms: int, device: str) -> Inputs:
    """Edges found, and atoms put in order, as the calculator does both."""
    atoms = structure(kind, num_atoms)
    neighbors = VerletList(CUTOFF, 0.0, device)
    edges = neighbors.edges(atoms.positions, atoms.cell.array, atoms.pbc)
    types = [SPECIES[kind].index(symbol) for symbol in np.array(atoms.get_chemical_symbols())[edges.order]]
    atom_types = torch.tensor(types, device=device)
    edge_vec, edge_index = map(torch.as_tensor, edges[:2])
    return Inputs(edge_vec, edge_index, atom_types, torch.ones_like(atom_types, dtype=torch.bool))


def model_settings(name: str, size: str) -> dict:
    """The section ``model``; in the size ``tiny`` with three channels and two layers."""
    settings = dict(MODELS[name])
    return settings | _TINY[settings["type"]] if size == "tiny" else settings


def potential(settings: dict, kind: str, dtype: str = "float32", training: bool = False) -> Potential:
    """An untrained one on the CPU, always with the same weights; parameters are constant but in training."""
    torch.manual_seed(0)
    config = TypeAdapter(ModelConfig).validate_python(settings | {"dtype": dtype})
    species = SPECIES[kind]
    energies = [-1.0 - number for number in range(len(species))]
    model = build_potential(config, species, NEIGHBORS[kind], energies, 1.0)
    return model.train() if training else model.eval().requires_grad_(False)


def for_inference(model: Potential) -> Potential:
    """The same with tables of its radial functions, as deployed models have them."""
    if model.network.table_intervals():
        model.network.tabulate(128)
    return model
