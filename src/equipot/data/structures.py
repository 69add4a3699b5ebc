"""Structures to start from: the files are those that trainings read."""

import logging
import re
from collections import defaultdict, deque
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms, FixCartesian, FixConstraint, FixScaled

from equipot.data.formats import Numbered, find_format, open_contents
from equipot.data.frames import Frame, frame_from_atoms, label_candidates
from equipot.data.readers import expand_paths, named_parsing
from equipot.data.stated_units import units_in_header
from equipot.data.store.file import Store
from equipot.errors import ConfigError, DataError
from equipot.quantities import KEYS, UNIT_POWERS, given_quantities
from equipot.units import known_unit, length_factor

logger = logging.getLogger("equipot")

_FRAME = re.compile(r"(.+)@([^@/]*)")
_UNCLEAR = ("velocities", "velocity", "velo", "vel", "v")  # columns whose unit no convention fixes


class Found(NamedTuple):
    """A structure and where it stands."""

    file: str
    index: int  # in the file, from 0
    atoms: Atoms

    @property
    def where(self) -> str:
        """How messages name it."""
        return f"{self.file}, frame {self.index} (the first is 0)"


def read_structures(names: Sequence[str | Path], species_map: str | None = None) -> list[Found]:
    """All frames of files or folders in any format of a training, or the one of ``FILE@N``, in order.

    Otherwise as `read_structure`.
    """
    found = []
    for name in names:
        file, number = _file_and_number(name)
        for path in expand_paths(file):
            contents = open_contents(path, parsing=named_parsing(species_map, keep_unconverged=True))
            numbered = list(contents.numbered)
            if number is not None:
                numbered = [numbered[number]] if -len(numbered) <= number < len(numbered) else []
            if not numbered:
                raise DataError(_no_such_frame(name, path))
            for index, structure in numbered:
                atoms = _checked(structure, str(path), index, contents.units)
                found.append(Found(str(path), index, atoms))
    return found


def read_structure(name: str | Path | Atoms, species_map: str | None = None) -> Atoms:
    """The last frame of a file or folder in any format of a training, or ``FILE@N``'s, from 0; @-1 the last.

    Of Atoms a copy. Positions in Å. Momenta and constraints are those of the file. ``species_map`` is as
    in ``named_parsing``; steps whose electrons did not converge are structures all the same.

    Raises:
        DataError: no such file or frame, more than one frame asked for, or an unusable one.
    """
    if isinstance(name, Atoms):
        return name.copy()
    path, number = _file_and_number(name)
    found = expand_paths(path)
    if len(found) > 1:
        raise DataError(f"{name}: {len(found)} files match, but one structure is needed. Name one file.")
    path = found[0]
    contents = open_contents(path, parsing=named_parsing(species_map, keep_unconverged=True))
    atoms = _pick(path, contents.numbered, -1 if number is None else number)
    if atoms is None:
        raise DataError(_no_such_frame(name, path))
    atoms = _checked(atoms, str(name), 0, contents.units)
    unclear = [column for column in _UNCLEAR if column in atoms.arrays]
    if unclear:
        logger.warning(
            "%s: the column '%s' is not used, as its unit is not known; ASE writes velocities as 'momenta'.",
            path, unclear[0],
        )  # fmt: skip
    return atoms


def _file_and_number(name: str | Path) -> tuple[Path, int | None]:
    match = _FRAME.fullmatch(str(name))
    if not match or Path(name).exists():
        return Path(name), None
    try:
        return Path(match[1]), int(match[2])
    except ValueError:
        raise DataError(
            f"{name}: '@{match[2]}' does not name one frame. FILE@0 is the first, FILE@-1 the last."
        ) from None


def _no_such_frame(name: str | Path, path: Path) -> str:
    return f"{name}: {path} has no such frame. FILE@0 is the first, FILE@-1 the last."


def _checked(structure: Atoms | Frame, file: str, index: int, units: dict[str, str]) -> Atoms:
    """In Å and without labels; ``units`` are those that the file states."""
    atoms = structure
    if isinstance(structure, Frame):
        atoms = Atoms(structure.atomic_numbers, structure.positions, cell=structure.cell, pbc=structure.pbc)
    atoms.calc = None
    for name in _labels(atoms):  # which would be written beside other positions
        atoms.info.pop(name, None)
        atoms.arrays.pop(name, None)
    atoms.set_constraint(_joined(atoms.constraints))
    frame_from_atoms(atoms, file=file, index=index)
    stated = (units | units_in_header(atoms.info)).get("length") or "Ang"
    unit = known_unit(stated, UNIT_POWERS["length"])
    if unit is None:
        raise DataError(
            f"{file} names '{stated}' as its unit of length, which is not known. Correct it there."
        )
    factor = length_factor(unit)
    if factor != 1.0:
        atoms.set_cell(atoms.cell * factor)
        atoms.positions *= factor
    return atoms


def _labels(atoms: Atoms) -> list[str]:
    """Names of what is predicted."""
    keys = [key for name, key in KEYS.items() if name not in given_quantities()]
    found = label_candidates(atoms)
    return [name for key in keys for name in found[key.name] if key.means(name)]


def _joined(constraints: list[FixConstraint]) -> list[FixConstraint]:
    """One constraint for all atoms with the same fixed directions; readers of ASE make one for each atom."""
    joined, others = defaultdict(list), []
    for constraint in constraints:
        if isinstance(constraint, FixCartesian | FixScaled):
            joined[type(constraint), tuple(constraint.mask.tolist())].append(constraint.index)
        elif isinstance(constraint, FixAtoms):
            joined[FixAtoms, (True, True, True)].append(constraint.index)
        else:
            others.append(constraint)
    for (kind, mask), indices in joined.items():
        atoms = np.unique(np.concatenate(indices))
        if any(mask):
            others.append(FixAtoms(atoms) if kind is FixAtoms or all(mask) else kind(atoms, mask))
    return others


def _pick(path: Path, structures: Numbered, number: int) -> Atoms | Frame | None:
    if find_format(path).name == "store":
        store = Store(path)
        return store.frame(number % len(store)) if -len(store) <= number < len(store) else None
    if number >= 0:
        return next((structure for found, structure in structures if found == number), None)
    last = deque(structures, maxlen=-number)
    return last[0][1] if len(last) == -number else None


def repeated(atoms: Atoms, supercell: tuple[int, int, int]) -> Atoms:
    """So many copies along the lattice vectors, with momenta and constraints.

    Raises:
        ConfigError: a number below 1, or copies in a direction that is not periodic.
        DataError: constraints that ASE does not repeat.
    """
    for direction, (count, periodic) in enumerate(zip(supercell, atoms.pbc, strict=True)):
        if count < 1:
            raise ConfigError(f"supercell: expected three numbers of at least 1, found {supercell}.")
        if count > 1 and not periodic:
            raise ConfigError(
                f"supercell {supercell}: the structure is not periodic in direction {direction}."
            )
    if max(supercell) == 1:
        return atoms
    try:
        return atoms.repeat(supercell)
    except NotImplementedError:
        names = ", ".join(type(constraint).__name__ for constraint in atoms.constraints)
        raise DataError(f"supercell {supercell}: ASE cannot repeat the constraints {names}.") from None
