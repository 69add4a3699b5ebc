"""An interaction block by one operator: against its parts in plain torch, and what it refuses."""

import subprocess
import sys

import pytest
import torch
from derivatives import relative_errors

from equipot.models.nequip import NequIP
from equipot.ops import reference

pytestmark = pytest.mark.usefixtures("kernels")


def arguments(channels=8, atoms=60, owned=60, edges=400, parity=True, dtype=torch.float64, layers=3):
    """Of the layer in the middle of a NequIP, random; the first four have gradients. Atom 0 has no edges."""
    torch.manual_seed(0)
    network = NequIP(
        num_species=1, cutoff=3.0, avg_num_neighbors=7.0, layers=layers, channels=channels, parity=parity,
        radial_intervals=16,
    ).to(dtype)  # fmt: skip
    layer = network.layers[(layers - 1) // 2]
    tables, gate = layer.convolution.convolution, layer.gate
    center = torch.randint(1, max(owned, 2), (edges,)).sort().values
    edge_index = (
        torch.stack([center, torch.randint(1, atoms, (edges,))]) if edges else torch.zeros(2, 0).long()
    )
    arrays = [
        torch.randn(atoms, layer.irreps_in.dim),
        torch.randn(owned, gate.irreps_in.dim),
        torch.randn(edges, 9),
        3.3 * torch.rand(edges, 1),
    ]
    return [
        *(array.to(dtype).requires_grad_() for array in arrays),
        layer.convolution.radial.table().detach(), edge_index, tables.paths, tables.coefficients, 3.0,
        tables.dim_out,
        layer.mix_paths.packed().detach(), layer.mix_paths.table,
        gate.num_even, gate.num_odd, gate.silu_factor, gate.tanh_factor,
    ]  # fmt: skip


def value_and_gradients(function, arguments):
    out = function(*arguments)[0]
    gradient = torch.sin(torch.arange(out.numel(), dtype=out.dtype)).view_as(out)
    return [out.detach(), *torch.autograd.grad(out, arguments[:4], gradient)]


@pytest.mark.parametrize("channels, parity", [(1, True), (7, False), (32, True)])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_agrees_with_its_parts(channels, parity, dtype, tolerance):
    given = arguments(channels, parity=parity, dtype=dtype)
    found, expected = (
        value_and_gradients(function, given)
        for function in (torch.ops.equipot.interaction, reference.interaction)
    )
    assert max(relative_errors(found, expected)) < tolerance  # sums of hundreds of terms in another order


def test_odd_scalars():
    """Pseudoscalars (0o), which alone pass through tanh, are of use from six layers on."""
    given = arguments(5, layers=6)
    assert given[13] == 5  # num_odd
    found, expected = (
        value_and_gradients(function, given)
        for function in (torch.ops.equipot.interaction, reference.interaction)
    )
    assert max(relative_errors(found, expected)) < 1e-12  # as above


@pytest.mark.parametrize("atoms, owned, edges", [(60, 25, 300), (60, 25, 0), (10, 0, 0), (130, 130, 50)])
def test_ghosts_and_atoms_without_neighbors(atoms, owned, edges):
    given = arguments(3, atoms, owned, edges)
    found, expected = (
        value_and_gradients(function, given)
        for function in (torch.ops.equipot.interaction, reference.interaction)
    )
    assert found[0].shape[0] == owned
    assert max(relative_errors(found, expected)) < 1e-12  # as above


def test_messages_to_ghosts_are_not_used():
    given = arguments(3, atoms=60, owned=60)
    given[1] = given[1][:20].detach().requires_grad_()
    found, expected = (
        value_and_gradients(function, given)
        for function in (torch.ops.equipot.interaction, reference.interaction)
    )
    assert max(relative_errors(found, expected)) < 1e-12  # as above
    assert (found[3][given[5][0] >= 20] == 0).all()


def test_same_bits_for_any_number_of_threads():
    given = arguments(20, 300, 300, 3000, dtype=torch.float32)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (3, 3, 1, 2):
            torch.set_num_threads(count)
            results.append(value_and_gradients(torch.ops.equipot.interaction, given))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_refuses_what_it_has_no_derivatives_for():
    given = arguments(2)
    out = torch.ops.equipot.interaction(*given)[0]
    with pytest.raises(NotImplementedError, match="train mode"):
        torch.autograd.grad(out.sum(), given[0], create_graph=True)
    given[4] = given[4].requires_grad_()
    out = torch.ops.equipot.interaction(*given)[0]
    with pytest.raises(NotImplementedError, match="train mode"):
        torch.autograd.grad(out.sum(), given[4])


@pytest.mark.parametrize(
    "place, change, message",
    [
        (1, lambda residual: residual.float(), "residual"),
        (1, lambda residual: residual[:, 1:], "does not fit"),
        (10, lambda mixing: mixing[:, 1:], "weights of"),
        (12, lambda num_even: num_even + 1, "the gate needs"),
        (5, lambda edge_index: edge_index + 100, "refers to atom"),
    ],
)
def test_refuses_arguments_that_do_not_fit(place, change, message):
    given = arguments(2)
    given[place] = change(given[place])
    with pytest.raises((RuntimeError, IndexError), match=message):
        torch.ops.equipot.interaction(*given)


def test_operators_without_kernels(tmp_path):
    """A file made with kernels gives the same where there are none."""
    network = NequIP(num_species=2, cutoff=3.0, avg_num_neighbors=7.0, layers=3, channels=4).double().eval()
    torch.jit.script(network).save(str(tmp_path / "module.pt"))
    torch.manual_seed(0)
    edge_index = torch.stack([torch.randint(9, (60,)).sort().values, torch.randint(9, (60,))])
    inputs = (torch.randn(60, 3, dtype=torch.float64), edge_index, torch.randint(2, (9,)))
    torch.save(inputs, tmp_path / "inputs.pt")
    code = """
import os, torch
os.environ["EQUIPOT_KERNELS"] = "off"
from equipot.ops.operators import load_operators
assert not load_operators()
torch.save(torch.jit.load("module.pt")(*torch.load("inputs.pt")), "out.pt")
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    # float64; the operators in plain torch add in another order
    torch.testing.assert_close(torch.load(tmp_path / "out.pt"), network(*inputs), rtol=1e-10, atol=1e-10)
