"""VASP: vasprun.xml and OUTCAR, or the folder of a calculation, through ASE."""

import gzip
import logging
from pathlib import Path

import ase.io

from equipot.data.formats.base import Contents, Format

logger = logging.getLogger("equipot")

_NAMES = ("vasprun.xml", "vasprun.xml.gz", "OUTCAR", "OUTCAR.gz")  # the first there is read
_END = {"vasprun.xml": b"</modeling>", "OUTCAR": b"General timing and accounting"}


def _matches(path: Path) -> bool:
    if path.is_dir():
        return any((path / name).is_file() for name in _NAMES)
    name = path.name.removesuffix(".gz")
    return path.is_file() and (
        name.startswith("OUTCAR") or (name.startswith("vasprun") and name.endswith(".xml"))
    )


def _read(path: Path) -> Contents:
    file = next(path / name for name in _NAMES if (path / name).is_file()) if path.is_dir() else path
    kind = "OUTCAR" if file.name.startswith("OUTCAR") else "vasprun.xml"
    opener = gzip.open if file.suffix == ".gz" else open
    with opener(file, "rb") as stream:
        complete = any(_END[kind] in line for line in stream)
    if not complete:
        logger.warning("%s: the calculation did not end (no '%s'); the steps it completed are used.",
                       file, _END[kind].decode())  # fmt: skip
    format_name = "vasp-out" if kind == "OUTCAR" else "vasp-xml"
    return Contents(ase.io.iread(str(file), ":", format=format_name, do_not_split_by_at_sign=True))


FORMAT = Format("vasp", "VASP output", _matches, _read)
