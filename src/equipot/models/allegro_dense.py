"""Allegro as nequip-allegro 0.8 has it: elements multiply radial functions, all layers' scalars are kept.

Source: C. W. Tan et al., arXiv:2504.16068 (2025); https://github.com/mir-group/allegro.
"""

from collections.abc import Sequence

import torch
from e3nn import o3
from torch import Tensor, nn

from equipot.engine.program import Program
from equipot.errors import ConfigError
from equipot.models.allegro import WeightedHarmonics
from equipot.models.network import NO_OUTPUTS, Network, State, columns_of, rows_of
from equipot.nn.mlp import MLP, Dense
from equipot.nn.radial import BesselBasis, PairCutoffs, PolynomialCutoff
from equipot.nn.spherical import SphericalHarmonics
from equipot.ops.convolution import Convolution
from equipot.ops.edge_product import EdgeProduct
from equipot.ops.paths import PathTable, convolution_paths, feature_irreps, layer_targets


class PairEmbedding(nn.Module):
    """(W B(r)) ∘ (a_center ‖ b_neighbor): a linear map of radial functions, times numbers of the elements."""

    def __init__(self, num_species: int, num_bessel: int, width: int):
        super().__init__()
        self.center = nn.Parameter(torch.randn(num_species, width - width // 2, dtype=torch.float64))
        self.neighbor = nn.Parameter(torch.randn(num_species, width // 2, dtype=torch.float64))
        self.radial = Dense(num_bessel, width)

    def forward(self, basis: Tensor, types: Tensor) -> Tensor:
        """(E, num_bessel), (2, E) → (E, width)."""
        of_pair = [self.center.index_select(0, types[0]), self.neighbor.index_select(0, types[1])]
        return self.radial(basis) * torch.cat(of_pair, dim=1)

    @torch.jit.unused
    def before(self, matrix: Tensor) -> Tensor:
        """Followed by ``matrix`` (width, n): one map for each pair of types, (T² · num_bessel, n)."""
        count = len(self.center)
        pairs = torch.cat(
            [self.center[:, None].expand(-1, count, -1), self.neighbor[None].expand(count, -1, -1)], dim=2
        )
        radial = self.radial.packed()[0]
        return torch.einsum("bw,stw,wn->stbn", radial, pairs, matrix).flatten(0, 2)


class DenseLayer(nn.Module):
    """V ← Σ_paths w (V ⊗ Γ), and a perceptron of all scalars so far and those of V."""

    def __init__(self, paths: PathTable, latent: MLP):
        super().__init__()
        self.paths, self.product, self.latent = paths, EdgeProduct(paths), latent

    def forward(
        self, scalars: Tensor, tensors: Tensor, environment: Tensor, center: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(E, S), (E, I, C), (N, J, C), (E,) → what the perceptron gives (E, ·), (E, K, C)."""
        tensors = self.product(tensors, environment, center)
        # The even scalars are the first row.
        return self.latent(torch.cat([scalars, tensors[:, 0]], dim=1)), tensors


class AllegroDense(Network):
    """Atomic energies as sums of pair energies from ``layers`` strictly local layers.

    1. pair: x = MLP((W B(r)) ∘ elements); tensors V = (W x)_l Y_l; x₀ and weights w₀ of environments = W x
    2. layer k: Γ_i = 1/√n̄ Σ_j w_k Y(r̂_ij); V ← Σ_paths w (V ⊗ Γ_i); with the scalars s of V
       x_{k+1}, w_{k+1} = MLP(x₀ ‖ … ‖ x_k ‖ s)
    3. E_i = 1/√(2 n̄) Σ_j MLP(x₀ ‖ … ‖ x_layers)

    Perceptrons have no biases, so that everything vanishes with B at the cutoff.
    """

    def __init__(
        self,
        *,
        num_species: int,
        cutoff: float,
        avg_num_neighbors: float,
        pair_cutoffs: Sequence[Sequence[float]] | None = None,
        l_max: int = 2,
        parity: bool = True,
        layers: int = 2,
        scalar_channels: int = 64,
        channels: int = 16,
        pair_channels: int | None = None,
        num_bessel: int = 8,
        polynomial_cutoff: int = 6,
        two_body_hidden: Sequence[int] = (64,),
        latent_hidden: Sequence[int] = (64,),
        readout_hidden: Sequence[int] = (32,),
        num_outputs: int = 1,
        further_outputs: o3.Irreps = NO_OUTPUTS,
        previous_outputs: o3.Irreps = NO_OUTPUTS,
    ):
        super().__init__()
        if len(further_outputs) + len(previous_outputs) > 0:
            raise ConfigError("model.outputs: `type: allegro_dense` predicts energies only. Leave them out.")
        self.cutoff = cutoff
        self.num_exchanges = self.widest_exchange = 0
        self.scalar_channels, self.channels = scalar_channels, channels
        self.norm_of_environment, self.norm = avg_num_neighbors**-0.5, (2 * avg_num_neighbors) ** -0.5
        self.pair_cutoffs = PairCutoffs(pair_cutoffs, cutoff)
        self.basis = BesselBasis(cutoff, num_bessel, PolynomialCutoff(polynomial_cutoff))
        self.spherical_harmonics = SphericalHarmonics(l_max)
        width = pair_channels or scalar_channels
        self.pair = PairEmbedding(num_species, num_bessel, width)
        self.two_body = MLP([width, *two_body_hidden, scalar_channels])
        self.first_tensors = WeightedHarmonics(l_max, scalar_channels, channels)
        irreps_sh = o3.Irreps.spherical_harmonics(l_max)
        weights = len(irreps_sh) * channels
        self.first = Dense(scalar_channels, scalar_channels + weights)
        sent = o3.Irreps([(channels, (0, 1))])
        self.environment = Convolution(convolution_paths(sent, irreps_sh, irreps_sh))
        self.rows = irreps_sh.dim
        irreps = o3.Irreps([(channels, ir) for _, ir in irreps_sh])
        blocks = []
        hidden = feature_irreps(l_max, parity, channels)
        for number, target in enumerate(layer_targets([hidden] * layers, irreps_sh)):
            paths = convolution_paths(irreps, irreps_sh, target)
            n_out = scalar_channels + (weights if number + 1 < layers else 0)
            latent = MLP([(number + 1) * scalar_channels + channels, *latent_hidden, n_out])
            blocks.append(DenseLayer(paths, latent))
            irreps = o3.Irreps([(channels, ir) for _, ir in paths.irreps_out])
        self.layers = nn.ModuleList(blocks)
        self.readout = MLP([(layers + 1) * scalar_channels, *readout_hidden, num_outputs])
        self.irreps_out = o3.Irreps([(num_outputs, (0, 1))])

    def forward(self, edge_vec: Tensor, edge_index: Tensor, atom_types: Tensor) -> Tensor:
        """(E, 3), (2, E), (N,) → (N, irreps_out.dim); column k is the energy of level k, unscaled."""
        edge_vec = edge_vec.to(self.basis.frequencies.dtype)
        center, num_atoms = edge_index[0], atom_types.shape[0]
        edge_length = torch.linalg.vector_norm(edge_vec, dim=1, keepdim=True)
        sh = self.spherical_harmonics(edge_vec / edge_length)
        edge_length = self.pair_cutoffs(edge_length, edge_index, atom_types)
        scalars = self.two_body(self.pair(self.basis(edge_length), atom_types[edge_index]))
        tensors = self.first_tensors(scalars, sh)
        found, width = self.first(scalars), self.scalar_channels
        kept = found[:, :width]
        ones = torch.ones(num_atoms, self.channels, dtype=sh.dtype, device=sh.device)
        for layer in self.layers:
            summed = self.environment(ones, sh, found[:, width:] * self.norm_of_environment, edge_index)
            summed = summed.view(num_atoms, self.rows, self.channels)
            found, tensors = layer(kept, tensors, summed, center)
            kept = torch.cat([kept, found[:, :width]], dim=1)
        pairs = self.readout(kept)
        return torch.ops.equipot.segment_sum(pairs, edge_index, 0, num_atoms) * self.norm

    @torch.jit.unused
    def steps(self, program: Program) -> str:
        """As `Network.steps`. Perceptrons whose results part are written as two."""
        program.require(3)
        program.facts["harmonics"] = program.stored("harmonics", self.spherical_harmonics.facts())
        self.pair_cutoffs.write(program)
        width = self.scalar_channels

        def perceptron(inputs: dict[str, int], matrices: list[Tensor], **facts: bool) -> str:
            sizes = {"layers": matrices, "widths": list(inputs.values()), "types": False}
            return program.add("edge_perceptron", list(inputs), **sizes, **facts)

        basis = program.add("bessel", basis=self.basis.facts())
        first, *others = self.two_body.packed()
        matrices = [self.pair.before(first), *others]
        scalars = {perceptron({basis: len(self.basis.frequencies)}, matrices, by_pair=True): width}
        weights = perceptron(scalars, self.first_tensors.weight.packed())
        degrees = {"degrees": self.first_tensors.num_degrees, "channels": self.channels}
        tensors = program.add("weighted_harmonics", [weights], **degrees)
        inputs, matrices, latents = scalars, self.first.packed(), {}
        tables = {"paths": self.environment.paths, "coefficients": self.environment.coefficients}
        tables |= {"dim_out": self.environment.dim_out, "num_weights": self.environment.num_weights}
        for layer in self.layers:
            *hidden, last = matrices
            latents[perceptron(inputs, [*hidden, last[:, :width]])] = width
            weights = perceptron(inputs, [*hidden, last[:, width:] * self.norm_of_environment])
            environment = program.add("environment", [weights], channels=self.channels, **tables)
            tensors = layer.product.steps(program, tensors, environment)
            inputs, matrices = latents | {tensors: self.channels}, layer.latent.packed()
        latents[perceptron(inputs, matrices)] = width
        pairs = perceptron(latents, self.readout.packed())
        program.ends_with(pairs, self.readout.layers[-1].weight.shape[0], factor=self.norm)
        return program.add("sum_over_edges", [pairs], factor=self.norm)

    @staticmethod
    def parts() -> dict[str, tuple[str, ...]]:
        """As `Network.parts`."""
        return {"embedding": ("pair.*", "two_body.*", "first_tensors.*")}

    @staticmethod
    def transfer(
        state: State, num_species: int, species: Sequence[int | None], levels: Sequence[int]
    ) -> State:
        """As `Network.transfer`."""
        new = dict(state)
        for name in ("pair.center", "pair.neighbor"):
            new[name] = rows_of(state[name], species)
        last = [key for key in state if key.startswith("readout.")][-1]
        return new | {last: columns_of(state, last, levels)}
