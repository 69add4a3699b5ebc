"""Time of a layer's tensor product with weights for each edge, and of the sum: equipot beside e3nn.

    scripts/benchmark layer [--repeats 9] [--json out.json]

Two products, each the same function of the same numbers in both: one weight per path and channel ("uvu": our
`Convolution`, e3nn's `TensorProduct`), and fully connected ("uvw": `FullyConnected` of examples/06_layer,
e3nn's `FullyConnectedTensorProduct`). Irreps of DiffDock's kind, narrow and wide, harmonics to l = 2,
135 atoms with 2,400 edges, float32, one thread. Both run alternately in one process and processor time is
counted, so that the ratio holds on a busy machine.
"""

import argparse
import importlib.util
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from e3nn import o3
from torch import Tensor, nn

from equipot.ops.build import kernels_available
from equipot.ops.convolution import Convolution
from equipot.ops.paths import convolution_paths

EXAMPLE = Path(__file__).parents[2] / "examples" / "06_layer" / "layer.py"
SH = "0e+1o+2e"
SIZES = {"narrow": "16x0e+4x1o+4x1e+16x0o", "wide": "48x0e+10x1o+10x1e+48x0o"}


def fully_connected() -> type[nn.Module]:
    """The example's class."""
    spec = importlib.util.spec_from_file_location("layer", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.FullyConnected


class Summed(nn.Module):
    """A tensor product of e3nn for each edge, and the sum."""

    def __init__(self, product: nn.Module):
        super().__init__()
        self.product = product

    def forward(self, x: Tensor, sh: Tensor, weights: Tensor, edge_index: Tensor) -> Tensor:
        messages = self.product(x[edge_index[1]], sh, weights)
        return messages.new_zeros(len(x), messages.shape[1]).index_add(0, edge_index[0], messages)


def products(irreps: str) -> dict[str, tuple[nn.Module, nn.Module, int]]:
    """By name: e3nn's, ours, and how many weights an edge has."""
    table = convolution_paths(irreps, SH, irreps)
    slots = o3.Irreps([(path.channels, table.irreps_out[path.out_block].ir) for path in table.paths])
    paths = [(path.in_block, path.l_sh, n, "uvu", True) for n, path in enumerate(table.paths)]
    options = {"internal_weights": False, "shared_weights": False}
    per_channel = o3.TensorProduct(irreps, SH, slots, paths, **options)
    full, ours = (
        o3.FullyConnectedTensorProduct(irreps, SH, irreps, **options),
        fully_connected()(irreps, SH, irreps),
    )
    return {
        "per channel": (Summed(per_channel), Convolution(table).float(), table.num_weights),
        "fully connected": (Summed(full), ours.float(), ours.num_weights),
    }


def milliseconds(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return 1e3 * (time.process_time() - start)


def measure(theirs: nn.Module, ours: nn.Module, arguments: list[Tensor], repeats: int) -> dict[str, dict]:
    """Median milliseconds of both, and the median of their ratios."""
    samples: dict[str, list[list[float]]] = {"forward": [], "forward and backward": []}
    for _ in range(repeats + 2):  # the first two warm up: e3nn's code is compiled in them
        passes = {
            "forward": lambda product: product(*arguments),
            "forward and backward": lambda product: product(*arguments).square().sum().backward(),
        }
        for name, run in passes.items():
            samples[name].append([milliseconds(lambda p=p, run=run: run(p)) for p in (theirs, ours)])
    result = {}
    for name, pairs in samples.items():
        e3nn, equipot = zip(*pairs[2:], strict=True)
        ratio = statistics.median(a / b for a, b in zip(e3nn, equipot, strict=True))
        medians = {"e3nn_ms": statistics.median(e3nn), "equipot_ms": statistics.median(equipot)}
        result[name] = {**medians, "ratio": ratio}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--atoms", type=int, default=135)
    parser.add_argument("--edges", type=int, default=2400)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not kernels_available():
        raise SystemExit("the kernels are off or cannot be compiled here")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    center = torch.randint(options.atoms, (options.edges,)).sort().values
    edge_index = torch.stack([center, torch.randint(options.atoms, (options.edges,))])
    records = []
    print(f"{options.atoms} atoms, {options.edges} edges, one thread; median milliseconds")
    print(f"{'irreps':<6} {'product':<16} {'weights':>8}  {'':<20} {'e3nn':>8} {'equipot':>8} ratio")
    for size, irreps in SIZES.items():
        for name, (theirs, ours, num_weights) in products(irreps).items():
            widths = (o3.Irreps(irreps).dim, 9, num_weights)
            rows = (options.atoms, options.edges, options.edges)
            tensors = [
                torch.randn(n, width, requires_grad=True) for n, width in zip(rows, widths, strict=True)
            ]
            times = measure(theirs, ours, [*tensors, edge_index], options.repeats)
            records.append({"irreps": irreps, "product": name, "weights": num_weights, **times})
            for passes, row in times.items():
                figures = f"{row['e3nn_ms']:8.2f} {row['equipot_ms']:8.2f} {row['ratio']:5.1f}"
                print(f"{size:<6} {name:<16} {num_weights:8}  {passes:<20} {figures}", flush=True)
    if options.json:
        options.json.write_text(json.dumps({"records": records}, indent=1))


if __name__ == "__main__":
    main()
