"""NequIP: equivariant message passing.

Source: S. Batzner et al., Nat. Commun. 13, 2453 (2022), https://doi.org/10.1038/s41467-022-29939-5.
"""

import copy
from collections.abc import Sequence
from typing import Final

import torch
from e3nn import o3
from torch import Tensor, nn

from equipot.engine.program import Program
from equipot.models.network import NO_OUTPUTS, Network, State, columns_of, require_irreps, rows_of
from equipot.nn.gate import Gate
from equipot.nn.linear import EquivariantLinear, SpeciesLinear
from equipot.nn.mlp import MLP
from equipot.nn.radial import (
    BesselBasis,
    PairCutoffs,
    PolynomialCutoff,
    RadialNetwork,
    RadialSplines,
    RadialTable,
    XPLORCutoff,
)
from equipot.nn.spherical import SphericalHarmonics
from equipot.ops.bspline import Grid
from equipot.ops.convolution import Convolution, RadialConvolution, TabulatedConvolution
from equipot.ops.operators import load_operators
from equipot.ops.paths import convolution_paths, feature_irreps, harmonic_irreps, layer_targets


class NequIPLayer(nn.Module):
    """One interaction block.

    1. mix channels: x' = W₁ x
    2. convolve: m_i = 1/√n̄ Σ_j R(r_ij) x'_j ⊗ Y(r̂_ij), R a perceptron of the Bessel basis, as splines
    3. mix paths and channels: W₂ m
    4. self-connection: + W_species(i) x, or one W for all species; None: nothing
    5. gate
    Source: Batzner et al. (2022), fig. 1 and eqs. 5–8.

    In eval mode one operator does 2, 3 and 5 (csrc/interaction.cpp).
    """

    splines: Final[bool]  # the radial functions are, or are tabulated
    by_element: Final[bool]  # the self-connection is
    connected: Final[bool]  # there is one
    factors: Tensor | None  # (species,), of what is sent

    def __init__(
        self,
        irreps_in: o3.Irreps,
        irreps_sh: o3.Irreps,
        irreps_target: o3.Irreps,
        num_species: int,
        basis: BesselBasis,
        radial_hidden: Sequence[int],
        grid: Grid | None,
        avg_num_neighbors: float,
        exchanges: bool,
        self_connection: str | None,
        biases: int,
        element_factors: bool,
    ):
        super().__init__()
        self.exchanges = exchanges
        self.paths = paths = convolution_paths(irreps_in, irreps_sh, irreps_target)
        self.gate = Gate(o3.Irreps([(mul, ir) for mul, ir in irreps_target if ir in paths.irreps_out]))
        self.irreps_in, self.irreps_out = irreps_in, self.gate.irreps_out
        self.mix_channels = EquivariantLinear(irreps_in, irreps_in, biases=biases)
        if grid is None:
            radial = RadialNetwork(basis, radial_hidden, paths.num_weights)
            self.convolution = RadialConvolution(Convolution(paths), radial)
        else:
            radial = RadialSplines(basis, radial_hidden, paths.num_weights, grid)
            self.convolution = TabulatedConvolution(Convolution(paths), radial, grid.end)
        self.mix_paths = EquivariantLinear(paths.irreps_out, self.gate.irreps_in, avg_num_neighbors**-0.5)
        factors = nn.Parameter(torch.ones(num_species, dtype=torch.float64)) if element_factors else None
        self.register_parameter("factors", factors)
        self.by_element = self_connection == "by_element"
        self.connected = self_connection is not None
        if self.by_element:
            self.self_connection = SpeciesLinear(irreps_in, self.gate.irreps_in, num_species, biases)
        elif self.connected:
            self.self_connection = EquivariantLinear(
                irreps_in, self.gate.irreps_in, biases=biases, partial=True
            )
        self.splines = grid is not None

    def forward(
        self,
        x: Tensor,
        sh: Tensor,
        edge_length: Tensor,
        edge_index: Tensor,
        atom_types: Tensor,
        level: Tensor | None = None,
    ) -> Tensor:
        """x (N, irreps_in.dim), sh (E, sh.dim), edge_length (E, 1) Å → (N, irreps_out.dim)."""
        sent = self.mix_channels(x, level)
        factors = self.factors
        if factors is not None:
            sent = sent * factors.index_select(0, atom_types).unsqueeze(1)
        if self.by_element:
            kept = self.self_connection(x, atom_types, level)
        elif not self.connected:
            kept = x.new_zeros([x.shape[0], self.mix_paths.dim_out])
        else:
            kept = self.self_connection(x, level)
        if self.splines and not self.training:
            return self._interact(sent, kept, sh, edge_length, edge_index)
        messages = self.convolution(sent, sh, edge_length, edge_index)
        return self.gate(self.mix_paths(messages) + kept)

    @torch.jit.unused
    def steps(self, program: Program, x: str) -> str:
        """As `Network.steps`."""
        sent = self.mix_channels.steps(program, x)
        if self.factors is not None:
            program.require(3)
            sent = program.add("element_factors", [sent], factors=self.factors)
        if self.exchanges:
            sent = program.add("exchange", [sent])
        kept = self.self_connection.steps(program, x) if self.connected else self._nothing(program, x)
        gate = {"num_even": self.gate.num_even, "num_odd": self.gate.num_odd}
        gate |= {"even_factor": self.gate.silu_factor, "odd_factor": self.gate.tanh_factor}
        mixing = {"mixing": self.mix_paths.packed(), "blocks": self.mix_paths.table}
        dims = {"dim_in": self.irreps_in.dim, "dim_gate": self.gate.irreps_in.dim}
        facts = self.convolution.facts()
        return program.add("interaction", [sent, kept], **facts, **mixing, **gate, **dims)

    @torch.jit.unused
    def _nothing(self, program: Program, x: str) -> str:
        """What is kept without a self-connection: a map to zeros."""
        n_in, n_out = self.irreps_in[0].mul, self.gate.irreps_in[0].mul
        weights = torch.zeros(1, n_in * n_out, dtype=self.mix_channels.scales.dtype)
        dims = {"dim_in": self.irreps_in.dim, "dim_out": self.gate.irreps_in.dim}
        return program.add(
            "linear", [x], weights=weights, blocks=[[1, n_in, n_out, 0, 0]], by_type=False, **dims
        )

    def _interact(
        self, sent: Tensor, kept: Tensor, sh: Tensor, edge_length: Tensor, edge_index: Tensor
    ) -> Tensor:
        """2, 3 and 5 by one operator, which has first derivatives by its first four arguments only."""
        tables = self.convolution.convolution
        out, _ = torch.ops.equipot.interaction(
            sent,
            kept,
            sh,
            edge_length,
            self.convolution.radial.table(),
            edge_index,
            tables.paths,
            tables.coefficients,
            self.convolution.cutoff,
            tables.dim_out,
            self.mix_paths.packed(),
            self.mix_paths.table,
            self.gate.num_even,
            self.gate.num_odd,
            self.gate.silu_factor,
            self.gate.tanh_factor,
        )
        return out


class NequIP(Network):
    """Atomic outputs from ``layers`` interaction blocks and a readout, linear or a perceptron.

    The last block keeps scalars only. Distances enter through a Bessel basis with an envelope,
    directions through spherical harmonics up to ``l_max``, species through an embedding and the
    self-connections.
    """

    takes_level = True  # for biases by level
    # Å; what is added to distances below ``kink`` and from there on, for splines of two pieces (`Grid`).
    shifts: tuple[float, float]

    def __init__(
        self,
        *,
        num_species: int,
        cutoff: float,
        avg_num_neighbors: float,
        pair_cutoffs: Sequence[Sequence[float]] | None = None,
        l_max: int = 2,
        parity: bool | str = True,
        layers: int = 4,
        channels: int | Sequence[int] = 32,
        layer_channels: Sequence[Sequence[int]] | None = None,
        embedding_channels: int | None = None,
        num_bessel: int = 8,
        trainable_bessel: bool = False,
        polynomial_cutoff: int = 6,
        xplor_start: float | None = None,
        normalize_harmonics: bool = True,
        radial_hidden: Sequence[int] = (64, 64),
        radial_intervals: int | None = 128,
        self_connection: str = "by_element",
        first_self_connection: bool = True,
        element_factors: bool = False,
        biases: bool = False,
        readout_hidden: Sequence[int] = (),
        num_outputs: int = 1,
        further_outputs: o3.Irreps = NO_OUTPUTS,
        previous_outputs: o3.Irreps = NO_OUTPUTS,
    ):
        super().__init__()
        load_operators()
        of_layers = [channels] * layers if layer_channels is None else layer_channels
        hidden = [feature_irreps(l_max, parity, numbers) for numbers in of_layers]
        scalars = o3.Irreps([(embedding_channels or hidden[0][0].mul, (0, 1))])
        irreps_sh = harmonic_irreps(l_max, parity)
        self.cutoff = cutoff
        self.parity = parity
        self.num_exchanges = layers - 1
        self.radial_intervals = radial_intervals
        self.kink, self.shifts = xplor_start, (0.0, 0.0)
        self.pair_cutoffs = PairCutoffs(pair_cutoffs, cutoff)
        self.normalize_harmonics = normalize_harmonics
        self.spherical_harmonics = SphericalHarmonics(l_max)
        self.embedding = nn.Parameter(torch.randn(num_species, scalars.dim, dtype=torch.float64))
        grid = None
        if radial_intervals is not None:
            grid = self._use(Grid(radial_intervals, cutoff, xplor_start))
        blocks, irreps = [], scalars
        for target in layer_targets(hidden, irreps_sh, further_outputs):
            envelope = PolynomialCutoff(polynomial_cutoff)
            if xplor_start is not None:
                envelope = XPLORCutoff(xplor_start / cutoff)
            block = NequIPLayer(
                irreps,
                irreps_sh,
                target,
                num_species,
                BesselBasis(cutoff, num_bessel, envelope, trainable_bessel),
                radial_hidden,
                grid,
                avg_num_neighbors,
                exchanges=bool(blocks),  # what the first layer sends follows from the species
                self_connection=self_connection if blocks or first_self_connection else None,
                biases=max(num_outputs, 1) if biases else 0,
                element_factors=element_factors,
            )
            blocks.append(block)
            irreps = block.irreps_out
        self.layers = nn.ModuleList(blocks)
        self.widest_exchange = max((block.irreps_in.dim for block in blocks[1:]), default=0)
        self.num_scalars: int = irreps[0].mul
        self._read_out(num_outputs, readout_hidden, further_outputs, previous_outputs)

    def _read_out(
        self,
        num_outputs: int,
        readout_hidden: Sequence[int],
        further_outputs: o3.Irreps,
        previous_outputs: o3.Irreps,
    ) -> None:
        """Make what turns features of the last layer, and of the one before it, into outputs."""
        irreps = self.layers[-1].irreps_out
        self.readout: nn.Module | None = None
        if readout_hidden and num_outputs:
            self.readout = MLP([self.num_scalars, *readout_hidden, num_outputs])
        elif num_outputs:
            self.readout = EquivariantLinear(irreps[:1], o3.Irreps([(num_outputs, (0, 1))]))
        require_irreps(further_outputs, irreps)
        self.further = EquivariantLinear(irreps, further_outputs) if len(further_outputs) else None
        self.previous: nn.Module | None = None
        if len(previous_outputs):
            irreps = self.layers[-2].irreps_out if len(self.layers) > 1 else NO_OUTPUTS
            require_irreps(previous_outputs, irreps)
            self.previous = EquivariantLinear(irreps, previous_outputs)
        self.irreps_out = o3.Irreps([(num_outputs, (0, 1)), *further_outputs, *previous_outputs])

    def forward(
        self, edge_vec: Tensor, edge_index: Tensor, atom_types: Tensor, level: Tensor | None = None
    ) -> Tensor:
        """(E, 3), (2, E), (N,), (N,) → (N, irreps_out.dim); column k is the energy of level k, unscaled.

        ``level``: of each atom, of models of several levels, whose biases differ.
        """
        edge_vec = edge_vec.to(self.embedding.dtype)
        edge_length = torch.linalg.vector_norm(edge_vec, dim=1, keepdim=True)
        sh = self.spherical_harmonics(edge_vec / edge_length if self.normalize_harmonics else edge_vec)
        edge_length = self.pair_cutoffs(edge_length, edge_index, atom_types)
        kink = self.kink
        if kink is not None:
            below, above = self.shifts
            edge_length = edge_length + (
                below + (above - below) * (edge_length >= kink).to(edge_length.dtype)
            )
        x = self.embedding.index_select(0, atom_types)
        readout = self.readout
        further = self.further
        previous = self.previous
        rows: list[Tensor] = []
        for index, layer in enumerate(self.layers):
            if previous is not None and index == self.num_exchanges:  # the last
                rows.append(previous(x))
            x = layer(x, sh, edge_length, edge_index, atom_types, level)
        if further is not None:
            rows.insert(0, further(x))
        if readout is not None:
            rows.insert(0, readout(x[:, : self.num_scalars].contiguous()))
        return rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)

    @torch.jit.unused
    def steps(self, program: Program) -> str | None:
        """As `Network.steps`."""
        if self.previous is not None:
            return None
        program.facts["harmonics"] = program.stored("harmonics", self.spherical_harmonics.facts())
        if not self.normalize_harmonics:
            program.require(2)
            program.facts["harmonics"]["normalize"] = False
        self.pair_cutoffs.write(program)
        if self.shifts != (0.0, 0.0):
            program.require(2)
            program.facts["kink"] = {"at": self.kink, "below": self.shifts[0], "above": self.shifts[1]}
        x = program.add("embedding", weights=self.embedding)
        for layer in self.layers:
            x = layer.steps(program, x)
        if self.further is not None:
            program.output_rows = self.further.steps(program, x)
        if self.readout is None:
            return program.output_rows
        program.ends_with(x, self.num_scalars)
        return self.readout.steps(program, x, self.layers[-1].irreps_out.dim)

    @staticmethod
    def parts() -> dict[str, tuple[str, ...]]:
        """As `Network.parts`."""
        return {"embedding": ("embedding",), "radial": ("layers.*.convolution.radial.*",)}

    @staticmethod
    def transfer(
        state: State, num_species: int, species: Sequence[int | None], levels: Sequence[int]
    ) -> State:
        """As `Network.transfer`."""
        new = dict(state)
        for name, weight in state.items():
            if name == "embedding" or ".self_connection.blocks." in name or name.endswith(".factors"):
                new[name] = rows_of(weight, species)
            elif name.endswith(".bias"):
                new[name] = weight[list(levels)]
        last = [key for key in state if key.startswith("readout.")][-1:]  # none without energies
        return new | {name: columns_of(state, name, levels) for name in last}

    @torch.jit.unused
    def table_intervals(self) -> Sequence[int]:
        """Radial networks by any number; splines keep their own."""
        return (self.radial_intervals,) if self.radial_intervals else (256, 512, 1024, 2048)

    def _use(self, grid: Grid) -> Grid:
        self.shifts = (grid.below, grid.above)
        return grid

    @torch.jit.unused
    def tabulate(self, intervals: int) -> None:
        """Replace every radial function by a table of its splines; for inference."""
        grid = self._use(Grid(intervals, self.cutoff, self.kink, free=True))
        for layer in self.layers:
            convolution, radial = layer.convolution.convolution, layer.convolution.radial
            exact = copy.deepcopy(radial).double()
            table = exact.table().detach() if isinstance(radial, RadialSplines) else grid.fit(exact)
            radial = RadialTable(radial, table.to(self.embedding.dtype))
            layer.convolution = TabulatedConvolution(convolution, radial, grid.end)
            layer.splines = True
