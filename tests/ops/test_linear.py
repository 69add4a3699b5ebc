"""Linear maps of features: the kernel against plain torch, its derivatives, and what it refuses."""

import pytest
import torch
from derivatives import relative_errors, value_and_gradients
from e3nn import o3

from equipot.nn.linear import SpeciesLinear
from equipot.ops import reference
from equipot.ops.paths import feature_irreps

pytestmark = pytest.mark.usefixtures("kernels")


def random_map(channels=8, atoms=130, species=3, dtype=torch.float64):
    """(x, weights), (blocks, types, dim out): 2e comes out of nothing, 0o goes nowhere."""
    torch.manual_seed(0)
    irreps_in = o3.Irreps([(channels, ir) for _, ir in feature_irreps(2, True, 1) if str(ir) != "2e"])
    irreps_out = o3.Irreps([(channels + 3, "0e"), (channels, "1o"), (2 * channels, "2o"), (channels, "2e")])
    layer = SpeciesLinear(irreps_in, irreps_out, species).to(dtype)
    x = torch.randn(atoms, irreps_in.dim, dtype=dtype)
    types = torch.randint(species, (atoms,))
    others = (layer.table, types, irreps_out.dim)
    return [x.requires_grad_(), layer.packed().detach().requires_grad_()], others


@pytest.mark.parametrize("species", [1, 3])
@pytest.mark.parametrize("channels", [1, 7, 40])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-13), (torch.float32, 5e-6)])
def test_agrees_with_plain_torch(species, channels, dtype, tolerance):
    inputs, others = random_map(channels, species=species, dtype=dtype)
    results = [
        value_and_gradients(lambda x, w, f=function: f(x, w, *others), inputs)
        for function in (torch.ops.equipot.linear, reference.linear)
    ]
    assert max(relative_errors(*results)) < tolerance  # sums of some hundred terms in another order


def test_transposed_map():
    (x, weights), (blocks, types, dim) = random_map()
    g = torch.randn(len(x), dim, dtype=x.dtype)
    by_gradient = torch.autograd.grad(reference.linear(x, weights, blocks, types, dim), x, g)[0]
    for function in (torch.ops.equipot.linear, reference.linear):
        found = function(g, weights, blocks, types, x.shape[1], True)
        # sums of some dozen terms, in another order
        torch.testing.assert_close(found, by_gradient, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("species", [1, 2])
def test_finite_differences(species):
    inputs, others = random_map(channels=2, atoms=4, species=species)
    function = lambda *inputs: torch.ops.equipot.linear(*inputs, *others)  # noqa: E731
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


def test_third_derivative():
    """The two operators are each other's derivatives, to every order."""
    (x, weights), others = random_map(channels=2, atoms=4)
    results = []
    for function in (torch.ops.equipot.linear, reference.linear):
        value = function(x, weights, *others).pow(3).sum()
        for _ in range(3):
            value = sum(g.pow(2).sum() for g in torch.autograd.grad(value, (x, weights), create_graph=True))
        results.append([value.detach()])
    # float64, sums in another order
    assert max(relative_errors(*results)) < 1e-12


def test_same_bits_every_time():
    """For any number of threads, but for the gradient by the weights, of which each thread sums a part."""
    inputs, others = random_map(20, 600, dtype=torch.float32)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (3, 3, 1, 2):
            torch.set_num_threads(count)
            function = lambda x, w: torch.ops.equipot.linear(x, w, *others)  # noqa: E731
            results.append(value_and_gradients(function, inputs))
    finally:
        torch.set_num_threads(threads)
    by_weights = (2, 4)
    assert len(results[0]) == 6  # output; by x, weights; the same again, and by the cotangent
    assert all(torch.equal(a, b) for a, b in zip(results[0], results[1], strict=True))
    for other in results[2:]:
        for n, (a, b) in enumerate(zip(results[0], other, strict=True)):
            assert torch.equal(a, b) or n in by_weights
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()))  # float32 sums


def test_no_atoms():
    (x, weights), (blocks, _, dim) = random_map(atoms=0)
    out = torch.ops.equipot.linear(x, weights, blocks, torch.zeros(0, dtype=torch.int64), dim)
    assert out.shape == (0, dim)
    assert (torch.autograd.grad(out.sum(), weights)[0] == 0).all()


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda x, w, b, t, d: (x[:, 1:], w, b, t, d), "does not fit"),
        (lambda x, w, b, t, d: (x, w[:, 1:], b, t, d), "weights of"),
        (lambda x, w, b, t, d: (x, w.float(), b, t, d), "one dtype"),
        (lambda x, w, b, t, d: (x, w, b, t[1:], d), "expected x"),
        (lambda x, w, b, t, d: (x, w, b, t + 1, d), "refers to atom"),
        (lambda x, w, b, t, d: (x, w, b[:, 1:], t, d), "expected blocks"),
    ],
)
def test_refuses_arguments_that_do_not_fit(change, message):
    inputs, others = random_map()
    with pytest.raises((RuntimeError, IndexError), match=message):
        torch.ops.equipot.linear(*change(*inputs, *others))


def test_shapes_on_the_meta_device():
    (x, weights), (blocks, types, dim) = random_map()
    out = torch.ops.equipot.linear(x.to("meta"), weights.to("meta"), blocks, types.to("meta"), dim)
    assert out.shape == (len(x), dim)
