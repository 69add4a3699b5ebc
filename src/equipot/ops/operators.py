"""Makes ``torch.ops.equipot`` exist before a file that refers to it is loaded."""

import contextlib
import functools
import os
from collections.abc import Iterator

import torch

from equipot.ops import reference
from equipot.ops.build import kernels_available, operators_registered

# GNU's OpenMP waits for ever in a forked process for the threads that stayed behind.
os.register_at_fork(after_in_child=functools.partial(torch.set_num_threads, 1))

PLAIN = {
    function.__name__: function
    for function in (
        reference.convolution,
        reference.tabulated_convolution,
        reference.atom_product,
        reference.linear,
        reference.gate,
        reference.interaction,
        reference.segment_sum,
        reference.num_owned,
        reference.ghost_exchange,
    )
}


@functools.cache
def load_operators() -> bool:
    """Load the kernels, or define their operators in plain torch; returns whether they are the kernels.

    So a model deployed where there are kernels also runs, slowly, where there are none. Call it before
    ``torch.jit.load``. :func:`equipot.ops.build.kernels_available` logs which path runs.
    """
    if kernels_available() or operators_registered():
        return True
    for name, function in PLAIN.items():
        # The kernels' schemas have plain integers.
        schema = torch.library.infer_schema(function, mutates_args=()).replace("SymInt", "int")
        torch.library.define(f"equipot::{name}", schema)
        torch.library.impl(f"equipot::{name}", "CompositeImplicitAutograd", function)
    return False


def know_types(moved: torch.Tensor, on_host: torch.Tensor, num_species: int) -> None:
    """Says of types (N,) that were ``moved`` to a GPU what they are.

    Maps of each species then need not wait for the GPU to count its atoms.
    """
    if load_operators():
        torch.ops.equipot.know_types(moved, on_host, num_species)


@contextlib.contextmanager
def plain_operators() -> Iterator[None]:
    """Inside, modules (not scripted ones) compute by plain torch: to compare the kernels with."""
    load_operators()
    compiled = {name: getattr(torch.ops.equipot, name) for name in PLAIN}
    try:
        for name, function in PLAIN.items():
            setattr(torch.ops.equipot, name, function)
        yield
    finally:
        for name, operator in compiled.items():
            setattr(torch.ops.equipot, name, operator)
