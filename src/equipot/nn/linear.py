"""Linear maps that commute with rotations: they mix the channels of each irrep."""

import torch
from e3nn import o3
from torch import Tensor, nn

from equipot.engine.program import Program
from equipot.ops.operators import load_operators
from equipot.ops.paths import block_offsets


class _Blocks(nn.Module):
    """Which input block feeds each output irrep; the weights act on channels only.

    ``equipot::linear`` (csrc/linear.h) takes all weights side by side and ``table``, which says where each
    block lies. What multiplies the weights of a block, 1/√(channels in) and ``factor``, is in ``scales``.
    ``biases``: for each of so many levels of theory, constants, at first zero, are added to the even scalars,
    which are the first block.
    """

    bias: Tensor | None  # (levels, even scalars)

    def __init__(self, irreps_in: o3.Irreps, irreps_out: o3.Irreps, factor: float = 1.0, biases: int = 0):
        super().__init__()
        load_operators()
        self.irreps_in, self.irreps_out = irreps_in, irreps_out
        blocks = {ir: (index, mul) for index, (mul, ir) in enumerate(irreps_in)}
        if len(blocks) < len(irreps_in):
            raise ValueError(f"irreps must be simplified, one block per irrep: {irreps_in}")
        self.dim_out = irreps_out.dim
        starts_in, starts_out = block_offsets(irreps_in), block_offsets(irreps_out)
        table = []
        for (mul, ir), start in zip(irreps_out, starts_out, strict=True):
            source, n_in = blocks.get(ir, (0, 0))  # without an input block the output is zero
            table.append([ir.dim, n_in, mul, starts_in[source], start])
        self.register_buffer("table", torch.tensor(table, dtype=torch.int64), persistent=False)
        self.shapes = [(n_in, mul) for _, n_in, mul, _, _ in table]
        sizes = torch.tensor([n_in * mul for n_in, mul in self.shapes])
        scale = torch.tensor([factor * max(n_in, 1) ** -0.5 for n_in, _ in self.shapes], dtype=torch.float64)
        self.register_buffer("scales", scale.repeat_interleave(sizes), persistent=False)
        constants = torch.zeros(biases, irreps_out.count("0e"), dtype=torch.float64)
        self.register_parameter("bias", nn.Parameter(constants) if biases else None)

    def biased(self, y: Tensor, level: Tensor | None) -> Tensor:
        """y (N, irreps_out.dim) with the constants added, those of each atom's ``level`` (N or more,)."""
        bias = self.bias
        if bias is None:
            return y
        if level is not None:
            bias = bias.index_select(0, level[: y.shape[0]])
        return y + nn.functional.pad(bias, [0, self.dim_out - bias.shape[1]])


class EquivariantLinear(_Blocks):
    """y_l[m, d] = factor · Σ_c x_l[m, c] W_l[c, d] / √(channels in), for every irrep l of ``irreps_out``.

    ``partial``: output irreps that the input lacks are zero, instead of an error.
    """

    def __init__(
        self,
        irreps_in: o3.Irreps,
        irreps_out: o3.Irreps,
        factor: float = 1.0,
        biases: int = 0,
        partial: bool = False,
    ):
        super().__init__(irreps_in, irreps_out, factor, biases)
        missing = [str(ir) for _, ir in irreps_out if ir not in irreps_in]
        if missing and not partial:
            raise ValueError(f"no input block for the output irreps {missing}; inputs are {irreps_in}")
        self.weights = nn.ParameterList(
            nn.Parameter(torch.randn(n_in, mul, dtype=torch.float64)) for n_in, mul in self.shapes if n_in > 0
        )

    def packed(self) -> Tensor:
        """(1, weights of all blocks), scaled: what the operator multiplies by."""
        flat: list[Tensor] = []
        for weight in self.weights:
            flat.append(weight.view(-1))
        return (torch.cat(flat) * self.scales).unsqueeze(0)

    @torch.jit.unused
    def steps(self, program: Program, x: str, width: int | None = None) -> str:
        """As `Network.steps`; rows of x may go on behind the input, and have ``width`` numbers."""
        return _linear_step(self, program, x, False, width)

    def forward(self, x: Tensor, level: Tensor | None = None) -> Tensor:
        """(N, irreps_in.dim), (N or more,) as `biased` → (N, irreps_out.dim)."""
        types = self.table[:0, 0]  # one set of weights for all
        return self.biased(torch.ops.equipot.linear(x, self.packed(), self.table, types, self.dim_out), level)


class SpeciesLinear(_Blocks):
    """An :class:`EquivariantLinear` with weights of its own for each species of atom.

    NequIP's self-connection (Batzner et al., Nat. Commun. 13, 2453 (2022), fig. 1): the tensor product of
    the features with a one-hot species vector. Output irreps that the input lacks are zero.
    """

    def __init__(self, irreps_in: o3.Irreps, irreps_out: o3.Irreps, num_species: int, biases: int = 0):
        super().__init__(irreps_in, irreps_out, biases=biases)
        self.blocks = nn.ModuleDict(
            {str(i): _Weights(num_species, *shape) for i, shape in enumerate(self.shapes) if shape[0] > 0}
        )

    def packed(self) -> Tensor:
        """(species, weights of all blocks), scaled: what the operator multiplies by."""
        flat: list[Tensor] = []
        for block in self.blocks.values():
            flat.append(block.weight.flatten(1))
        return torch.cat(flat, dim=1) * self.scales

    @torch.jit.unused
    def steps(self, program: Program, x: str) -> str:
        """As `Network.steps`."""
        return _linear_step(self, program, x, True)

    def forward(self, x: Tensor, atom_types: Tensor, level: Tensor | None = None) -> Tensor:
        """(N, irreps_in.dim), (N or more,), as `biased` → (N, irreps_out.dim).

        On a GPU the order of the species is kept as long as the tensor of types; a slice would be a new one.
        """
        mixed = torch.ops.equipot.linear(x, self.packed(), self.table, atom_types, self.dim_out)
        return self.biased(mixed, level)


def _linear_step(linear: _Blocks, program: Program, x: str, by_type: bool, width: int | None = None) -> str:
    facts = {"dim_in": width or linear.irreps_in.dim, "dim_out": linear.dim_out}
    if linear.bias is not None:
        program.require(2)
        facts["bias"] = linear.bias[0]
    return program.add("linear", [x], weights=linear.packed(), blocks=linear.table, by_type=by_type, **facts)


class _Weights(nn.Module):
    """Those of one irrep of a :class:`SpeciesLinear`."""

    def __init__(self, num_species: int, n_in: int, n_out: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_species, n_in, n_out, dtype=torch.float64))
