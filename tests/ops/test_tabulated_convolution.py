"""Weights from a table: the splines, the kernel against plain torch, and what it refuses."""

import subprocess
import sys

import derivatives
import pytest
import torch
from derivatives import in_plain_torch, relative_errors
from e3nn import o3
from torch import nn

from equipot.ops import reference
from equipot.ops.bspline import Grid, basis_splines, interpolate
from equipot.ops.convolution import Convolution, TabulatedConvolution
from equipot.ops.operators import plain_operators
from equipot.ops.paths import convolution_paths, feature_irreps

pytestmark = pytest.mark.usefixtures("kernels")
CUTOFF, INTERVALS = 3.0, 16


class Splines(nn.Module):
    """Nothing but coefficients: what the kernel reads, and the weights that follow from them."""

    def __init__(self, coefficients):
        super().__init__()
        self.coefficients = nn.Parameter(coefficients)

    def table(self) -> torch.Tensor:
        return self.coefficients

    def forward(self, edge_length: torch.Tensor) -> torch.Tensor:
        return interpolate(edge_length, self.coefficients, 3.0)


def random_convolution(channels=8, num_edges=40, dtype=torch.float64):
    """(kernel, (x, sh, edge_length), edge_index); some edges are longer than the cutoff."""
    torch.manual_seed(0)
    irreps, irreps_sh = feature_irreps(2, True, channels), o3.Irreps.spherical_harmonics(2)
    table = convolution_paths(irreps, irreps_sh, irreps)
    coefficients = torch.randn(INTERVALS + 5, table.num_weights, dtype=dtype)
    coefficients[-5:] = 0
    kernel = TabulatedConvolution(Convolution(table).to(dtype), Splines(coefficients), CUTOFF)
    edge_index = torch.stack([torch.randint(6, (num_edges,)).sort().values, torch.randint(6, (num_edges,))])
    inputs = [torch.randn(6, irreps.dim), torch.randn(num_edges, 9), 3.3 * torch.rand(num_edges, 1)]
    return kernel, [item.to(dtype).requires_grad_() for item in inputs], edge_index


def value_and_gradients(module, inputs, edge_index):
    """By the table too; its derivatives of both orders are those of a linear function."""
    table = module.radial.table().detach().requires_grad_()
    return derivatives.value_and_gradients(
        lambda *inputs: with_table(module, inputs[-1])(*inputs[:-1], edge_index), [*inputs, table]
    )


def plan(module):
    return module.convolution.paths, module.convolution.coefficients


def with_table(module, table):
    return lambda *arguments: torch.func.functional_call(module, {"radial.coefficients": table}, arguments)


@pytest.mark.parametrize("channels", [1, 7, 32])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-13), (torch.float32, 5e-6)])
def test_agrees_with_plain_torch(channels, dtype, tolerance):
    kernel, inputs, edge_index = random_convolution(channels, dtype=dtype)
    assert (inputs[2] > CUTOFF).any()
    found = value_and_gradients(kernel, inputs, edge_index)
    with plain_operators():
        expected = value_and_gradients(kernel, inputs, edge_index)
    assert max(relative_errors(found, expected)) < tolerance  # sums of hundreds of terms in another order


def test_finite_differences():
    kernel, inputs, edge_index = random_convolution(channels=2, num_edges=6)
    tables = (edge_index, *plan(kernel), CUTOFF, kernel.convolution.dim_out)
    function = lambda *inputs: torch.ops.equipot.tabulated_convolution(*inputs, *tables)  # noqa: E731
    arguments = [*inputs, kernel.radial.table().detach().requires_grad_()]
    assert torch.autograd.gradcheck(function, arguments, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, arguments, fast_mode=True)


def test_training_asks_for_parts_of_the_derivatives():
    """Forces by the geometry alone, then their gradient by the table alone."""
    kernel, (x, sh, length), edge_index = random_convolution()
    results = []
    for place in (lambda function: function, in_plain_torch):
        table = kernel.radial.table().detach().requires_grad_()
        out = place(with_table(kernel, table))(x, sh, length, edge_index)
        forces = torch.autograd.grad(out.square().sum(), (sh, length), create_graph=True)
        loss = sum(item.square().sum() for item in forces)
        results.append(torch.autograd.grad(loss, (x, table)))
    assert max(relative_errors(*results)) < 1e-13  # sums in another order


def test_same_bits_every_time():
    """For any number of threads, but for the gradient by the table, of which each thread sums a part."""
    kernel, inputs, edge_index = random_convolution(20, 600, torch.float32)
    by_table = (4, 8)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (3, 3, 1, 2):
            torch.set_num_threads(count)
            results.append(value_and_gradients(kernel, inputs, edge_index))
    finally:
        torch.set_num_threads(threads)
    assert len(results[0]) == 10  # output; by x, sh, length, table; the same again, and by the cotangent
    assert all(torch.equal(a, b) for a, b in zip(results[0], results[1], strict=True))
    for other in results[2:]:
        for n, (a, b) in enumerate(zip(results[0], other, strict=True)):
            assert torch.equal(a, b) or n in by_table
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()))  # float32 sums


def test_third_derivative_is_refused():
    kernel, inputs, edge_index = random_convolution(channels=2)
    first = torch.autograd.grad(kernel(*inputs, edge_index).square().sum(), inputs, create_graph=True)
    with pytest.raises(NotImplementedError, match="third"):
        torch.autograd.grad(sum(item.square().sum() for item in first), inputs, create_graph=True)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda x, sh, r, e: (x, sh, r[1:], e), "expected x"),
        (lambda x, sh, r, e: (x, sh, r.expand(-1, 2), e), "expected edge_length"),
        (lambda x, sh, r, e: (x, sh, r.float(), e), "one dtype"),
        (lambda x, sh, r, e: (x, sh, r, e + 10), "refers to atom"),
    ],
)
def test_refuses_arguments_that_do_not_fit(change, message):
    kernel, inputs, edge_index = random_convolution()
    with pytest.raises((RuntimeError, IndexError), match=message):
        kernel(*change(*inputs, edge_index))


def test_operator_without_kernels(tmp_path):
    """A file made with kernels gives the same where there are none."""
    kernel, inputs, edge_index = random_convolution(channels=3)
    torch.jit.script(kernel).save(str(tmp_path / "module.pt"))
    torch.save([*(item.detach() for item in inputs), edge_index], tmp_path / "inputs.pt")
    code = """
import os, torch
os.environ["EQUIPOT_KERNELS"] = "off"
from equipot.ops.operators import load_operators
assert not load_operators()
features = torch.ones(3, 2, requires_grad=True)
assert torch.equal(torch.ops.equipot.ghost_exchange(features, 3), features)
torch.save(torch.jit.load("module.pt")(*torch.load("inputs.pt")), "out.pt")
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    expected = kernel(*inputs, edge_index).detach()
    torch.testing.assert_close(torch.load(tmp_path / "out.pt"), expected, rtol=1e-12, atol=1e-12)
    arguments = (kernel.radial.table(), edge_index, *plan(kernel), CUTOFF, kernel.convolution.dim_out)
    torch.testing.assert_close(
        reference.tabulated_convolution(*inputs, *arguments), expected, rtol=1e-12, atol=1e-12
    )


def test_shapes_on_the_meta_device():
    kernel, inputs, edge_index = random_convolution()
    meta = [item.detach().to("meta") for item in (*inputs, kernel.radial.table(), edge_index)]
    out = torch.ops.equipot.tabulated_convolution(*meta, *plan(kernel), CUTOFF, kernel.convolution.dim_out)
    assert out.shape == (6, kernel.convolution.dim_out)


def test_splines_sum_to_one_and_join_smoothly():
    u = torch.linspace(0, 1, 11, dtype=torch.float64)[:, None]
    torch.testing.assert_close(basis_splines(u).sum(1), torch.ones(11, dtype=torch.float64))
    # At the end of one interval the splines are those at the start of the next, one further.
    torch.testing.assert_close(basis_splines(u[-1:])[:, 1:], basis_splines(u[:1])[:, :-1])


def test_fit_converges_with_the_sixth_power_and_vanishes_at_the_cutoff():
    function = lambda r: torch.sin(3 * r) * (1 - (r / CUTOFF) ** 2) ** 6  # noqa: E731
    r = torch.linspace(0.01, CUTOFF, 997, dtype=torch.float64)[:, None]
    errors = [
        float((interpolate(r, Grid(n, CUTOFF).fit(function), CUTOFF) - function(r)).abs().max())
        for n in (32, 64)
    ]
    assert errors[0] < 1e-5  # (h ω)^6 for h = 0.1, and the constant of the method
    assert errors[0] / errors[1] > 40  # 2^6 = 64 in the limit
    # The polynomial envelope's third derivative jumps at the cutoff: a free end is nearer.
    cubic = lambda r: torch.sin(3 * r) * (1 - r / CUTOFF) ** 3  # noqa: E731
    fixed, free = (
        float((interpolate(r, grid.fit(cubic), CUTOFF) - cubic(r)).abs().max())
        for grid in (Grid(64, CUTOFF), Grid(64, CUTOFF, free=True))
    )
    assert free < 1e-7 < 1e-6 < fixed
    beyond = torch.tensor([[CUTOFF], [CUTOFF + 1e-9], [7.0]], dtype=torch.float64)
    assert (interpolate(beyond, Grid(32, CUTOFF).fit(function), CUTOFF) == 0).all()
