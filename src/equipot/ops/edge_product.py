"""Allegro's tensor product, as a matrix that each atom holds for all its edges.

The environment Γ belongs to the center, and the weights to the model. So everything but the features of an
edge is contracted once per atom, not once per edge:

    A[n, k, i, c] = Σ_j T[k, i, j, c] Γ[n, j, c],    T[k, i, j, c] = w[p, c] C^p[k, i, j] / √P_l
    out[e, k, c] = Σ_i A[center(e), k, i, c] V[e, i, c]

Both lines are the same operator: in the first, T is the one matrix that acts on all atoms.
"""

import torch
from e3nn import o3
from torch import Tensor, nn

from equipot.engine.program import Program
from equipot.ops.operators import load_operators
from equipot.ops.paths import PathTable, block_offsets


class EdgeProduct(nn.Module):
    """Channel-wise product of an edge's features with those of its center, a weight per path and channel.

        out[e, l, k, c] = 1/√P_l Σ_{p → l} w[p, c] Σ_{i, j} C^p[k, i, j] V[e, i, c] Γ[center(e), j, c]

    with P_l the number of paths into an output irrep. Source: Musaelian et al., Nat. Commun. 14, 579 (2023),
    eq. 10; one weight per path and channel as in Tan et al., arXiv:2504.16068 (2025).

    Raises:
        ValueError: the input irreps differ in their number of channels.
    """

    def __init__(self, table: PathTable):
        super().__init__()
        load_operators()
        widths = {mul for mul, _ in table.irreps_in}
        if len(widths) != 1:
            raise ValueError(f"every irrep needs the same number of channels: {table.irreps_in}")
        self.channels = widths.pop()
        self.rows, self.columns, self.environment_rows = (
            sum(ir.dim for _, ir in irreps) for irreps in (table.irreps_out, table.irreps_in, table.irreps_sh)
        )
        self.weight = nn.Parameter(torch.randn(len(table.paths), self.channels, dtype=torch.float64))
        path, coefficients = _dense_coupling(table)
        self.register_buffer("path", path, persistent=False)
        self.register_buffer("coefficients", coefficients, persistent=False)

    def coupling(self) -> Tensor:
        """T of the module's docstring: (K·I, J, C)."""
        weighted = self.weight.index_select(0, self.path) * self.coefficients
        return weighted.view(self.rows * self.columns, self.environment_rows, self.channels)

    @torch.jit.unused
    def steps(self, program: Program, tensors: str, environment: str) -> str:
        """As `Network.steps`."""
        sizes = {"rows": self.rows, "columns": self.columns, "environment_rows": self.environment_rows}
        inputs = [tensors, environment]
        return program.add("edge_product", inputs, weights=self.coupling(), channels=self.channels, **sizes)

    def forward(self, tensors: Tensor, environment: Tensor, center: Tensor) -> Tensor:
        """tensors (E, I, C), environment (N, J, C), center (E,) int64 → (E, K, C)."""
        num_atoms = environment.shape[0]
        everyone = torch.zeros(num_atoms, dtype=torch.int64, device=center.device)
        matrices = torch.ops.equipot.atom_product(self.coupling().unsqueeze(0), environment, everyone)
        matrices = matrices.view(num_atoms, self.rows, self.columns, self.channels)
        return torch.ops.equipot.atom_product(matrices, tensors, center)


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
