"""Functions of the distance alone."""

import math
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from equipot.engine.program import Program
from equipot.nn.mlp import Perceptron
from equipot.ops.bspline import Grid, interpolate


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

    @torch.jit.unused
    def facts(self) -> dict[str, Any]:
        """What a program says of it."""
        return {"power": self.p}


class XPLORCutoff(nn.Module):
    """u(x) = (1 − x²)² (1 + 2x² − 3s²) / (1 − s²)³ from x = s on, 1 below, x = r / cutoff; 0 beyond.

    Value and slope are continuous. Source: X-PLOR's switching of van der Waals forces (A. T. Brünger, X-PLOR
    Version 3.1 (1992)), as in HOOMD-blue's documentation of pair potentials.
    """

    def __init__(self, start: float):
        super().__init__()
        self.start = start

    def forward(self, x: Tensor) -> Tensor:
        """x = r / cutoff, any shape → the same shape."""
        x2, s2 = x * x, self.start**2
        switched = (1.0 - x2) ** 2 * (1.0 + 2.0 * x2 - 3.0 * s2) / (1.0 - s2) ** 3
        return torch.where(x < self.start, torch.ones_like(x), switched) * (x < 1.0).to(x.dtype)

    @torch.jit.unused
    def facts(self) -> dict[str, Any]:
        """What a program says of it."""
        return {"start": self.start}


class PairCutoffs(nn.Module):
    """Distances r · ``cutoff`` / r_c(pair): functions that end at ``cutoff`` then end at that of the pair.

    ``cutoffs`` (T, T) Å by the species of center and neighbor; None: distances stay as they are.
    """

    scales: Tensor | None  # (T, T)

    def __init__(self, cutoffs: Sequence[Sequence[float]] | None, cutoff: float):
        super().__init__()
        scales = None if cutoffs is None else cutoff / torch.tensor(cutoffs, dtype=torch.float64)
        self.register_buffer("scales", scales, persistent=False)

    def forward(self, edge_length: Tensor, edge_index: Tensor, atom_types: Tensor) -> Tensor:
        """(E, 1) Å, (2, E), (N,) → (E, 1) Å."""
        scales = self.scales
        if scales is None:
            return edge_length
        types = atom_types[edge_index]
        pair = types[0] * scales.shape[0] + types[1]
        return edge_length * scales.view(-1).index_select(0, pair).unsqueeze(1)

    @torch.jit.unused
    def write(self, program: Program) -> None:
        """Say it in a program."""
        if self.scales is not None:
            program.require(3)
            program.facts["pair_scales"] = program.stored("pair_scales", self.scales)


class BesselBasis(nn.Module):
    """B_n(r) = 0.2 sin(nπx)/x · u(x), n = 1 … num_bessel, x = r / cutoff, u the ``envelope``.

    DimeNet's radial basis (Gasteiger et al., ICLR 2020, eq. 7) times its cutoff. The factor keeps
    an untrained network's energies and forces of order one at bond distances: gates multiply, so that layers
    amplify a basis that is much larger (measured on 3BPA, four layers: 0.2 → 1, 1 → 10⁵).
    ``trainable``: the frequencies nπ are where training starts.
    """

    def __init__(self, cutoff: float, num_bessel: int, envelope: nn.Module, trainable: bool = False):
        super().__init__()
        self.cutoff = cutoff
        self.envelope = envelope
        frequencies = math.pi * torch.arange(1, num_bessel + 1, dtype=torch.float64)
        if trainable:
            self.frequencies = nn.Parameter(frequencies)
        else:
            self.register_buffer("frequencies", frequencies, persistent=False)

    @torch.jit.unused
    def facts(self) -> dict[str, Any]:
        """What a program says of it."""
        return {
            "frequencies": self.frequencies,
            "cutoff": self.cutoff,
            "factor": 0.2,
            **self.envelope.facts(),
        }

    def forward(self, edge_length: Tensor) -> Tensor:
        """(E, 1) Å → (E, num_bessel)."""
        x = edge_length / self.cutoff
        return torch.sin(x * self.frequencies) * (0.2 * self.envelope(x) / x)


class RadialNetwork(nn.Module):
    """The weights of messages: a perceptron of the Bessel basis, evaluated at every edge.

    Source: Batzner et al., Nat. Commun. 13, 2453 (2022), eq. 6.
    """

    def __init__(self, basis: BesselBasis, hidden: Sequence[int], num_weights: int):
        super().__init__()
        self.basis = basis
        self.network = Perceptron([basis.frequencies.shape[0], *hidden, num_weights])

    def forward(self, edge_length: Tensor) -> Tensor:
        """(E, 1) Å → (E, num_weights)."""
        return self.network(self.basis(edge_length))


class RadialSplines(nn.Module):
    """The weights of messages: quintic splines fitted to a perceptron of the Bessel basis.

    The perceptron is a function of one number, so it is evaluated at a few hundred distances instead of every
    edge, and the splines (their coefficients are linear in its values) are the model: in training, in
    deployment and in what derivatives are taken of. How they end, and where they are shifted: ``grid``.
    """

    trainable: Final[bool]  # the basis is

    def __init__(self, basis: BesselBasis, hidden: Sequence[int], num_weights: int, grid: Grid):
        super().__init__()
        self.cutoff, self.fixed = grid.end, grid.fixed
        self.network = Perceptron([basis.frequencies.shape[0], *hidden, num_weights])
        self.trainable = isinstance(basis.frequencies, nn.Parameter)
        self.register_buffer("fit", grid.matrix, persistent=False)
        if self.trainable:
            self.basis = basis
        # Distances (M, 1), or the basis there.
        samples = grid.samples if self.trainable else basis(grid.samples)
        self.register_buffer("samples", samples, persistent=False)

    def features(self) -> Tensor:
        """(intervals + 5, hidden width): splines of what the last hidden layer gives."""
        samples = self.samples
        if self.trainable:
            samples = self.basis(samples)
        return nn.functional.pad(torch.mm(self.fit, self.network.features(samples)), [0, 0, 0, self.fixed])

    def table(self) -> Tensor:
        """(intervals + 5, num_weights): spline coefficients."""
        return self.network.linear(self.features())

    def forward(self, edge_length: Tensor) -> Tensor:
        """(E, 1) Å, shifted as ``grid`` says → (E, num_weights)."""
        return self.network.linear(interpolate(edge_length, self.features(), self.cutoff))


class RadialTable(nn.Module):
    """What a deployed model keeps of a radial function: spline coefficients, and the function itself."""

    def __init__(self, function: nn.Module, coefficients: Tensor):
        super().__init__()
        self.function = function
        self.coefficients = nn.Parameter(coefficients, requires_grad=False)

    def table(self) -> Tensor:
        """(intervals + 5, num_weights)."""
        return self.coefficients

    def forward(self, edge_length: Tensor) -> Tensor:
        """(E, 1) Å → (E, num_weights)."""
        return self.function(edge_length)
