"""Every operator of ``torch.ops.equipot`` against plain torch on a CPU in float64: values, first and second
derivatives.

Which operators there are is asked of torch, so that a new one cannot be forgotten: one with a CUDA kernel and
without a check is reported as UNCHECKED, and the part has failed.
"""

import functools
from collections.abc import Callable

import torch
from e3nn import o3
from plan import Case, Context, Rows
from torch import Tensor

from equipot.models.nequip import NequIP
from equipot.nn.gate import Gate
from equipot.nn.linear import SpeciesLinear
from equipot.ops import reference
from equipot.ops.convolution import kernel_tables
from equipot.ops.paths import convolution_paths, feature_irreps

TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5}  # relative to the largest value
ATOMS, EDGES, NETS = 12, 400, 3
CUTOFF, INTERVALS = 3.0, 16

# Of an operator: tensors to differentiate by (float64), its other arguments, plain torch's function.
Check = tuple[list[Tensor], tuple, Callable]


def _edges() -> Tensor:
    """Sorted by center; the last atom has none."""
    center = torch.randint(ATOMS - 1, (EDGES,)).sort().values
    return torch.stack([center, torch.randint(ATOMS - 1, (EDGES,))])


def convolution(l_max: int, parity: bool, channels) -> Check:
    irreps = feature_irreps(l_max, parity, channels)
    table = convolution_paths(irreps, o3.Irreps.spherical_harmonics(l_max), irreps)
    shapes = ((ATOMS, irreps.dim), (EDGES, (l_max + 1) ** 2), (EDGES, table.num_weights))
    others = (_edges(), *kernel_tables(table), table.irreps_out.dim)
    return [torch.randn(shape, dtype=torch.float64) for shape in shapes], others, reference.convolution


def tabulated_convolution(l_max: int, parity: bool, channels) -> Check:
    """Some edges are longer than the cutoff."""
    irreps = feature_irreps(l_max, parity, channels)
    table = convolution_paths(irreps, o3.Irreps.spherical_harmonics(l_max), irreps)
    coefficients = torch.randn(INTERVALS + 5, table.num_weights, dtype=torch.float64)
    coefficients[-5:] = 0
    lengths = 0.1 + 3.2 * torch.rand(EDGES, 1, dtype=torch.float64)
    x, sh = (
        torch.randn(n, w, dtype=torch.float64) for n, w in ((ATOMS, irreps.dim), (EDGES, (l_max + 1) ** 2))
    )
    others = (_edges(), *kernel_tables(table), CUTOFF, table.irreps_out.dim)
    return [x, sh, lengths, coefficients], others, reference.tabulated_convolution


def atom_product(rows: int, columns: int, channels: int, transposed: bool) -> Check:
    matrices = torch.randn(ATOMS, rows, columns, channels, dtype=torch.float64)
    x = torch.randn(EDGES, rows if transposed else columns, channels, dtype=torch.float64)
    return [matrices, x], (_edges()[0], transposed), reference.atom_product


def atom_outer_sum(rows: int, columns: int, channels: int) -> Check:
    """A(n) = Σ_e left_e right_eᵀ over the edges of atom n."""
    left, right = (torch.randn(EDGES, size, channels, dtype=torch.float64) for size in (rows, columns))

    def plain(left: Tensor, right: Tensor, center: Tensor, num_atoms: int) -> Tensor:
        each = left.unsqueeze(2) * right.unsqueeze(1)
        return each.new_zeros(num_atoms, *each.shape[1:]).index_add(0, center, each)

    return [left, right], (_edges()[0], ATOMS), plain


def _linear(channels: int, species: int) -> tuple[SpeciesLinear, Tensor, Tensor]:
    """2e comes out of nothing, 0o goes nowhere."""
    irreps_in = o3.Irreps([(channels, ir) for _, ir in feature_irreps(2, True, 1) if str(ir) != "2e"])
    irreps_out = o3.Irreps([(channels + 3, "0e"), (channels, "1o"), (2 * channels, "2o"), (channels, "2e")])
    x = torch.randn(130, irreps_in.dim, dtype=torch.float64)
    return SpeciesLinear(irreps_in, irreps_out, species), x, torch.randint(species, (130,))


def linear(channels: int, species: int, transposed: bool) -> Check:
    layer, x, types = _linear(channels, species)
    weights = layer.packed().detach()
    if transposed:
        g = torch.randn(130, layer.dim_out, dtype=torch.float64)
        return [g, weights], (layer.table, types, x.shape[1], True), reference.linear
    return [x, weights], (layer.table, types, layer.dim_out), reference.linear


def linear_outer_sum(channels: int, species: int) -> Check:
    """The gradient of a linear map by its weights."""
    layer, x, types = _linear(channels, species)
    g = torch.randn(130, layer.dim_out, dtype=torch.float64)
    shape = layer.packed().shape

    def plain(x: Tensor, g: Tensor, blocks: Tensor, types: Tensor, *sizes: int) -> Tensor:
        with torch.enable_grad():
            weights = torch.zeros(sizes, dtype=x.dtype, requires_grad=True)
            out = reference.linear(x, weights, blocks, types, g.shape[1])
            return torch.autograd.grad(out, weights, g, create_graph=True)[0]

    return [x, g], (layer.table, types, *shape), plain


def interaction(l_max: int, layers: int, channels: int, owned: int) -> Check:
    """A NequIP block in the middle, of six layers with odd scalars. First derivatives, by four arguments."""
    network = NequIP(
        num_species=1, cutoff=CUTOFF, avg_num_neighbors=7.0, l_max=l_max, layers=layers, channels=channels,
        radial_intervals=INTERVALS,
    )  # fmt: skip
    layer = network.layers[layers // 2 - 1]
    tables, gate = layer.convolution.convolution, layer.gate
    edges = _edges()
    edges[0].clamp_(max=owned - 1)
    lengths = 0.1 + 3.2 * torch.rand(EDGES, 1, dtype=torch.float64)
    shapes = ((ATOMS, layer.irreps_in.dim), (owned, gate.irreps_in.dim), (EDGES, (l_max + 1) ** 2))
    others = (
        layer.convolution.radial.table().detach(), edges, tables.paths, tables.coefficients, CUTOFF,
        tables.dim_out, layer.mix_paths.packed().detach(), layer.mix_paths.table,
        gate.num_even, gate.num_odd, gate.silu_factor, gate.tanh_factor,
    )  # fmt: skip
    return (
        [*(torch.randn(shape, dtype=torch.float64) for shape in shapes), lengths],
        others,
        reference.interaction,
    )


def _gate(irreps: str) -> tuple[Gate, tuple]:
    gate = Gate(o3.Irreps(irreps))
    return gate, (gate.table, gate.num_even, gate.num_odd, gate.silu_factor, gate.tanh_factor)


def gate(irreps: str) -> Check:
    layer, others = _gate(irreps)
    return [torch.randn(130, layer.irreps_in.dim, dtype=torch.float64)], others, reference.gate


def gate_gradient(irreps: str) -> Check:
    layer, others = _gate(irreps)

    def plain(x: Tensor, by_out: Tensor, *others) -> Tensor:
        with torch.enable_grad():
            given = x if x.requires_grad else x.detach().requires_grad_()
            return torch.autograd.grad(reference.gate(given, *others), given, by_out, create_graph=True)[0]

    shapes = (130, layer.irreps_in.dim), (130, layer.irreps_out.dim)
    return [torch.randn(shape, dtype=torch.float64) for shape in shapes], others, plain


def segment_sum(columns: int, side: int) -> Check:
    return [torch.randn(EDGES, columns, dtype=torch.float64)], (_edges(), side, ATOMS), reference.segment_sum


def segment_rows(columns: int, side: int) -> Check:
    """The other way round."""
    plain = lambda sums, edges, side: sums.index_select(0, edges[side])  # noqa: E731
    return [torch.randn(ATOMS, columns, dtype=torch.float64)], (_edges(), side), plain


# Several for each operator: other degrees, and numbers of channels that fill no warp.
CHECKS: dict[str, list[tuple[Callable, tuple]]] = {
    "convolution": [
        (convolution, (1, True, 33)),
        (convolution, (2, True, (40, 16, 7))),
        (convolution, (2, False, 64)),
        (convolution, (3, True, 5)),
    ],
    "tabulated_convolution": [
        (tabulated_convolution, (1, False, 1)),
        (tabulated_convolution, (2, True, 33)),
        (tabulated_convolution, (2, True, 64)),
        (tabulated_convolution, (3, True, (19, 7, 3, 2))),
    ],
    "atom_product": [(atom_product, (9, 5, 33, False)), (atom_product, (4, 9, 7, True))],
    "atom_outer_sum": [(atom_outer_sum, (9, 4, 33))],
    "linear": [
        (linear, (7, 1, False)),
        (linear, (40, 1, True)),
        (linear, (33, 3, False)),
        (linear, (7, 3, True)),
    ],
    "linear_outer_sum": [(linear_outer_sum, (7, 1)), (linear_outer_sum, (33, 3))],
    "gate": [(gate, ("7x0e + 3x0o + 5x1o + 2x2e",)), (gate, ("64x0e",)), (gate, ("64x0e + 64x1o + 64x2e",))],
    "gate_gradient": [(gate_gradient, ("7x0e + 3x0o + 5x1o + 2x2e",)), (gate_gradient, ("33x0e + 33x1o",))],
    "interaction": [
        (interaction, (1, 3, 7, ATOMS)),
        (interaction, (2, 6, 5, ATOMS)),
        (interaction, (2, 3, 64, ATOMS // 2)),
        (interaction, (3, 3, 33, ATOMS)),
    ],
    "segment_sum": [(segment_sum, (3, 0)), (segment_sum, (12, 1))],
    "segment_rows": [(segment_rows, (3, 1))],
}
_FIRST_ONLY = {"interaction"}  # it refuses second derivatives
# Reached as derivatives of others; copies of rows, switches and what is told, which compute nothing.
_THROUGH_OTHERS = {"convolution_backward": "convolution", "convolution_double_backward": "convolution"}
_COMPUTE_NOTHING = {"num_owned", "ghost_exchange", "know_types"}


def registered() -> list[str]:
    """Names of all operators of equipot in this process."""
    schemas = torch._C._jit_get_all_schemas()
    return sorted({s.name.removeprefix("equipot::") for s in schemas if s.name.startswith("equipot::")})


def has_kernel(name: str, device: str) -> bool:
    """Whether an operator has a kernel for the device, or one for all."""
    keys = ("CUDA" if device == "cuda" else "CPU", "CompositeExplicitAutograd", "CompositeImplicitAutograd")
    return any(torch._C._dispatch_has_kernel_for_dispatch_key(f"equipot::{name}", key) for key in keys)


def cases(context: Context) -> dict[str, Case]:
    found: dict[str, Case] = {"all of them": every_operator}
    for name, checks in CHECKS.items():
        for make, sizes in checks[:2] if context.size == "tiny" else checks:
            case = f"{name}, {', '.join(map(str, sizes))}"
            found[case] = functools.partial(one_operator, name, make, sizes)
    return found


def every_operator(context: Context) -> Rows:
    """Which operators are checked here, and which are not."""
    return [_account(name, context.device) for name in registered() if name not in _COMPUTE_NOTHING]


def _account(name: str, device: str) -> dict:
    if name in CHECKS or name in _THROUGH_OTHERS:
        place = "runs here" if has_kernel(name, device) else "has no kernel for this device"
        by = f", as a derivative of {_THROUGH_OTHERS[name]}" if name in _THROUGH_OTHERS else ""
        return {"operator": name, "note": f"checked{by}" if place == "runs here" else place}
    if has_kernel(name, "cuda"):
        return {
            "operator": name,
            "ok": False,
            "note": "UNCHECKED: add it to scripts/benchmarks/gpu/operators.py",
        }
    return {"operator": name, "note": "has no CUDA kernel and no check here"}


def one_operator(name: str, make: Callable, sizes: tuple, context: Context) -> Rows:
    if name not in registered() or not has_kernel(name, context.device):
        return [{"operator": name, "note": "has no kernel for this device"}]
    return [_compare(name, make, sizes, dtype, context.device) for dtype in TOLERANCE]


def _compare(name: str, make: Callable, sizes: tuple, dtype: torch.dtype, device: str) -> dict:
    torch.manual_seed(0)
    inputs, others, plain = make(*sizes)
    inputs = [tensor.to(dtype).double() for tensor in inputs]  # what the device gets, exactly
    # Tables and weights among the others have two dimensions, coupling coefficients one.
    in_dtype = lambda item: isinstance(item, Tensor) and item.is_floating_point() and item.dim() == 2  # noqa: E731
    others = [item.to(dtype).double() if in_dtype(item) else item for item in others]
    order = 1 if name in _FIRST_ONLY else 2
    expected = derivatives(lambda *given: plain(*given, *others), inputs, order)
    there = [item.to(dtype) if in_dtype(item) else item for item in others]
    there = [item.to(device) if isinstance(item, Tensor) else item for item in there]
    operator = getattr(torch.ops.equipot, name)
    given = [tensor.to(device, dtype) for tensor in inputs]
    found = derivatives(lambda *given: operator(*given, *there), given, order)
    count = len(inputs)
    errors = [relative_error(*pair) for pair in zip(found, expected, strict=True)]
    groups = {"value": errors[:1], "first": errors[1 : 1 + count]}
    groups |= {"second": errors[1 + count :]} if order == 2 else {}
    return {
        "operator": name,
        "of": ", ".join(map(str, sizes)),
        "dtype": str(dtype).removeprefix("torch."),
        **{f"error of {key}": max(group) for key, group in groups.items()},
        "tolerance": TOLERANCE[dtype],
        "ok": all(error < TOLERANCE[dtype] for error in errors),
    }


def derivatives(function: Callable, inputs: list[Tensor], order: int) -> list[Tensor]:
    """Value, gradients, and of order 2 the gradients of their projection on fixed directions, on the CPU."""
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    out = function(*inputs)
    out = out[0] if isinstance(out, tuple) else out
    gradient = _fixed(torch.sin, out).requires_grad_()
    if order == 1:
        return [item.detach().cpu() for item in (out, *torch.autograd.grad(out, inputs, gradient.detach()))]
    first = torch.autograd.grad(out, inputs, gradient, create_graph=True)
    directions = [_fixed(torch.cos, item) for item in first]
    second = torch.autograd.grad(first, [*inputs, gradient], directions, allow_unused=True)
    second = [torch.zeros(1) if item is None else item for item in second]
    return [item.detach().cpu() for item in (out, *first, *second)]


def _fixed(function: Callable, like: Tensor) -> Tensor:
    """sin or cos of 0, 1, 2, ...: the same numbers on every device."""
    numbers = function(torch.arange(like.numel(), dtype=torch.float64)).float()
    return numbers.view_as(like).to(like.device, like.dtype)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest deviation over the largest expected value; inf where something is not finite."""
    if not torch.isfinite(found).all():
        return float("inf")
    difference = (found.double() - expected.double()).abs().max()
    return float(difference / expected.abs().max().clamp(min=1e-30))
