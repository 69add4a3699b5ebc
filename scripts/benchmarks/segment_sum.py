"""Sums over the edges of every atom outside the fused operators: torch's ways to compute them.

    scripts/benchmark segment-sum [--threads 1] [--repeats 9]

Forward, and forward with backward, in turns; the edges are sorted by atom, as a neighbor list's are.
"""

import argparse
import statistics
import time
from importlib.util import find_spec

import torch
from torch import Tensor

SIZES = ((135, 2_240), (192, 10_000), (10_000, 280_000))  # atoms, edges
WIDTHS = (3, 9, 64)


def contenders(center: Tensor, num_atoms: int) -> dict:
    """Functions of the values (E, width), by name."""
    counts = torch.bincount(center, minlength=num_atoms)
    pointers = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    ways = {
        "index_add": lambda x: x.new_zeros(num_atoms, x.shape[1]).index_add(0, center, x),
        "scatter_add": lambda x: x.new_zeros(num_atoms, x.shape[1]).scatter_add(
            0, center[:, None].expand_as(x), x
        ),
        "segment_reduce": lambda x: torch.segment_reduce(x, "sum", lengths=counts, axis=0, unsafe=True),
    }
    if find_spec("torch_scatter"):
        from torch_scatter import segment_csr

        ways["torch-scatter segment_csr"] = lambda x: segment_csr(x, pointers)
    return ways


def milliseconds(function, x: Tensor, backward: bool) -> float:
    start = time.perf_counter()
    out = function(x)
    if backward:
        torch.autograd.grad(out.sum(), x)
    return 1e3 * (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print("medians in ms: forward / with backward")
    for num_atoms, num_edges in SIZES:
        center = torch.randint(num_atoms, (num_edges,)).sort().values
        ways = contenders(center, num_atoms)
        for width in WIDTHS:
            x = torch.randn(num_edges, width, requires_grad=True)
            times = {name: ([], []) for name in ways}
            for _ in range(options.repeats + 1):
                for name, function in ways.items():
                    for backward in (False, True):
                        times[name][backward].append(milliseconds(function, x, backward))
            cells = (
                f"{name} {statistics.median(f[1:]):.3f} / {statistics.median(b[1:]):.3f}"
                for name, (f, b) in times.items()
            )
            print(f"{num_atoms:6d} atoms {num_edges:7d} edges x {width:2d}:  " + "   ".join(cells))


if __name__ == "__main__":
    main()
