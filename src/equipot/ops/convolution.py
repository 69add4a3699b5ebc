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
    """Sum over neighbors of (neighbor's features ⊗ edge's harmonics) × weights of the edge.

        out[i, p, k, c] = Σ_{e: center(e)=i} w[e, p, c] Σ_{i'j} C^p[k, i', j] Y[e, j] x[neighbor(e), i', c]

    for every path p and channel c: e3nn's ``TensorProduct`` with "uvu" paths, weights for each edge and
    component normalisation, and the sum that follows. The weights may be any function of the edge. Nothing
    as long as edges × paths × components is stored; there are first and second derivatives by x, Y and w. On
    a GPU the kernel is compiled at the first call (engine/gpu/gpu_code.h). An `EquivariantLinear` from
    ``irreps_out`` mixes the channels. Source: Batzner et al., Nat. Commun. 13, 2453 (2022), eq. 7.

    >>> from equipot.ops.paths import convolution_paths
    >>> convolution = Convolution(convolution_paths("8x0e+4x1o", "0e+1o", "8x0e+4x1o"))
    >>> convolution.irreps_out  # side by side: 0e of 0⊗0 and 1⊗1, 1o of 0⊗1 and 1⊗0
    12x0e+12x1o
    >>> convolution.num_weights
    24

    Raises:
        ValueError: a degree exceeds 4.
    """

    def __init__(self, table: PathTable):
        super().__init__()
        load_operators()
        self.num_weights = table.num_weights
        self.irreps_in, self.irreps_out = table.irreps_in, table.irreps_out
        self.dim_out = table.irreps_out.dim
        degree = max(max(path.l_in, path.l_out) for path in table.paths)
        if degree > MAX_DEGREE:
            raise ValueError(f"features are of degree {MAX_DEGREE} at most, found {degree}")
        paths, coefficients = kernel_tables(table)
        self.register_buffer("paths", paths, persistent=False)
        self.register_buffer("coefficients", coefficients, persistent=False)

    def forward(self, x: Tensor, sh: Tensor, weights: Tensor, edge_index: Tensor) -> Tensor:
        """One row for each row of x: the sum over the edges whose center it is.

        Args:
            x: (N, irreps_in.dim), blocks of irreps, each (2l+1, channels).
            sh: (E, irreps_sh.dim), `SphericalHarmonics` of the edges' directions; all have the dtype of x.
            weights: (E, num_weights), in the order of the table's ``paths``, ``channels`` of each.
            edge_index: (2, E) int64, centers and neighbors, in any order; both are rows of x.

        Returns:
            (N, irreps_out.dim), zero where no edge ends.

        Raises:
            RuntimeError: shapes or dtypes that do not fit, an atom that is not there.
        """
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
