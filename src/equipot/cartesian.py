"""Cartesian tensors with symmetric indices, of any rank: how they are written down, and their irreps.

A symmetry is written as e3nn does: ``ijk=ikj`` is a tensor of rank 3 whose last two indices may change
places, ``ij=-ji`` an antisymmetric one, ``ijk`` one without any symmetry.
"""

from functools import cache
from typing import TYPE_CHECKING

from equipot.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_RANK = 4
Permutation = tuple[int, ...]


def symmetric(rank: int) -> str:
    """All indices may change places: ``ijk=jik=ikj``."""
    first = "ijkl"[:rank]
    swaps = (first[:n] + first[n + 1] + first[n] + first[n + 2 :] for n in range(rank - 1))
    return "=".join([first, *swaps])


def rank_of(symmetry: str) -> int:
    """Number of indices; 0 of an empty text."""
    return len(symmetry.partition("=")[0])


@cache
def permutations(symmetry: str) -> dict[Permutation, int]:
    """All axes (for ``transpose``) that a tensor of this symmetry may be read in, and the sign it then has.

    Raises:
        ConfigError: not such a text; or no tensor but 0 has this symmetry.
    """
    first, *others = symmetry.split("=")
    signs = [-1 if term.startswith("-") else 1 for term in others]
    terms = [term.removeprefix("-") for term in others]
    letters = first.isascii() and first.isalpha() and len(set(first)) == len(first)
    if not (letters and 2 <= len(first) <= MAX_RANK and all(sorted(t) == sorted(first) for t in terms)):
        raise ConfigError(
            f"'{symmetry}': expected 2 to {MAX_RANK} different letters and, after each '=', the same in an "
            "order that changes nothing, or with '-' the sign, as in ijk=ikj."
        )
    given = [(tuple(map(term.index, first)), sign) for term, sign in zip(terms, signs, strict=True)]
    found = {tuple(range(len(first))): 1}
    new = dict(found)
    while new:  # products with what is given, until there are no new ones
        made = [(tuple(axes[n] for n in by), sign * own) for axes, sign in new.items() for by, own in given]
        new = {axes: sign for axes, sign in made if axes not in found}
        found |= new
        if any(found[axes] != sign for axes, sign in made):
            raise ConfigError(f"'{symmetry}': only 0 has this symmetry.")
    return found


def symmetrised(tensors: "NDArray", symmetry: str) -> "NDArray":
    """(..., 3, 3 and so on) → the same, their mean over all orders of the indices."""
    orders, before = permutations(symmetry), tensors.ndim - rank_of(symmetry)
    leading = tuple(range(before))
    return sum(
        sign * tensors.transpose(leading + tuple(before + axis for axis in axes))
        for axes, sign in orders.items()
    ) / len(orders)


@cache
def irreps_basis(symmetry: str) -> "dict[int, NDArray]":
    """By degree l, (multiplicity, 2l + 1, 3^rank) float64, orthonormal: irreps in Cartesian components.

    Vectors are coupled one after the other, (((1 ⊗ 1) → l) ⊗ 1) → l', by Clebsch–Gordan coefficients; what is
    symmetric of it, by Schur's lemma, is the same combination of the ways to l' in all 2l' + 1 components.
    """
    import numpy as np
    from e3nn.o3 import wigner_3j
    from torch import float64

    def coupled(way: "NDArray", degree: int) -> "NDArray":
        three_j = wigner_3j(degree, len(way) // 2, 1, dtype=float64).numpy()
        return len(three_j) ** 0.5 * np.einsum("oiv,i...->o...v", three_j, way)

    ways = [np.eye(3)]  # each (2l + 1, 3, 3 and so on)
    for _ in range(rank_of(symmetry) - 1):
        ways = [coupled(w, out) for w in ways for out in range(abs(len(w) // 2 - 1), len(w) // 2 + 2)]
    found: dict[int, list[NDArray]] = {}
    for way in sorted(ways, key=len):
        known = found.setdefault(len(way) // 2, [])
        left = symmetrised(way, symmetry).reshape(len(way), -1)
        for other in known:
            left = left - (other * left).sum() / len(left) * other
        norm = ((left**2).sum() / len(left)) ** 0.5
        if norm > 1e-6:
            known.append(left / norm)
    return {degree: np.stack(known) for degree, known in found.items() if known}
