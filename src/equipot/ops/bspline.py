"""Functions of the distance as quintic B-splines on equal intervals of (0, cutoff).

f(r) = Σ_b B_b(u) c[k + b], k + u = r / h, h = cutoff / intervals, b = 0 … 5. The last five coefficients are
zero, so that the value and four derivatives vanish at the cutoff, as those of the model's own functions do
to lower order. Source of the splines: C. de Boor, A Practical Guide to Splines (1978), ch. IX.
"""

from collections.abc import Callable

import torch
from torch import Tensor

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


def sample_distances(intervals: int, cutoff: float) -> Tensor:
    """(M, 1) float64 Å: where :func:`fit_matrix` needs to know a function."""
    return _sample_positions(intervals) * (cutoff / intervals)


def fit_matrix(intervals: int) -> Tensor:
    """(intervals, M) float64: from a function's values to its splines, nearest in the mean square.

    The result is a function's first ``intervals`` coefficients; the last five are zero.
    """
    position = _sample_positions(intervals)
    interval = position.floor()
    design = torch.zeros(len(position), intervals + 5, dtype=torch.float64)
    columns = interval.to(torch.int64) + torch.arange(6)
    design.scatter_(1, columns, basis_splines(position - interval))
    return torch.linalg.pinv(design[:, :intervals])


def fit(function: Callable[[Tensor], Tensor], cutoff: float, intervals: int) -> Tensor:
    """Coefficients (intervals + 5, W) float64 of the splines nearest to ``function`` in the mean square.

    ``function`` maps distances (M, 1) float64 Å to values (M, W).
    """
    with torch.no_grad():
        values = function(sample_distances(intervals, cutoff)).double()
    free = fit_matrix(intervals) @ values
    return torch.cat([free, free.new_zeros(5, free.shape[1])])


def _sample_positions(intervals: int) -> Tensor:
    count = _SAMPLES_PER_INTERVAL * intervals
    return (torch.arange(count, dtype=torch.float64)[:, None] + 0.5) / _SAMPLES_PER_INTERVAL
