"""NequIP's own code, run by the user's interpreter in a process of its own: its files run code."""

import io
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from equipot.errors import ModelFileError
from equipot.interop.dump import Dump
from equipot.interop.nequip_dump import NOT_INSTALLED

SCRIPT = Path(__file__).with_name("nequip_dump.py")


def is_nequip(path: Path) -> bool:
    """Whether a file is a checkpoint or a package of NequIP; nothing in it is run.

    Raises:
        ModelFileError: it is one that NequIP has compiled.
    """
    if path.name.endswith((".nequip.pt2", ".nequip.pth")):
        raise ModelFileError(
            f"{path}: a compiled model of NequIP. Give the checkpoint (.ckpt) or package (.nequip.zip) that "
            "it was made of."
        )
    if path.name.endswith(".nequip.zip"):
        return True
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            # Not behind a dot: equipot's deployed files have modules of that name.
            return any(re.search(rb"(?<!\.)nequip\.", archive.read(name)) for name in pickles)
    except Exception:  # not an archive, or damaged, which is said where it is read
        return False


def dump(path: Path, python: str | None) -> Dump:
    """The model in a file of NequIP.

    Raises:
        ModelFileError: no nequip there, of before 0.19, or it cannot open the file.
    """
    found = Dump(path, io.BytesIO(_run(python, "dump", path)))
    version = found.versions.get("nequip", "0")
    if [int(word) for word in version.split(".")[:2] if word.isdecimal()] < [0, 19]:
        raise ModelFileError(f"{path}: opened by nequip {version}; expected 0.19 or newer. Upgrade it.")
    return found


def evaluate(
    path: Path, python: str | None, structures: Sequence[Atoms]
) -> list[tuple[float, NDArray, NDArray]]:
    """Energy (eV), forces (eV/Å) and stress (eV/Å³) of each, in float64. Raises as `dump`."""
    content = _run(python, "evaluate", path, as_arrays(structures))
    with np.load(io.BytesIO(content), allow_pickle=False) as found:
        return by_structure(found, structures)


def as_arrays(structures: Sequence[Atoms]) -> dict[str, NDArray]:
    """As the script reads them."""
    last = np.cumsum([len(atoms) for atoms in structures])
    first = last - [len(atoms) for atoms in structures]
    return {
        "first": first,
        "last": last,
        "numbers": np.concatenate([atoms.numbers for atoms in structures]),
        "positions": np.concatenate([atoms.positions for atoms in structures]),
        "cell": np.array([atoms.cell.array for atoms in structures]),
        "pbc": np.array([atoms.pbc for atoms in structures]),
    }


def by_structure(
    found: Mapping[str, NDArray], structures: Sequence[Atoms]
) -> list[tuple[float, NDArray, NDArray]]:
    """What the script writes of them."""
    forces = np.split(found["forces"], np.cumsum([len(atoms) for atoms in structures])[:-1])
    return list(zip(found["energy"].tolist(), forces, found["stress"], strict=True))


def _run(python: str | None, command: str, path: Path, arrays: dict[str, NDArray] | None = None) -> bytes:
    """What the script has written."""
    python = python or sys.executable
    with tempfile.TemporaryDirectory() as folder:
        given, out = Path(folder) / "in.npz", Path(folder) / "out.npz"
        if arrays is not None:
            np.savez(given, **arrays)
        files = [str(given)] * (arrays is not None) + [str(out)]
        try:
            done = subprocess.run(
                [python, str(SCRIPT), command, str(path), *files], capture_output=True, text=True, check=False
            )
        except OSError as error:
            raise ModelFileError(f"--python: {python} cannot be run ({error.strerror}).") from None
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        if done.returncode == NOT_INSTALLED:
            raise ModelFileError(
                f"{path}: a file of NequIP, which its own code has to open, and that cannot be imported by "
                f"{python} ({lines[-1]}): run `pip install nequip` there, and nequip-allegro for Allegro, or "
                "name an interpreter that has it (--python)."
            )
        if done.returncode != 0:
            raise ModelFileError(f"{path}: nequip ({python}) cannot open it: {lines[-1]}.")
        return out.read_bytes()
