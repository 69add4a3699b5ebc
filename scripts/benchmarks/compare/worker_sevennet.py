"""The benchmark's worker for SevenNet, in sevenn's own environment: pretrained models, by its calculator."""

from collections.abc import Callable
from importlib.metadata import version

import ase.io
import numpy as np
import torch
from protocol import serve
from sevenn.calculator import SevenNetCalculator


def prepare(request: dict) -> tuple[dict, Callable[[], None]]:
    """Facts and one step of a random walk with forces."""
    torch.set_num_threads(request["threads"])
    atoms = ase.io.read(request["structures"])
    atoms.calc = SevenNetCalculator(request["pretrained"], device="cpu")
    model = atoms.calc.model
    random = np.random.default_rng(0)

    def step() -> None:
        atoms.positions += random.normal(scale=request["displacement"], size=atoms.positions.shape)
        atoms.get_forces()

    atoms.get_forces()
    facts = {
        "versions": {name: version(name) for name in ("sevenn", "torch", "e3nn")},
        "parameters": sum(p.numel() for p in model.parameters()),
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "edges": atoms.calc.results["num_edges"],
    }
    return facts, step


if __name__ == "__main__":
    serve(prepare)
