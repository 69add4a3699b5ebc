"""What the operators compute, in plain torch: they define what is right, and run where there are no kernels.

They have derivatives of every order. A row of ``paths`` is explained at
:func:`equipot.ops.convolution.kernel_tables`. A row of ``blocks`` (B, 5) says of one irrep: components,
channels in, channels out, first element in, first element out; the weights of all blocks lie side by side,
(channels in, channels out) of each.
"""

from collections.abc import Sequence
from itertools import groupby, pairwise

import torch
from torch import Tensor

from equipot.ops.bspline import interpolate


def convolution(
    x: Tensor,
    sh: Tensor,
    weights: Tensor,
    edge_index: Tensor,
    paths: Tensor,
    coefficients: Tensor,
    dim_out: int,
) -> Tensor:
    """``equipot::convolution``: (neighbor's features ⊗ harmonics) × weights, summed over a center's edges.

        out[i, p, k, c] = Σ_{e: center(e)=i} w[e, p, c] Σ_{i'} M_e^p[k, i'] x[neighbor(e), i', c]
        M_e^p[k, i'] = Σ_j C^p[k, i', j] Y[e, j]

    Source: Batzner et al., Nat. Commun. 13, 2453 (2022), eq. 7. M of all paths from one input block is one
    matrix product, which acts on all channels.
    """
    center, neighbor = edge_index[0], edge_index[1]
    coefficients = coefficients.to(x)
    rows = sorted(paths.tolist(), key=lambda row: row[4])
    sent_parts = _parts(x, [(in_offset, (2 * l_in + 1) * mul) for l_in, _, _, mul, in_offset, *_ in rows])
    weight_parts = _parts(weights, [(weight_offset, mul) for *_, mul, _, weight_offset, _, _, _ in rows])
    sums, columns = [], []
    for (in_offset, l_in, mul), block in groupby(rows, key=lambda row: (row[4], row[0], row[3])):
        rows_in = 2 * l_in + 1
        sent = sent_parts[in_offset].index_select(0, neighbor).view(-1, rows_in, mul)
        couplings, sizes, scales = [], [], []
        for _, l_sh, l_out, _, _, weight_offset, out_offset, out_stride, start in block:
            rows_sh, rows_out = 2 * l_sh + 1, 2 * l_out + 1
            coupling = coefficients[start : start + rows_out * rows_in * rows_sh].view(-1, rows_sh)
            around = (l_sh**2, sh.shape[1] - l_sh**2 - rows_sh)
            couplings.append(torch.nn.functional.pad(coupling, around))
            sizes.append(rows_out)
            scales.append(weight_parts[weight_offset].unsqueeze(1))
            components = out_offset + out_stride * torch.arange(rows_out, device=x.device)
            columns.append((components[:, None] + torch.arange(mul, device=x.device)).flatten())
        matrices = (sh @ torch.cat(couplings).T).view(-1, sum(sizes), rows_in)
        products = torch.bmm(matrices, sent).split(sizes, dim=1)
        messages = torch.cat([(p * w).flatten(1) for p, w in zip(products, scales, strict=True)], dim=1)
        sums.append(x.new_zeros(x.shape[0], messages.shape[1]).index_add(0, center, messages))
    return x.new_zeros(x.shape[0], dim_out).index_copy(1, torch.cat(columns), torch.cat(sums, dim=1))


def _parts(rows: Tensor, places: Sequence[tuple[int, int]]) -> dict[int, Tensor]:
    """Columns by (first, number), cut in one go: of slices, each has a gradient as wide as the whole."""
    bounds = sorted({0, rows.shape[1], *(edge for first, size in places for edge in (first, first + size))})
    return dict(zip(bounds, rows.split([b - a for a, b in pairwise(bounds)], dim=1), strict=False))


def tabulated_convolution(
    x: Tensor,
    sh: Tensor,
    edge_length: Tensor,
    table: Tensor,
    edge_index: Tensor,
    paths: Tensor,
    coefficients: Tensor,
    cutoff: float,
    dim_out: int,
) -> Tensor:
    """``equipot::tabulated_convolution``: with weights that are splines of the distance (bspline.py)."""
    weights = interpolate(edge_length, table, cutoff)
    return convolution(x, sh, weights, edge_index, paths, coefficients, dim_out)


def linear(
    x: Tensor, weights: Tensor, blocks: Tensor, types: Tensor, dim: int, transpose: bool = False
) -> Tensor:
    """``equipot::linear``: x (N, dims), weights (species, W), types (N or more) → (N, dim).

    For one species ``types`` is not used.
    """
    types = types[: len(x)]
    columns, parts, start = [], [], 0
    for rows, n_in, n_out, first_in, first_out in blocks.tolist():
        matrices = weights[:, start : start + n_in * n_out].reshape(len(weights), n_in, n_out)
        start += n_in * n_out
        if transpose:
            matrices, n_in, n_out = matrices.transpose(1, 2), n_out, n_in
            first_in, first_out = first_out, first_in
        rows_in = x[:, first_in : first_in + rows * n_in].reshape(len(x), rows, n_in)
        if len(matrices) == 1:
            mixed = rows_in @ matrices[0]
        else:
            mixed = torch.zeros(len(x), rows, n_out, dtype=x.dtype, device=x.device)
            for species, matrix in enumerate(matrices):
                chosen = (types == species).nonzero().squeeze(1)
                mixed = mixed.index_copy(0, chosen, rows_in[chosen] @ matrix)
        parts.append(mixed.reshape(len(x), rows * n_out))
        columns.append(first_out + torch.arange(rows * n_out, device=x.device))
    # Transposed, several blocks may start from one: their sums.
    return x.new_zeros(len(x), dim).index_add(1, torch.cat(columns), torch.cat(parts, dim=1))


def gate(
    x: Tensor, blocks: Tensor, num_even: int, num_odd: int, even_factor: float, odd_factor: float
) -> Tensor:
    """``equipot::gate``: x (N, dim) as a map of these ``blocks`` gives it; see nn/gate.py."""
    table = blocks.tolist()
    num_scalars = table[0][2]
    scalars = torch.nn.functional.silu(x[:, :num_scalars]) * even_factor
    parts = [scalars[:, :num_even], torch.tanh(x[:, num_scalars : num_scalars + num_odd]) * odd_factor]
    first_gate = num_even
    for rows, _, channels, _, first in table[2 if num_odd else 1 :]:
        gates = scalars[:, first_gate : first_gate + channels].unsqueeze(1)
        block = x[:, first : first + rows * channels].reshape(len(x), rows, channels)
        parts.append((block * gates).flatten(1))
        first_gate += channels
    return torch.cat(parts, dim=1)


def interaction(
    sent: Tensor,
    residual: Tensor,
    sh: Tensor,
    edge_length: Tensor,
    table: Tensor,
    edge_index: Tensor,
    paths: Tensor,
    coefficients: Tensor,
    cutoff: float,
    dim_messages: int,
    mixing: Tensor,
    blocks: Tensor,
    num_even: int,
    num_odd: int,
    even_factor: float,
    odd_factor: float,
) -> tuple[Tensor, Tensor]:
    """``equipot::interaction``: the output of a NequIP block, and what its gate was given."""
    messages = tabulated_convolution(
        sent, sh, edge_length, table, edge_index, paths, coefficients, cutoff, dim_messages
    )
    owned, dim = residual.shape
    update = residual + linear(messages[:owned], mixing.view(1, -1), blocks, edge_index[0, :0], dim)
    return gate(update, blocks, num_even, num_odd, even_factor, odd_factor), update


def atom_product(matrices: Tensor, x: Tensor, center: Tensor, transposed: bool = False) -> Tensor:
    """``equipot::atom_product``: matrices (N, K, I, C), x (E, I, C), center (E,) → (E, K, C).

    Transposed: x (E, K, C) → (E, I, C).
    """
    if transposed:
        matrices = matrices.transpose(1, 2)
    if matrices.shape[0] == 1:
        return torch.einsum("kic,eic->ekc", matrices[0], x)
    return torch.einsum("ekic,eic->ekc", matrices.index_select(0, center), x)


def segment_sum(values: Tensor, index: Tensor, row: int, num_segments: int) -> Tensor:
    """``equipot::segment_sum``: values (E, K) summed by ``index[row]`` → (num_segments, K)."""
    return values.new_zeros(num_segments, values.shape[1]).index_add(0, index[row], values)


def num_owned(atom_types: Tensor) -> int:
    """``equipot::num_owned``, of older TorchScript files: all atoms are."""
    return atom_types.shape[0]


def ghost_exchange(features: Tensor, num_atoms: int) -> Tensor:
    """``equipot::ghost_exchange``, of older TorchScript files: the identity."""
    return torch.ops.aten.alias(features)
