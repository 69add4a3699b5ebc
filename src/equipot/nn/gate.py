"""The equivariant nonlinearity."""

import torch
from e3nn import o3
from torch import Tensor, nn

from equipot.nn.mlp import SILU_FACTOR, TANH_FACTOR
from equipot.ops.operators import load_operators
from equipot.ops.paths import block_offsets


class Gate(nn.Module):
    """Scalars pass through a nonlinearity; every other irrep is multiplied by a nonlinear scalar of its own.

    Even scalars and gates: SiLU; odd scalars: tanh, which is odd, so parity is kept. ``irreps_in`` is what
    must be fed: the 0e block holds the scalars and, after them, the gates.
    Source: Weiler et al., NeurIPS 2018, sec. 3.3; Batzner et al., Nat. Commun. 13, 2453 (2022).
    """

    def __init__(self, irreps_out: o3.Irreps):
        super().__init__()
        load_operators()
        even, odd = o3.Irrep("0e"), o3.Irrep("0o")
        self.irreps_out = irreps_out
        self.num_even = irreps_out.count(even)
        self.num_odd = irreps_out.count(odd)
        gated = [(mul, ir) for mul, ir in irreps_out if ir.l > 0]
        self.num_gates = sum(mul for mul, _ in gated)
        self.silu_factor, self.tanh_factor = SILU_FACTOR, TANH_FACTOR
        blocks = [(self.num_even + self.num_gates, even)]
        blocks += [(self.num_odd, odd)] if self.num_odd > 0 else []
        self.irreps_in = o3.Irreps([*blocks, *gated])
        table = [
            [ir.dim, 0, mul, 0, start]
            for (mul, ir), start in zip(self.irreps_in, block_offsets(self.irreps_in), strict=True)
        ]
        self.register_buffer("table", torch.tensor(table, dtype=torch.int64), persistent=False)
        expected = [ir for _, ir in irreps_out if ir.l == 0] + [ir for _, ir in gated]
        if [ir for _, ir in irreps_out] != expected or self.num_even == 0:
            raise ValueError(f"irreps_out must start with 0e, then 0o, then the others: {irreps_out}")

    def forward(self, x: Tensor) -> Tensor:
        """(N, irreps_in.dim) → (N, irreps_out.dim)."""
        return torch.ops.equipot.gate(
            x, self.table, self.num_even, self.num_odd, self.silu_factor, self.tanh_factor
        )
