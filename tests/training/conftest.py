"""A pair potential with frames labelled by it, to test parts alone; a tiny data set, to test the whole."""

import sys
from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest
import torch
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from torch import Tensor, nn

from equipot.config import Config, config_from_dict
from equipot.graph import AtomicGraph, Label, Labels
from equipot.models.predict import predict

sys.path.insert(0, str(Path(__file__).parent))  # tests/ is no package

CUTOFF = 3.0


class PairPotential(nn.Module):
    """E_i = shift_i + ½ Σ_j strength_ij exp(−r / width) (1 − r / cutoff)²; the contract of a Potential."""

    def __init__(self, strength: float = 1.0, width: float = 1.0):
        super().__init__()
        self.strength = nn.Parameter(torch.full((2, 2), strength, dtype=torch.float64))
        self.width = nn.Parameter(torch.tensor(width, dtype=torch.float64))
        self.shift = nn.Parameter(torch.zeros(2, dtype=torch.float64))
        self.register_buffer("scale", torch.ones((), dtype=torch.float64))

    def forward(
        self, edge_vec: Tensor, edge_index: Tensor, atom_types: Tensor, owned: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        with torch.enable_grad():
            edge_vec = edge_vec.detach().requires_grad_(True)
            center, neighbor = edge_index
            length = edge_vec.norm(dim=1)
            strength = self.strength[atom_types[center], atom_types[neighbor]]
            pair = 0.5 * strength * torch.exp(-length / self.width) * (1 - length / CUTOFF) ** 2
            energies = self.shift[atom_types].index_add(0, center, pair) * self.scale * owned
            (gradient,) = torch.autograd.grad(energies.sum(), edge_vec, create_graph=self.training)
            zeros = edge_vec.new_zeros(len(atom_types), 3)
            forces = zeros.index_add(0, center, gradient).index_add(0, neighbor, -gradient)
            virials = edge_vec.new_zeros(len(atom_types), 3, 3).index_add(
                0, neighbor, -edge_vec.detach()[:, :, None] * gradient[:, None, :]
            )
        return energies, forces, virials


def cluster(generator: torch.Generator, num_atoms: int, periodic: bool = False) -> AtomicGraph:
    """Atoms on a jittered line, 1.2 Å apart, without labels; with a wide cell if ``periodic``."""
    positions = torch.rand(num_atoms, 3, generator=generator, dtype=torch.float64) * 0.4
    positions[:, 0] += 1.2 * torch.arange(num_atoms)
    distances = torch.cdist(positions, positions)
    edge_index = ((distances < CUTOFF) & (distances > 0)).nonzero().T.contiguous()
    cell = torch.eye(3, dtype=torch.float64)[None] * (20.0 if periodic else 0.0)
    return AtomicGraph(
        positions=positions,
        cell=cell,
        pbc=torch.full((1, 3), periodic),
        atom_types=torch.arange(num_atoms) % 2,
        structure=torch.zeros(num_atoms, dtype=torch.int64),
        edge_index=edge_index,
        edge_shift=torch.zeros(edge_index.shape[1], 3, dtype=torch.int64),
    )


def labelled(graph: AtomicGraph, potential: nn.Module, names=("energy", "forces")) -> AtomicGraph:
    """``graph`` with labels computed by ``potential``."""
    prediction = predict(potential.eval(), graph)
    labels = {}
    for name in names:
        value = getattr(prediction, name).detach()
        labels[name] = Label(value, torch.ones(len(value), dtype=torch.bool))
    return AtomicGraph(**{**vars(graph), "labels": Labels(labels)})


def make_frames(num_frames: int, seed: int = 0, names=("energy", "forces"), periodic=False):
    """AtomicGraphs of 3 to 5 atoms, labelled by a potential whose strength is 1.5 and whose width is 0.8."""
    generator = torch.Generator().manual_seed(seed)
    reference = PairPotential(1.5, 0.8)
    return [labelled(cluster(generator, 3 + i % 3, periodic), reference, names) for i in range(num_frames)]


@pytest.fixture
def pair_potential():
    """The class PairPotential."""
    return PairPotential


@pytest.fixture
def frames():
    """The function ``make_frames``."""
    return make_frames


@pytest.fixture(scope="session")
def structures(tmp_path_factory):
    """Extended XYZ file of 14 copper clusters with EMT energies and forces; test.xyz beside it has 5."""
    path = tmp_path_factory.mktemp("structures") / "clusters.xyz"
    generator = np.random.default_rng(0)
    frames = []
    for _ in range(19):
        atoms = ase.Atoms("Cu4", positions=2.5 * np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1.0]]))
        atoms.positions += generator.normal(scale=0.15, size=(4, 3))
        atoms.calc = EMT()
        atoms.get_forces()
        atoms.calc = SinglePointCalculator(atoms, **atoms.calc.results)
        frames.append(atoms)
    ase.io.write(path, frames[:14], columns=["symbols", "positions", "forces"])
    ase.io.write(path.with_name("test.xyz"), frames[14:], columns=["symbols", "positions", "forces"])
    return path


@pytest.fixture(scope="session")
def config_in(structures):
    """A function from a run directory and sections to a Config of a training of a fraction of a second."""

    def make(directory: Path, data=(), model=(), training=(), run=()) -> Config:
        small = {"type": "nequip", "l_max": 1, "layers": 1, "channels": 2, "num_bessel": 3}
        return config_from_dict(
            {
                "data": {"train": str(structures), "validation": 4, **dict(data)},
                "model": {**small, "radial_hidden": [4], "cutoff": 4.0, "dtype": "float64", **dict(model)},
                "training": {"epochs": 4, "batch_size": 3, **dict(training)},
                "run": {"directory": str(directory), "device": "cpu", **dict(run)},
            }
        )

    return make


@pytest.fixture
def make_config(config_in, tmp_path):
    """The same from a run's name, below the test's own folder."""

    def make(name: str = "run", **sections) -> Config:
        return config_in(tmp_path / name, **sections)

    return make


@pytest.fixture
def no_plot(monkeypatch):
    """Leave out plots and report, which take longer than these trainings."""
    monkeypatch.setattr("equipot.training.results.plot_learning_curve", lambda *_: None)
    monkeypatch.setattr("equipot.training.results.plot_elements", lambda *_: None)
    monkeypatch.setattr("equipot.training.results.write_report", lambda *_: None)
    monkeypatch.setattr("equipot.evaluation.report.plot_parity", lambda *_: False)
