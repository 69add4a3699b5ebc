"""The kernel against the reference, against finite differences, and against e3nn."""

import subprocess
import sys

import derivatives
import pytest
import torch
from derivatives import in_plain_torch, relative_errors
from e3nn import o3

from equipot.models.nequip import feature_irreps
from equipot.ops.convolution import Convolution
from equipot.ops.paths import convolution_paths

pytestmark = pytest.mark.usefixtures("kernels")


def random_convolution(l_max, parity, channels, num_atoms=5, num_edges=11, dtype=torch.float64):
    """(kernel, reference, (x, sh, weights, edge_index)); the last atom has no edge."""
    torch.manual_seed(1000 * l_max + 100 * parity + num_edges)
    irreps = feature_irreps(l_max, parity, channels)
    table = convolution_paths(irreps, o3.Irreps.spherical_harmonics(l_max), irreps)
    connected = max(num_atoms - 1, 1)
    center = torch.randint(connected, (num_edges,)).sort().values
    edge_index = torch.stack([center, torch.randint(connected, (num_edges,))])
    shapes = ((num_atoms, irreps.dim), (num_edges, (l_max + 1) ** 2), (num_edges, table.num_weights))
    tensors = [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]
    kernel = Convolution(table).to(dtype)
    return kernel, in_plain_torch(kernel), (*tensors, edge_index)


def value_and_gradients(convolution, arguments):
    *inputs, edge_index = arguments
    return derivatives.value_and_gradients(lambda *inputs: convolution(*inputs, edge_index), inputs)


@pytest.mark.parametrize("parity", [True, False])
@pytest.mark.parametrize("l_max", range(5))
@pytest.mark.parametrize("channels", [1, 3, 32])
def test_agrees_with_reference(l_max, parity, channels):
    kernel, reference, arguments = random_convolution(l_max, parity, channels)
    errors = relative_errors(
        value_and_gradients(kernel, arguments), value_and_gradients(reference, arguments)
    )
    assert max(errors) < 1e-13  # sums of up to a thousand terms, in another order


@pytest.mark.parametrize("channels", [(5, 3, 2), (16, 8, 4), (44, 20, 9), (1, 64, 7)])
def test_channels_that_differ_by_degree(channels):
    kernel, reference, arguments = random_convolution(2, True, channels)
    errors = relative_errors(
        value_and_gradients(kernel, arguments), value_and_gradients(reference, arguments)
    )
    assert max(errors) < 1e-13  # as above


@pytest.mark.parametrize("l_max, channels", [(2, 64), (3, 19)])
def test_float32(l_max, channels):
    kernel, reference, arguments = random_convolution(l_max, True, channels, 9, 100, torch.float32)
    errors = relative_errors(
        value_and_gradients(kernel, arguments), value_and_gradients(reference, arguments)
    )
    assert max(errors) < 5e-6  # 1e-7 per operation, some thousand terms of random sign


@pytest.mark.parametrize("l_max, parity, channels", [(1, True, 2), (2, False, 3), (2, True, (1, 2, 1))])
def test_finite_differences(l_max, parity, channels):
    kernel, _, (*inputs, edge_index) = random_convolution(l_max, parity, channels, num_atoms=3, num_edges=4)
    function = lambda *tensors: kernel(*tensors, edge_index)  # noqa: E731
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("num_atoms", [0, 4])
def test_no_edges(num_atoms):
    kernel, _, (x, sh, weights, _) = random_convolution(2, True, 8, num_atoms=4, num_edges=1)
    none = torch.empty(2, 0, dtype=torch.int64)
    kept = ((x, num_atoms), (sh, 0), (weights, 0))
    inputs = [item[:count].detach().requires_grad_() for item, count in kept]
    out, *gradients = value_and_gradients(kernel, (*inputs, none))
    assert out.shape == (num_atoms, kernel.dim_out) and torch.all(out == 0)
    assert [item.shape for item in gradients[:3]] == [item.shape for item in inputs]
    assert all(torch.all(item == 0) for item in gradients)


def test_atom_without_edges_gets_zero():
    kernel, _, arguments = random_convolution(2, True, 8)
    out, grad_x, *_ = value_and_gradients(kernel, arguments)
    assert torch.all(out[-1] == 0) and torch.all(grad_x[-1] == 0)
    assert out[:-1].abs().max() > 0


def test_order_of_edges_does_not_matter():
    kernel, _, (x, sh, weights, edge_index) = random_convolution(2, True, 8, num_edges=40)
    order = torch.randperm(40)
    shuffled = kernel(x, sh[order], weights[order], edge_index[:, order])
    torch.testing.assert_close(shuffled, kernel(x, sh, weights, edge_index), rtol=1e-12, atol=1e-12)


def test_strided_arguments():
    kernel, _, (x, sh, weights, edge_index) = random_convolution(2, True, 8)
    strided = [item.detach().t().contiguous().t() for item in (x, sh, weights, edge_index)]
    assert torch.equal(kernel(*strided), kernel(x, sh, weights, edge_index))


def test_same_bits_every_time_and_for_every_number_of_threads():
    kernel, _, arguments = random_convolution(2, True, 40, 30, 600, torch.float32)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3, 3):
            torch.set_num_threads(count)
            results.append(value_and_gradients(kernel, arguments))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda x, sh, w, e: (x, sh, w, e + 10), "refers to atom"),
        (lambda x, sh, w, e: (x, sh, w, torch.stack([e[0], -1 - e[1]])), "refers to atom"),
        (lambda x, sh, w, e: (x[:, 1:], sh, w, e), "does not fit"),
        (lambda x, sh, w, e: (x, sh[:, :4], w, e), "does not fit"),
        (lambda x, sh, w, e: (x, sh[1:], w, e), "expected x"),
        (lambda x, sh, w, e: (x, sh, torch.cat([w, w], 1), e), "paths use"),
        (lambda x, sh, w, e: (x, sh.float(), w, e), "one dtype"),
        (lambda x, sh, w, e: (x, sh, w, e.int()), "edge_index"),
    ],
)
def test_refuses_arguments_that_do_not_fit(change, message):
    kernel, _, arguments = random_convolution(2, True, 4)
    with pytest.raises((RuntimeError, IndexError), match=message):
        kernel(*change(*arguments))


def test_third_derivative_is_refused():
    kernel, _, (*inputs, edge_index) = random_convolution(1, True, 2)
    first = torch.autograd.grad(kernel(*inputs, edge_index).square().sum(), inputs, create_graph=True)
    second = torch.autograd.grad(sum(item.square().sum() for item in first), inputs, create_graph=True)
    with pytest.raises(NotImplementedError, match="third"):
        torch.autograd.grad(sum(item.square().sum() for item in second), inputs)


def test_state_dict_is_empty():
    kernel, _, _ = random_convolution(1, True, 2)
    assert list(kernel.state_dict()) == []


def test_module_converted_to_single_precision_and_back():
    """Coefficients then carry single-precision round-off, also where they should be zero or equal."""
    kernel, _, arguments = random_convolution(3, True, 4)
    expected = kernel(*arguments)
    converted = kernel.float().double()(*arguments)
    assert float((converted - expected).abs().max() / expected.abs().max()) < 1e-6  # float32 round-off


LOAD_IN_NEW_PROCESS = """
import os, sys, torch
os.environ["EQUIPOT_KERNELS"] = sys.argv[1]
from equipot.ops.operators import load_operators
assert load_operators() == (sys.argv[1] == "on")
module = torch.jit.load("module.pt")
*inputs, edge_index = torch.load("inputs.pt")
for item in inputs: item.requires_grad_()
for _ in range(3):  # the profiling executor changes the graph in the first calls
    out = module(*inputs, edge_index)
    first = torch.autograd.grad(out.square().sum(), inputs, create_graph=True)
    second = torch.autograd.grad(sum(item.square().sum() for item in first), inputs)
torch.save([out.detach(), *(item.detach() for item in first), *second], "results.pt")
"""


@pytest.mark.parametrize("mode", ["on", "off"])
def test_torchscript_file_in_a_new_process(tmp_path, mode):
    """A file made with kernels gives the same where there are kernels and where there are none."""
    kernel, _, (*inputs, edge_index) = random_convolution(2, True, 5)
    torch.jit.script(kernel).save(str(tmp_path / "module.pt"))
    torch.save([*(item.detach() for item in inputs), edge_index], tmp_path / "inputs.pt")
    subprocess.run([sys.executable, "-c", LOAD_IN_NEW_PROCESS, mode], cwd=tmp_path, check=True)
    out = kernel(*inputs, edge_index)
    first = torch.autograd.grad(out.square().sum(), inputs, create_graph=True)
    second = torch.autograd.grad(sum(item.square().sum() for item in first), inputs)
    found = torch.load(tmp_path / "results.pt")
    assert (
        max(relative_errors(found, [item.detach() for item in (out, *first, *second)])) < 1e-13
    )  # another order of summation


def test_shapes_on_the_meta_device():
    kernel, _, arguments = random_convolution(1, True, 2)
    x, sh, weights, edge_index = (item.detach().to("meta") for item in arguments)
    out = torch.ops.equipot.convolution(
        x, sh, weights, edge_index, kernel.paths, kernel.coefficients, kernel.dim_out
    )
    assert out.shape == (x.shape[0], kernel.dim_out) and out.device.type == "meta"


# ---- e3nn ------------------------------------------------------------------------------------------------


def to_e3nn_layout(features, irreps):
    """(2l+1, mul) blocks → e3nn's (mul, 2l+1)."""
    blocks = [
        features[:, where].reshape(-1, ir.dim, mul).transpose(1, 2).reshape(-1, mul * ir.dim)
        for (mul, ir), where in zip(irreps, irreps.slices(), strict=True)
    ]
    return torch.cat(blocks, dim=1)


def e3nn_convolution(table):
    """e3nn's tensor product, one output block per path, and the same paths gathered from our output."""
    irreps_out = o3.Irreps([(path.channels, (path.l_out, 1)) for path in table.paths])
    irreps_in = o3.Irreps([(mul, (ir.l, 1)) for mul, ir in table.irreps_in])  # parity plays no part in values
    irreps_sh = o3.Irreps([(mul, (ir.l, 1)) for mul, ir in table.irreps_sh])
    instructions = [(path.in_block, path.l_sh, n, "uvu", True) for n, path in enumerate(table.paths)]
    product = o3.TensorProduct(
        irreps_in, irreps_sh, irreps_out, instructions, shared_weights=False, internal_weights=False,
        irrep_normalization="component", path_normalization="none",
    ).double()  # fmt: skip
    columns = [
        path.out_offset + k * path.out_stride + c
        for path in table.paths
        for k in range(2 * path.l_out + 1)
        for c in range(path.channels)
    ]
    return product, irreps_out, torch.tensor(columns)


def test_agrees_with_e3nn():
    irreps = feature_irreps(2, True, (4, 3, 2))
    table = convolution_paths(irreps, o3.Irreps.spherical_harmonics(2), irreps)
    kernel, _, (x, sh, weights, edge_index) = random_convolution(2, True, (4, 3, 2))
    product, irreps_paths, columns = e3nn_convolution(table)

    def expected(x, sh, weights):
        messages = product(to_e3nn_layout(x, irreps)[edge_index[1]], sh, weights)
        return torch.zeros(x.shape[0], messages.shape[1]).to(messages).index_add(0, edge_index[0], messages)

    def found(x, sh, weights):
        return to_e3nn_layout(kernel(x, sh, weights, edge_index)[:, columns], irreps_paths)

    inputs = (x, sh, weights)
    pairs = [(found(*inputs), expected(*inputs))]
    first = [torch.autograd.grad(out.square().sum(), inputs, create_graph=True) for out in pairs[0]]
    pairs += zip(*first, strict=True)
    second = [torch.autograd.grad(sum(g.square().sum() for g in grads), inputs) for grads in first]
    pairs += zip(*second, strict=True)
    for ours, theirs in pairs:
        # e3nn keeps its Wigner 3j symbols in single precision before .double(), hence the tolerance.
        assert float((ours - theirs).abs().max() / theirs.abs().max()) < 1e-6


def test_degrees_above_the_largest_are_refused():
    irreps = o3.Irreps("1x5o")
    table = convolution_paths(irreps, o3.Irreps.spherical_harmonics(1), irreps)
    with pytest.raises(ValueError, match="degree 4 at most"):
        Convolution(table)
