"""Densities as sums of Gaussian functions on atoms: their values, moments and overlaps. Lengths in Bohr.

A function χ is r^l Y_lm(r/|r|) Σ_k w_k exp(−a_k r²), with real harmonics in e3nn's order and signs, and of
norm 1: ∫ χ² dV = 1.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from e3nn import o3
from torch import Tensor

_POINTS_AT_ONCE = 2**16


class Shell(NamedTuple):
    """The functions of one degree on one element, and where a row has their coefficients."""

    degree: int
    exponents: Tensor  # (P,) Bohr⁻²
    weights: Tensor  # (n, P), norms included
    columns: slice  # of n · (2l + 1)

    def of(self, rows: Tensor) -> Tensor:
        """(N, K) → (N, n, 2l + 1)."""
        return rows[:, self.columns].reshape(len(rows), len(self.weights), 2 * self.degree + 1)


class GaussianBasis:
    """The functions of each type of atoms.

    Args:
        basis: by element its shells, each with ``l``, ``exponents`` (P numbers, Bohr⁻²) and ``coefficients``,
            P numbers for each function, of primitives of norm 1; None: each primitive is a function.
        irreps: of a row of coefficients, (K,): a term for each degree, of as many functions as the element
            with most of them has. The first ones are those of an element; the others stand for nothing.
        species: element of each type.
    """

    def __init__(
        self,
        basis: Mapping[str, Sequence[Mapping[str, Any]]],
        irreps: str,
        species: Sequence[str],
        device: torch.device | str = "cpu",
    ):
        terms = o3.Irreps(irreps)
        starts = {ir.l: part.start for (_, ir), part in zip(terms, terms.slices(), strict=True)}
        self.shells = [list(_shells(basis[element], starts, device)) for element in species]
        # ∫ χ and ∫ r χ, the center at the origin.
        self.integrals = torch.zeros(len(species), terms.dim, dtype=torch.float64, device=device)
        self.dipoles = torch.zeros(len(species), terms.dim, 3, dtype=torch.float64, device=device)
        for kind, shell in ((kind, shell) for kind, shells in enumerate(self.shells) for shell in shells):
            gaussian = shell.weights * (math.pi / shell.exponents) ** 1.5 / math.sqrt(4 * math.pi)
            if shell.degree == 0:
                self.integrals[kind, shell.columns] = gaussian.sum(dim=1)
            elif shell.degree == 1:  # ∫ x² exp(−a r²) dV = (π/a)^(3/2) / 2a
                of_x = math.sqrt(3) * (gaussian / (2 * shell.exponents)).sum(dim=1)
                self.dipoles[kind, shell.columns] = torch.kron(of_x[:, None], torch.eye(3).to(of_x))

    def density(self, points: Tensor, rows: Tensor, positions: Tensor, types: Tensor) -> Tensor:
        """(G, 3), (N, K), (N, 3), (N,) → (G,) Bohr⁻³."""
        parts = []
        for part in points.split(_POINTS_AT_ONCE):
            total = part.new_zeros(len(part))
            for row, center, kind in zip(rows, positions, types.tolist(), strict=True):
                apart = part - center
                squared = apart.square().sum(dim=1, keepdim=True)
                for shell in self.shells[kind]:
                    radial = torch.exp(-squared * shell.exponents) @ shell.weights.T
                    total += ((radial @ shell.of(row[None])[0]) * _solid(shell.degree, apart)).sum(dim=1)
            parts.append(total)
        return torch.cat(parts)

    def moments(self, rows: Tensor, positions: Tensor, types: Tensor) -> tuple[Tensor, Tensor]:
        """(N, K), (N, 3), (N,) → ∫ρ of each atom's functions (N,), and ∫ r ρ of them all (3,)."""
        charges = (rows * self.integrals[types]).sum(dim=1)
        return charges, charges @ positions + torch.einsum("nk,nkx->x", rows, self.dipoles[types])

    @torch.no_grad()
    def times_overlap(self, rows: Tensor, positions: Tensor, types: Tensor, structure: Tensor) -> Tensor:
        """S · coefficients, with S = ∫ χ χ' dV: (N, K), (N, 3), (N,), (N,) → (N, K). No gradient.

        Atoms of one structure overlap, all of them, but no periodic images. Zero where there is no function.
        """
        found = torch.zeros_like(rows)
        of_type = [torch.nonzero(types == kind)[:, 0] for kind in range(len(self.shells))]
        for mine, shells in zip(of_type, self.shells, strict=True):
            for theirs, others in zip(of_type, self.shells, strict=True):
                i, j = torch.nonzero(structure[mine][:, None] == structure[theirs], as_tuple=True)
                i, j = mine[i], theirs[j]
                apart = positions[j] - positions[i]
                squared = apart.square().sum(dim=1)[:, None, None]
                highest = max(a.degree for a in shells) + max(b.degree for b in others)
                solids = [_solid(degree, apart) for degree in range(highest + 1)]
                for a in shells:
                    of_pair = sum(_overlap(a, b, squared, solids, b.of(rows[j])) for b in others)
                    found[:, a.columns].index_add_(0, i, of_pair.flatten(1))
        return found


def _shells(
    shells: Sequence[Mapping[str, Any]], starts: Mapping[int, int], device: torch.device | str
) -> Iterator[Shell]:
    taken = dict(starts)
    for shell in shells:
        degree, exponents = shell["l"], torch.tensor(shell["exponents"], dtype=torch.float64)
        given = shell["coefficients"] or torch.eye(len(exponents)).tolist()
        # ∫ r^(2l+2) exp(−c r²) dr = Γ(l + 3/2) / 2c^(l + 3/2), with orthonormal harmonics.
        half_gamma, power = math.gamma(degree + 1.5) / 2, degree + 1.5
        weights = torch.tensor(given, dtype=torch.float64) * ((2 * exponents) ** power / half_gamma).sqrt()
        square = half_gamma / (exponents[:, None] + exponents) ** power
        weights = weights / torch.einsum("nk,kl,nl->n", weights, square, weights).sqrt()[:, None]
        first = taken[degree]
        taken[degree] += len(weights) * (2 * degree + 1)
        columns = slice(first, taken[degree])
        yield Shell(degree, exponents.to(device), weights.to(device), columns)


def _solid(degree: int, vectors: Tensor) -> Tensor:
    """(G, 3) → (G, 2l + 1) r^l Y_lm."""
    return o3.spherical_harmonics(degree, vectors, normalize=False, normalization="integral")


@cache
def _gaunt(a: int, b: int, c: int) -> Tensor:
    """(2a + 1, 2b + 1, 2c + 1) ∫ Y_a Y_b Y_c dΩ; the components in the middle are those that a pole has."""
    three_j = o3.wigner_3j(a, b, c, dtype=torch.float64)
    return three_j * three_j[a, b, c] * math.sqrt((2 * a + 1) * (2 * b + 1) * (2 * c + 1) / (4 * math.pi))


def _overlap(a: Shell, b: Shell, squared: Tensor, solids: Sequence[Tensor], coefficients: Tensor) -> Tensor:
    """S of pairs (R², (E, 1, 1), and R^L Y_L, (E, 2L + 1)) times (E, n_b, 2l_b + 1) → (E, n_a, 2l_a + 1).

    In Fourier space a function is again a Gaussian times a harmonic, so that with p = 1/4a + 1/4b
    S = Σ_L ∫Y_a Y_b Y_L Y_L(R) 4π/(2π)³ ± ∫ k^(2 + l_a + l_b) exp(−p k²) j_L(kR) dk …, whose integral is
    √π n! R^L / (2^(L+2) p^(n+L+3/2)) exp(−x) L_n^(L+1/2)(x), x = R²/4p, n = (l_a + l_b − L)/2
    (E. J. Weniger and E. O. Steinborn, J. Chem. Phys. 78, 6121 (1983)).
    """
    one, other = a.exponents[:, None], b.exponents
    p = 0.25 / one + 0.25 / other
    x = squared / (4 * p)
    front = (math.pi**2 / (one * other)) ** 1.5 / (2 * math.pi**2)
    front = front / ((2 * one) ** a.degree * (2 * other) ** b.degree) * torch.exp(-x)
    total = 0.0
    for degree in range(abs(a.degree - b.degree), a.degree + b.degree + 1, 2):
        n = (a.degree + b.degree - degree) // 2
        sign = (-1) ** ((a.degree - b.degree - degree) // 2)
        factor = sign * math.sqrt(math.pi) * math.factorial(n) / 2 ** (degree + 2)
        radial = front * factor * _laguerre(n, degree + 0.5, x) / p ** (n + degree + 1.5)
        angular = torch.einsum("mnk,ek->emn", _gaunt(a.degree, b.degree, degree).to(x), solids[degree])
        contracted = a.weights @ radial @ b.weights.T
        total = total + contracted @ (coefficients @ angular.transpose(1, 2))
    return total


def _laguerre(n: int, alpha: float, x: Tensor) -> Tensor:
    """The associated Laguerre polynomial L_n^(α)(x), by its recurrence."""
    before, value = torch.zeros_like(x), torch.ones_like(x)
    for k in range(n):
        before, value = value, ((2 * k + 1 + alpha - x) * value - (k + alpha) * before) / (k + 1)
    return value
