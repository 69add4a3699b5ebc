"""VASP: vasprun.xml and OUTCAR, or the folder of a calculation, through ASE.

``energy`` is the free energy (TOTEN), which the forces are derivatives of; the energy without entropy and the
one extrapolated to no smearing are ``energy_without_entropy`` and ``energy_sigma0``.
"""

import logging
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TextIO

import ase
from ase.io import ParseError
from ase.io.vasp import read_vasp_xml
from ase.io.vasp_parsers import vasp_outcar_parsers as outcar

from equipot.config.data import Parsing
from equipot.data.formats.base import LEFT_OUT, UNCONVERGED, Contents, Format
from equipot.data.formats.text_file import UNPACKING_ERRORS, open_bytes, open_text, unpacked_name
from equipot.errors import DataError

logger = logging.getLogger("equipot")

_NAMES = ("vasprun.xml", "outcar")  # of a folder the first is read that is complete
_END = {"vasprun.xml": b"</modeling>", "OUTCAR": b"General timing and accounting"}
_STEP = {"vasprun.xml": b"</calculation>", "OUTCAR": b"FREE ENERGIE OF THE ION-ELECTRON"}
_MACHINE_LEARNED = "are of VASP's machine-learned force field, not of a calculation"
_NELM = re.compile(r"\bNELM\s*=\s*(\d+)")
_ITERATION = re.compile(r"Iteration\s+\d+\(\s*(\d+)\)")
_ENERGIES = re.compile(r"energy\s+without entropy\s*=\s*(\S+)\s+energy\(sigma->0\)\s*=\s*(\S+)")


def _matches(path: Path) -> bool:
    if path.is_dir():
        return bool(_files(path))
    name = unpacked_name(path)
    return path.is_file() and (
        name.startswith("outcar") or (name.startswith("vasprun") and name.endswith(".xml"))
    )


def _files(folder: Path) -> list[Path]:
    """Its output files, in the order of ``_NAMES``."""
    files = [file for file in sorted(folder.iterdir()) if file.is_file() and unpacked_name(file) in _NAMES]
    return sorted(files, key=lambda file: _NAMES.index(unpacked_name(file)))


def _kind(file: Path) -> str:
    return "OUTCAR" if unpacked_name(file).startswith("outcar") else "vasprun.xml"


def _read(path: Path, parsing: Parsing) -> Contents:
    file = _choose(_files(path)) if path.is_dir() else path
    if _state(file) != "complete":
        logger.warning("%s: the calculation did not end (no '%s'); the steps it completed are used.",
                       file, _END[_kind(file)].decode())  # fmt: skip
    return Contents(_outcar(file) if _kind(file) == "OUTCAR" else _vasprun(file))


def _choose(files: list[Path]) -> Path:
    """The first that is complete, else the first with a step, else the first."""
    states = [_state(file) for file in files]
    wanted = next((state for state in ("complete", "breaks off") if state in states), states[0])
    chosen = files[states.index(wanted)]
    for file, state in zip(files[: files.index(chosen)], states, strict=False):
        logger.warning("%s %s; %s is read instead.", file, state, chosen.name)
    return chosen


def _state(file: Path) -> str:
    """``complete``, ``breaks off``, ``has no complete step`` or ``is empty``."""
    if file.stat().st_size == 0:
        return "is empty"
    state = "has no complete step"
    try:
        with open_bytes(file) as stream:
            for line in stream:
                if _END[_kind(file)] in line:
                    return "complete"
                if _STEP[_kind(file)] in line:
                    state = "breaks off"
    except UNPACKING_ERRORS:
        pass  # said when it is read
    return state


def _vasprun(file: Path) -> Iterator[ase.Atoms]:
    with open_bytes(file) as stream:
        steps = _electronic_steps(stream)
    without = next((i for i, step in enumerate(steps) if not step["energies"]), None)
    if without is not None and any(step["ended"] for step in steps[without:]):
        raise DataError(
            f"{file}: its step {without} (the first is 0) has no electronic steps: it is perhaps of VASP's "
            "machine-learned force field. Name the OUTCAR, of which the steps that were calculated are read."
        )
    with open_bytes(file) as stream:
        for atoms, step in zip(read_vasp_xml(stream, slice(None)), steps, strict=False):
            if atoms.calc is None:
                return  # the structure of the input, before any step
            free, without_entropy, _ = step["energies"][-1]
            if step["unconverged"]:
                atoms.info[LEFT_OUT] = UNCONVERGED
            results = atoms.calc.results
            yield _with_energies(atoms, results["free_energy"] + without_entropy - free, results["energy"])


def _electronic_steps(stream) -> list[dict]:
    """Of each ionic step: the energies (free, without entropy, σ→0) after its electronic steps; its end."""
    steps: list[dict] = []
    limits: dict[str, float] = {}
    root = None
    try:
        for event, element in ET.iterparse(stream, events=("start", "end")):
            root = element if root is None else root
            if event == "start" and element.tag == "calculation":
                steps.append({"energies": [], "unconverged": False, "ended": False})
            elif event == "end" and element.tag == "i" and element.get("name") in ("NELM", "EDIFF"):
                limits[element.get("name")] = float(element.text)
            elif event == "end" and element.tag == "scstep" and steps:
                names = ("e_fr_energy", "e_wo_entrp", "e_0_energy")
                steps[-1]["energies"].append([_number(element.find(f"energy/i[@name='{n}']")) for n in names])
            elif event == "end" and element.tag == "calculation":
                steps[-1]["ended"] = True
                root.clear()
    except ET.ParseError:
        pass  # a calculation that did not end; ASE gives the steps before
    for step in steps:
        last = [energies[0] for energies in step["energies"][-2:]]
        change = abs(last[1] - last[0]) if len(last) == 2 else float("inf")
        reached = len(step["energies"]) >= limits.get("NELM", float("inf"))
        step["unconverged"] = reached and not change <= limits.get("EDIFF", 0.0)
    return steps


def _number(element: ET.Element | None) -> float:
    try:
        return float(element.text)
    except (AttributeError, TypeError, ValueError):  # absent, or asterisks
        return float("nan")


def _outcar(file: Path) -> Iterator[ase.Atoms]:
    with open_text(file) as stream:
        try:
            lines = outcar.build_header(stream)
        except ParseError:
            _refuse_machine_learned(file)
            return
        found = [int(match.group(1)) for match in map(_NELM.search, lines) if match]
        parser = outcar.OutcarChunkParser(header=outcar.OutcarHeaderParser().build(lines))
        while lines := _step(stream):
            if " ML TOTEN" in lines[-3]:
                yield ase.Atoms(info={LEFT_OUT: _MACHINE_LEARNED})
                continue
            atoms = parser.build(lines)
            if _unconverged(lines, found[0] if found else None):
                atoms.info[LEFT_OUT] = UNCONVERGED
            energies = _ENERGIES.search(lines[-1])
            yield _with_energies(atoms, *(float(energy) for energy in energies.groups()))


def _step(stream: TextIO) -> list[str]:
    """The lines of one ionic step without those of a machine-learned force field; none at the end."""
    lines: list[str] = []
    learned = False
    for line in stream:
        learned |= "ML FORCE" in line
        if learned and "in kB" in line:
            learned, line = False, "\n"
        lines.append("\n" if "POSITION" in line and "(ML)" in line else line)
        if _STEP["OUTCAR"].decode() in line:
            rest = list(islice(stream, 4))
            return [*lines, *rest] if len(rest) == 4 else []
    return []


def _unconverged(lines: list[str], nelm: int | None) -> bool:
    """Whether the electrons of a step stopped before EDIFF was reached."""
    aborted = [line for line in lines if "aborting loop" in line]
    if any("EDIFF is reached" in line for line in aborted):
        return False
    last = max((int(match.group(1)) for match in map(_ITERATION.search, lines) if match), default=0)
    return bool(aborted) or (nelm is not None and last >= nelm)


def _refuse_machine_learned(file: Path) -> None:
    with open_text(file) as stream:
        if any(" ML TOTEN" in line for line in stream):
            raise DataError(f"{file}: all its steps {_MACHINE_LEARNED}; a training needs calculated ones.")


def _with_energies(atoms: ase.Atoms, without_entropy: float, sigma0: float) -> ase.Atoms:
    atoms.info |= {"energy_without_entropy": without_entropy, "energy_sigma0": sigma0}
    atoms.calc.results["energy"] = atoms.calc.results["free_energy"]
    return atoms


FORMAT = Format("vasp", "VASP output", _matches, _read)
