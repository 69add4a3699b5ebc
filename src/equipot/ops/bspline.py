"""Functions of the distance as quintic B-splines on equal intervals of (0, cutoff).

f(r) = Σ_b B_b(u) c[k + b], k + u = r / h, h = cutoff / intervals, b = 0 … 5. The last five coefficients are
zero, so that the value and four derivatives vanish at the cutoff, as those of the model's own functions do
to lower order; of functions with a kink see `Grid`. Source of the splines: C. de Boor, A Practical Guide to
Splines (1978), ch. IX.
"""

import math
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor, nn

_SAMPLES_PER_INTERVAL = 3


def basis_splines(u: Tensor) -> Tensor:
    """(E, 1) in [0, 1) → (E, 6), summing to one."""
    v, u2, u3, u4, u5 = 1.0 - u, u**2, u**3, u**4, u**5
    splines = [
        v**5,
        26.0 - 50.0 * u + 20.0 * (u2 + u3 - u4) + 5.0 * u5,
        66.0 - 60.0 * u2 + 30.0 * u4 - 10.0 * u5,
        26.0 + 50.0 * u + 20.0 * (u2 - u3 - u4) + 10.0 * u5,
        1.0 + 5.0 * (u + u4 - u5) + 10.0 * (u2 + u3),
        u5,
    ]
    return torch.cat(splines, dim=1) / 120.0


def interpolate(edge_length: Tensor, table: Tensor, cutoff: float) -> Tensor:
    """edge_length (E, 1), table (intervals + 5, W) → (E, W); zero from the cutoff on."""
    intervals = table.shape[0] - 5
    position = edge_length / cutoff * intervals
    interval = position.detach().floor().clamp(0.0, float(intervals - 1))
    splines = basis_splines(position - interval) * (position < intervals).to(table.dtype)
    columns = interval.to(torch.int64) + torch.arange(6, device=table.device)
    # A product with few rows costs less than gathering six rows as wide as the table for every edge.
    if intervals <= 256:
        return torch.mm(splines.new_zeros(len(splines), intervals + 5).scatter(1, columns, splines), table)
    value = splines[:, :1] * table.index_select(0, columns[:, 0])
    for b in range(1, 6):
        value = value + splines[:, b : b + 1] * table.index_select(0, columns[:, b])
    return value


class Grid:
    """About ``intervals`` equal intervals of (0, ``cutoff``), Å, and where functions are sampled to fit them.

    At a ``kink`` (Å) and at the cutoff the second derivative may jump. There are then two pieces of splines
    with free ends, below the kink and above, whose coefficients lie one behind the other in the table. Who
    evaluates them shifts distances by ``below`` or ``above`` (Å), which are five intervals apart, so that the
    same formula finds the coefficients of either piece. ``free``: the end is free without a kink, too, for
    functions whose third derivative jumps at the cutoff, as the polynomial envelope's.
    """

    end: float  # Å, what is the cutoff to who evaluates the table
    fixed: int  # coefficients at the end of the table that are zero

    def __init__(self, intervals: int, cutoff: float, kink: float | None = None, free: bool = False):
        self.kink, self.below, self.above = kink, 0.0, 0.0
        if kink is None:
            self.end, self.fixed = cutoff, 0 if free else 5
            count = _SAMPLES_PER_INTERVAL * intervals
            position = (torch.arange(count, dtype=torch.float64)[:, None] + 0.5) / _SAMPLES_PER_INTERVAL
            if free:
                position = torch.cat([position, position.new_full((1, 1), intervals)])
            self.samples = position * (cutoff / intervals)  # (M, 1) float64 Å
            self._pieces = [(intervals, position)]
            return
        last = max(round(intervals * (1 - kink / cutoff)), 1)
        width = (cutoff - kink) / last
        first = math.ceil(kink / width - 1e-9)
        self.below = first * width - kink
        self.above = self.below + 5 * width
        self.end, self.fixed = (first + 5 + last) * width, 0
        lower, upper = (
            torch.arange(_SAMPLES_PER_INTERVAL * n + 1, dtype=torch.float64)[:, None] / _SAMPLES_PER_INTERVAL
            for n in (first, last)
        )
        lower = lower[lower[:, 0] * width > self.below + 1e-6 * width]  # no distance is zero
        self.samples = torch.cat([lower * width - self.below, kink + upper * width])
        self._pieces = [(first, lower), (last, upper)]

    @cached_property
    def matrix(self) -> Tensor:
        """(rows, M) float64: from values at ``samples`` to the table without the ``fixed`` coefficients.

        The splines are nearest in the mean square.
        """
        blocks = []
        for intervals, position in self._pieces:
            interval = position.floor().clamp(max=intervals - 1)
            design = torch.zeros(len(position), intervals + 5, dtype=torch.float64)
            columns = interval.to(torch.int64) + torch.arange(6)
            design.scatter_(1, columns, basis_splines(position - interval))
            blocks.append(torch.linalg.pinv(design[:, : intervals + 5 - self.fixed]))
        return torch.block_diag(*blocks)

    def fit(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Coefficients (rows, W) float64 of the splines nearest to ``function`` in the mean square.

        ``function`` maps distances (M, 1) float64 Å to values (M, W).
        """
        with torch.no_grad():
            values = function(self.samples).double()
        return nn.functional.pad(self.matrix @ values, [0, 0, 0, self.fixed])
