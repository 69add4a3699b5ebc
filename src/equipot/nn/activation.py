"""Factors that make a nonlinearity keep the second moment of a unit normal variable."""

import numpy as np
import torch
from torch import nn


def _second_moment_factor(function) -> float:
    """1/√E[f(z)²] for z ~ N(0, 1), by Gauss–Hermite quadrature."""
    points, weights = np.polynomial.hermite_e.hermegauss(100)
    values = function(torch.from_numpy(points)).numpy()
    return float((weights @ values**2 / weights.sum()) ** -0.5)


SILU_FACTOR = _second_moment_factor(nn.functional.silu)
TANH_FACTOR = _second_moment_factor(torch.tanh)
