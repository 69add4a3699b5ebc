"""Augmentation against equivariance: force errors of networks that know rotations, and of some that do not.

    scripts/augmentation [--output augmentation] [--steps 1500] [--sizes 10 30 90 240] [--seeds 2]

All networks have the same body, NequIP's layers (channels, radial functions, cutoff); what differs is how
forces leave it:

    gradient, l_max 0, 1, 2    of an energy, as everywhere in equipot
    equivariant head           a linear map of the last layer's vectors (1o), which commutes with rotations
    free head                  a linear map of all features of the last layer, which ignores irreps
    free perceptron            the same with a hidden layer

The free ones are trained as the data lie, and with a random rotation of each structure at each step. Every
training has the same frames, batches and number of steps, and learns forces alone. Errors are measured on
test frames as they lie and turned at random, and how far f(R x) is from R f(x). Trainings that are in
OUTPUT/augmentation.json are not repeated; it and OUTPUT/augmentation.png are written after each.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import ase.io
import numpy as np
import torch
from e3nn import o3
from matplotlib.figure import Figure
from torch import Tensor, nn

from equipot.config import LabelsConfig, NequIPConfig, UnitsConfig
from equipot.data.dataset import GraphDataset
from equipot.data.frames import Frame
from equipot.data.readers import read_frames
from equipot.errors import DataError, EquipotError
from equipot.files import atomic_write, write_json
from equipot.graph import AtomicGraph, collate, edge_vectors
from equipot.models.build import build_potential
from equipot.models.nequip import NequIP
from equipot.nn.linear import EquivariantLinear
from equipot.nn.mlp import MLP

EXAMPLE = Path(__file__).parents[2] / "examples" / "01_molecule"
BODY = {"cutoff": 4.0, "channels": 16, "layers": 2, "radial_hidden": (32,), "num_bessel": 8, "parity": False}
L_MAX = 2  # of the networks with a vector head
BATCH, LEARNING_RATE = 5, 0.01
# Name: l_max of a gradient or the vector head, and whether training structures are turned.
VARIANTS: dict[str, tuple[int | str, bool]] = {
    "gradient, l_max 0": (0, False),
    "gradient, l_max 1": (1, False),
    "gradient, l_max 2": (2, False),
    "equivariant head": ("equivariant", False),
    "free head": ("linear", False),
    "free head, augmented": ("linear", True),
    "free perceptron": ("perceptron", False),
    "free perceptron, augmented": ("perceptron", True),
}
_STYLES = {  # Okabe and Ito's colors for the color-blind
    "gradient, l_max 0": ("#000000", "o", "-"),
    "gradient, l_max 1": ("#E69F00", "s", "-"),
    "gradient, l_max 2": ("#0072B2", "^", "-"),
    "equivariant head": ("#56B4E9", "v", "-"),
    "free head": ("#D55E00", "D", "--"),
    "free head, augmented": ("#D55E00", "D", "-"),
    "free perceptron": ("#009E73", "P", "--"),
    "free perceptron, augmented": ("#009E73", "P", "-"),
}


class VectorHead(nn.Module):
    """Forces as three numbers of the last layer's features, which keep all their irreps.

    ``kind``: ``equivariant``, a linear map that commutes with rotations; ``linear`` and ``perceptron``, of
    all numbers alike.
    """

    def __init__(self, kind: str, num_species: int, avg_num_neighbors: float, scale: float):
        super().__init__()
        # The last layer of a NequIP keeps scalars only: one more, and without it.
        config = BODY | {"layers": BODY["layers"] + 1, "l_max": L_MAX}
        network = NequIP(
            num_species=num_species, avg_num_neighbors=avg_num_neighbors, num_outputs=0, **config
        )
        del network.layers[-1]
        irreps = network.layers[-1].irreps_out
        heads = {
            "equivariant": lambda: EquivariantLinear(irreps, o3.Irreps("1x1o")),
            "linear": lambda: MLP([irreps.dim, 3]),
            "perceptron": lambda: MLP([irreps.dim, 64, 3]),
        }
        network.further = heads[kind]()
        self.network, self.scale = network.float(), scale

    def forward(self, edge_vec: Tensor, edge_index: Tensor, atom_types: Tensor) -> Tensor:
        """As `Network.forward` → forces (N, 3) float64 eV/Å."""
        return self.network(edge_vec, edge_index, atom_types).double() * self.scale


class Gradient(nn.Module):
    """Forces of an equipot potential."""

    def __init__(self, l_max: int, species: list[str], avg_num_neighbors: float, scale: float):
        super().__init__()
        config = NequIPConfig(type="nequip", l_max=l_max, **BODY)
        self.potential = build_potential(config, species, avg_num_neighbors, [0.0] * len(species), scale)

    def forward(self, edge_vec: Tensor, edge_index: Tensor, atom_types: Tensor) -> Tensor:
        """As `VectorHead.forward`."""
        owned = torch.ones_like(atom_types, dtype=torch.bool)
        return self.potential(edge_vec, edge_index, atom_types, owned)[1]


def rotations(number: int, generator: torch.Generator) -> Tensor:
    """(number, 3, 3) float64, uniform: unit quaternions from normal numbers."""
    quaternions = torch.randn(number, 4, generator=generator, dtype=torch.float64)
    return o3.quaternion_to_matrix(nn.functional.normalize(quaternions))


def evaluate(model: nn.Module, graph: AtomicGraph, turns: Tensor | None) -> tuple[Tensor, Tensor]:
    """Forces of the graph's structures, each turned by its row of ``turns`` (S, 3, 3), and their labels."""
    edge_vec, labels = edge_vectors(graph), graph.labels.values["forces"].value
    if turns is not None:
        of_atom = turns[graph.structure]
        edge_vec = torch.einsum("eab,eb->ea", of_atom[graph.edge_index[0]], edge_vec)
        labels = torch.einsum("nab,nb->na", of_atom, labels)
    return model(edge_vec, graph.edge_index, graph.atom_types), labels


def train(model: nn.Module, graphs: Sequence[AtomicGraph], steps: int, augment: bool, seed: int) -> None:
    """Adam on the forces' mean square error, the learning rate falling to zero as a cosine."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    order: list[int] = []
    for _ in range(steps):
        if len(order) < BATCH:
            order = torch.randperm(len(graphs), generator=generator).tolist()
        batch, order = collate([graphs[n] for n in order[:BATCH]]), order[BATCH:]
        turns = rotations(batch.num_structures, generator) if augment else None
        forces, labels = evaluate(model, batch, turns)
        optimizer.zero_grad()
        (forces - labels).square().mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        schedule.step()


def measure(model: nn.Module, graph: AtomicGraph) -> dict[str, float]:
    """RMS over components, meV/Å: errors as the frames lie and turned, and of f(R x) − R f(x)."""
    generator = torch.Generator().manual_seed(1)
    turns = rotations(graph.num_structures, generator)
    as_they_lie, labels = evaluate(model, graph, None)
    turned, turned_labels = evaluate(model, graph, turns)
    carried = torch.einsum("nab,nb->na", turns[graph.structure], as_they_lie)
    differences = {
        "error": as_they_lie - labels,
        "error_turned": turned - turned_labels,
        "equivariance": turned - carried,
    }
    return {name: 1e3 * float(d.detach().square().mean().sqrt()) for name, d in differences.items()}


def make(variant: str, data: GraphDataset, seed: int) -> nn.Module:
    """An untrained model of a variant."""
    torch.manual_seed(seed)
    kind, _ = VARIANTS[variant]
    forces = torch.cat([graph.labels.values["forces"].value for graph in data.graphs])
    scale, neighbors = float(forces.square().mean().sqrt()), data.num_edges.sum() / data.num_atoms.sum()
    if isinstance(kind, int):
        return Gradient(kind, data.species, float(neighbors), scale)
    return VectorHead(kind, len(data.species), float(neighbors), scale)


def run_one(
    variant: str, size: int, seed: int, steps: int, train_set: GraphDataset, test: AtomicGraph
) -> dict:
    """Train and test one model."""
    start = time.process_time()
    model = make(variant, train_set, seed).train()
    chosen = np.random.default_rng(seed).permutation(len(train_set))[:size]
    train(model, [train_set[n] for n in chosen], steps, VARIANTS[variant][1], seed)
    errors = measure(model.eval(), test)
    weights = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    seconds = time.process_time() - start
    return {
        "variant": variant,
        "frames": size,
        "seed": seed,
        **errors,
        "weights": weights,
        "seconds": seconds,
    }


def molecules(file: Path) -> list[Frame]:
    """The frames of a file without those of single atoms."""
    return [frame for frame in read_frames(file, LabelsConfig(), UnitsConfig()) if len(frame.positions) > 1]


def summarize(runs: Sequence[dict]) -> dict[str, dict[int, dict[str, list[float]]]]:
    """By variant and number of frames: mean over the seeds, lowest and highest, of each measure."""
    found: dict[str, dict[int, dict[str, list[float]]]] = {}
    for variant in VARIANTS:
        for size in sorted({run["frames"] for run in runs if run["variant"] == variant}):
            chosen = [run for run in runs if run["variant"] == variant and run["frames"] == size]
            of_size = found.setdefault(variant, {}).setdefault(size, {})
            for name in ("error", "error_turned", "equivariance"):
                values = [run[name] for run in chosen]
                of_size[name] = [statistics.fmean(values), min(values), max(values)]
    return found


def print_table(summary: dict, write: Callable[[str], None] = print) -> None:
    """A line per variant and size."""
    write(f"{'RMS, meV/Å':<28} {'frames':>6} {'as they lie':>12} {'turned':>8} {'f(Rx) - Rf(x)':>14}")
    for variant, of_variant in summary.items():
        for size, row in of_variant.items():
            mean = {name: values[0] for name, values in row.items()}
            numbers = f"{mean['error']:12.1f} {mean['error_turned']:8.1f} {mean['equivariance']:14.2g}"
            write(f"{variant:<28} {size:6} {numbers}")


def plot(summary: dict, path: Path) -> None:
    """Errors as the frames lie and turned, and the equivariance error, over the number of frames."""
    figure = Figure(figsize=(11.0, 4.4), layout="constrained")
    panels = figure.subplots(1, 3)
    titles = {
        "error": "test frames as they lie",
        "error_turned": "turned test frames",
        "equivariance": "f(Rx) − R f(x)",
    }
    for axes, (name, title) in zip(panels, titles.items(), strict=True):
        for variant, of_variant in summary.items():
            color, marker, line = _STYLES[variant]
            sizes = list(of_variant)
            mean, low, high = np.array([of_variant[size][name] for size in sizes]).T
            axes.plot(sizes, mean, line, color=color, marker=marker, markersize=5, label=variant)
            axes.vlines(sizes, low, high, color=color, linewidth=1)
        axes.set(xscale="log", yscale="log", title=title, xlabel="training frames")
        ticks = sorted({size for of_variant in summary.values() for size in of_variant})
        axes.set_xticks(ticks, map(str, ticks))
        axes.minorticks_off()
        axes.grid(alpha=0.25, linewidth=0.6)
    panels[0].set_ylabel("RMS over force components (meV/Å)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=9, ncols=4, loc="outside lower center")
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def main(arguments: argparse.Namespace) -> dict:
    """Everything the command does; the summary."""
    torch.set_num_threads(1)
    frames = molecules(arguments.train)
    if max(arguments.sizes) > len(frames):
        raise DataError(
            f"{arguments.train} has {len(frames)} molecules, fewer than --sizes {max(arguments.sizes)}."
        )
    species = sorted({str(symbol) for symbol in ase.io.read(arguments.train, 0).symbols})
    train_set, test_set = (
        GraphDataset(f, species, BODY["cutoff"]) for f in (frames, molecules(arguments.test))
    )
    test = collate(test_set.graphs)
    rms = 1e3 * float(test.labels.values["forces"].value.square().mean().sqrt())
    path = arguments.output / "augmentation.json"
    settings = {"steps": arguments.steps, "batch": BATCH, "learning_rate": LEARNING_RATE, "test_rms": rms}
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {**settings, "runs": []}
    if known["steps"] != arguments.steps:
        raise DataError(f"{path} has trainings of {known['steps']} steps: choose another --output.")
    runs = known["runs"]
    arguments.output.mkdir(parents=True, exist_ok=True)
    done = {(run["variant"], run["frames"], run["seed"]) for run in runs}
    for seed in range(arguments.seeds):
        for size in arguments.sizes:
            for variant in arguments.variants:
                if (variant, size, seed) in done:
                    continue
                runs.append(run_one(variant, size, seed, arguments.steps, train_set, test))
                print(f"seed {seed}, {size} frames, {variant}: {runs[-1]['error']:.1f} meV/Å", flush=True)
                write_json(path, {**settings, "runs": runs})
                plot(summarize(runs), arguments.output / "augmentation.png")
    summary = summarize(runs)
    print(f"force components of the test set: RMS {rms:.0f} meV/Å")
    print_table(summary)
    return summary


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="augmentation"
    )
    parser.add_argument("--train", type=Path, default=EXAMPLE / "train.xyz", help="labelled frames")
    parser.add_argument("--test", type=Path, default=EXAMPLE / "test.xyz")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 30, 90, 240])
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each kind (2)")
    parser.add_argument("--steps", type=int, default=1500, help="optimizer steps of each (1500)")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--output", type=Path, default=Path("augmentation"))
    arguments = parser.parse_args(argv)
    if min(*arguments.sizes, BATCH) < BATCH or min(arguments.seeds, arguments.steps) < 1:
        parser.error(f"--sizes must be {BATCH} or more, --seeds and --steps 1 or more")
    return arguments


if __name__ == "__main__":
    try:
        main(parse())
    except (EquipotError, OSError) as error:
        sys.exit(f"Error: {error}")
