"""Small models with outputs of every kind."""

import numpy as np
import torch
from e3nn.o3 import Irreps

from equipot.config import config_from_dict
from equipot.models.build import build_potential

SPECIES = ["H", "C", "O"]
CUTOFF = 4.0
OUTPUTS = {
    "dipole": {"per": "structure", "tensor": "vector", "unit": "e*Ang"},
    "alpha": {"per": "structure", "tensor": "symmetric", "unit": "Ang^3"},
    "quadrupole": {"per": "structure", "tensor": "traceless"},
    "moment": {"per": "structure", "tensor": "pseudovector"},
    "chirality": {"per": "structure", "tensor": "pseudoscalar"},
    "charges": {"per": "atom", "tensor": "scalar", "unit": "e"},
    "born_charges": {"per": "atom", "tensor": "matrix", "unit": "e"},
    "axes": {"per": "atom", "tensor": "vector", "size": 2},
    "spectrum": {"per": "structure", "tensor": "scalar", "size": 5, "reduce": "mean", "positive": True},
    "density": {"per": "atom", "irreps": "2x0e+1x1o+3x2e"},
    "beta": {"per": "structure", "tensor": "symmetric", "rank": 3, "unit": "e^3*Bohr^3/Hartree^2"},
    "octupole": {"per": "structure", "tensor": "traceless", "rank": 3},
    "piezo": {"per": "atom", "indices": "ijk=ikj"},
    "twist": {"per": "atom", "indices": "ij=-ji", "size": 2},
}
NEQUIP = {"type": "nequip", "layers": 3, "channels": 4, "radial_hidden": [8]}
ALLEGRO = {"type": "allegro", "layers": 2, "channels": 4, "scalar_channels": 8}
SMALL = {"cutoff": CUTOFF, "l_max": 3, "dtype": "float64"}


def make_config(model: dict, outputs: dict = OUTPUTS, **sections):
    """A valid configuration; what it predicts is declared."""
    return config_from_dict(
        {"data": {"train": "x.xyz"}, "model": {**SMALL, **model, "outputs": outputs}, **sections}
    )


def make_potential(model: dict, outputs: dict = OUTPUTS):
    """An untrained model whose outputs have scales and shifts."""
    torch.manual_seed(3)
    config = make_config(model, outputs)
    potential = build_potential(config.model, SPECIES, 6.0, [-13.6, -1030.0, -2040.0], 1.3).eval()
    with torch.no_grad():
        shift = potential.outputs.shift
        potential.outputs.scale.uniform_(0.5, 2.0)
        _same_within_irreps(potential.outputs)
        shift[:] = torch.randn(shift.shape[0], 1) * _of_scalars(potential.outputs)
    return potential


def _same_within_irreps(outputs) -> None:
    start = 0
    for mul, ir in _terms(outputs):
        for channel in range(mul):
            columns = [start + component * mul + channel for component in range(ir.dim)]
            outputs.scale[columns] = outputs.scale[columns[0]].clone()
        start += mul * ir.dim


def _of_scalars(outputs) -> torch.Tensor:
    return torch.cat(
        [torch.full((mul * ir.dim,), float((ir.l, ir.p) == (0, 1))) for mul, ir in _terms(outputs)]
    )


def _terms(outputs):
    return [term for spec in outputs.specs for term in Irreps(spec.irreps)]


def rotation(seed: int = 0) -> np.ndarray:
    """(3, 3), a proper one."""
    matrix, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return matrix * np.sign(np.linalg.det(matrix))
