"""Allegro's tensor product: kernel, plain torch and the formula agree; e3nn; derivatives; bad arguments."""

import subprocess
import sys

import pytest
import torch
from derivatives import in_plain_torch, relative_errors, value_and_gradients
from e3nn import o3

from equipot.ops import reference
from equipot.ops.edge_product import EdgeProduct
from equipot.ops.paths import convolution_paths, feature_irreps

pytestmark = pytest.mark.usefixtures("kernels")


def random_product(l_max, parity, channels, num_atoms=5, num_edges=23, dtype=torch.float64):
    """(kernel, formula, (tensors, environment), center); the last atom has no edge."""
    torch.manual_seed(1000 * l_max + 100 * parity + num_edges)
    irreps, irreps_sh = feature_irreps(l_max, parity, channels), o3.Irreps.spherical_harmonics(l_max)
    table = convolution_paths(irreps, irreps_sh, irreps)
    kernel = EdgeProduct(table).to(dtype)
    center = torch.randint(max(num_atoms - 1, 1), (num_edges,)).sort().values
    shapes = ((num_edges, irreps.dim // channels, channels), (num_atoms, irreps_sh.dim, channels))
    inputs = [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]
    return kernel, formula_of(table), inputs, center


def formula_of(table):
    """The product as it is written in EdgeProduct, path by path."""

    def formula(weights, tensors, environment, center):
        blocks, received = [0] * len(table.irreps_out), environment[center]
        for weight, path in zip(weights, table.paths, strict=True):
            _, columns, harmonics = path.coefficients.shape
            first = path.in_offset // path.channels
            left = tensors[:, first : first + columns]
            right = received[:, path.l_sh**2 : path.l_sh**2 + harmonics]
            product = torch.einsum("kij,eic,ejc->ekc", path.coefficients.to(tensors), left, right)
            scale = table.num_paths_into(path.out_block) ** -0.5
            blocks[path.out_block] = blocks[path.out_block] + product * weight * scale
        return torch.cat(blocks, dim=1)

    return formula


@pytest.mark.parametrize("parity", [True, False])
@pytest.mark.parametrize("l_max, channels", [(0, 5), (1, 1), (2, 3), (2, 32), (3, 19), (4, 2)])
def test_agrees_with_the_formula(l_max, parity, channels):
    kernel, formula, inputs, center = random_product(l_max, parity, channels)
    expected = value_and_gradients(
        lambda weight, *inputs: formula(weight, *inputs, center), [kernel.weight, *inputs]
    )

    def product(weight, *inputs):
        return torch.func.functional_call(kernel, {"weight": weight}, (*inputs, center))

    for function in (product, in_plain_torch(product)):
        found = value_and_gradients(function, [kernel.weight, *inputs])
        assert max(relative_errors(found, expected)) < 1e-13  # sums of hundreds of terms, in another order


def test_float32():
    kernel, _, inputs, center = random_product(2, True, 40, 9, 200, torch.float32)
    product = lambda *inputs: kernel(*inputs, center)  # noqa: E731
    found, expected = (value_and_gradients(f, inputs) for f in (product, in_plain_torch(product)))
    assert max(relative_errors(found, expected)) < 5e-6  # 1e-7 per operation, some thousand terms


@pytest.mark.parametrize("transposed", [False, True])
def test_finite_differences(transposed):
    """Of the operator itself, to second order, and with matrices of atoms that have no edge."""
    torch.manual_seed(0)
    matrices = torch.randn(4, 3, 2, 5, dtype=torch.float64, requires_grad=True)
    x = torch.randn(6, 3 if transposed else 2, 5, dtype=torch.float64, requires_grad=True)
    center = torch.tensor([2, 0, 0, 2, 1, 2])  # not sorted
    function = lambda a, b: torch.ops.equipot.atom_product(a, b, center, transposed)  # noqa: E731
    assert torch.autograd.gradcheck(function, (matrices, x))
    assert torch.autograd.gradgradcheck(function, (matrices, x))
    torch.testing.assert_close(function(matrices, x), reference.atom_product(matrices, x, center, transposed))


@pytest.mark.parametrize("num_atoms", [0, 4])
def test_no_edges(num_atoms):
    kernel, _, (tensors, environment), _ = random_product(2, True, 8, num_atoms=4)
    inputs = [tensors[:0].detach().requires_grad_(), environment[:num_atoms].detach().requires_grad_()]
    none = torch.empty(0, dtype=torch.int64)
    out, *gradients = value_and_gradients(lambda *inputs: kernel(*inputs, none), inputs)
    assert out.shape == (0, kernel.rows, 8)
    assert [item.shape for item in gradients[:2]] == [item.shape for item in inputs]
    assert all(torch.all(item == 0) for item in gradients)


def test_same_bits_every_time_and_for_every_number_of_threads():
    kernel, _, inputs, center = random_product(2, True, 40, 30, 900, torch.float32)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3, 3):
            torch.set_num_threads(count)
            results.append(value_and_gradients(lambda *inputs: kernel(*inputs, center), inputs))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda a, x, c: (a, x, c + 10), "refers to atom"),
        (lambda a, x, c: (a, x, -1 - c), "refers to atom"),
        (lambda a, x, c: (a, x[:, 1:], c), "do not act on"),
        (lambda a, x, c: (a, x[:, :, 1:], c), "do not act on"),
        (lambda a, x, c: (a, x.double(), c), "one dtype"),
        (lambda a, x, c: (a, x, c[1:]), "center"),
        (lambda a, x, c: (a, x, c.int()), "center"),
    ],
)
def test_refuses_arguments_that_do_not_fit(change, message):
    matrices, x = torch.randn(3, 4, 2, 5), torch.randn(6, 2, 5)
    with pytest.raises((RuntimeError, IndexError), match=message):
        torch.ops.equipot.atom_product(*change(matrices, x, torch.tensor([0, 0, 1, 1, 1, 2])))


def test_shapes_on_the_meta_device():
    kernel, _, inputs, center = random_product(2, True, 3)
    out = kernel.to("meta")
    matrices = torch.empty(5, out.rows, out.columns, 3, device="meta")
    tensors = inputs[0].detach().float().to("meta")
    assert torch.ops.equipot.atom_product(matrices, tensors, center.to("meta")).shape == (23, out.rows, 3)


LOAD_IN_NEW_PROCESS = """
import os, sys, torch
os.environ["EQUIPOT_KERNELS"] = sys.argv[1]
from equipot.ops.operators import load_operators
assert load_operators() == (sys.argv[1] == "on")
module = torch.jit.load("module.pt")
*inputs, center = torch.load("inputs.pt")
for item in inputs: item.requires_grad_()
for _ in range(3):  # the profiling executor changes the graph in the first calls
    out = module(*inputs, center)
    gradients = torch.autograd.grad(out.square().sum(), inputs)
torch.save([out.detach(), *gradients], "results.pt")
"""


@pytest.mark.parametrize("mode", ["on", "off"])
def test_torchscript_file_in_a_new_process(tmp_path, mode):
    """A file made with kernels gives the same where there are kernels and where there are none."""
    kernel, _, inputs, center = random_product(2, True, 5)
    torch.jit.script(kernel).save(str(tmp_path / "module.pt"))
    torch.save([*(item.detach() for item in inputs), center], tmp_path / "inputs.pt")
    subprocess.run([sys.executable, "-c", LOAD_IN_NEW_PROCESS, mode], cwd=tmp_path, check=True)
    out = kernel(*inputs, center)
    expected = [out, *torch.autograd.grad(out.square().sum(), inputs)]
    found = torch.load(tmp_path / "results.pt")
    assert max(relative_errors(found, [item.detach() for item in expected])) < 1e-13  # another order


@pytest.mark.parametrize("l_max", [1, 3])
def test_against_e3nn(l_max):
    """e3nn's "uuu" product with the same weights, paths normalised as in the formula."""
    channels = 3
    kernel, _, (tensors, environment), center = random_product(l_max, True, channels)
    irreps, irreps_sh = feature_irreps(l_max, True, channels), o3.Irreps.spherical_harmonics(l_max)
    table = convolution_paths(irreps, irreps_sh, irreps)
    right = o3.Irreps([(channels, ir) for _, ir in table.irreps_sh])
    out = o3.Irreps([(channels, ir) for _, ir in table.irreps_out])
    instructions = [(path.in_block, path.l_sh, path.out_block, "uuu", True) for path in table.paths]
    theirs = o3.TensorProduct(
        table.irreps_in, right, out, instructions, internal_weights=False, shared_weights=True,
        irrep_normalization="component", path_normalization="element",
    ).double()  # fmt: skip
    expected = theirs(
        to_e3nn_layout(tensors, table.irreps_in),
        to_e3nn_layout(environment[center], right),
        kernel.weight.flatten(),
    )
    found = to_e3nn_layout(kernel(tensors, environment, center), out)
    # e3nn keeps its own coupling coefficients in single precision until it is converted.
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def to_e3nn_layout(features, irreps):
    """(rows, components, channels) → e3nn's (rows, Σ mul · (2l+1))."""
    blocks = torch.split_with_sizes(features, [ir.dim for _, ir in irreps], dim=1)
    return torch.cat([block.transpose(1, 2).flatten(1) for block in blocks], dim=1)
