"""LAMMPS with `pair_style equipot` on the device, where it is installed: one rank, and two that share it."""

import functools
import os
import re
import shutil
import subprocess
from pathlib import Path

from ase.io.lammpsdata import write_lammps_data
from models import deploy
from plan import Case, Context, Rows
from systems import SPECIES, structure

from equipot.integrations.lammps import LammpsBuildError, build_plugin, find_lammps

SIZES = {"full": [1728, 13_824], "small": [64], "tiny": [8]}
STEPS = 10
CLOSE = 1e-5  # eV per atom, energies on one rank and two after these steps, in float32
INPUT = """units metal
atom_style atomic
read_data atoms.data
pair_style equipot device {device}
pair_coeff * * {model} {species}
neighbor 1.0 bin
velocity all create 300 1 loop geom
fix 1 all nve
timestep 0.0001
thermo_modify format float %.12g
run 2
run {steps}
"""


def cases(context: Context) -> dict[str, Case]:
    sizes = SIZES[context.size]
    found: dict[str, Case] = {f"silicon {size}": functools.partial(run, size) for size in sizes}
    found[f"silicon {sizes[0]}, two ranks"] = functools.partial(run_on_two, sizes[0])
    return found


def run(num_atoms: int, context: Context) -> Rows:
    row = {"structure": "silicon", "atoms": num_atoms, "ranks": 1}
    try:
        done = simulate(num_atoms, 1, context)
    except LookupError as missing:
        return [row | {"note": str(missing)}]
    return [row | figures(done, num_atoms)]


def run_on_two(num_atoms: int, context: Context) -> Rows:
    """Ranks that exchange rows of features give the energy of one that has all atoms."""
    row = {"structure": "silicon", "atoms": num_atoms, "ranks": 2}
    try:
        one, two = (simulate(num_atoms, ranks, context) for ranks in (1, 2))
    except LookupError as missing:
        return [row | {"note": str(missing)}]
    off = abs(last_energy(two) - last_energy(one)) / num_atoms
    return [row | figures(two, num_atoms) | {"off, eV/atom": off, "ok": off < CLOSE}]


def figures(output: str, num_atoms: int) -> dict:
    ms = 1e3 * float(re.findall(r"Loop time of (\S+)", output)[-1]) / STEPS
    own = [line for line in output.splitlines() if line.startswith("equipot:")]
    return {"wall ms": ms, "µs/atom": 1e3 * ms / num_atoms, "note": own[-1] if own else ""}


def last_energy(output: str) -> float:
    """eV, of the model: the third column of LAMMPS's thermo output."""
    return float(re.findall(rf"^\s*{2 + STEPS}\s+\S+\s+(\S+)", output, re.MULTILINE)[-1])


def simulate(num_atoms: int, ranks: int, context: Context) -> str:
    """What LAMMPS prints.

    Raises:
        LookupError: it is not here, or something that it needs.
        RuntimeError: it fails.
    """
    try:
        lammps = find_lammps()
    except LammpsBuildError as error:
        raise LookupError(f"not installed: {str(error).splitlines()[0]}") from None
    executable = lammps.executable or shutil.which("lmp")
    if executable is None:
        raise LookupError("not installed: no lmp in the path")
    if shutil.which("cmake") is None:
        raise LookupError("the plugin cannot be built: no cmake in the path")
    beside = os.pathsep.join([str(Path(executable).parent), os.environ.get("PATH", "")])
    mpiexec = shutil.which("mpiexec", path=beside)
    if ranks > 1 and mpiexec is None:
        raise LookupError("no mpiexec in the path")
    folder = context.folder / f"lammps-{num_atoms}-{ranks}"
    folder.mkdir(exist_ok=True)
    atoms = structure("silicon", num_atoms)
    write_lammps_data(
        folder / "atoms.data", atoms, specorder=SPECIES["silicon"], masses=True, atom_style="atomic"
    )
    model = deploy("l2 parity", "silicon", context)
    text = INPUT.format(device=context.device, model=model, species="Si", steps=STEPS)
    (folder / "in.lammps").write_text(text)
    environment = os.environ | {"LAMMPS_PLUGIN_PATH": str(build_plugin(lammps).parent)}
    launcher = [mpiexec, "-n", str(ranks)] if ranks > 1 else []
    done = subprocess.run(
        [*launcher, executable, "-in", "in.lammps"],
        cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=context.seconds,
    )  # fmt: skip
    if done.returncode != 0:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise RuntimeError("LAMMPS failed: " + next((x for x in lines if "ERROR" in x), lines[-1]))
    return done.stdout
