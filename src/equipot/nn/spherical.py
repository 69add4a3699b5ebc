"""Real spherical harmonics as polynomials of the edge direction."""

from typing import Any

import torch
from e3nn import o3
from torch import Tensor, nn


class SphericalHarmonics(nn.Module):
    """Y_l(r/|r|) for l = 0 … l_max, component-normalised: Σ_m Y_lm² = 2l + 1.

    The definition (axes, order, signs) is e3nn's. A harmonic of degree l is a homogeneous polynomial, so all
    of them are one matrix product with the monomials of the unit vector. l_max may be from 0 to 4.
    """

    def __init__(self, l_max: int):
        super().__init__()
        if not 0 <= l_max <= 4:
            raise ValueError(f"l_max must be from 0 to 4, found {l_max}")
        self.l_max = l_max
        self.register_buffer("coefficients", self._fit_coefficients(), persistent=False)

    def _monomials(self, unit_vec: Tensor) -> list[Tensor]:
        """Those of each degree; cyclic permutations lie together, as products of whole vectors."""
        monomials = [torch.ones_like(unit_vec[:, :1]), unit_vec][: self.l_max + 1]
        if self.l_max >= 2:
            following = torch.roll(unit_vec, -1, 1)  # y z x
            squares, mixed = unit_vec * unit_vec, unit_vec * following  # xx yy zz, xy yz zx
            monomials.append(torch.cat([squares, mixed], dim=1))
            if self.l_max >= 3:
                vectors = [unit_vec, following, torch.roll(unit_vec, 1, 1)]
                cubic = [squares * vector for vector in vectors]
                cubic.append(mixed[:, :1] * unit_vec[:, 2:])
                monomials.append(torch.cat(cubic, dim=1))
            if self.l_max >= 4:
                factors = [squares, mixed, torch.roll(mixed, -1, 1), torch.roll(mixed, 1, 1)]
                quartic = [squares * factor for factor in factors]
                quartic.append(mixed * mixed)
                monomials.append(torch.cat(quartic, dim=1))
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

    @torch.jit.unused
    def facts(self) -> dict[str, Any]:
        """What a program says of them: the powers of x, y and z in each monomial, and the coefficients."""
        # The powers of three primes can be told apart.
        primes = torch.tensor([[2.0, 3.0, 5.0]], dtype=torch.float64)
        powers = []
        for monomial in torch.cat(self._monomials(primes), dim=1)[0].round().long().tolist():
            found = []
            for prime in (2, 3, 5):
                found.append(next(n for n in range(9) if monomial % prime ** (n + 1)))
            powers.append(found)
        return {"powers": powers, "coefficients": self.coefficients}

    def forward(self, unit_vec: Tensor) -> Tensor:
        """(E, 3) unit vectors → (E, (l_max + 1)²); of vectors of length r it is r^l Y_l."""
        return torch.mm(torch.cat(self._monomials(unit_vec), dim=1), self.coefficients)
