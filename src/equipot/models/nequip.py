"""NequIP: equivariant message passing.

Source: S. Batzner et al., Nat. Commun. 13, 2453 (2022), https://doi.org/10.1038/s41467-022-29939-5.
"""

import copy
from collections.abc import Sequence

import torch
from e3nn import o3
from torch import Tensor, nn

from equipot.nn.gate import Gate
from equipot.nn.linear import EquivariantLinear, SpeciesLinear
from equipot.nn.mlp import MLP
from equipot.nn.radial import BesselBasis
from equipot.nn.spherical import SphericalHarmonics
from equipot.ops.bspline import fit
from equipot.ops.convolution import Convolution, TabulatedConvolution
from equipot.ops.paths import convolution_paths, feature_irreps, layer_targets


class NequIPLayer(nn.Module):
    """One interaction block.

    1. mix channels: x' = W₁ x
    2. convolve: m_i = 1/√n̄ Σ_j R(r_ij) x'_j ⊗ Y(r̂_ij), R a perceptron of the Bessel basis
    3. mix paths and channels: W₂ m
    4. self-connection: + W_species(i) x
    5. gate
    Source: Batzner et al. (2022), fig. 1 and eqs. 5–8.
    """

    def __init__(
        self,
        irreps_in: o3.Irreps,
        irreps_sh: o3.Irreps,
        irreps_target: o3.Irreps,
        num_species: int,
        num_bessel: int,
        radial_hidden: Sequence[int],
        avg_num_neighbors: float,
    ):
        super().__init__()
        paths = convolution_paths(irreps_in, irreps_sh, irreps_target)
        self.gate = Gate(o3.Irreps([(mul, ir) for mul, ir in irreps_target if ir in paths.irreps_out]))
        self.irreps_in, self.irreps_out = irreps_in, self.gate.irreps_out
        self.norm = avg_num_neighbors**-0.5
        self.mix_channels = EquivariantLinear(irreps_in, irreps_in)
        self.radial = MLP([num_bessel, *radial_hidden, paths.num_weights])
        self.convolution = Convolution(paths)
        self.mix_paths = EquivariantLinear(paths.irreps_out, self.gate.irreps_in)
        self.self_connection = SpeciesLinear(irreps_in, self.gate.irreps_in, num_species)

    def forward(self, x: Tensor, sh: Tensor, basis: Tensor, edge_index: Tensor, atom_types: Tensor) -> Tensor:
        """x (N, irreps_in.dim), sh (E, sh.dim), basis (E, num_bessel) → (N, irreps_out.dim)."""
        messages = self.convolution(self.mix_channels(x), sh, self.radial(basis), edge_index)
        update = self.mix_paths(messages * self.norm) + self.self_connection(x, atom_types)
        return self.gate(update)


class NequIP(nn.Module):
    """Atomic outputs from ``layers`` interaction blocks and a linear readout.

    The last block keeps scalars only. Distances enter through a Bessel basis with a polynomial cutoff,
    directions through spherical harmonics up to ``l_max``, species through an embedding and the
    self-connections.
    """

    num_outputs = 1

    def __init__(
        self,
        *,
        num_species: int,
        cutoff: float,
        avg_num_neighbors: float,
        l_max: int = 2,
        parity: bool = True,
        layers: int = 4,
        channels: int | Sequence[int] = 32,
        num_bessel: int = 8,
        polynomial_cutoff: int = 6,
        radial_hidden: Sequence[int] = (64, 64),
    ):
        super().__init__()
        hidden = feature_irreps(l_max, parity, channels)
        scalars = o3.Irreps([hidden[0]])
        irreps_sh = o3.Irreps.spherical_harmonics(l_max)
        self.cutoff = cutoff
        self.num_exchanges = layers
        self.basis = BesselBasis(cutoff, num_bessel, polynomial_cutoff)
        self.spherical_harmonics = SphericalHarmonics(l_max)
        self.embedding = nn.Parameter(torch.randn(num_species, scalars.dim, dtype=torch.float64))
        blocks, irreps = [], scalars
        for target in layer_targets(hidden, irreps_sh, layers):
            block = NequIPLayer(
                irreps, irreps_sh, target, num_species, num_bessel, radial_hidden, avg_num_neighbors
            )
            blocks.append(block)
            irreps = block.irreps_out
        self.layers = nn.ModuleList(blocks)
        self.readout = EquivariantLinear(irreps, o3.Irreps("1x0e"))
        self.irreps_out = self.readout.irreps_out

    def forward(self, edge_vec: Tensor, edge_index: Tensor, atom_types: Tensor) -> Tensor:
        """(E, 3), (2, E), (N,) → (N, irreps_out.dim); column 0 is the atomic energy before scaling."""
        edge_vec = edge_vec.to(self.embedding.dtype)
        edge_length = torch.linalg.vector_norm(edge_vec, dim=1, keepdim=True)
        sh = self.spherical_harmonics(edge_vec / edge_length)
        basis = self.basis(edge_length)
        x = self.embedding.index_select(0, atom_types)
        for layer in self.layers:
            x = layer(x, sh, basis, edge_index, atom_types)
        return self.readout(x)

    @torch.jit.unused
    def tabulate(self, intervals: int) -> None:
        """Replace every radial network by splines on ``intervals`` equal intervals of the distance.

        For inference. The weights of a message depend on nothing but the distance (Batzner et al., eq. 6).
        """
        for layer in self.layers:
            radial = nn.Sequential(self.basis, layer.radial)
            exact = copy.deepcopy(radial).double()
            table = fit(exact, self.cutoff, intervals).to(self.embedding)
            layer.convolution = TabulatedConvolution(layer.convolution, radial, table, self.cutoff)
            layer.radial = nn.Identity()
        self.basis = nn.Identity()
