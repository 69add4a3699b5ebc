"""The equivariant blocks against e3nn's, in float64.

Both sum the same few hundred products of order one, so they agree to 1e-12. e3nn stores a block of irreps
as (mul, 2l+1), equipot as (2l+1, mul).
"""

import pytest
import torch
from e3nn import nn as e3nn_nn
from e3nn import o3

from equipot.nn.gate import Gate
from equipot.nn.linear import EquivariantLinear, SpeciesLinear
from equipot.nn.spherical import SphericalHarmonics

IRREPS = o3.Irreps("5x0e + 3x0o + 4x1o + 2x1e + 3x2e")


@pytest.fixture(autouse=True)
def float64_e3nn():
    """e3nn creates its parameters in the default type."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def to_e3nn(x: torch.Tensor, irreps: o3.Irreps) -> torch.Tensor:
    """(rows, dim) from component-major blocks to e3nn's channel-major ones."""
    blocks = x.split([block.dim for block in irreps], dim=1)
    parts = [
        block.view(len(x), ir.dim, mul).transpose(1, 2).reshape(len(x), -1)
        for block, (mul, ir) in zip(blocks, irreps, strict=True)
    ]
    return torch.cat(parts, dim=1)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("l_max", range(5))
def test_spherical_harmonics(l_max):
    vectors = torch.nn.functional.normalize(torch.randn(50, 3))
    expected = o3.spherical_harmonics(list(range(l_max + 1)), vectors, False, normalization="component")
    close(SphericalHarmonics(l_max)(vectors), expected)


def test_spherical_harmonics_second_derivatives():
    """Polynomials differentiate as polynomials; force training needs the second derivative."""
    vectors = torch.nn.functional.normalize(torch.randn(3, 3)).requires_grad_()
    assert torch.autograd.gradgradcheck(SphericalHarmonics(4), (vectors,))


def test_linear():
    out = o3.Irreps("4x0e + 6x1o + 2x2e")
    ours, theirs = EquivariantLinear(IRREPS, out), o3.Linear(IRREPS, out)
    with torch.no_grad():
        flat = torch.cat([weight.reshape(-1) for weight in ours.weights])
        assert theirs.weight.numel() == flat.numel()
        theirs.weight.copy_(flat)  # both list one weight block per output irrep, (mul in, mul out)
    x = torch.randn(7, IRREPS.dim)
    close(to_e3nn(ours(x), out), theirs(to_e3nn(x, IRREPS)))


def test_species_linear_is_a_linear_map_per_species():
    out = o3.Irreps("4x0e + 6x1o + 2x3e")  # 3e has no input: zero
    types = torch.tensor([2, 0, 2, 1, 0, 2])
    layer = SpeciesLinear(IRREPS, out, num_species=4)
    x = torch.randn(6, IRREPS.dim)
    y = layer(x, types)
    single = EquivariantLinear(IRREPS, out[:2])
    for atom, kind in enumerate(types.tolist()):
        with torch.no_grad():
            for weight, block in zip(single.weights, layer.blocks.values(), strict=False):
                weight.copy_(block.weight[kind])
        close(y[atom, : out[:2].dim], single(x[atom : atom + 1])[0])
    assert (y[:, out[:2].dim :] == 0).all()


def test_gate():
    ours = Gate(IRREPS)
    scalars, gated = o3.Irreps("5x0e + 3x0o"), o3.Irreps("4x1o + 2x1e + 3x2e")
    gates = o3.Irreps(f"{gated.num_irreps}x0e")
    silu = torch.nn.functional.silu
    theirs = e3nn_nn.Gate(scalars, [silu, torch.tanh], gates, [silu], gated)
    x = torch.randn(6, ours.irreps_in.dim)
    even, odd, rest = to_e3nn(x, ours.irreps_in).split([ours.num_even + ours.num_gates, 3, gated.dim], dim=1)
    # e3nn puts odd scalars before even ones, and finds an activation's second moment by sampling, to 1e-3.
    expected = theirs(torch.cat([odd, even, rest], dim=1))
    torch.testing.assert_close(to_e3nn(ours(x), IRREPS), expected, rtol=1e-2, atol=1e-3)


def test_spherical_harmonics_have_the_same_bits_at_every_construction():
    """They are made by a solver whose last bits vary; a resumed training must go on with the same ones."""
    made = [SphericalHarmonics(4).coefficients for _ in range(100)]
    assert all(torch.equal(made[0], other) for other in made)
