"""Time of the fused convolution against the reference: forward, backward, double backward.

    scripts/benchmark operators [--threads 2] [--repeats 9] [--json out.json]

Both run alternately in one process, so that their ratio holds on a busy machine where the times do not.
Random graphs of two sizes: a batch of molecules (135 atoms, 2,400 edges) and a box of water (192 atoms,
20,000 edges); float32, both parities.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from e3nn import o3

from equipot.models.nequip import feature_irreps
from equipot.ops.build import kernels_available
from equipot.ops.convolution import Convolution
from equipot.ops.operators import plain_operators
from equipot.ops.paths import convolution_paths

SIZES = ((135, 2400), (192, 20000))


def random_case(num_atoms: int, num_edges: int, channels: int, l_max: int):
    """Both implementations, and arguments x, sh, weights, edge_index."""
    irreps = feature_irreps(l_max, True, channels)
    table = convolution_paths(irreps, o3.Irreps.spherical_harmonics(l_max), irreps)
    center = torch.randint(num_atoms, (num_edges,)).sort().values
    edge_index = torch.stack([center, torch.randint(num_atoms, (num_edges,))])
    shapes = ((num_atoms, irreps.dim), (num_edges, (l_max + 1) ** 2), (num_edges, table.num_weights))
    x, sh, weights = (torch.randn(shape, requires_grad=True) for shape in shapes)
    kernel = Convolution(table).float()

    def in_plain_torch(*arguments):
        with plain_operators():
            return kernel(*arguments)

    return {"reference": in_plain_torch, "kernel": kernel}, (x, sh, weights, edge_index)


def time_stages(convolution, arguments, cotangents) -> dict[str, float]:
    """Seconds of one forward, of a backward that can be differentiated, and of its derivative."""
    start = time.perf_counter()
    out = convolution(*arguments)
    forward = time.perf_counter() - start
    gradient = torch.ones_like(out).requires_grad_()
    start = time.perf_counter()
    first = torch.autograd.grad(out, arguments[:3], gradient, create_graph=True)
    backward = time.perf_counter() - start
    start = time.perf_counter()
    torch.autograd.grad(first, [*arguments[:3], gradient], cotangents)
    return {"forward": forward, "backward": backward, "double backward": time.perf_counter() - start}


def measure(num_atoms: int, num_edges: int, channels: int, l_max: int, repeats: int) -> dict:
    """Median milliseconds of both and the median of their ratios, for each stage and a training step."""
    convolutions, arguments = random_case(num_atoms, num_edges, channels, l_max)
    cotangents = [torch.randn_like(argument) for argument in arguments[:3]]
    samples: dict[str, list[dict]] = {name: [] for name in convolutions}
    for repeat in range(repeats + 1):
        for name, convolution in convolutions.items():
            times = time_stages(convolution, arguments, cotangents)
            # Training on forces: energy, its gradient, then the loss through both.
            times["training step"] = times["forward"] + 2 * times["backward"] + times["double backward"]
            if repeat > 0:  # the first one warms up
                samples[name].append(times)
    result = {}
    for stage in samples["kernel"][0]:
        slow, fast = ([1e3 * sample[stage] for sample in samples[name]] for name in ("reference", "kernel"))
        ratio = statistics.median(a / b for a, b in zip(slow, fast, strict=True))
        result[stage] = {
            "reference_ms": statistics.median(slow),
            "kernel_ms": statistics.median(fast),
            "ratio": ratio,
        }
    return result


def main() -> None:
    if not kernels_available():
        raise SystemExit("there is nothing to compare: the kernels are off or cannot be compiled here")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--channels", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--l-max", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    records = []
    print(f"threads {options.threads}, l_max {options.l_max}, float32; median milliseconds")
    print(f"{'atoms':>6} {'edges':>6} {'channels':>8}  {'stage':<16} {'reference':>10} {'kernel':>8} ratio")
    for num_atoms, num_edges in SIZES:
        for channels in options.channels:
            stages = measure(num_atoms, num_edges, channels, options.l_max, options.repeats)
            records.append({"atoms": num_atoms, "edges": num_edges, "channels": channels, "stages": stages})
            for stage, row in stages.items():
                print(
                    f"{num_atoms:6} {num_edges:6} {channels:8}  {stage:<16}"
                    f" {row['reference_ms']:10.2f} {row['kernel_ms']:8.2f} {row['ratio']:5.1f}"
                )
    if options.json:
        options.json.write_text(json.dumps({"threads": options.threads, "records": records}, indent=1))


if __name__ == "__main__":
    main()
