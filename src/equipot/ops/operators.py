"""Makes ``torch.ops.equipot`` exist before a file that refers to it is loaded."""

import contextlib
import functools
from collections.abc import Iterator

import torch

from equipot.ops import reference
from equipot.ops.build import kernels_available, operators_registered

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


# Each operator's schema, and what it computes. In Python every atom is owned; a parallel MD code brings the
# compiled operators.
PLAIN = {
    "convolution": (CONVOLUTION_SCHEMA, reference.convolution),
    "tabulated_convolution": (TABULATED_SCHEMA, reference.tabulated_convolution),
    "atom_product": (ATOM_PRODUCT_SCHEMA, reference.atom_product),
    "linear": (LINEAR_SCHEMA, reference.linear),
    "interaction": (INTERACTION_SCHEMA, reference.interaction),
    "segment_sum": (SEGMENT_SUM_SCHEMA, reference.segment_sum),
    "num_owned": (NUM_OWNED_SCHEMA, lambda atom_types: atom_types.shape[0]),
    "ghost_exchange": (GHOST_EXCHANGE_SCHEMA, lambda features, num_atoms: torch.ops.aten.alias(features)),
}


@functools.cache
def load_operators() -> bool:
    """Load the kernels, or define their operators in plain torch; returns whether they are the kernels.

    So a model deployed where there are kernels also runs, slowly, where there are none. Call it before
    ``torch.jit.load``. :func:`equipot.ops.build.kernels_available` logs which path runs.
    """
    if kernels_available() or operators_registered():
        return True
    for name, (schema, function) in PLAIN.items():
        torch.library.define(f"equipot::{name}", schema)
        torch.library.impl(f"equipot::{name}", "CompositeImplicitAutograd", function)
    return False


@contextlib.contextmanager
def plain_operators() -> Iterator[None]:
    """Inside, modules (not scripted ones) compute by plain torch: to compare the kernels with."""
    load_operators()
    compiled = {name: getattr(torch.ops.equipot, name) for name in PLAIN}
    try:
        for name, (_, function) in PLAIN.items():
            setattr(torch.ops.equipot, name, function)
        yield
    finally:
        for name, operator in compiled.items():
            setattr(torch.ops.equipot, name, operator)


def keep_memory() -> None:
    """Memory that is freed stays with this process, for the rest of its life and for all that runs in it.

    Structures of more than about 2,000 atoms are evaluated up to a third faster on a CPU: the system would
    otherwise clear every page of every large array anew. Memory never falls below its peak, so a script or
    notebook has to ask for it; ``equipot md``, ``equipot evaluate`` and the LAMMPS plugin do. Does nothing
    where there are no kernels, or another C library than glibc.
    """
    if load_operators():
        torch.ops.equipot.keep_memory()
