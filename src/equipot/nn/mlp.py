"""Multilayer perceptron without biases, and what keeps its nonlinearity at unit variance."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from equipot.engine.program import Program


def _second_moment_factor(function) -> float:
    """1/√E[f(z)²] for z ~ N(0, 1), by Gauss–Hermite quadrature: keeps the second moment of z."""
    points, weights = np.polynomial.hermite_e.hermegauss(100)
    values = function(torch.from_numpy(points)).numpy()
    return float((weights @ values**2 / weights.sum()) ** -0.5)


SILU_FACTOR = _second_moment_factor(nn.functional.silu)
TANH_FACTOR = _second_moment_factor(torch.tanh)


class Dense(nn.Module):
    """x ↦ factor · x W / √n_in, W ~ N(0, 1): unit variance in, unit variance out."""

    def __init__(self, n_in: int, n_out: int, factor: float = 1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_in, n_out, dtype=torch.float64))
        self.factor = factor / n_in**0.5

    @torch.jit.unused
    def packed(self) -> list[Tensor]:
        """One matrix (n_in, n_out), scaled."""
        return [self.weight * self.factor]

    def forward(self, x: Tensor) -> Tensor:
        return torch.mm(x, self.weight * self.factor)


class MLP(nn.Module):
    """Dense layers with SiLU between them and no biases.

    Zero in gives zero out, so what enters multiplied by a smooth cutoff leaves with one. The weights keep
    unit variance and are scaled when applied, so that every layer sees the same relative step under Adam.
    """

    def __init__(self, dims: Sequence[int]):
        super().__init__()
        # SiLU's normalisation is folded into the weights that follow it: one pass over the edges less.
        self.layers = nn.ModuleList(
            Dense(n_in, n_out, SILU_FACTOR if i > 0 else 1.0)
            for i, (n_in, n_out) in enumerate(pairwise(dims))
        )

    @torch.jit.unused
    def packed(self) -> list[Tensor]:
        """The matrices of the layers, scaled."""
        return [layer.packed()[0] for layer in self.layers]

    @torch.jit.unused
    def steps(self, program: Program, x: str, width: int | None = None) -> str:
        """Of rows of atoms, as `Network.steps`; says which the last layer is. ``width``: of x, if more."""
        for i, layer in enumerate(self.layers):
            if i > 0:
                program.require(3)
                x = program.add("silu", [x])
            weights = layer.packed()[0]
            n_in, n_out = weights.shape
            program.ends_with(x, n_in)
            dim_in = width if width and i == 0 else n_in
            facts = {"dim_in": dim_in, "dim_out": n_out, "by_type": False, "blocks": [[1, n_in, n_out, 0, 0]]}
            x = program.add("linear", [x], weights=weights.unsqueeze(0), **facts)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """(rows, dims[0]) → (rows, dims[-1])."""
        for i, layer in enumerate(self.layers):
            if i > 0:
                x = nn.functional.silu(x)
            x = layer(x)
        return x


class Perceptron(nn.Module):
    """An :class:`MLP` in two steps: what the last hidden layer gives, and the linear map that follows it."""

    def __init__(self, dims: Sequence[int]):
        super().__init__()
        self.hidden = MLP(dims[:-1])
        self.linear = Dense(dims[-2], dims[-1], SILU_FACTOR)

    @torch.jit.unused
    def packed(self) -> list[Tensor]:
        """The matrices of the layers, scaled."""
        return self.hidden.packed() + self.linear.packed()

    def features(self, x: Tensor) -> Tensor:
        """(rows, dims[0]) → (rows, dims[-2])."""
        return nn.functional.silu(self.hidden(x))

    def forward(self, x: Tensor) -> Tensor:
        """(rows, dims[0]) → (rows, dims[-1])."""
        return self.linear(self.features(x))
