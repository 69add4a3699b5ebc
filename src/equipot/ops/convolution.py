"""The equivariant convolution of message passing."""

from typing import Any

import torch
from torch import Tensor, nn

from equipot.ops.operators import load_operators
from equipot.ops.paths import PathTable

MAX_DEGREE = 4  # of features; max_degree in csrc/form.h


def kernel_tables(table: PathTable) -> tuple[Tensor, Tensor]:
    """What the operator ``equipot::convolution`` needs to know of the paths.

    Returns ``paths`` (P, 9) int64 with columns l_in, l_sh, l_out, channels, in_offset, weight_offset,
    out_offset, out_stride, coefficient_offset, and ``coefficients``, flat float64. Paths of equal degrees
    share coefficients, hence, in the kernel, the small matrix that acts on all their channels.
    """
    rows, coefficients, offsets, end = [], [], {}, 0
    for path in table.paths:
        degrees = (path.l_in, path.l_sh, path.l_out)
        if degrees not in offsets:
            offsets[degrees] = end
            coefficients.append(path.coefficients.reshape(-1))
            end += path.coefficients.numel()
        place = (path.channels, path.in_offset, path.weight_offset, path.out_offset, path.out_stride)
        rows.append([*degrees, *place, offsets[degrees]])
    return torch.tensor(rows, dtype=torch.int64), torch.cat(coefficients)


class Convolution(nn.Module):
    """Sum over neighbors of (neighbor features ⊗ edge harmonics) × radial weights.

    :func:`equipot.ops.reference.convolution` says what it computes. The kernel has first and second
    derivatives. On a GPU it is compiled at the first call (csrc/gpu_code.h).

    Raises:
        ValueError: a degree exceeds 4.
    """

    def __init__(self, table: PathTable):
        super().__init__()
        load_operators()
        self.num_weights = table.num_weights
        self.dim_out = table.irreps_out.dim
        degree = max(max(path.l_in, path.l_out) for path in table.paths)
        if degree > MAX_DEGREE:
            raise ValueError(f"features are of degree {MAX_DEGREE} at most, found {degree}")
        paths, coefficients = kernel_tables(table)
        self.register_buffer("paths", paths, persistent=False)
        self.register_buffer("coefficients", coefficients, persistent=False)

    def forward(self, x: Tensor, sh: Tensor, weights: Tensor, edge_index: Tensor) -> Tensor:
        """x (N, irreps_in.dim), sh (E, irreps_sh.dim), weights (E, num_weights) → (N, irreps_out.dim)."""
        return torch.ops.equipot.convolution(
            x, sh, weights, edge_index, self.paths, self.coefficients, self.dim_out
        )


def _steps_facts(convolution: Convolution, radial: dict[str, Any]) -> dict[str, Any]:
    """What a program says of a convolution."""
    tables = {"paths": convolution.paths, "coefficients": convolution.coefficients}
    return {"radial": radial, **tables, "dim_messages": convolution.dim_out}


class RadialConvolution(nn.Module):
    """A :class:`Convolution` whose weights are a function of the distance, evaluated at every edge."""

    def __init__(self, convolution: Convolution, radial: nn.Module):
        super().__init__()
        self.convolution, self.radial = convolution, radial

    @torch.jit.unused
    def facts(self) -> dict[str, Any]:
        """What a program says of it."""
        basis, network = self.radial.basis.facts(), self.radial.network.packed()
        return _steps_facts(self.convolution, {"basis": basis, "layers": network})

    def forward(self, x: Tensor, sh: Tensor, edge_length: Tensor, edge_index: Tensor) -> Tensor:
        """x (N, irreps_in.dim), sh (E, irreps_sh.dim), edge_length (E, 1) Å → (N, irreps_out.dim)."""
        return self.convolution(x, sh, self.radial(edge_length), edge_index)


class TabulatedConvolution(nn.Module):
    """A :class:`Convolution` whose weights are splines of the distance.

    The kernel reads the spline coefficients (``radial.table()``) and interpolates them itself: nothing of the
    size of edges times weights is ever stored.

    Args:
        convolution: which paths.
        radial: :class:`equipot.nn.radial.RadialSplines` or :class:`equipot.nn.radial.RadialTable`.
        cutoff: Å; where the splines end.
    """

    def __init__(self, convolution: Convolution, radial: nn.Module, cutoff: float):
        super().__init__()
        self.convolution, self.radial, self.cutoff = convolution, radial, cutoff

    @torch.jit.unused
    def facts(self) -> dict[str, Any]:
        """What a program says of it."""
        return _steps_facts(self.convolution, {"table": self.radial.table(), "cutoff": self.cutoff})

    def forward(self, x: Tensor, sh: Tensor, edge_length: Tensor, edge_index: Tensor) -> Tensor:
        """x (N, irreps_in.dim), sh (E, irreps_sh.dim), edge_length (E, 1) Å → (N, irreps_out.dim)."""
        return torch.ops.equipot.tabulated_convolution(
            x,
            sh,
            edge_length,
            self.radial.table(),
            edge_index,
            self.convolution.paths,
            self.convolution.coefficients,
            self.cutoff,
            self.convolution.dim_out,
        )
