"""What the operators of linear maps and interaction blocks compute, in plain torch.

A row of ``blocks`` (B, 5) says of one irrep: components, channels in, channels out, first element in, first
element out. The weights of all blocks lie side by side, (channels in, channels out) of each.
"""

import torch
from torch import Tensor


def linear_by_block(
    x: Tensor, weights: Tensor, blocks: Tensor, types: Tensor, dim: int, transpose: bool = False
) -> Tensor:
    """``equipot::linear``: x (N, dims), weights (species, W), types (N,) → (N, dim).

    For one species ``types`` is not used.
    """
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


def gate_by_block(
    x: Tensor, blocks: Tensor, num_even: int, num_odd: int, even_factor: float, odd_factor: float
) -> Tensor:
    """The gate of ``equipot::interaction``, fed by the map of ``blocks``."""
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
