"""Where the time of a whole step goes: training steps and force evaluations, small, medium and large.

    scripts/benchmark profile [--model nequip|allegro] [--threads 1] [--case molecule-training ...]

Untrained models of the benchmark's size (l_max 2, both parities; NequIP with 64 channels and 4 layers,
Allegro with 2 layers), float32. Times of the operators themselves, without what they call, by kind.
"""

import argparse
import statistics
import time
from pathlib import Path

import ase.io
import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, molecule
from torch.profiler import ProfilerActivity, profile

from equipot.config import AllegroConfig, NequIPConfig
from equipot.data import graph_from_atoms
from equipot.graph import collate
from equipot.models.build import build_potential
from equipot.models.predict import predict

ROOT = Path(__file__).parents[2]
CUTOFF = 5.0
# The first kind that an operator's name contains a word of.
KINDS = {
    "tensor products": ("equipot", "Tabulated", "ConvolutionFunction", "ProductFunction", "OuterSum"),
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::matmul"),
    "gather, scatter, concatenate": ("index", "scatter", "gather", "cat", "split", "copy", "clone", "select"),
    "optimizer": ("adam", "Optimizer"),
    "elementwise": ("aten::",),
}


def water_box() -> Atoms:
    """64 molecules at 1 g/cm³ on a grid, each turned at random."""
    generator, spacing = np.random.default_rng(0), 3.105
    box = Atoms(cell=[4 * spacing] * 3, pbc=True)
    for place in np.ndindex(4, 4, 4):
        one = molecule("H2O")
        one.rotate(generator.uniform(0, 360), generator.normal(size=3))
        one.translate(spacing * np.array(place))
        box += one
    return box


def structures(name: str) -> list[Atoms]:
    """What a case runs on."""
    if name == "molecule":
        return ase.io.read(ROOT / "examples/01_molecule/train.xyz", ":5")
    if name == "water":
        return [water_box()]
    crystal = bulk("Si", cubic=True).repeat((11, 11, 10))
    crystal.rattle(0.05, seed=0)
    return [crystal]


def make_step(name: str, kind: str):
    """(the step as a function, its numbers of atoms and edges)."""
    frames = structures(name)
    species = sorted({symbol for atoms in frames for symbol in atoms.get_chemical_symbols()})
    for atoms in frames:
        atoms.calc = None
    graph = collate([graph_from_atoms(atoms, species, CUTOFF) for atoms in frames])
    num_atoms, num_edges = len(graph.atom_types), graph.edge_index.shape[1]
    torch.manual_seed(0)
    config = (
        NequIPConfig(type="nequip", channels=64, layers=4, cutoff=CUTOFF)
        if ARGUMENTS.model == "nequip"
        else AllegroConfig(type="allegro", layers=2, cutoff=CUTOFF)
    )
    potential = build_potential(config, species, num_edges / num_atoms, [0.0] * len(species), 1.0)
    optimizer = torch.optim.Adam(potential.parameters(), fused=True)

    def train():
        prediction = predict(potential, graph)
        loss = prediction.energy.square().sum() + prediction.forces.square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def evaluate():
        predict(potential, graph)

    if kind == "training":
        return train, num_atoms, num_edges
    potential.eval().requires_grad_(False)
    return evaluate, num_atoms, num_edges


def kind_of(operator: str) -> str:
    return next((kind for kind, words in KINDS.items() if any(word in operator for word in words)), "other")


def report(name: str, kind: str) -> None:
    step, num_atoms, num_edges = make_step(name, kind)
    step()
    times = []
    for _ in range(ARGUMENTS.repeats):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step()
    shares, calls = dict.fromkeys([*KINDS, "other"], 0.0), dict.fromkeys([*KINDS, "other"], 0)
    for event in profiler.key_averages():
        shares[kind_of(event.key)] += event.self_cpu_time_total
        calls[kind_of(event.key)] += event.count
    total = sum(shares.values())
    median = 1e3 * statistics.median(times)
    print(f"\n{name}, {kind}: {num_atoms} atoms, {num_edges} edges, {median:.1f} ms")
    for key, value in sorted(shares.items(), key=lambda item: -item[1]):
        print(f"  {key:30s} {100 * value / total:5.1f} %  {calls[key]:6d} calls")


CASES = {
    "molecule-training": ("molecule", "training"),
    "molecule-forces": ("molecule", "forces"),
    "water-training": ("water", "training"),
    "water-forces": ("water", "forces"),
    "silicon-forces": ("silicon", "forces"),
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=("nequip", "allegro"), default="nequip")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--case", action="append", choices=CASES, help="may be given several times; default: all"
    )
    ARGUMENTS = parser.parse_args()
    torch.set_num_threads(ARGUMENTS.threads)
    print(f"{ARGUMENTS.model}, {ARGUMENTS.threads} thread(s), torch {torch.__version__}")
    for case in ARGUMENTS.case or CASES:
        report(*CASES[case])
