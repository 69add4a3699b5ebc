"""The convolution of each layer alone: by center (forward), and by neighbor (backward)."""

import functools

import torch
from plan import Case, Context, Rows
from systems import for_inference, inputs, model_settings, potential
from timing import measure

SIZES = {
    "full": {"silicon": 13_824, "water": 12_288},
    "small": {"silicon": 64},
    "tiny": {"silicon": 8},
}


def cases(context: Context) -> dict[str, Case]:
    names = ("l2 parity",) if context.size == "tiny" else ("l2 parity", "l2", "l3 parity")
    return {
        f"{name}, {kind}": functools.partial(layers, name, kind)
        for kind in SIZES[context.size]
        for name in names
    }


def layers(name: str, kind: str, context: Context) -> Rows:
    given = inputs(kind, SIZES[context.size][kind], context.device)
    model = for_inference(potential(model_settings(name, context.size), kind)).to(context.device)
    edge_vec = given.edge_vec.to(model.dtype)
    length = edge_vec.norm(dim=1, keepdim=True)
    harmonics = model.network.spherical_harmonics(edge_vec / length).requires_grad_()
    length.requires_grad_()
    rows = []
    seconds = context.seconds / len(model.network.layers) / 3
    for number, layer in enumerate(model.network.layers):
        x = torch.randn(given.num_atoms, layer.irreps_in.dim, device=context.device, requires_grad=True)
        convolution = functools.partial(layer.convolution, x, harmonics, length, given.edge_index)
        out = convolution()
        gradient = torch.randn_like(out)

        def backward(out=out, x=x, gradient=gradient) -> None:
            torch.autograd.grad(out, (x, harmonics, length), gradient, retain_graph=True)

        def forward(convolution=convolution) -> None:
            with torch.no_grad():
                convolution()

        common = {"model": name, "structure": kind, "layer": number + 1, "edges": given.num_edges}
        forward_ms = measure(forward, context.device, seconds).device
        backward_ms = measure(backward, context.device, seconds).device
        moved, computed = _work(layer, x, out, harmonics, given.num_edges)
        rows.append(
            common | {"pass": "center, forward"} | _figures(forward_ms, moved, computed, given, context)
        )
        # Reads what the other reads and the gradient of the messages; writes three gradients.
        moved_back = moved + 4 * (given.num_edges * (out.shape[1] + harmonics.shape[1] + 1) + x.numel())
        row = _figures(backward_ms, moved_back, None, given, context)
        rows.append(common | {"pass": "neighbor, backward"} | row)
    return rows


def _work(layer, x, out, harmonics, num_edges: int) -> tuple[float, float]:
    """Bytes and operations of the pass by center, if nothing of an edge stays in a cache.

    Bytes: a row of features, harmonics, length and two indices for every edge, and the sums. Operations: the
    matrix of each path on its channels and the weights, two for a multiply–add; without splines and matrices.
    """
    size = x.element_size()
    moved = num_edges * (size * (x.shape[1] + harmonics.shape[1] + 1) + 16) + size * out.numel()
    operations = 0
    for l_in, _, l_out, channels, *_ in layer.convolution.convolution.paths.tolist():
        operations += 2 * (2 * l_out + 1) * (2 * l_in + 1 + 1) * channels
    return moved, operations * num_edges


def _figures(ms: float, moved: float, computed: float | None, given, context: Context) -> dict:
    row = {"device ms": ms, "ns/edge": 1e6 * ms / given.num_edges, "GB/s": moved / ms / 1e6}
    if "copy GB/s" in context.known:
        row["of the copy"] = f"{100 * row['GB/s'] / context.known['copy GB/s']:.0f} %"
    if computed is not None:
        row["GFLOP/s"] = computed / ms / 1e6
    return row
