"""Layers of one's own (examples/06_layer): e3nn's fully connected product, equivariance, and a training."""

import doctest
import importlib.util
from pathlib import Path

import pytest
import torch
from e3nn import o3

from equipot.ops import convolution
from equipot.ops.convolution import Convolution
from equipot.ops.paths import convolution_paths

EXAMPLE = Path(__file__).parents[2] / "examples" / "06_layer" / "layer.py"
IN, SH, OUT = "4x0e+3x1o+2x1e+3x2e", "0e+1o+2e", "5x0e+2x0o+3x1o+2x2e"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("layer", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def float64():
    """e3nn's matrices and parameters are of the default type."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def layout(x: torch.Tensor, irreps: o3.Irreps, to_e3nn: bool) -> torch.Tensor:
    """(rows, dim): blocks (2l+1, mul) as (mul, 2l+1), e3nn's, or back."""
    parts = []
    for block, (mul, ir) in zip(x.split([block.dim for block in irreps], dim=1), irreps, strict=True):
        shape = (ir.dim, mul) if to_e3nn else (mul, ir.dim)
        parts.append(block.view(-1, *shape).transpose(1, 2).flatten(1))
    return torch.cat(parts, dim=1)


def turn(x: torch.Tensor, irreps: o3.Irreps, R: torch.Tensor) -> torch.Tensor:
    return layout(layout(x, irreps, True) @ irreps.D_from_matrix(R).T, irreps, False)


def edges(atoms: int = 5, number: int = 14) -> tuple[torch.Tensor, torch.Tensor]:
    """edge_index, and unit vectors."""
    return torch.randint(atoms, (2, number)), torch.nn.functional.normalize(torch.randn(number, 3))


def weights_of_e3nn(product: o3.FullyConnectedTensorProduct, layer, weights: torch.Tensor) -> torch.Tensor:
    """Those of the example's layer in the order of e3nn's paths: by input, harmonic and output irrep."""
    found, start = {}, 0
    for out_block, of_block in enumerate(layer.convolutions):
        irrep = o3.Irreps([(1, layer.irreps_out[out_block].ir)])
        table = convolution_paths(of_block.irreps_in, SH, irrep)
        for path in table.paths:
            first = start + path.weight_offset
            found[path.in_block, path.l_sh, out_block] = weights[:, first : first + path.channels]
        start += of_block.num_weights
    return torch.cat([found[i.i_in1, i.i_in2, i.i_out] for i in product.instructions], dim=1)


def test_fully_connected_is_that_of_e3nn(example):
    irreps_in, irreps_out = o3.Irreps(IN), o3.Irreps(OUT)
    layer = example.FullyConnected(IN, SH, OUT)
    product = o3.FullyConnectedTensorProduct(IN, SH, OUT, internal_weights=False, shared_weights=False)
    assert layer.num_weights == product.weight_numel
    edge_index, unit = edges()
    sh = example.SphericalHarmonics(2)(unit)
    x = torch.randn(5, irreps_in.dim, requires_grad=True)
    weights = torch.randn(14, layer.num_weights, requires_grad=True)
    found = layer(x, sh, weights, edge_index)
    messages = product(
        layout(x, irreps_in, True)[edge_index[1]], sh, weights_of_e3nn(product, layer, weights)
    )
    summed = torch.zeros(5, irreps_out.dim).index_add(0, edge_index[0], messages)
    expected = layout(summed, irreps_out, False)
    # float64, sums of a few hundred products
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    cotangent = torch.randn_like(found)
    for a, b in zip(
        *(torch.autograd.grad(y, (x, weights), cotangent) for y in (found, expected)), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("improper", [False, True])
def test_the_layer_turns_with_its_input(example, improper):
    layer = example.EdgeLayer(IN, SH, OUT, 3)
    for weight in layer.parameters():
        weight.data = weight.data.double()
    irreps_in, irreps_out = o3.Irreps(IN), o3.Irreps(OUT)
    edge_index, unit = edges()
    x, features = torch.randn(5, irreps_in.dim), torch.randn(14, 3)
    R = o3.rand_matrix() * (-1 if improper else 1)
    harmonics = example.SphericalHarmonics(2)
    found = layer(turn(x, irreps_in, R), harmonics(unit @ R.T), features, edge_index)
    expected = turn(layer(x, harmonics(unit), features, edge_index), irreps_out, R)
    # rotation matrices of e3nn, float64
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    assert found.abs().max() > 0.1


def test_a_network_of_them_takes_noise_off(example):
    torch.set_default_dtype(torch.float32)
    _, before, after = example.train(steps=60)
    assert after < 0.9 * before


def test_the_example_in_the_docstring():
    done = doctest.testmod(convolution)
    assert done.attempted >= 4 and done.failed == 0


def test_irreps_that_make_no_convolution():
    with pytest.raises(ValueError, match="one harmonic of each degree"):
        convolution_paths("4x0e", "0e+2e", "4x0e")  # read at the place of degree 1, silently
    with pytest.raises(ValueError, match="one harmonic of each degree"):
        convolution_paths("4x0e", "2x0e+1x1o", "4x0e")
    with pytest.raises(ValueError, match="no product of 4x0e with"):
        Convolution(convolution_paths("4x0e", "0e+1o", "4x2e"))
