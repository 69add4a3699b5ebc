"""What TF32 in matrix products (`run.matmul_precision: high` on a GPU) does to errors, without a GPU.

    scripts/benchmark tf32 CONFIG [KEY=VALUE ...] [--output DIR]

CONFIG is trained as it is, and twice with the factors of every product of float32 matrices, forward,
backward and in the optimizer, cut to the ten bits after the point that a tensor core reads: rounded to the
nearest, and truncated, since which of the two a library does is its own affair. Sums stay in float32, as
there. What equipot computes by kernels of its own (convolutions, products of tensors) has no TF32 on a GPU
either.
"""

import argparse
import sys
from contextlib import nullcontext
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from equipot.config import load_config
from equipot.errors import EquipotError
from equipot.run_directory import RunDirectory
from equipot.training.results import read_metrics
from equipot.training.run import train
from equipot.training.stopping import INTERRUPTED

_DROPPED = 13  # bits of the 23 after the point
_PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "baddbmm_", "linear", "linear_outer_sum"}


class Tf32(TorchDispatchMode):
    """Products of float32 matrices get factors of TF32; ``products`` counts them."""

    def __init__(self, truncate: bool):
        super().__init__()
        self.half = 0 if truncate else 1 << (_DROPPED - 1)
        self.products = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket.__name__ in _PRODUCTS:
            self.products += 1
            added = ("addmm", "baddbmm", "baddbmm_")  # first comes what the product is added to
            first = args[:1] if function.overloadpacket.__name__ in added else ()
            args = (*first, *tree_map(self.cut, args[len(first) :]))
        return function(*args, **(kwargs or {}))

    def cut(self, value):
        """A float32 tensor with ten bits after the point; anything else as it is."""
        if not isinstance(value, torch.Tensor) or value.dtype != torch.float32:
            return value
        bits = value.contiguous().view(torch.int32)
        return (((bits + self.half) >> _DROPPED) << _DROPPED).view(torch.float32)


def main() -> None:
    """Three trainings and a table of what they end at."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path, metavar="CONFIG")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes of it")
    parser.add_argument("--output", type=Path, default=Path("tf32"), metavar="DIR")
    arguments = parser.parse_args()
    modes = {"float32": None, "TF32, rounded": Tf32(truncate=False), "TF32, truncated": Tf32(truncate=True)}
    table = Table("", "products", "validation errors (MAE; eV, Å)")
    for number, (name, mode) in enumerate(modes.items()):
        folder = arguments.output / str(number)
        fixed = [f"run.directory={folder}", "run.device=cpu"]
        config = load_config(arguments.config, [*arguments.overrides, *fixed])
        with mode or nullcontext():
            if train(config, overwrite=True).stopped == INTERRUPTED:
                sys.exit(130)
        errors = read_metrics(RunDirectory(folder))["validation"]
        found = ", ".join(f"{key} {value:.5g}" for key, value in errors.items() if key.endswith("_mae"))
        table.add_row(name, f"{mode.products:,}" if mode else "", found)
    Console(width=140).print(table)


if __name__ == "__main__":
    try:
        main()
    except (EquipotError, OSError) as error:
        sys.exit(f"Error: {error}")
