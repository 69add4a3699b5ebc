"""Real spherical harmonics as polynomials of the edge direction."""

import torch
from e3nn import o3
from torch import Tensor, nn


class SphericalHarmonics(nn.Module):
    """Y_l(r/|r|) for l = 0 … l_max, component-normalised: Σ_m Y_lm² = 2l + 1.

    The definition (axes, order, signs) is e3nn's. A harmonic of degree l is a homogeneous polynomial, so all
    of them are one matrix product with the monomials of the unit vector.
    """

    sizes: list[int]

    def __init__(self, l_max: int):
        super().__init__()
        self.l_max = l_max
        # Monomial k of degree d is monomial parent[k] of degree d - 1 times coordinate axis[k].
        steps = [_raise_degree(degree) for degree in range(l_max)]
        self.sizes = [len(parents) for parents, _ in steps]
        parent = torch.tensor([i for parents, _ in steps for i in parents], dtype=torch.int64)
        axis = torch.tensor([i for _, axes in steps for i in axes], dtype=torch.int64)
        self.register_buffer("parent", parent, persistent=False)
        self.register_buffer("axis", axis, persistent=False)
        self.register_buffer("coefficients", self._fit_coefficients(), persistent=False)

    def _monomials(self, unit_vec: Tensor) -> list[Tensor]:
        monomial = torch.ones_like(unit_vec[:, :1])
        monomials = [monomial]
        start = 0
        for size in self.sizes:
            parent, axis = self.parent[start : start + size], self.axis[start : start + size]
            monomial = monomial.index_select(1, parent) * unit_vec.index_select(1, axis)
            monomials.append(monomial)
            start += size
        return monomials

    def _fit_coefficients(self) -> Tensor:
        """Solve for e3nn's values at random points: the harmonics are polynomials, so this is exact.

        The solver's last bits differ from call to call. Squares of the coefficients are multiples of 1/64 for
        l ≤ 4, so they are rounded to these: a resumed training then computes with the same bits.
        """
        generator = torch.Generator().manual_seed(0)
        points = torch.randn(64, 3, generator=generator, dtype=torch.float64)
        points = points / points.norm(dim=1, keepdim=True)
        blocks = []
        for degree, monomial in enumerate(self._monomials(points)):
            values = o3.spherical_harmonics(degree, points, normalize=False, normalization="component")
            solution = torch.linalg.lstsq(monomial, values).solution
            squares = (64 * solution.square()).round() / 64
            assert (squares.sqrt() - solution.abs()).abs().max() < 1e-6  # the root of a rounded zero
            blocks.append(solution.sign() * squares.sqrt() + 0.0)  # no negative zeros
        return torch.block_diag(*blocks)

    def forward(self, unit_vec: Tensor) -> Tensor:
        """(E, 3) unit vectors → (E, (l_max + 1)²)."""
        return torch.mm(torch.cat(self._monomials(unit_vec), dim=1), self.coefficients)


def _raise_degree(degree: int) -> tuple[list[int], list[int]]:
    """Parents and axes that make the monomials of ``degree + 1`` from those of ``degree``."""
    exponents = _exponents(degree)
    parents, axes = [], []
    for target in _exponents(degree + 1):
        axis = next(a for a in range(3) if target[a] > 0)
        lower = tuple(n - (a == axis) for a, n in enumerate(target))
        parents.append(exponents.index(lower))
        axes.append(axis)
    return parents, axes


def _exponents(degree: int) -> list[tuple[int, int, int]]:
    return [(a, b, degree - a - b) for a in range(degree, -1, -1) for b in range(degree - a, -1, -1)]
