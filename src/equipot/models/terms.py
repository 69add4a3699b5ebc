"""Energy terms that stand beside the network."""

import math
from collections.abc import Mapping, Sequence

import ase.data
import ase.units
import torch
from torch import Tensor, nn

from equipot.engine.program import Program
from equipot.nn.radial import PolynomialCutoff


class SpeciesScaleShift(nn.Module):
    """E_i = scale_s · ε_i + shift_s for an atom of species s, in float64.

    ``scale`` (T,) (eV) is usually the RMS of the forces in Å units, ``shift`` (eV) the atomic reference
    energies: (T,), or (K, T) for a model of K levels of theory.
    """

    def __init__(self, scale: list[float], shift: Sequence, trainable: bool):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale, dtype=torch.float64), requires_grad=trainable)
        self.shift = nn.Parameter(torch.tensor(shift, dtype=torch.float64), requires_grad=trainable)

    def forward(self, energies: Tensor, atom_types: Tensor, level: Tensor | None = None) -> Tensor:
        """(N,) network energies, (N,), (N,) or None for a model of one level → (N,) eV, float64."""
        scale = self.scale.index_select(0, atom_types)
        shift = self.shift.index_select(0, atom_types) if level is None else self.shift[level, atom_types]
        return energies.to(torch.float64) * scale + shift


class ZBL(nn.Module):
    """Screened nuclear repulsion, half of each pair's energy to its center.

    E_ij = k Z_i Z_j / r · Σ_k c_k exp(−d_k r / a) · u(r / (R_i + R_j)), a = 0.4685 Å / (Z_i^0.23 + Z_j^0.23),
    u the polynomial cutoff at the sum of the covalent radii, so that it acts below bond distances only.
    ``reach``: where it ends in their place, (T, T) Å by the species of center and neighbor; k is then that of
    LAMMPS' units metal.
    Source: J. F. Ziegler, J. P. Biersack, U. Littmark, The Stopping and Range of Ions in Matter (1985).
    """

    reach: Tensor | None

    def __init__(self, atomic_numbers: list[int], reach: Sequence[Sequence[float]] | None = None):
        super().__init__()
        numbers = torch.tensor(atomic_numbers, dtype=torch.float64)
        radii = torch.tensor([ase.data.covalent_radii[z] for z in atomic_numbers], dtype=torch.float64)
        self.register_buffer("atomic_numbers", numbers, persistent=False)
        self.register_buffer("radii", radii, persistent=False)
        amplitude = torch.tensor([0.18175, 0.50986, 0.28022, 0.02817], dtype=torch.float64)
        decay = torch.tensor([3.19980, 0.94229, 0.40290, 0.20162], dtype=torch.float64)
        self.register_buffer("amplitude", amplitude, persistent=False)
        self.register_buffer("decay", decay, persistent=False)
        ends = None if reach is None else torch.tensor(reach, dtype=torch.float64)
        self.register_buffer("reach", ends, persistent=False)
        self.envelope = PolynomialCutoff(6)
        self.coulomb = ase.units._e / (4.0 * math.pi * ase.units._eps0) * 1e10  # eV Å
        if reach is not None:
            self.coulomb = 14.399645

    @torch.jit.unused
    def write(self, program: Program) -> None:
        """Say it in a program."""
        tables = {name: tensor.flatten().tolist() for name, tensor in self.named_buffers()}
        if self.reach is not None:
            program.require(3)
        program.facts["zbl"] = {
            **tables,
            "coulomb": self.coulomb,
            "radius": 0.46850,
            "exponent": 0.23,
            "power": self.envelope.p,
        }

    def forward(self, edge_vec: Tensor, edge_index: Tensor, atom_types: Tensor) -> Tensor:
        """(E, 3) float64 Å, (2, E), (N,) → (N,) eV."""
        center, neighbor = atom_types[edge_index[0]], atom_types[edge_index[1]]
        z_i, z_j = self.atomic_numbers[center], self.atomic_numbers[neighbor]
        r = torch.linalg.vector_norm(edge_vec, dim=1)
        a = 0.46850 / (z_i**0.23 + z_j**0.23)
        screening = (self.amplitude * torch.exp(-self.decay * (r / a).unsqueeze(1))).sum(dim=1)
        ends = self.reach
        reach = self.radii[center] + self.radii[neighbor] if ends is None else ends[center, neighbor]
        pair = self.coulomb * z_i * z_j / r * screening * self.envelope(r / reach)
        energies = torch.ops.equipot.segment_sum(0.5 * pair.unsqueeze(1), edge_index, 0, atom_types.shape[0])
        return energies.squeeze(1)


class FieldTerm(nn.Module):
    """Energy of atoms in a uniform electric field F, −p·F − ½ F·α·F; their p is p + α F there.

    So the structure's P = Σ p is −∂E/∂F, its polarizability Σ α is −∂²E/∂F², and forces change by the Born
    charges times F. Without α it is zero.

    Args:
        columns: where P and α begin among the values of the outputs, by their names.
        units: theirs, in e Å and e²Å²/eV.
    """

    def __init__(self, columns: Mapping[str, int], units: Mapping[str, float]):
        super().__init__()
        self.units = dict(units)
        self.polarization, self.polarizability = [*columns.values(), -1][:2]
        self.unit, self.other_unit = [*units.values(), 1.0][:2]

    @torch.jit.unused
    def write(self, program: Program) -> None:
        """Say it in a program."""
        (vector, unit), (tensor, other) = [*self.units.items(), ("", 1.0)][:2]
        program.facts["field"] = {
            "vector": vector, "vector_unit": unit, "tensor": tensor, "tensor_unit": other,
        }  # fmt: skip

    def forward(self, energies: Tensor, values: Tensor, field: Tensor) -> tuple[Tensor, Tensor]:
        """(N,) eV, (N, V), (N, 3) V/Å, of each atom's structure → energies and values there."""
        start = self.polarization
        own = values[:, start : start + 3]
        energies = energies - self.unit * (own * field).sum(1)
        if self.polarizability < 0:
            return energies, values
        alpha = self.other_unit * values[:, self.polarizability : self.polarizability + 9].reshape(-1, 3, 3)
        induced = torch.matmul(alpha, field.unsqueeze(2)).squeeze(2)
        energies = energies - 0.5 * (induced * field).sum(1)
        there = own + induced / self.unit
        return energies, torch.cat([values[:, :start], there, values[:, start + 3 :]], dim=1)
