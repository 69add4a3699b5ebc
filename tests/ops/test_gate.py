"""The gate by one operator: against plain torch, to the third derivative."""

import pytest
import torch
from derivatives import relative_errors
from e3nn import o3

from equipot.nn.gate import Gate
from equipot.ops import reference

pytestmark = pytest.mark.usefixtures("kernels")
ALL = "5x0e + 3x0o + 4x1o + 2x1e + 3x2e"


def arguments(irreps: str, rows: int = 70, dtype=torch.float64):
    torch.manual_seed(0)
    gate = Gate(o3.Irreps(irreps))
    x = 2.0 * torch.randn(rows, gate.irreps_in.dim, dtype=dtype)
    return x, (gate.table, gate.num_even, gate.num_odd, gate.silu_factor, gate.tanh_factor)


def derivatives(function, x, others, order: int) -> list:
    """The value, and the derivatives of random combinations of the one before by all that it was made of."""
    generator = torch.Generator().manual_seed(1)
    inputs, found = [x.clone().requires_grad_()], []
    made = [function(inputs[0], *others)]
    for n in range(order):
        found += [one.detach() for one in made]
        along = [torch.randn(one.shape, generator=generator, dtype=one.dtype) for one in made]
        along = [one.requires_grad_() for one in along]
        made = torch.autograd.grad(made, inputs, along, create_graph=n + 1 < order)
        inputs += along
    return [*found, *(one.detach() for one in made)]


@pytest.mark.parametrize("irreps", [ALL, "6x0e", "1x0e + 1x1o", "33x0e + 20x1o + 17x2e"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_derivatives_are_those_of_plain_torch(irreps, order):
    x, others = arguments(irreps)
    found = derivatives(torch.ops.equipot.gate, x, others, order)
    expected = derivatives(reference.gate, x, others, order)
    assert len(found) == len(expected) > order
    assert max(relative_errors(found, expected)) < 1e-12


def test_single_precision():
    x, others = arguments(ALL, dtype=torch.float32)
    found, expected = (derivatives(f, x, others, 2) for f in (torch.ops.equipot.gate, reference.gate))
    assert max(relative_errors(found, expected)) < 1e-5


def test_derivatives_are_those_of_finite_differences():
    x, others = arguments("2x0e + 1x0o + 1x1o", rows=2)
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: torch.ops.equipot.gate(x, *others), x)
    assert torch.autograd.gradgradcheck(lambda x: torch.ops.equipot.gate(x, *others), x)


def test_no_rows_and_rows_that_do_not_lie_together():
    x, others = arguments(ALL, rows=0)
    assert torch.ops.equipot.gate(x, *others).shape[0] == 0
    x, others = arguments(ALL, rows=40)
    apart = torch.stack([x, x], dim=2)[:, :, 0]
    assert not apart.is_contiguous()
    assert torch.equal(torch.ops.equipot.gate(apart, *others), torch.ops.equipot.gate(x, *others))


def test_same_bits_for_any_number_of_threads():
    x, others = arguments(ALL, rows=3000, dtype=torch.float32)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (3, 1, 2):
            torch.set_num_threads(count)
            results.append(derivatives(torch.ops.equipot.gate, x, others, 2))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda x, others: (x[:, 1:], *others), "does not fit|the gate needs"),
        (lambda x, others: (x[0], *others), "expected x"),
        (lambda x, others: (x, others[0], others[1] + 1, *others[2:]), "the gate needs"),
        (lambda x, others: (x, others[0][:, 1:], *others[1:]), r"expected blocks \(B, 5\)"),
    ],
)
def test_refuses_arguments_that_do_not_fit(change, message):
    with pytest.raises(RuntimeError, match=message):
        torch.ops.equipot.gate(*change(*arguments(ALL)))
    x, others = arguments(ALL)
    with pytest.raises(RuntimeError, match=r"expected \(70, "):
        torch.ops.equipot.gate_gradient(x, x[:, :3], *others)
