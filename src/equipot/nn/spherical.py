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
        # Monomial k of degree d is number product[k] of the products of the coordinates with those of d - 1.
        steps = [_raise_degree(degree) for degree in range(l_max)]
        self.sizes = [len(products) for products in steps]
        product = torch.tensor([i for products in steps for i in products], dtype=torch.int64)
        self.register_buffer("product", product, persistent=False)
        self.register_buffer("coefficients", self._fit_coefficients(), persistent=False)

    def _monomials(self, unit_vec: Tensor) -> list[Tensor]:
        monomial = torch.ones_like(unit_vec[:, :1])
        monomials = [monomial]
        start = 0
        for size in self.sizes:
            products = (unit_vec.unsqueeze(2) * monomial.unsqueeze(1)).flatten(1)
            # Each at most once, so that on a GPU no two threads add to one place in backward.
            monomial = products.index_select(1, self.product[start : start + size])
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


def _raise_degree(degree: int) -> list[int]:
    """Which products of a coordinate and a monomial of ``degree`` are the monomials of ``degree + 1``."""
    exponents = _exponents(degree)
    products = []
    for target in _exponents(degree + 1):
        axis = next(a for a in range(3) if target[a] > 0)
        lower = tuple(n - (a == axis) for a, n in enumerate(target))
        products.append(axis * len(exponents) + exponents.index(lower))
    return products


def _exponents(degree: int) -> list[tuple[int, int, int]]:
    return [(a, b, degree - a - b) for a in range(degree, -1, -1) for b in range(degree - a, -1, -1)]
