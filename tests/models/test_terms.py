"""Energy terms beside the network."""

import math

import pytest
import torch

from equipot.models.terms import ZBL, SpeciesScaleShift


def test_zbl_of_a_pair_against_the_formula():
    """Two silicon atoms at 0.5 Å, written out by hand; the envelope is u(r / 2R), R = 1.11 Å."""
    r = 0.5
    energies = ZBL([14])(
        torch.tensor([[r, 0, 0], [-r, 0, 0]], dtype=torch.float64),
        torch.tensor([[0, 1], [1, 0]]),
        torch.tensor([0, 0]),
    )
    a = 0.4685 / (2 * 14**0.23)
    phi = sum(
        c * math.exp(-d * r / a)
        for c, d in [(0.18175, 3.1998), (0.50986, 0.94229), (0.28022, 0.4029), (0.02817, 0.20162)]
    )
    x = r / 2.22
    envelope = 1 - 28 * x**6 + 48 * x**7 - 21 * x**8
    # 14.3996 eV Å is e²/4πε₀ to five digits.
    assert energies.sum().item() == pytest.approx(14.39964 * 14**2 / r * phi * envelope, rel=1e-5)
    assert energies[0] == energies[1]


def test_zbl_ends_at_the_sum_of_covalent_radii():
    beyond = torch.tensor([[2.23, 0, 0]], dtype=torch.float64)
    assert ZBL([14])(beyond, torch.tensor([[0], [1]]), torch.tensor([0, 0])).abs().max() == 0


def test_scale_and_shift_by_species():
    term = SpeciesScaleShift([2.0, 3.0], [-10.0, -20.0], trainable=False)
    out = term(torch.tensor([1.0, 1.0], dtype=torch.float32), torch.tensor([1, 0]))
    assert out.tolist() == [-17.0, -8.0]
    assert out.dtype == torch.float64
