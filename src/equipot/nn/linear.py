"""Linear maps that commute with rotations: they mix the channels of each irrep."""

from typing import Final

import torch
from e3nn import o3
from torch import Tensor, nn

from equipot.ops.build import kernels_available
from equipot.ops.paths import block_offsets


class _Blocks(nn.Module):
    """Which input block feeds each output irrep; the weights act on channels only.

    The kernel (csrc/linear.h) takes all weights side by side and ``table``, which says where each block lies.
    Whether it is used is decided at construction; elsewhere than on a CPU plain torch runs.
    """

    use_kernel: Final[bool]
    in_sizes: list[int]
    source: list[int]
    widths: list[int]
    rows: list[int]

    def __init__(self, irreps_in: o3.Irreps, irreps_out: o3.Irreps):
        super().__init__()
        self.irreps_in, self.irreps_out = irreps_in, irreps_out
        blocks = {ir: (index, mul) for index, (mul, ir) in enumerate(irreps_in)}
        if len(blocks) < len(irreps_in):
            raise ValueError(f"irreps must be simplified, one block per irrep: {irreps_in}")
        self.in_sizes = [block.dim for block in irreps_in]
        # An output irrep without an input block has width 0 and becomes zero.
        self.source = [blocks.get(ir, (0, 0))[0] for _, ir in irreps_out]
        self.widths = [blocks.get(ir, (0, 0))[1] for _, ir in irreps_out]
        self.rows = [ir.dim for _, ir in irreps_out]
        self.use_kernel = kernels_available()
        self.dim_out = irreps_out.dim
        starts_in, starts_out = block_offsets(irreps_in), block_offsets(irreps_out)
        table = [
            [rows, n_in, mul, starts_in[source], start]
            for rows, n_in, (mul, _), source, start in zip(
                self.rows, self.widths, irreps_out, self.source, starts_out, strict=True
            )
        ]
        self.register_buffer("table", torch.tensor(table, dtype=torch.int64), persistent=False)
        sizes = torch.tensor([n_in * mul for _, n_in, mul, _, _ in table])
        scale = torch.tensor([max(n_in, 1) ** -0.5 for _, n_in, *_ in table], dtype=torch.float64)
        self.register_buffer("scales", scale.repeat_interleave(sizes), persistent=False)


class EquivariantLinear(_Blocks):
    """y_l[m, d] = Σ_c x_l[m, c] W_l[c, d] / √(channels in), for every irrep l of ``irreps_out``."""

    def __init__(self, irreps_in: o3.Irreps, irreps_out: o3.Irreps):
        super().__init__(irreps_in, irreps_out)
        missing = [str(ir) for _, ir in irreps_out if ir not in irreps_in]
        if missing:
            raise ValueError(f"no input block for the output irreps {missing}; inputs are {irreps_in}")
        self.weights = nn.ParameterList(
            nn.Parameter(torch.randn(n_in, mul, dtype=torch.float64))
            for n_in, (mul, _) in zip(self.widths, irreps_out, strict=True)
        )

    def packed(self) -> Tensor:
        """(1, weights of all blocks), scaled: what the kernel multiplies by."""
        flat: list[Tensor] = []
        for weight in self.weights:
            flat.append(weight.view(-1))
        return (torch.cat(flat) * self.scales).unsqueeze(0)

    def forward(self, x: Tensor) -> Tensor:
        """(N, irreps_in.dim) → (N, irreps_out.dim)."""
        if self.use_kernel and x.is_cpu:
            types = self.table[:0, 0]  # one set of weights for all
            return torch.ops.equipot.linear(x, self.packed(), self.table, types, self.dim_out)
        blocks = torch.split_with_sizes(x, self.in_sizes, dim=1)
        parts: list[Tensor] = []
        for i, weight in enumerate(self.weights):
            n_in, n_out = weight.shape[0], weight.shape[1]
            rows = blocks[self.source[i]].reshape(-1, n_in)
            parts.append(torch.mm(rows, weight * n_in**-0.5).view(x.shape[0], self.rows[i] * n_out))
        return torch.cat(parts, dim=1)


class SpeciesLinear(_Blocks):
    """An :class:`EquivariantLinear` with weights of its own for each species of atom.

    NequIP's self-connection (Batzner et al., Nat. Commun. 13, 2453 (2022), fig. 1): the tensor product of
    the features with a one-hot species vector. Output irreps that the input lacks are zero.
    """

    def __init__(self, irreps_in: o3.Irreps, irreps_out: o3.Irreps, num_species: int):
        super().__init__(irreps_in, irreps_out)
        self.num_species = num_species
        self.blocks = nn.ModuleList(
            _SpeciesBlock(num_species, n_in, mul) if n_in > 0 else _ZeroBlock(num_species, mul)
            for n_in, (mul, _) in zip(self.widths, irreps_out, strict=True)
        )

    def packed(self) -> Tensor:
        """(species, weights of all blocks), scaled: what the kernel multiplies by."""
        flat: list[Tensor] = []
        for block in self.blocks:
            flat.append(block.weight.flatten(1))
        return torch.cat(flat, dim=1) * self.scales

    def forward(self, x: Tensor, atom_types: Tensor) -> Tensor:
        """(N, irreps_in.dim), (N,) → (N, irreps_out.dim)."""
        if self.use_kernel and x.is_cpu:
            return torch.ops.equipot.linear(x, self.packed(), self.table, atom_types, self.dim_out)
        # Gather the atoms of each species, transform them together, put the rows back in order.
        order = torch.argsort(atom_types, stable=True)
        counts: list[int] = torch.bincount(atom_types, minlength=self.num_species).tolist()
        x_blocks = torch.split_with_sizes(x.index_select(0, order), self.in_sizes, dim=1)
        parts: list[Tensor] = []
        for i, block in enumerate(self.blocks):
            parts.append(block(x_blocks[self.source[i]], counts, self.rows[i]))
        return torch.cat(parts, dim=1).index_select(0, torch.argsort(order))


class _SpeciesBlock(nn.Module):
    """One irrep of a :class:`SpeciesLinear`; atoms come sorted by species, ``counts`` of each."""

    def __init__(self, num_species: int, n_in: int, n_out: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_species, n_in, n_out, dtype=torch.float64))

    def forward(self, x: Tensor, counts: list[int], rows: int) -> Tensor:
        n_in, n_out = self.weight.shape[1], self.weight.shape[2]
        weights = (self.weight * n_in**-0.5).unbind(0)
        mixed: list[Tensor] = []
        for t, atoms in enumerate(torch.split_with_sizes(x, counts, dim=0)):
            mixed.append(torch.mm(atoms.reshape(-1, n_in), weights[t]).view(-1, rows * n_out))
        return torch.cat(mixed, dim=0)


class _ZeroBlock(nn.Module):
    def __init__(self, num_species: int, n_out: int):
        super().__init__()
        self.n_out = n_out
        self.register_buffer(
            "weight", torch.zeros(num_species, 0, n_out, dtype=torch.float64), persistent=False
        )

    def forward(self, x: Tensor, counts: list[int], rows: int) -> Tensor:
        return torch.zeros(x.shape[0], rows * self.n_out, dtype=x.dtype, device=x.device)
