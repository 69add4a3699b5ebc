"""Every other file that ASE reads: .traj, POSCAR, CIF, output files of electronic-structure programs, ..."""

import math
import re
from collections.abc import Iterator
from pathlib import Path

import ase
import ase.io
from ase.data import atomic_numbers
from ase.io.formats import UnknownFileTypeError, filetype, get_ioformat
from ase.units import Hartree, create_units

from equipot.config.data import Parsing
from equipot.data.formats.base import LEFT_OUT, UNCONVERGED, Contents, Format
from equipot.data.formats.text_file import open_text
from equipot.errors import DataError

# Energies as they are printed, their unit as ASE has it for that program; and what stands before and after an
# energy where the electrons did not converge.
_ENERGY = {
    "gaussian-out": (re.compile(r"^ SCF Done:.*?=\s*(\S+)"), Hartree),
    "espresso-out": (re.compile(r"^!\s+total energy\s*=\s*(\S+)"), create_units("2006")["Ry"]),
}
_FAILED_BEFORE = {"gaussian-out": "Convergence criterion not met"}
_FAILED_AFTER = {"gaussian-out": "Convergence failure", "espresso-out": "convergence NOT achieved"}
_SAME = 1e-6  # eV: of digits that are printed

# What ASE takes for something else, or not at all: by the first word.
_OTHERS = {"begin": "RuNNer's or n2p2's input.data", "BEGIN_CFG": "a .cfg of MTP (MLIP)"}
_ADVICE = (
    "Write it as extended XYZ: with ASE, ase.io.write('frames.xyz', structures), where `structures` are "
    "ase.Atoms with energy, forces and stress in a SinglePointCalculator; pymatgen's AseAtomsAdaptor and "
    "dpdata make ase.Atoms of many formats. `format:` of the entry in the YAML (--format) names one of "
    "equipot's own."
)


def _read(path: Path, parsing: Parsing) -> Contents:
    return Contents(_structures(path))


def _structures(path: Path) -> Iterator[ase.Atoms]:
    known = _known(path)
    if known is not None:
        raise DataError(f"{path} is {known}, which is not read. {_ADVICE}")
    try:
        kind = filetype(str(path))
        get_ioformat(kind)
    except UnknownFileTypeError as error:
        raise DataError(f"{path}: ASE does not recognise the file format ({error}). {_ADVICE}") from error
    failed = _failed(path, kind)
    structures = ase.io.iread(str(path), ":", format=kind, do_not_split_by_at_sign=True)
    number = 0
    try:
        for atoms in structures:
            energy = None if atoms.calc is None else atoms.calc.results.get("energy")
            if _is_unconverged(kind, energy, failed):
                atoms.info[LEFT_OUT] = UNCONVERGED
            yield atoms
            number += 1
    except KeyError as error:
        label = str(error.args[0]) if error.args else ""
        if re.fullmatch(r"[A-Za-z][\w*+-]{0,5}", label) and label not in atomic_numbers:
            raise DataError(
                f"{path}, frame {number} (the first is 0): '{label}' is not a chemical element. Write the "
                f"symbol there (read as {kind} by ASE, for which there is no species_map)."
            ) from error
        raise
    if number == 0:
        raise DataError(
            f"{path}: ASE takes it for {get_ioformat(kind).description}, and finds no frame. {_ADVICE}"
        )


def _known(path: Path) -> str | None:
    """What a text file is that neither ASE nor equipot reads."""
    try:
        with open_text(path) as stream:
            start = stream.read(64).lstrip()
    except DataError:
        return None
    if path.suffix == ".json" and start.startswith(("{", "[")):
        return "JSON, but no ASE database"
    return _OTHERS.get(start.split()[0]) if start.split() else None


def _failed(path: Path, kind: str) -> list[float | None]:
    """Energies (eV) of the calculations in an output file that did not converge; None: without one."""
    if kind not in _ENERGY:
        return []
    pattern, unit = _ENERGY[kind]
    failed: list[float | None] = []
    energy, bad = None, False
    with open_text(path) as stream:
        for line in stream:
            match = pattern.match(line)
            if match:
                energy = float(match.group(1).replace("D", "e")) * unit
                failed += [energy] * bad
                bad = False
            bad |= kind in _FAILED_BEFORE and _FAILED_BEFORE[kind] in line
            if _FAILED_AFTER[kind] in line:
                failed.append(energy)
                energy = None
            elif "convergence has been achieved" in line:
                energy = None
    return failed


def _is_unconverged(kind: str, energy: float | None, failed: list[float | None]) -> bool:
    if kind == "orca-output":  # ASE's mark of an energy that is not fully converged
        return energy is not None and math.isnan(energy)
    if energy is None:
        return None in failed
    return any(other is not None and abs(energy - other) < _SAME for other in failed)


FORMAT = Format("ase", "a file for ASE", Path.is_file, _read)
