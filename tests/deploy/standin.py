"""A tiny smooth many-body network, for tests where the file matters and not the physics."""

import zipfile

import torch
from torch import Tensor, nn

from equipot.config import NequIPConfig
from equipot.deploy.capsule import synthetic_structures
from equipot.deploy.rigidity import Rigidity
from equipot.deploy.torchscript import write_torchscript
from equipot.models.build import build_potential
from equipot.models.network import Network
from equipot.models.potential import Potential
from equipot.models.terms import SpeciesScaleShift


class StandInNetwork(Network):
    """ε_i = Σ_j a_s(i) a_s(j) (4 x⁶ − 3 x³) u(r) + 0.1 (Σ_j a_s(j) u(r))², x = 2 Å / r.

    u = (1 − (r/r_c)²)³ inside the cutoff: energy, forces and their slope are continuous there.
    """

    def __init__(self, num_species: int, cutoff: float, dtype: torch.dtype):
        super().__init__()
        self.cutoff = cutoff
        self.num_exchanges = self.widest_exchange = 0
        self.strength = nn.Parameter(0.3 + 0.1 * torch.arange(num_species, dtype=dtype))

    def envelope(self, r: Tensor) -> Tensor:
        return (1.0 - (r / self.cutoff) ** 2) ** 3

    def forward(self, edge_vec: Tensor, edge_index: Tensor, atom_types: Tensor) -> Tensor:
        r = torch.linalg.vector_norm(edge_vec, dim=1).to(self.strength.dtype)
        center, neighbor = edge_index[0], edge_index[1]
        u, x3 = self.envelope(r), (2.0 / r) ** 3
        a_i, a_j = self.strength[atom_types[center]], self.strength[atom_types[neighbor]]
        zero = torch.zeros(atom_types.shape[0], dtype=r.dtype, device=r.device)
        pair = zero.index_add(0, center, a_i * a_j * (4.0 * x3 * x3 - 3.0 * x3) * u)
        density = zero.index_add(0, center, a_j * u)
        return (pair + 0.1 * density * density).unsqueeze(1)


class AbruptNetwork(StandInNetwork):
    """The same without an envelope: energy and forces jump at the cutoff."""

    def envelope(self, r: Tensor) -> Tensor:
        return torch.ones_like(r)


class LopsidedNetwork(StandInNetwork):
    """The same plus a field along z: neither rotation nor inversion leaves the energy as it is."""

    def forward(self, edge_vec: Tensor, edge_index: Tensor, atom_types: Tensor) -> Tensor:
        r = torch.linalg.vector_norm(edge_vec, dim=1)
        zero = torch.zeros(atom_types.shape[0], dtype=edge_vec.dtype, device=edge_vec.device)
        extra = zero.index_add(0, edge_index[0], 0.01 * edge_vec[:, 2] ** 3 * self.envelope(r))
        isotropic = self.isotropic(edge_vec, edge_index, atom_types)
        return isotropic + extra.unsqueeze(1).to(isotropic.dtype)

    def isotropic(self, edge_vec: Tensor, edge_index: Tensor, atom_types: Tensor) -> Tensor:
        r = torch.linalg.vector_norm(edge_vec, dim=1).to(self.strength.dtype)
        zero = torch.zeros(atom_types.shape[0], dtype=r.dtype, device=r.device)
        return zero.index_add(0, edge_index[0], (2.0 / r) ** 6 * self.envelope(r)).unsqueeze(1)


class LeakyPotential(Potential):
    """Its forces are not the gradient of its energy: each edge adds a push around the z axis."""

    def forward(
        self, edge_vec: Tensor, edge_index: Tensor, atom_types: Tensor, owned: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        r = torch.linalg.vector_norm(edge_vec, dim=1, keepdim=True)
        energies = self.atom_energies(edge_vec, edge_index, atom_types).detach()
        around = torch.stack([-edge_vec[:, 1], edge_vec[:, 0], torch.zeros_like(edge_vec[:, 2])], dim=1)
        push = 0.5 * around * (1.0 - r / self.cutoff) ** 3
        forces = torch.zeros(atom_types.shape[0], 3, dtype=edge_vec.dtype, device=edge_vec.device)
        forces = forces.index_add(0, edge_index[0], push).index_add(0, edge_index[1], -push)
        virials = torch.zeros(atom_types.shape[0], 3, 3, dtype=edge_vec.dtype, device=edge_vec.device)
        return energies, forces, virials


def make_potential(
    species=("H", "C", "O"), cutoff=4.0, dtype=torch.float64, network=StandInNetwork, potential=Potential
) -> Potential:
    """A stand-in potential in eval mode; atomic energies of −10, −20, ... eV."""
    shift = [-10.0 * (i + 1) for i in range(len(species))]
    scale_shift = SpeciesScaleShift([1.0] * len(species), shift, trainable=False)
    return potential(network(len(species), cutoff, dtype), list(species), scale_shift).eval()


def write_uncertain(path, factor, species=("H", "C", "O", "Cu")):
    """Deploy an untrained NequIP with R = ``factor`` (4, 4) as the uncertainty of its energies."""
    torch.manual_seed(0)
    settings = {"layers": 2, "channels": 4, "l_max": 1, "radial_hidden": (8,), "cutoff": 3.0}
    shift = [-1.0 - number for number in range(len(species))]
    config = NequIPConfig(type="nequip", **settings)
    figures = {"features": 4, "training_frames": 9, "validation_frames": 5, "miscalibration": 0.1}
    figures |= {"predicted_rms": 0.1, "error_rms": 0.1}
    return write_torchscript(
        build_potential(config, list(species), 10.0, shift, 1.0).eval(),
        path,
        synthetic_structures(species, 3.0),
        source="made for the tests",
        model_type="nequip",
        atomic_energies=shift,
        weights="last",
        validation={},
        config="data: {labels: {}, units: {}}",
        measure=lambda program: Rigidity(factor, figures),
    )


def write_standin(path, **keywords):
    """Deploy a stand-in potential (arguments of `make_potential`) to ``path``; gives its metadata."""
    potential = make_potential(**keywords)
    return write_torchscript(
        potential,
        path,
        synthetic_structures(potential.species, potential.cutoff),
        source="made for the tests",
        model_type="standin",
        atomic_energies=potential.scale_shift.shift.tolist(),
        weights="ema",
        validation={"forces_mae": 0.01},
        config="model: {type: standin}\n",
    )


def rewritten(source, target, change):
    """Copy a zip archive; ``change(name, data)`` gives each entry's new content, or None to leave it out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for item in old.infolist():
            data = change(item.filename, old.read(item))
            if data is not None:
                new.writestr(item.filename, data)
    return target
