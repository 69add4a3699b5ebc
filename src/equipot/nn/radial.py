"""Functions of the distance alone."""

import math

import torch
from torch import Tensor, nn


class PolynomialCutoff(nn.Module):
    """u(x) = 1 − (p+1)(p+2)/2 x^p + p(p+2) x^(p+1) − p(p+1)/2 x^(p+2), x = r / cutoff; 0 beyond.

    Value, slope and curvature vanish at the cutoff. Source: Gasteiger et al. (DimeNet), ICLR 2020, eq. 8.
    """

    def __init__(self, p: int):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """x = r / cutoff, any shape → the same shape."""
        p = float(self.p)
        power = torch.pow(x, self.p)
        polynomial = 1.0 + power * (
            -0.5 * (p + 1.0) * (p + 2.0) + x * (p * (p + 2.0) - x * (0.5 * p * (p + 1.0)))
        )
        return polynomial * (x < 1.0).to(x.dtype)


class BesselBasis(nn.Module):
    """B_n(r) = 0.2 sin(nπx)/x · u(x), n = 1 … num_bessel, x = r / cutoff.

    DimeNet's radial basis (Gasteiger et al., ICLR 2020, eq. 7) times its cutoff. The factor keeps
    an untrained network's energies and forces of order one at bond distances: gates multiply, so that layers
    amplify a basis that is much larger (measured on 3BPA, four layers: 0.2 → 1, 1 → 10⁵).
    """

    def __init__(self, cutoff: float, num_bessel: int, polynomial_cutoff: int):
        super().__init__()
        self.cutoff = cutoff
        self.envelope = PolynomialCutoff(polynomial_cutoff)
        frequencies = math.pi * torch.arange(1, num_bessel + 1, dtype=torch.float64)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, edge_length: Tensor) -> Tensor:
        """(E, 1) Å → (E, num_bessel)."""
        x = edge_length / self.cutoff
        return torch.sin(x * self.frequencies) * (0.2 * self.envelope(x) / x)
