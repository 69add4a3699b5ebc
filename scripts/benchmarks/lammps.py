"""LAMMPS with `pair_style equipot`: one rank beside ASE, more ranks beside one, a peer's pair style.

They take turns, and every rank has one thread. Strong scaling keeps the atoms, weak scaling those per rank.
The model has random weights and the sizes of `compare` (NequIP: 4 layers, 64 channels, l_max 2, cutoff 5 Å);
`--peer deepmd` adds DeePMD-kit's DeepPot-SE of default size, in an environment of its own; `--peer sevennet`
takes 7net-0 for the model and adds SevenNet's pair style, on one rank. CPU seconds are those of a rank,
waiting for others included.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "compare"))

import torch
from ase import Atoms
from ase.data import atomic_numbers
from ase.io.lammpsdata import write_lammps_data
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet
from ase.units import fs
from cases import ALLEGRO, NEQUIP
from lammps_deepmd import ONE_THREAD, deepmd_programs, deploy_deepmd
from lammps_sevennet import SevenNet
from pydantic import TypeAdapter
from structures import describe, silicon, water

from equipot import EquipotCalculator, keep_memory
from equipot.config.model import ModelConfig
from equipot.deploy.capsule import synthetic_structures
from equipot.deploy.torchscript import write_torchscript
from equipot.engine.library import load_library
from equipot.files import atomic_write
from equipot.integrations.lammps import build_plugin, find_lammps
from equipot.models.build import build_potential

BIN = Path(sys.executable).parent
MODELS = {"nequip": NEQUIP, "allegro": ALLEGRO}
INPUT = """units metal
atom_style atomic
read_data atoms.data
{pair}
neighbor 1.0 bin
velocity all create 300 1 loop geom
fix 1 all nve
timestep 0.0001
run 1
run {steps}
"""


@dataclass(frozen=True)
class Timing:
    """One run: seconds per step, CPU seconds of a rank, and the shares (0 to 1) of the time, where known."""

    step: float
    cpu: float | None = None
    model: float | None = None
    exchange: float | None = None


@dataclass(frozen=True)
class PairStyle:
    """A pair style and the LAMMPS that has it."""

    name: str
    programs: Path  # folder of mpiexec and lmp
    commands: str
    environment: dict[str, str]
    most_ranks: int = 10**6


def main() -> None:
    options = parse()
    load_library().equipot_set_threads(1)  # for ASE; the engine's threads are its own
    atoms = water(None, options.per_edge) if options.system == "water" else silicon(options.atoms)
    report = {"system": options.system, "atoms": len(atoms), "model": options.model, "steps": options.steps}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        styles = pair_styles(options, atoms, folder)
        runs = {("ASE", "strong", 1): lambda: by_ase(folder / "model.pt", atoms.copy(), options.steps)}
        for style in styles:
            for ranks in [number for number in options.ranks if number <= style.most_ranks]:
                for kind, larger in (("strong", atoms), ("weak", atoms.repeat((1, 1, ranks)))):
                    if kind == "strong" or ranks > 1:
                        place = folder / f"{style.name}-{kind}-{ranks}"
                        runs[style.name, kind, ranks] = lasting(place, larger, ranks, style, options.steps)
        timings = {key: [] for key in runs}
        for round_number in range(options.rounds):
            for key, run in runs.items():
                timings[key].append(run())
                print(f"round {round_number + 1}: {key}: {timings[key][-1].step:.3f} s per step", flush=True)
    report["runs"] = [
        {"program": program, "kind": kind, "ranks": ranks, "timings": [asdict(t) for t in found]}
        for (program, kind, ranks), found in timings.items()
    ]
    summarize(timings, len(atoms))
    if options.output:
        with atomic_write(options.output) as temporary:
            temporary.write_text(json.dumps(report, indent=1))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=MODELS, default="nequip")
    parser.add_argument("--system", choices=["silicon", "water"], default="silicon")
    parser.add_argument("--atoms", type=int, default=4096, help="of silicon, about")
    parser.add_argument("--per-edge", type=int, default=11, help="water molecules along an edge of the box")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--peer", choices=["deepmd", "sevennet"], help="a pair style beside equipot's")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="JSON file")
    return parser.parse_args()


def deploy(model: dict, atoms: Atoms, path: Path) -> list[str]:
    """Write a random model for these atoms; returns its species."""
    facts = describe([atoms], model["cutoff"], count_edges=False)
    torch.manual_seed(0)
    config = TypeAdapter(ModelConfig).validate_python(model)
    species, energies = facts["species"], facts["atomic_energies"]
    potential = build_potential(config, species, facts["avg_num_neighbors"], energies, facts["force_rms"])
    write_torchscript(
        potential, path, synthetic_structures(species, model["cutoff"]), source="synthetic structures",
        model_type=model["type"], atomic_energies=energies, weights="last", validation={}, config="",
    )  # fmt: skip
    return species


def pair_styles(options: argparse.Namespace, atoms: Atoms, folder: Path) -> list[PairStyle]:
    """equipot's and the peer's, with their model files in ``folder``."""
    model = MODELS[options.model]
    if options.peer == "sevennet":
        sevennet = SevenNet()
        species = sorted(set(atoms.symbols), key=lambda symbol: atomic_numbers[symbol])
        sevennet.write_ours(folder / "model.pt", species)
    else:
        species = deploy(model, atoms, folder / "model.pt")
    elements = " ".join(species)
    environment = {"LAMMPS_PLUGIN_PATH": str(build_plugin(find_lammps()).parent)}
    commands = f"pair_style equipot\npair_coeff * * {folder / 'model.pt'} {elements}"
    styles = [PairStyle("equipot", BIN, commands, environment)]
    if options.peer == "deepmd":
        programs = deepmd_programs()
        few = water(None) if options.system == "water" else silicon(64)
        deploy_deepmd(programs, few, species, model["cutoff"], folder / "model.pb")
        commands = f"pair_style deepmd {folder / 'model.pb'}\npair_coeff * * {elements}"
        styles.append(PairStyle("deepmd", programs, commands, {"LAMMPS_PLUGIN_PATH": ""}))
    if options.peer == "sevennet":
        sevennet.write_theirs(folder / "sevennet.pt")
        commands = f"newton on\npair_style e3gnn\npair_coeff * * {folder / 'sevennet.pt'} {elements}"
        place = sevennet.plugin(sevennet.python.parents[1] / "e3gnn")
        styles.append(PairStyle("sevennet", BIN, commands, {"LAMMPS_PLUGIN_PATH": str(place)}, most_ranks=1))
    return styles


def by_ase(path: Path, atoms: Atoms, steps: int) -> Timing:
    """ASE's velocity Verlet with the calculator; its first evaluation is not counted."""
    keep_memory()
    atoms.calc = EquipotCalculator(path, device="cpu")
    thermalize_momenta(atoms, temperature_K=300)
    dynamics = VelocityVerlet(atoms, timestep=0.1 * fs)
    dynamics.run(1)
    start = time.perf_counter()
    dynamics.run(steps)
    return Timing((time.perf_counter() - start) / steps)


def lasting(folder: Path, atoms: Atoms, ranks: int, style: PairStyle, steps: int) -> Callable[[], Timing]:
    """A function that runs LAMMPS on these atoms; its files are written once."""
    folder.mkdir()
    species = sorted(set(atoms.symbols), key=lambda symbol: atomic_numbers[symbol])
    write_lammps_data(folder / "atoms.data", atoms, specorder=species, masses=True, atom_style="atomic")
    (folder / "in.lammps").write_text(INPUT.format(pair=style.commands, steps=steps))
    programs = style.programs
    command = [str(programs / "mpiexec"), "-n", str(ranks), str(programs / "lmp"), "-in", "in.lammps"]
    path = os.pathsep.join([str(programs), os.environ.get("PATH", "")])
    environment = os.environ | ONE_THREAD | {"PATH": path} | style.environment

    def run() -> Timing:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise SystemExit((done.stdout + done.stderr)[-2000:])
        seconds = float(re.findall(r"Loop time of (\S+)", done.stdout)[-1]) / steps
        cpu = float(re.findall(r"(\S+)% CPU use", done.stdout)[-1]) / 100 * seconds
        shares = re.findall(
            r"equipot: (\S+) ms per step and rank: model (\S+) %, exchange (\S+) %", done.stdout
        )
        if not shares:
            return Timing(seconds, cpu)
        per_step, model, exchange = map(float, shares[-1])
        part = per_step / 1e3 / seconds
        # The first, uncounted evaluation of `run` is in the pair style's own account, per evaluation.
        return Timing(seconds, cpu, model / 100 * part, exchange / 100 * part)

    return run


def summarize(timings: dict, num_atoms: int) -> None:
    median = {key: statistics.median(t.step for t in found) for key, found in timings.items()}
    rounds = len(next(iter(timings.values())))
    print(f"\n{num_atoms} atoms, one thread per rank; medians of {rounds} rounds; ns/day for steps of 1 fs")
    for (program, kind, ranks), found in timings.items():
        atoms = num_atoms * (ranks if kind == "weak" else 1)
        step = median[program, kind, ranks]
        label = f"{program:>8} {kind:>6} {ranks} rank" + ("s" if ranks > 1 else " ")
        line = f"{label} {step:8.3f} s per step {0.0864 / step:8.4f} ns/day {atoms / step:8.0f} atom steps/s"
        if found[0].cpu is not None:
            line += f"  CPU {statistics.median(t.cpu for t in found):6.3f} s"
        if found[0].model is not None:
            model = statistics.median(t.model for t in found)
            exchange = statistics.median(t.exchange for t in found)
            line += f"  model {model:6.1%}  exchange {exchange:5.1%}  LAMMPS {1 - model - exchange:5.1%}"
        one = (program, "strong", 1)
        if one in median and ranks > 1:
            line += f"  {atoms / step / (num_atoms / median[one]):.2f} times one rank"
        print(line)


if __name__ == "__main__":
    main()
