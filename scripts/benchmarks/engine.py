"""The engine beside TorchScript, from one file, in turns: an evaluation, one through ASE, a start.

Models are untrained. Each figure is the least of the rounds, which other jobs on the machine disturb least.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, molecule

from equipot import EquipotCalculator
from equipot.config import AllegroConfig, NequIPConfig
from equipot.deploy.capsule import synthetic_structures
from equipot.deploy.structure import make_structure
from equipot.deploy.torchscript import write_torchscript
from equipot.engine.library import Engine, load_library
from equipot.machine import keep_memory
from equipot.models.build import build_potential

NEQUIP = {"type": "nequip", "l_max": 2, "parity": False, "channels": 64, "layers": 4}
ALLEGRO = {"type": "allegro", "l_max": 2, "channels": 32, "scalar_channels": 64, "layers": 2}
START = """
import time
start = time.process_time()
{imports}
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(time.process_time() - start, int(peak.split()[1]) / 1e3)
"""
BY_ASE = """
import numpy as np
from ase import Atoms
from equipot import EquipotCalculator
atoms = Atoms("Si2", [[0, 0, 0], [1.36, 1.36, 1.36]], cell=2.715 * (1 - np.eye(3)), pbc=True)
atoms.calc = EquipotCalculator({file!r}, device="cpu", engine="ENGINE")
atoms.get_forces()
"""
BY_MD = """
import contextlib
import sys
from equipot.cli import main
sys.argv = ["equipot", "md", {file!r} + ".xyz", "--model", {file!r}, "--steps", "1", "--overwrite"]
sys.argv += ["--device", "cpu", "--output", {file!r} + ".md"]
with contextlib.suppress(SystemExit):
    main()
"""
LARGE = """
import numpy as np
from ase.build import molecule
from equipot.engine.library import Engine
water = molecule("H2O", cell=[3.1] * 3, pbc=True) * ({cells}, {cells}, {cells})
water.rattle(0.05, seed=1)
Engine({file!r}).evaluate(water.positions, water.cell.array, (1, 1, 1), water.numbers == 8)
"""
BY_ENGINE = """
import numpy as np
from equipot.engine.library import Engine
Engine({file!r}).evaluate(np.eye(3), 5.43 * np.eye(3), (1, 1, 1), [0, 0, 0])
"""


def cases() -> dict[str, tuple[dict, Atoms, float]]:
    """Settings, structure and neighbors per atom, by name."""
    water = molecule("H2O")
    water.set_cell([3.1] * 3)
    water.pbc = True
    silicon = bulk("Si", cubic=True)
    quickstart = {"type": "nequip", "cutoff": 4.0, "l_max": 1, "layers": 3, "channels": 16}
    return {
        "ethanol, small NequIP": (quickstart, molecule("CH3CH2OH"), 8.0),
        "15 atoms, NequIP": (NEQUIP | {"cutoff": 5.0}, molecule("C6H6") + Atoms("N3", np.eye(3) * 4), 10.0),
        "216 Si, NequIP": (NEQUIP | {"cutoff": 5.0}, silicon * (3, 3, 3), 28.0),
        "192 water, NequIP": (NEQUIP | {"cutoff": 6.0}, water * (4, 4, 4), 80.0),
        "216 Si, Allegro": (ALLEGRO | {"cutoff": 5.0}, silicon * (3, 3, 3), 28.0),
        "192 water, Allegro": (ALLEGRO | {"cutoff": 6.0}, water * (4, 4, 4), 80.0),
    }


def main() -> None:
    """Run it and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--water", type=int, metavar="CELLS", help="only one evaluation of 3 CELLS³ atoms, by the engine"
    )
    arguments = parser.parse_args()
    rounds = arguments.rounds
    if arguments.water:
        large(arguments.water)
        return
    torch.set_num_threads(1)
    load_library().equipot_set_threads(1)
    keep_memory()
    print(f"{'ms of processor time':26s}{'TorchScript':>12s}{'engine':>9s}{'ratio':>7s}   "
          f"{'ASE, torch':>10s}{'ASE':>9s}{'ratio':>7s}   {'heat flux':>9s}{'ratio':>7s}")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, case) in enumerate(cases().items()):
            file = Path(folder) / f"{number}.pt"
            row = measure(deploy(file, *case), case[1], rounds)
            print(f"{name:26s}{row[0]:12.2f}{row[1]:9.2f}{row[0] / row[1]:7.2f}   "
                  f"{row[2]:10.2f}{row[3]:9.2f}{row[2] / row[3]:7.2f}   "
                  f"{row[4]:9.2f}{row[4] / row[1]:7.2f}", flush=True)  # fmt: skip
            if name.startswith("216 Si, NequIP"):
                silicon = str(file)
                bulk("Si").write(f"{silicon}.xyz")
        starts = {
            "ASE, TorchScript": BY_ASE.replace("ENGINE", "torch"),
            "ASE": BY_ASE.replace("ENGINE", "auto"),
            "equipot md, a step and the plot": BY_MD,
            "engine alone": BY_ENGINE,
        }
        for name, imports in starts.items():
            code = START.format(imports=imports.format(file=silicon))
            run = partial(subprocess.run, [sys.executable, "-c", code], capture_output=True, text=True)
            found = [run(check=True).stdout.splitlines()[-1] for _ in range(5)]
            seconds, megabytes = np.min([[float(x) for x in line.split()] for line in found], axis=0)
            print(
                f"a process that evaluates once, {name}: {seconds:.2f} s of processor time, "
                f"{megabytes:.0f} MB"
            )


def large(cells: int) -> None:
    """Time and memory of a process that evaluates water once."""
    with tempfile.TemporaryDirectory() as folder:
        file = deploy(Path(folder) / "water.pt", *cases()["192 water, NequIP"])
        code = START.format(imports=LARGE.format(file=str(file), cells=cells))
        seconds, megabytes = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    print(
        f"{3 * cells**3} atoms of water: {float(seconds):.1f} s of processor time, {float(megabytes):.0f} MB"
    )


def deploy(file: Path, settings: dict, atoms: Atoms, neighbors: float) -> Path:
    """An untrained model of these settings."""
    torch.manual_seed(0)
    kind = NequIPConfig if settings["type"] == "nequip" else AllegroConfig
    species = sorted(set(atoms.get_chemical_symbols()))
    energies = [-1.0] * len(species)
    potential = build_potential(kind(**settings), species, neighbors, energies, 1.0)
    structures = synthetic_structures(species, settings["cutoff"])
    facts = {"weights": "last", "validation": {}, "config": "", "model_type": settings["type"]}
    write_torchscript(potential, file, structures, source="", atomic_energies=energies, **facts)
    return file


def measure(file: Path, atoms: Atoms, rounds: int) -> list[float]:
    """ms: TorchScript, engine, ASE by TorchScript, ASE by the engine, the engine for a heat flux."""
    atoms = atoms.copy()
    atoms.rattle(0.05, seed=1)
    calculators = [EquipotCalculator(file, device="cpu", engine=engine) for engine in ("torch", "auto")]
    model, engine = calculators[0].model, Engine(file)
    types = model.atom_types(atoms.numbers)
    structure = make_structure("", atoms.positions, atoms.cell.array, atoms.pbc, types, engine.cutoff)
    arrays = structure.edge_vec, structure.edge_index, types
    tensors = [torch.as_tensor(a) for a in (*arrays, np.ones(len(types), dtype=bool))]
    calls = [lambda: model(*tensors), lambda: engine.evaluate_edges(*arrays)]
    calls += [lambda calc=calc: step(atoms, calc) for calc in calculators]
    calls.append(lambda: engine.evaluate_edges(*arrays, heat=True))
    repeats = max(1, 600 // len(atoms))
    times = [[cpu_time(call, repeats) for call in calls] for _ in range(rounds + 1)]
    return list(1e3 * np.min(times[1:], axis=0))


def step(atoms: Atoms, calculator: EquipotCalculator) -> None:
    """As a dynamics asks: positions have moved a little."""
    atoms.positions[0, 0] += 1e-6
    calculator.calculate(atoms)


def cpu_time(call, repeats: int) -> float:
    """Seconds of one call."""
    start = time.process_time()
    for _ in range(repeats):
        call()
    return (time.process_time() - start) / repeats


if __name__ == "__main__":
    main()
