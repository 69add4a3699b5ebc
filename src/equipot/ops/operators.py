"""Makes ``torch.ops.equipot`` exist before a file that refers to it is loaded."""

import functools

import torch
from torch import Tensor

from equipot.ops.bspline import interpolate
from equipot.ops.build import kernels_available, operators_registered
from equipot.ops.edge_product import atom_product_reference
from equipot.ops.interaction import gate_by_block, linear_by_block

CONVOLUTION_SCHEMA = (
    "(Tensor x, Tensor sh, Tensor weights, Tensor edge_index, Tensor paths, Tensor coefficients, int dim_out)"
    " -> Tensor"
)
TABULATED_SCHEMA = (
    "(Tensor x, Tensor sh, Tensor edge_length, Tensor table, Tensor edge_index, Tensor paths,"
    " Tensor coefficients, float cutoff, int dim_out) -> Tensor"
)
ATOM_PRODUCT_SCHEMA = "(Tensor matrices, Tensor x, Tensor center, bool transposed=False) -> Tensor"
LINEAR_SCHEMA = (
    "(Tensor x, Tensor weights, Tensor blocks, Tensor types, int dim, bool transpose=False) -> Tensor"
)
INTERACTION_SCHEMA = (
    "(Tensor sent, Tensor residual, Tensor sh, Tensor edge_length, Tensor table, Tensor edge_index,"
    " Tensor paths, Tensor coefficients, float cutoff, int dim_messages, Tensor mixing, Tensor blocks,"
    " int num_even, int num_odd, float even_factor, float odd_factor) -> (Tensor, Tensor)"
)
SEGMENT_SUM_SCHEMA = "(Tensor values, Tensor index, int row, int num_segments) -> Tensor"
NUM_OWNED_SCHEMA = "(Tensor atom_types) -> int"
GHOST_EXCHANGE_SCHEMA = "(Tensor features, int num_atoms) -> Tensor"


@functools.cache
def load_operators() -> bool:
    """Load the kernels, or define their operators in plain torch; returns whether they are the kernels.

    So a model deployed where there are kernels also runs, slowly, where there are none. Call it before
    ``torch.jit.load``. :func:`equipot.ops.build.kernels_available` logs which path runs.
    """
    if kernels_available() or operators_registered():
        return True
    for name, schema, function in (
        ("equipot::convolution", CONVOLUTION_SCHEMA, convolution_by_path),
        ("equipot::tabulated_convolution", TABULATED_SCHEMA, tabulated_by_path),
        ("equipot::atom_product", ATOM_PRODUCT_SCHEMA, atom_product_reference),
        ("equipot::linear", LINEAR_SCHEMA, linear_by_block),
        ("equipot::interaction", INTERACTION_SCHEMA, interaction_by_path),
        ("equipot::segment_sum", SEGMENT_SUM_SCHEMA, segment_sum_in_order),
        # In Python every atom is owned. A parallel MD code brings the compiled operators.
        ("equipot::num_owned", NUM_OWNED_SCHEMA, lambda atom_types: atom_types.shape[0]),
        (
            "equipot::ghost_exchange",
            GHOST_EXCHANGE_SCHEMA,
            lambda features, num_atoms: torch.ops.aten.alias(features),
        ),
    ):
        torch.library.define(name, schema)
        torch.library.impl(name, "CompositeImplicitAutograd", function)
    return False


def keep_memory() -> None:
    """Memory that is freed stays with this process, for the rest of its life and for all that runs in it.

    Structures of more than about 2,000 atoms are evaluated up to a third faster on a CPU: the system would
    otherwise clear every page of every large array anew. Memory never falls below its peak, so a script or
    notebook has to ask for it; ``equipot md``, ``equipot evaluate`` and the LAMMPS plugin do. Does nothing
    where there are no kernels, or another C library than glibc.
    """
    if load_operators():
        torch.ops.equipot.keep_memory()


def convolution_by_path(
    x: Tensor,
    sh: Tensor,
    weights: Tensor,
    edge_index: Tensor,
    paths: Tensor,
    coefficients: Tensor,
    dim_out: int,
) -> Tensor:
    """What ``equipot::convolution`` computes, path by path; it has derivatives of every order."""
    center, neighbor = edge_index[0], edge_index[1]
    coefficients = coefficients.to(x)
    sums, columns = [], []
    for row in paths.tolist():
        l_in, l_sh, l_out, channels, in_offset, weight_offset, out_offset, out_stride, start = row
        rows_in, rows_sh, rows_out = 2 * l_in + 1, 2 * l_sh + 1, 2 * l_out + 1
        coupling = coefficients[start : start + rows_out * rows_in * rows_sh].view(rows_out, rows_in, rows_sh)
        harmonics = sh[:, l_sh**2 : l_sh**2 + rows_sh]
        matrices = torch.einsum("kij,ej->eki", coupling, harmonics)
        sent = x[:, in_offset : in_offset + rows_in * channels].view(-1, rows_in, channels)[neighbor]
        scale = weights[:, None, weight_offset : weight_offset + channels]
        messages = (torch.bmm(matrices, sent) * scale).flatten(1)
        sums.append(messages.new_zeros(x.shape[0], rows_out * channels).index_add(0, center, messages))
        components = out_offset + out_stride * torch.arange(rows_out, device=x.device)
        columns.append((components[:, None] + torch.arange(channels, device=x.device)).flatten())
    return x.new_zeros(x.shape[0], dim_out).index_copy(1, torch.cat(columns), torch.cat(sums, dim=1))


def tabulated_by_path(
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
    """What ``equipot::tabulated_convolution`` computes."""
    weights = interpolate(edge_length, table, cutoff)
    return convolution_by_path(x, sh, weights, edge_index, paths, coefficients, dim_out)


def segment_sum_in_order(values: Tensor, index: Tensor, row: int, num_segments: int) -> Tensor:
    """What ``equipot::segment_sum`` computes: values (E, K) summed by ``index[row]`` → (num_segments, K)."""
    return values.new_zeros(num_segments, values.shape[1]).index_add(0, index[row], values)


def interaction_by_path(
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
    """What ``equipot::interaction`` computes: the block's output, and what its gate was given."""
    messages = tabulated_by_path(
        sent, sh, edge_length, table, edge_index, paths, coefficients, cutoff, dim_messages
    )
    owned, dim = residual.shape
    update = residual + linear_by_block(messages[:owned], mixing.view(1, -1), blocks, edge_index[0, :0], dim)
    return gate_by_block(update, blocks, num_even, num_odd, even_factor, odd_factor), update
