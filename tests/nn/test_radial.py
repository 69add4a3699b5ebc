"""Functions of the distance."""

import math

import pytest
import torch

from equipot.nn.mlp import MLP, SILU_FACTOR, TANH_FACTOR
from equipot.nn.radial import BesselBasis, PolynomialCutoff, XPLORCutoff


@pytest.mark.parametrize("p", [2, 6])
def test_cutoff_is_flat_at_both_ends(p):
    """Value, slope and curvature vanish at the cutoff; the function is one at zero."""
    x = torch.tensor([1.0 - 1e-12], dtype=torch.float64, requires_grad=True)
    u = PolynomialCutoff(p)(x)
    (slope,) = torch.autograd.grad(u, x, create_graph=True)
    (curvature,) = torch.autograd.grad(slope, x)
    # The third derivative is −p(p+1)(p+2): 1e-12 away the curvature is below 1e-9.
    assert max(abs(u.item()), abs(slope.item()), abs(curvature.item())) < 1e-8
    ends = PolynomialCutoff(p)(torch.tensor([0.0, 1.0, 1.5], dtype=torch.float64))
    assert ends.tolist() == [1.0, 0.0, 0.0]


def test_xplor_cutoff():
    """HOOMD-blue's formula in r; value and slope continuous where it starts and at the cutoff."""
    on, cutoff, r = 4.5, 5.0, 4.8
    expected = (cutoff**2 - r**2) ** 2 * (cutoff**2 + 2 * r**2 - 3 * on**2) / (cutoff**2 - on**2) ** 3
    envelope = XPLORCutoff(on / cutoff)
    assert envelope(torch.tensor(r / cutoff, dtype=torch.float64)).item() == pytest.approx(
        expected, rel=1e-12
    )
    x = torch.tensor([0.3, 0.9 - 1e-9, 0.9 + 1e-9, 1.0 - 1e-9, 1.2], dtype=torch.float64, requires_grad=True)
    u = envelope(x)
    (slope,) = torch.autograd.grad(u.sum(), x)
    torch.testing.assert_close(
        u.detach(), torch.tensor([1, 1, 1, 0, 0.0], dtype=torch.float64), atol=1e-7, rtol=0
    )
    assert slope.abs().max() < 1e-6  # curvatures are below 400


def test_bessel_functions_have_their_zeros():
    """sin(nπx)/x vanishes at x = 1/2 for even n only."""
    basis = BesselBasis(4.0, 6, PolynomialCutoff(6))(torch.tensor([[2.0]], dtype=torch.float64))[0]
    assert basis[1::2].abs().max() < 1e-15
    assert basis[0::2].abs().min() > 0.1
    by_hand = 0.2 * math.sin(math.pi / 2) / 0.5 * PolynomialCutoff(6)(torch.tensor(0.5, dtype=torch.float64))
    assert basis[0].item() == pytest.approx(by_hand.item(), rel=1e-14)


def test_mlp_keeps_zero_and_variance():
    torch.manual_seed(0)
    mlp = MLP([64, 256, 256, 64])
    assert (mlp(torch.zeros(3, 64, dtype=torch.float64)) == 0).all()
    variance = mlp(torch.randn(2000, 64, dtype=torch.float64)).var().item()
    assert variance == pytest.approx(1.0, rel=0.4)  # a random network of 64 outputs: ± 0.2


def test_activations_have_unit_second_moment():
    z = torch.randn(1_000_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for function, factor in ((torch.nn.functional.silu, SILU_FACTOR), (torch.tanh, TANH_FACTOR)):
        # 1e6 samples: a standard error of about 1e-3.
        assert (function(z) * factor).square().mean().item() == pytest.approx(1.0, abs=5e-3)
