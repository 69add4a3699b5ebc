"""Allegro: strictly local equivariant features on ordered pairs of atoms, no message passing.

Source: A. Musaelian et al., Nat. Commun. 14, 579 (2023), https://doi.org/10.1038/s41467-023-36329-y.
"""

from collections.abc import Sequence

import torch
from e3nn import o3
from torch import Tensor, nn

from equipot.nn.linear import EquivariantLinear
from equipot.nn.mlp import MLP, Dense
from equipot.nn.radial import BesselBasis, PolynomialCutoff
from equipot.nn.spherical import SphericalHarmonics
from equipot.ops.paths import convolution_paths, feature_irreps, layer_targets
from equipot.ops.reference import EdgeProductReference


class WeightedHarmonics(nn.Module):
    """Spherical harmonics times weights from the latent scalars, one per degree and channel.

    out[e, j, c] = Y_j(r̂_e) · (W x_e)[l(j), c]: the first tensor features and the environment embedding
    (Musaelian et al. 2023, eqs. 6 and 9).
    """

    def __init__(self, l_max: int, scalar_channels: int, tensor_channels: int):
        super().__init__()
        self.num_degrees, self.channels = l_max + 1, tensor_channels
        self.weight = Dense(scalar_channels, self.num_degrees * tensor_channels)
        degree = [degree for degree in range(l_max + 1) for _ in range(2 * degree + 1)]
        self.register_buffer("degree", torch.tensor(degree), persistent=False)

    def forward(self, scalars: Tensor, sh: Tensor) -> Tensor:
        """(E, scalar_channels), (E, (l_max+1)²) → (E, (l_max+1)² × tensor_channels)."""
        weights = self.weight(scalars).view(-1, self.num_degrees, self.channels)
        weighted = weights.index_select(1, self.degree) * sh.unsqueeze(2)
        return weighted.view(sh.shape[0], sh.shape[1] * self.channels)


class AllegroLayer(nn.Module):
    """One Allegro layer on the edges of every atom.

    1. environment: Γ_i = 1/√n̄ Σ_k (W x_ik) Y(r̂_ik)
    2. tensor product: V_ij ⊗ Γ_i, all allowed paths
    3. latent: x_ij ← (x_ij + u(r_ij) · MLP(x_ij ‖ scalars of the product)) / √2
    4. tensors: V_ij ← W (product), unless this is the last layer
    Source: Musaelian et al. (2023), eqs. 8–14.
    """

    def __init__(
        self,
        irreps_in: o3.Irreps,
        irreps_target: o3.Irreps,
        irreps_sh: o3.Irreps,
        scalar_channels: int,
        latent_hidden: Sequence[int],
        avg_num_neighbors: float,
        is_last: bool,
    ):
        super().__init__()
        paths = convolution_paths(irreps_in, irreps_sh, irreps_target)
        tensor_channels = irreps_in[0].mul
        self.norm = avg_num_neighbors**-0.5
        self.environment = WeightedHarmonics(irreps_sh.lmax, scalar_channels, tensor_channels)
        self.product = EdgeProductReference(paths)
        self.num_scalars = paths.irreps_out.count(o3.Irrep("0e"))
        self.latent = MLP([scalar_channels + self.num_scalars, *latent_hidden, scalar_channels])
        self.irreps_out = o3.Irreps([(tensor_channels, ir) for _, ir in paths.irreps_out])
        # The last layer's tensors would not be used.
        self.mix_paths = None if is_last else EquivariantLinear(paths.irreps_out, self.irreps_out)

    def forward(
        self, scalars: Tensor, tensors: Tensor, sh: Tensor, envelope: Tensor, center: Tensor, num_atoms: int
    ) -> tuple[Tensor, Tensor]:
        """scalars (E, S), tensors (E, irreps_in.dim), envelope (E, 1) → updated scalars and tensors."""
        weighted = self.environment(scalars, sh)
        environment = torch.zeros(num_atoms, weighted.shape[1], dtype=sh.dtype, device=sh.device)
        environment = environment.index_add(0, center, weighted * self.norm)
        product = self.product(tensors, environment.index_select(0, center))
        latent_in = torch.cat([scalars, product[:, : self.num_scalars]], dim=1)
        scalars = (scalars + envelope * self.latent(latent_in)) * 0.5**0.5
        if self.mix_paths is not None:
            tensors = self.mix_paths(product)
        return scalars, tensors


class Allegro(nn.Module):
    """Atomic energies as sums of pair energies from ``layers`` strictly local layers.

    Every ordered pair within the cutoff carries a scalar latent vector and equivariant tensors; an atom's
    energy is E_i = 1/√n̄ Σ_j MLP(x_ij). An isolated atom has exactly its reference energy.
    """

    def __init__(
        self,
        *,
        num_species: int,
        cutoff: float,
        avg_num_neighbors: float,
        l_max: int = 2,
        parity: bool = True,
        layers: int = 2,
        scalar_channels: int = 64,
        tensor_channels: int = 32,
        num_bessel: int = 8,
        polynomial_cutoff: int = 6,
        two_body_hidden: Sequence[int] = (64, 64),
        latent_hidden: Sequence[int] = (64, 64),
        readout_hidden: Sequence[int] = (32,),
    ):
        super().__init__()
        self.cutoff = cutoff
        self.num_exchanges = 0
        self.num_species = num_species
        self.norm = avg_num_neighbors**-0.5
        self.basis = BesselBasis(cutoff, num_bessel, polynomial_cutoff)
        self.envelope = PolynomialCutoff(polynomial_cutoff)
        self.spherical_harmonics = SphericalHarmonics(l_max)
        self.two_body = MLP([2 * num_species + num_bessel, *two_body_hidden, scalar_channels])
        self.first_tensors = WeightedHarmonics(l_max, scalar_channels, tensor_channels)
        hidden = feature_irreps(l_max, parity, tensor_channels)
        irreps_sh = o3.Irreps.spherical_harmonics(l_max)
        irreps = o3.Irreps([(tensor_channels, ir) for _, ir in irreps_sh])
        blocks = []
        targets = layer_targets(hidden, irreps_sh, layers)
        for index, target in enumerate(targets):
            block = AllegroLayer(
                irreps,
                target,
                irreps_sh,
                scalar_channels,
                latent_hidden,
                avg_num_neighbors,
                is_last=index == layers - 1,
            )
            blocks.append(block)
            irreps = block.irreps_out
        self.layers = nn.ModuleList(blocks)
        self.readout = MLP([scalar_channels, *readout_hidden, 1])
        self.irreps_out = o3.Irreps("1x0e")

    def forward(self, edge_vec: Tensor, edge_index: Tensor, atom_types: Tensor) -> Tensor:
        """(E, 3), (2, E), (N,) → (N, irreps_out.dim); column 0 is the atomic energy before scaling."""
        edge_vec = edge_vec.to(self.basis.frequencies.dtype)
        center, num_atoms = edge_index[0], atom_types.shape[0]
        edge_length = torch.linalg.vector_norm(edge_vec, dim=1, keepdim=True)
        sh = self.spherical_harmonics(edge_vec / edge_length)
        envelope = self.envelope(edge_length / self.cutoff)
        one_hot = nn.functional.one_hot(atom_types, self.num_species).to(edge_vec.dtype)
        pair = torch.cat([one_hot.index_select(0, center), one_hot.index_select(0, edge_index[1])], dim=1)
        scalars = self.two_body(torch.cat([pair, self.basis(edge_length)], dim=1)) * envelope
        tensors = self.first_tensors(scalars, sh)
        for layer in self.layers:
            scalars, tensors = layer(scalars, tensors, sh, envelope, center, num_atoms)
        atom_sums = torch.zeros(num_atoms, 1, dtype=edge_vec.dtype, device=edge_vec.device)
        return atom_sums.index_add(0, center, self.readout(scalars)) * self.norm
