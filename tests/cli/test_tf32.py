"""scripts/benchmark tf32: which numbers are cut, and to what."""

import importlib.util
from pathlib import Path

import pytest
import torch
from e3nn import o3

from equipot.nn.linear import EquivariantLinear

TINY = 2.0**-11  # half of the last bit that TF32 has of 1


@pytest.fixture(scope="module")
def script():
    path = Path(__file__).parents[2] / "scripts" / "benchmarks" / "tf32.py"
    spec = importlib.util.spec_from_file_location("tf32", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("truncate", "above"), [(False, 1 + 2 * TINY), (True, 1.0)])
def test_ten_bits_are_left(script, truncate, above):
    given = torch.tensor([1.0, 1 + 0.9 * TINY, 1 + 1.1 * TINY, -3.0, 0.0, 1 - 2.0**-11])
    expected = torch.tensor([1.0, 1.0, above, -3.0, 0.0, 1 - 2.0**-11])
    assert torch.equal(script.Tf32(truncate).cut(given), expected)
    for other in (given.double(), torch.arange(3), None):
        assert script.Tf32(truncate).cut(other) is other


def test_factors_are_cut_and_nothing_else(script):
    """Forward and backward, in torch's products and in our linear maps."""
    generator = torch.Generator().manual_seed(0)
    x, weight, added = (torch.randn(8, 8, generator=generator) for _ in range(3))
    mode = script.Tf32(truncate=False)
    with mode:
        sums, plain = torch.addmm(added, x, weight), x * weight
    torch.testing.assert_close(sums, added + mode.cut(x) @ mode.cut(weight), rtol=1e-6, atol=1e-6)
    assert (sums - (added + x @ weight)).abs().max() > 1e-4
    assert torch.equal(plain, x * weight)

    layer = EquivariantLinear(o3.Irreps("4x0e + 4x1o"), o3.Irreps("4x0e + 4x1o")).float()
    rows = torch.randn(5, 16, generator=generator, requires_grad=True)
    found = {}
    for name, of in (("cut", mode), ("whole", torch.enable_grad())):
        before = mode.products
        with of:
            out = layer(rows)
            found[name] = out.detach(), *torch.autograd.grad(out.square().sum(), [rows, *layer.parameters()])
        assert (mode.products - before >= 3) == (name == "cut")
    for cut, whole in zip(found["cut"], found["whole"], strict=True):
        assert 1e-5 < (cut - whole).abs().max() / whole.abs().max() < 1e-2
