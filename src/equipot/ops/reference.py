"""The equivariant products in plain torch operations: slow beside a fused kernel, but obvious.

The convolution of message passing:

    out[i, p, k, c] = Σ_{e: center(e)=i} w[e, p, c] Σ_{i'} M_e^p[k, i'] x[neighbor(e), i', c]
    M_e^p[k, i'] = Σ_j C^p[k, i', j] Y[e, j]

Source: Batzner et al., Nat. Commun. 13, 2453 (2022), eq. 7; the contraction order is equipot's own.
"""

from itertools import groupby

import torch
from torch import Tensor, nn

from equipot.ops.paths import PathTable


class ConvolutionReference(nn.Module):
    """Sum over neighbors of (neighbor features ⊗ edge harmonics) × radial weights.

    Input blocks are taken one at a time: M of all its paths is one small matrix product, applied to all
    channels by a batched one; weights multiply paths that share an output degree together. Rows are split
    rather than sliced because the gradient of a split is one concatenation.
    """

    in_sizes: list[int]
    weight_sizes: list[int]

    def __init__(self, table: PathTable):
        super().__init__()
        self.num_weights = table.num_weights
        self.in_sizes = [block.dim for block in table.irreps_in]
        self.blocks = nn.ModuleList(_BlockConvolution(table, b) for b in range(len(table.irreps_in)))
        self.weight_sizes = [block.num_weights for block in self.blocks]
        order = torch.cat([block.destination for block in self.blocks])
        self.register_buffer("source", torch.argsort(order), persistent=False)

    def forward(self, x: Tensor, sh: Tensor, weights: Tensor, edge_index: Tensor) -> Tensor:
        """x (N, irreps_in.dim), sh (E, irreps_sh.dim), weights (E, num_weights) → (N, irreps_out.dim)."""
        x_blocks = torch.split_with_sizes(x, self.in_sizes, dim=1)
        weight_blocks = torch.split_with_sizes(weights, self.weight_sizes, dim=1)
        parts: list[Tensor] = []
        for i, block in enumerate(self.blocks):
            if weight_blocks[i].shape[1] > 0:
                parts.extend(block(x_blocks[i], sh, weight_blocks[i], edge_index))
        return torch.cat(parts, dim=1).index_select(1, self.source)


class _BlockConvolution(nn.Module):
    """The paths that start from one input block."""

    group_paths: list[int]
    row_sizes: list[int]
    weight_sizes: list[int]

    def __init__(self, table: PathTable, in_block: int):
        super().__init__()
        paths = [path for path in table.paths if path.in_block == in_block]
        self.channels, ir_in = table.irreps_in[in_block]
        self.rows_in = ir_in.dim
        self.num_weights = len(paths) * self.channels
        # One entry per output degree, whose paths lie side by side.
        groups = [list(members) for _, members in groupby(paths, key=lambda path: path.l_out)]
        self.group_paths = [len(group) for group in groups]
        self.row_sizes = [len(group) * (2 * group[0].l_out + 1) for group in groups]
        self.weight_sizes = [len(group) * self.channels for group in groups]
        self.total_rows = sum(self.row_sizes)
        self.register_buffer("coupling", _coupling_matrix(paths, table.irreps_sh.dim), persistent=False)
        self.register_buffer("destination", _destination(paths), persistent=False)

    def forward(self, x: Tensor, sh: Tensor, weights: Tensor, edge_index: Tensor) -> list[Tensor]:
        num_atoms, num_edges = x.shape[0], sh.shape[0]
        center, neighbor = edge_index[0], edge_index[1]
        sent = x.index_select(0, neighbor).view(num_edges, self.rows_in, self.channels)
        matrices = torch.mm(sh, self.coupling).view(num_edges, self.total_rows, self.rows_in)
        products = torch.split_with_sizes(torch.bmm(matrices, sent), self.row_sizes, dim=1)
        scales = torch.split_with_sizes(weights, self.weight_sizes, dim=1)
        outputs: list[Tensor] = []
        for i, paths in enumerate(self.group_paths):
            rows = self.row_sizes[i] // paths
            scale = scales[i].reshape(num_edges, paths, 1, self.channels)
            message = products[i].reshape(num_edges, paths, rows, self.channels) * scale
            width = self.row_sizes[i] * self.channels
            summed = torch.zeros(num_atoms, width, dtype=x.dtype, device=x.device)
            outputs.append(summed.index_add(0, center, message.view(num_edges, width)))
        return outputs


class EdgeProductReference(nn.Module):
    """Channel-wise product of the features of an edge with those of its center, Allegro's tensor product.

        out[e, l, k, c] = 1/√P_l Σ_{p → l} w[p, c] Σ_{i, j} C^p[k, i, j] V[e, i, c] Γ[center(e), j, c]

    with P_l the number of paths into an output irrep. V has the irreps ``table.irreps_in``; Γ those of the
    spherical harmonics, the output one block for each of ``table.irreps_out``, all with the same number of
    channels. Source: Musaelian et al., Nat. Commun. 14, 579 (2023), eq. 10; one weight per path and channel
    as in Tan et al., arXiv:2504.16068 (2025).
    """

    def __init__(self, table: PathTable):
        super().__init__()
        self.table = table

    def forward(self, weights: Tensor, tensors: Tensor, environment: Tensor, center: Tensor) -> Tensor:
        """weights (P, C), tensors (E, I, C), environment (N, J, C), center (E,) → (E, K, C)."""
        blocks: list[Tensor | int] = [0] * len(self.table.irreps_out)
        received = environment[center]
        for weight, path in zip(weights, self.table.paths, strict=True):
            _, columns, harmonics = path.coefficients.shape
            first = path.in_offset // path.channels
            left = tensors[:, first : first + columns]
            right = received[:, path.l_sh**2 : path.l_sh**2 + harmonics]
            product = torch.einsum("kij,eic,ejc->ekc", path.coefficients.to(tensors), left, right)
            scale = self.table.num_paths_into(path.out_block) ** -0.5
            blocks[path.out_block] = blocks[path.out_block] + product * weight * scale
        return torch.cat(blocks, dim=1)


def _coupling_matrix(paths, sh_dim: int) -> Tensor:
    """(sh_dim, rows of all paths × rows_in): maps harmonics to the matrices M of every path at once."""
    columns = [torch.zeros(sh_dim, 0, dtype=torch.float64)]
    for path in paths:
        rows_out, rows_in, rows_sh = path.coefficients.shape
        dense = torch.zeros(sh_dim, rows_out, rows_in, dtype=torch.float64)
        start = path.l_sh**2
        dense[start : start + rows_sh] = path.coefficients.permute(2, 0, 1)
        columns.append(dense.reshape(sh_dim, rows_out * rows_in))
    return torch.cat(columns, dim=1)


def _destination(paths) -> Tensor:
    """For every element (path, component, channel) produced, its place in the output row."""
    places = [torch.zeros(0, dtype=torch.int64)]
    for path in paths:
        component = torch.arange(2 * path.l_out + 1)[:, None] * path.out_stride
        places.append((path.out_offset + component + torch.arange(path.channels)).reshape(-1))
    return torch.cat(places)
