"""Allegro: strictly local equivariant features on ordered pairs of atoms, no message passing.

Source: A. Musaelian et al., Nat. Commun. 14, 579 (2023), https://doi.org/10.1038/s41467-023-36329-y.
"""

from collections.abc import Sequence

import torch
from e3nn import o3
from torch import Tensor, nn

from equipot.engine.program import Program
from equipot.models.network import NO_OUTPUTS, Network, State, columns_of, require_irreps, rows_of
from equipot.nn.linear import EquivariantLinear
from equipot.nn.mlp import MLP, Dense
from equipot.nn.radial import BesselBasis, PairCutoffs, PolynomialCutoff
from equipot.nn.spherical import SphericalHarmonics
from equipot.ops.convolution import Convolution
from equipot.ops.edge_product import EdgeProduct
from equipot.ops.paths import convolution_paths, feature_irreps, layer_targets


def _perceptron(program: Program, network: MLP | Dense, widths: dict[str, int], types: bool = False) -> str:
    """Add a perceptron of the first numbers of arrays side by side."""
    layers, taken = network.packed(), list(widths.values())
    return program.add("edge_perceptron", list(widths), layers=layers, widths=taken, types=types)


class WeightedHarmonics(nn.Module):
    """Spherical harmonics times weights from the latent scalars, one per degree and channel.

    V[e, j, c] = Y_j(r̂_e) · (W x_e)[l(j), c]: the first tensor features (Musaelian et al. 2023, eq. 6).
    """

    def __init__(self, l_max: int, scalar_channels: int, channels: int):
        super().__init__()
        self.num_degrees, self.channels = l_max + 1, channels
        self.weight = Dense(scalar_channels, self.num_degrees * channels)

    def forward(self, scalars: Tensor, sh: Tensor) -> Tensor:
        """(E, scalar_channels), (E, J) → (E, J, channels), J = (l_max+1)²."""
        weights = self.weight(scalars).view(-1, self.num_degrees, 1, self.channels).unbind(1)
        blocks: list[Tensor] = []
        for degree, weight in enumerate(weights):
            first = degree * degree
            blocks.append(weight * sh[:, first : first + 2 * degree + 1].unsqueeze(2))
        return torch.cat(blocks, dim=1)


class Environment(nn.Module):
    """Weighted harmonics summed over the neighbors of every atom.

    Γ[i, j, c] = 1/√n̄ Σ_k (W x_ik)[l(j), c] Y_j(r̂_ik) (Musaelian et al. 2023, eq. 9): the convolution of
    message passing in which every neighbor sends ones.
    """

    def __init__(self, l_max: int, scalar_channels: int, channels: int, avg_num_neighbors: float):
        super().__init__()
        irreps_sh = o3.Irreps.spherical_harmonics(l_max)
        irreps_sent = o3.Irreps([(channels, (0, 1))])
        self.convolution = Convolution(convolution_paths(irreps_sent, irreps_sh, irreps_sh))
        self.weight = Dense(scalar_channels, self.convolution.num_weights, avg_num_neighbors**-0.5)
        self.channels, self.rows = channels, irreps_sh.dim

    @torch.jit.unused
    def steps(self, program: Program, scalars: str) -> str:
        """As `Network.steps`."""
        weights = _perceptron(program, self.weight, {scalars: self.weight.weight.shape[0]})
        tables = {"paths": self.convolution.paths, "coefficients": self.convolution.coefficients}
        sizes = {"dim_out": self.convolution.dim_out, "num_weights": self.convolution.num_weights}
        return program.add("environment", [weights], channels=self.channels, **tables, **sizes)

    def forward(self, scalars: Tensor, sh: Tensor, edge_index: Tensor, num_atoms: int) -> Tensor:
        """scalars (E, scalar_channels), sh (E, J) → (N, J, channels)."""
        ones = torch.ones(num_atoms, self.channels, dtype=sh.dtype, device=sh.device)
        summed = self.convolution(ones, sh, self.weight(scalars), edge_index)
        return summed.view(num_atoms, self.rows, self.channels)


class AllegroLayer(nn.Module):
    """One Allegro layer on the edges of every atom.

    1. environment: Γ_i = 1/√n̄ Σ_k (W x_ik) Y(r̂_ik)
    2. tensors: V_ij ← Σ_paths w (V_ij ⊗ Γ_i), a weight per path and channel
    3. latent: x_ij ← (x_ij + u(r_ij) · MLP(x_ij ‖ scalars of V_ij)) / √2
    Source: Musaelian et al. (2023), eqs. 8–14; the weights as in Tan et al., arXiv:2504.16068 (2025).
    """

    def __init__(
        self,
        irreps_in: o3.Irreps,
        irreps_target: o3.Irreps,
        l_max: int,
        scalar_channels: int,
        latent_hidden: Sequence[int],
        avg_num_neighbors: float,
    ):
        super().__init__()
        channels = irreps_in[0].mul
        paths = convolution_paths(irreps_in, o3.Irreps.spherical_harmonics(l_max), irreps_target)
        self.environment = Environment(l_max, scalar_channels, channels, avg_num_neighbors)
        self.product = EdgeProduct(paths)
        self.latent = MLP([scalar_channels + channels, *latent_hidden, scalar_channels])
        self.irreps_out = o3.Irreps([(channels, ir) for _, ir in paths.irreps_out])

    @torch.jit.unused
    def steps(self, program: Program, scalars: str, tensors: str, envelope: str) -> tuple[str, str]:
        """As `Network.steps`."""
        tensors = self.product.steps(program, tensors, self.environment.steps(program, scalars))
        width = self.latent.layers[-1].weight.shape[1]
        latent = _perceptron(program, self.latent, {scalars: width, tensors: self.product.channels})
        return program.add("blend", [envelope, latent, scalars], factor=0.5**0.5), tensors

    def forward(
        self,
        scalars: Tensor,
        tensors: Tensor,
        sh: Tensor,
        envelope: Tensor,
        edge_index: Tensor,
        center: Tensor,
        num_atoms: int,
    ) -> tuple[Tensor, Tensor]:
        """scalars (E, S), tensors (E, I, C), envelope (E, 1) → scalars (E, S), tensors (E, K, C).

        ``center`` is edge_index[0], one tensor for all layers: on a GPU edges are ordered once for each.
        """
        environment = self.environment(scalars, sh, edge_index, num_atoms)
        tensors = self.product(tensors, environment, center)
        # The even scalars are the first row.
        latent = self.latent(torch.cat([scalars, tensors[:, 0]], dim=1))
        return (scalars + envelope * latent) * 0.5**0.5, tensors


class PairOutputs(nn.Module):
    """Irreps of every pair from its tensors, weighted by the latent scalars: W (V_ij ⊙ W' x_ij)."""

    def __init__(self, irreps_in: o3.Irreps, irreps_out: o3.Irreps, scalar_channels: int):
        super().__init__()
        channels = irreps_in[0].mul
        self.weight = Dense(scalar_channels, len(irreps_in) * channels)
        degrees = torch.tensor([ir.dim for _, ir in irreps_in])
        self.register_buffer(
            "block", torch.arange(len(irreps_in)).repeat_interleave(degrees), persistent=False
        )
        self.mix = EquivariantLinear(irreps_in, irreps_out)
        self.blocks, self.channels = len(irreps_in), channels

    @torch.jit.unused
    def steps(self, program: Program, scalars: str, tensors: str, factor: float) -> str:
        """As `Network.steps`: summed over an atom's pairs, times ``factor``, before they are mapped."""
        weights = _perceptron(program, self.weight, {scalars: self.weight.weight.shape[0]})
        blocks = {"blocks": self.block, "channels": self.channels, "factor": factor}
        return self.mix.steps(program, program.add("weighted_sum", [weights, tensors], **blocks))

    def forward(self, scalars: Tensor, tensors: Tensor) -> Tensor:
        """scalars (E, S), tensors (E, I, C) → (E, irreps_out.dim)."""
        weights = self.weight(scalars).view(-1, self.blocks, self.channels).index_select(1, self.block)
        return self.mix((tensors * weights).flatten(1))


class Allegro(Network):
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
        pair_cutoffs: Sequence[Sequence[float]] | None = None,
        l_max: int = 2,
        parity: bool = True,
        layers: int = 2,
        scalar_channels: int = 64,
        channels: int = 32,
        num_bessel: int = 8,
        polynomial_cutoff: int = 6,
        two_body_hidden: Sequence[int] = (64, 64),
        latent_hidden: Sequence[int] = (64, 64),
        readout_hidden: Sequence[int] = (32,),
        num_outputs: int = 1,
        further_outputs: o3.Irreps = NO_OUTPUTS,
        previous_outputs: o3.Irreps = NO_OUTPUTS,
    ):
        super().__init__()
        self.cutoff = cutoff
        self.num_exchanges = self.widest_exchange = 0
        self.register_buffer("one_hot", torch.eye(num_species, dtype=torch.float64), persistent=False)
        self.norm = avg_num_neighbors**-0.5
        self.pair_cutoffs = PairCutoffs(pair_cutoffs, cutoff)
        self.basis = BesselBasis(cutoff, num_bessel, PolynomialCutoff(polynomial_cutoff))
        self.envelope = PolynomialCutoff(polynomial_cutoff)
        self.spherical_harmonics = SphericalHarmonics(l_max)
        self.two_body = MLP([2 * num_species + num_bessel, *two_body_hidden, scalar_channels])
        self.first_tensors = WeightedHarmonics(l_max, scalar_channels, channels)
        hidden = feature_irreps(l_max, parity, channels)
        irreps_sh = o3.Irreps.spherical_harmonics(l_max)
        irreps = o3.Irreps([(channels, ir) for _, ir in irreps_sh])
        blocks = []
        for target in layer_targets([hidden] * layers, irreps_sh, further_outputs):
            block = AllegroLayer(irreps, target, l_max, scalar_channels, latent_hidden, avg_num_neighbors)
            blocks.append(block)
            previous, irreps = irreps, block.irreps_out
        self.layers = nn.ModuleList(blocks)
        self.readout: nn.Module | None = None
        if num_outputs > 0:
            self.readout = MLP([scalar_channels, *readout_hidden, num_outputs])
        require_irreps(further_outputs, irreps)
        require_irreps(previous_outputs, previous)
        self.irreps_out = o3.Irreps([(num_outputs, (0, 1)), *further_outputs, *previous_outputs])
        self.further: nn.Module | None = None
        if len(further_outputs):
            self.further = PairOutputs(irreps, further_outputs, scalar_channels)
        self.previous: nn.Module | None = None
        if len(previous_outputs):
            self.previous = PairOutputs(previous, previous_outputs, scalar_channels)

    def forward(self, edge_vec: Tensor, edge_index: Tensor, atom_types: Tensor) -> Tensor:
        """(E, 3), (2, E), (N,) → (N, irreps_out.dim); column k is the energy of level k, unscaled."""
        edge_vec = edge_vec.to(self.basis.frequencies.dtype)
        center, num_atoms = edge_index[0], atom_types.shape[0]
        edge_length = torch.linalg.vector_norm(edge_vec, dim=1, keepdim=True)
        sh = self.spherical_harmonics(edge_vec / edge_length)
        edge_length = self.pair_cutoffs(edge_length, edge_index, atom_types)
        envelope = self.envelope(edge_length / self.cutoff)
        one_hot = self.one_hot.index_select(0, atom_types)
        pair = torch.cat([one_hot.index_select(0, center), one_hot.index_select(0, edge_index[1])], dim=1)
        scalars = self.two_body(torch.cat([pair, self.basis(edge_length)], dim=1)) * envelope
        tensors = self.first_tensors(scalars, sh)
        readout = self.readout
        further = self.further
        previous = self.previous
        rows: list[Tensor] = []
        for index, layer in enumerate(self.layers):
            if previous is not None and index == len(self.layers) - 1:
                rows.append(previous(scalars, tensors))
            scalars, tensors = layer(scalars, tensors, sh, envelope, edge_index, center, num_atoms)
        if further is not None:
            rows.insert(0, further(scalars, tensors))
        if readout is not None:
            rows.insert(0, readout(scalars))
        pairs = rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)
        return torch.ops.equipot.segment_sum(pairs, edge_index, 0, num_atoms) * self.norm

    @torch.jit.unused
    def steps(self, program: Program) -> str | None:
        """As `Network.steps`."""
        if self.previous is not None:
            return None
        program.facts["harmonics"] = program.stored("harmonics", self.spherical_harmonics.facts())
        self.pair_cutoffs.write(program)
        envelope = program.add("envelope", cutoff=self.cutoff, power=self.envelope.p)
        basis = program.add("bessel", basis=self.basis.facts())
        scalars = _perceptron(program, self.two_body, {basis: self.basis.frequencies.shape[0]}, types=True)
        scalars = program.add("blend", [envelope, scalars], factor=1.0)
        width = {scalars: self.two_body.layers[-1].weight.shape[1]}
        weights = _perceptron(program, self.first_tensors.weight, width)
        degrees, channels = self.first_tensors.num_degrees, self.first_tensors.channels
        tensors = program.add("weighted_harmonics", [weights], degrees=degrees, channels=channels)
        for layer in self.layers:
            scalars, tensors = layer.steps(program, scalars, tensors, envelope)
        if self.further is not None:
            program.output_rows = self.further.steps(program, scalars, tensors, self.norm)
        if self.readout is None:
            return program.output_rows
        pairs = _perceptron(program, self.readout, {scalars: self.readout.layers[0].weight.shape[0]})
        program.ends_with(pairs, self.readout.layers[-1].weight.shape[0], factor=self.norm)
        return program.add("sum_over_edges", [pairs], factor=self.norm)

    @staticmethod
    def parts() -> dict[str, tuple[str, ...]]:
        """As `Network.parts`."""
        return {"embedding": ("two_body.*", "first_tensors.*")}

    @staticmethod
    def transfer(
        state: State, num_species: int, species: Sequence[int | None], levels: Sequence[int]
    ) -> State:
        """As `Network.transfer`."""
        name = "two_body.layers.0.weight"  # its inputs: one-hot center, one-hot neighbor, radial basis
        before = state[name]
        center, neighbor, basis = before.split([num_species, num_species, len(before) - 2 * num_species])
        weight = torch.cat([rows_of(center, species), rows_of(neighbor, species), basis])
        # The layer divides by the root of the number of its inputs.
        new = state | {name: weight * (len(weight) / len(before)) ** 0.5}
        last = [key for key in state if key.startswith("readout.")][-1:]  # none without energies
        return new | {name: columns_of(state, name, levels) for name in last}
