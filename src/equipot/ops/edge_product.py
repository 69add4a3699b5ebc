"""Allegro's tensor product, as a matrix that each atom holds for all its edges.

The environment Γ belongs to the center, and the weights to the model. So everything but the features of an
edge is contracted once per atom, not once per edge:

    A[n, k, i, c] = Σ_j T[k, i, j, c] Γ[n, j, c],    T[k, i, j, c] = w[p, c] C^p[k, i, j] / √P_l
    out[e, k, c] = Σ_i A[center(e), k, i, c] V[e, i, c]

Both lines are the same operator: in the first, T is the one matrix that acts on all atoms.
"""

from typing import Final

import torch
from e3nn import o3
from torch import Tensor, nn

from equipot.ops.build import kernels_available
from equipot.ops.paths import PathTable, block_offsets


class EdgeProduct(nn.Module):
    """Channel-wise product of an edge's features with those of its center, a weight per path and channel.

    What it computes is spelled out in :class:`equipot.ops.reference.EdgeProductReference`. Whether the kernel
    is used is decided as in :class:`equipot.ops.convolution.Convolution`.

    Raises:
        ValueError: the input irreps differ in their number of channels.
    """

    use_kernel: Final[bool]

    def __init__(self, table: PathTable, use_kernel: bool | None = None):
        super().__init__()
        widths = {mul for mul, _ in table.irreps_in}
        if len(widths) != 1:
            raise ValueError(f"every irrep needs the same number of channels: {table.irreps_in}")
        self.channels = widths.pop()
        self.rows, self.columns, self.environment_rows = (
            sum(ir.dim for _, ir in irreps) for irreps in (table.irreps_out, table.irreps_in, table.irreps_sh)
        )
        self.use_kernel = kernels_available() if use_kernel is None else use_kernel
        self.weight = nn.Parameter(torch.randn(len(table.paths), self.channels, dtype=torch.float64))
        path, coefficients = _dense_coupling(table)
        self.register_buffer("path", path, persistent=False)
        self.register_buffer("coefficients", coefficients, persistent=False)

    def forward(self, tensors: Tensor, environment: Tensor, center: Tensor) -> Tensor:
        """tensors (E, I, C), environment (N, J, C), center (E,) int64 → (E, K, C)."""
        num_atoms = environment.shape[0]
        weighted = self.weight.index_select(0, self.path) * self.coefficients
        coupling = weighted.view(1, self.rows * self.columns, self.environment_rows, self.channels)
        everyone = torch.zeros(num_atoms, dtype=torch.int64, device=center.device)
        matrices = self._product(coupling, environment, everyone)
        return self._product(
            matrices.view(num_atoms, self.rows, self.columns, self.channels), tensors, center
        )

    def _product(self, matrices: Tensor, x: Tensor, center: Tensor) -> Tensor:
        if self.use_kernel and (x.is_cpu or x.is_cuda):
            return torch.ops.equipot.atom_product(matrices, x, center)
        return atom_product_reference(matrices, x, center)


def atom_product_reference(matrices: Tensor, x: Tensor, center: Tensor, transposed: bool = False) -> Tensor:
    """matrices (N, K, I, C), x (E, I, C), center (E,) → (E, K, C); transposed: (E, K, C) → (E, I, C)."""
    if transposed:
        matrices = matrices.transpose(1, 2)
    if matrices.shape[0] == 1:
        return torch.einsum("kic,eic->ekc", matrices[0], x)
    return torch.einsum("ekic,eic->ekc", matrices.index_select(0, center), x)


def _dense_coupling(table: PathTable) -> tuple[Tensor, Tensor]:
    """For each element of T, flat in (k, i, j): its path, and its coefficient (K·I·J, 1) float64.

    The blocks that k, i and j lie in say which path an element belongs to. Elements of no path are zero.
    """
    sizes = [
        sum(ir.dim for _, ir in irreps) for irreps in (table.irreps_out, table.irreps_in, table.irreps_sh)
    ]
    index, values = torch.zeros(sizes, dtype=torch.int64), torch.zeros(sizes, dtype=torch.float64)
    row_starts = block_offsets(o3.Irreps([(1, ir) for _, ir in table.irreps_out]))
    for number, path in enumerate(table.paths):
        rows, columns, harmonics = path.coefficients.shape
        k, i, j = row_starts[path.out_block], path.in_offset // path.channels, path.l_sh**2
        place = (slice(k, k + rows), slice(i, i + columns), slice(j, j + harmonics))
        index[place] = number
        values[place] = path.coefficients * table.num_paths_into(path.out_block) ** -0.5
    return index.flatten(), values.flatten()[:, None]
