"""LAMMPS with `pair_style equipot` on the device: one rank, where LAMMPS is installed."""

import functools
import os
import re
import shutil
import subprocess

from ase.io.lammpsdata import write_lammps_data
from models import deploy
from plan import Case, Context, Rows
from systems import SPECIES, structure

from equipot.integrations.lammps import LammpsBuildError, build_plugin, find_lammps

SIZES = {"full": [1728, 13_824], "small": [64], "tiny": [8]}
STEPS = 10
INPUT = """units metal
atom_style atomic
read_data atoms.data
pair_style equipot device {device}
pair_coeff * * {model} {species}
neighbor 1.0 bin
velocity all create 300 1 loop geom
fix 1 all nve
timestep 0.0001
run 2
run {steps}
"""


def cases(context: Context) -> dict[str, Case]:
    return {f"silicon {size}": functools.partial(run, size) for size in SIZES[context.size]}


def run(num_atoms: int, context: Context) -> Rows:
    row = {"structure": "silicon", "atoms": num_atoms}
    try:
        lammps = find_lammps()
    except LammpsBuildError as error:
        return [row | {"note": f"not installed: {str(error).splitlines()[0]}"}]
    executable = lammps.executable or shutil.which("lmp")
    if executable is None:
        return [row | {"note": "not installed: no lmp in the path"}]
    if shutil.which("cmake") is None:
        return [row | {"note": "the plugin cannot be built: no cmake in the path"}]
    folder = context.folder / f"lammps-{num_atoms}"
    folder.mkdir(exist_ok=True)
    atoms = structure("silicon", num_atoms)
    write_lammps_data(
        folder / "atoms.data", atoms, specorder=SPECIES["silicon"], masses=True, atom_style="atomic"
    )
    model = deploy("l2 parity", "silicon", context)
    text = INPUT.format(device=context.device, model=model, species="Si", steps=STEPS)
    (folder / "in.lammps").write_text(text)
    environment = os.environ | {"LAMMPS_PLUGIN_PATH": str(build_plugin(lammps).parent)}
    done = subprocess.run(
        [executable, "-in", "in.lammps"],
        cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=context.seconds,
    )  # fmt: skip
    if done.returncode != 0:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise RuntimeError("LAMMPS failed: " + next((x for x in lines if "ERROR" in x), lines[-1]))
    ms = 1e3 * float(re.findall(r"Loop time of (\S+)", done.stdout)[-1]) / STEPS
    own = [line for line in done.stdout.splitlines() if line.startswith("equipot:")]
    return [row | {"wall ms": ms, "µs/atom": 1e3 * ms / num_atoms, "note": own[-1] if own else ""}]
