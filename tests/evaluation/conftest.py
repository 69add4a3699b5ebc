"""Frames whose labels are known exactly: an analytic pair potential, labelled by ASE's Morse calculator."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.morse import MorsePotential
from ase.calculators.singlepoint import SinglePointCalculator
from torch import nn

from equipot.config import LabelsConfig, UnitsConfig
from equipot.config.data import Parsing
from equipot.data.readers import read_frames
from equipot.evaluation.model import LoadedModel
from equipot.models.predict import predict

R0, INNER, CUTOFF = 2.7, 3.5, 4.5  # Å; the Morse potential is switched off from INNER to CUTOFF
MORSE = {"epsilon": 0.3, "r0": R0, "rho0": 4.0, "rcut1": INNER / R0, "rcut2": CUTOFF / R0}
EV = UnitsConfig()
AS_IT_IS = Parsing()


class Morse(nn.Module):
    """ASE's Morse potential by the deployed contract, optionally with all forces scaled (a known fault)."""

    def __init__(self, fault: float = 1.0):
        super().__init__()
        self.fault = fault

    def forward(self, edge_vec, edge_index, atom_types, owned):
        edge_vec = edge_vec.detach().requires_grad_(True)
        r = edge_vec.norm(dim=1)
        decay = torch.exp(MORSE["rho0"] * (1 - r / R0))
        x = ((r - INNER) / (CUTOFF - INNER)).clamp(0, 1)
        smooth = 1 - x**3 * (6 * x**2 - 15 * x + 10)
        pair = 0.5 * self.fault * MORSE["epsilon"] * decay * (decay - 2) * smooth
        energies = torch.zeros(len(atom_types), dtype=r.dtype).index_add(0, edge_index[0], pair)
        g = torch.autograd.grad(energies.sum(), edge_vec)[0]
        forces = torch.zeros(len(atom_types), 3, dtype=r.dtype)
        forces = forces.index_add(0, edge_index[0], g).index_add(0, edge_index[1], -g)
        outer = -edge_vec.detach()[:, :, None] * g[:, None, :]
        virials = torch.zeros(len(atom_types), 3, 3, dtype=r.dtype).index_add(0, edge_index[1], outer)
        return energies.detach(), forces, virials


def labelled(atoms: Atoms, names=("energy", "forces", "stress")) -> Atoms:
    """The atoms with the named results of the Morse calculator."""
    work = atoms.copy()
    work.calc = MorsePotential(**MORSE)
    getters = {
        "energy": work.get_potential_energy,
        "forces": work.get_forces,
        "stress": work.get_stress,
    }
    atoms.calc = SinglePointCalculator(atoms, **{name: getters[name]() for name in names})
    return atoms


def rattled_crystal(seed: int) -> Atoms:
    """An 8-atom Cu/Ag cell, smaller than the cutoff's sphere, with displaced atoms."""
    atoms = bulk("Cu", "fcc", a=3.8, cubic=True) * (2, 1, 1)
    atoms.numbers[::2] = 47
    atoms.rattle(0.1, seed=seed)
    return atoms


@pytest.fixture(scope="session")
def crystals() -> list[Atoms]:
    """Six periodic frames with every label, and one cluster without stress."""
    frames = [labelled(rattled_crystal(seed)) for seed in range(6)]
    cluster = Atoms("Cu3", positions=[[0, 0, 0], [2.6, 0, 0], [1.2, 2.3, 0.1]])
    return [*frames, labelled(cluster, ("energy", "forces"))]


@pytest.fixture(scope="session")
def data_file(crystals, tmp_path_factory):
    from ase.io import write

    path = tmp_path_factory.mktemp("data") / "crystals.xyz"
    write(path, crystals, format="extxyz")
    return path


@pytest.fixture(scope="session")
def frames(data_file):
    return read_frames([data_file], LabelsConfig(), UnitsConfig())


@pytest.fixture
def morse_model(tmp_path):
    """A loaded model that is the Morse potential; ``fault`` multiplies its energies and forces.

    ``units``, ``parsing``: of the data it was trained on.
    """

    def make(fault: float = 1.0, species=("Cu", "Ag"), units=EV, parsing=AS_IT_IS) -> LoadedModel:
        module = Morse(fault)
        return LoadedModel(
            path=tmp_path / "morse.pt",
            species=list(species),
            cutoff=CUTOFF,
            device="cpu",
            runs_on="cpu",
            labels=LabelsConfig(),
            units=units,
            predict=lambda graph: predict(module, graph),
            parsing=parsing,
        )

    return make


@pytest.fixture
def rng():
    return np.random.default_rng(0)
