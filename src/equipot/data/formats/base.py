"""What every file format provides, and what the readers share."""

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import ase
import numpy as np
from ase.data import atomic_numbers

from equipot.config.data import Parsing
from equipot.data.frames import Frame
from equipot.errors import DataError
from equipot.quantities import QUANTITIES

# A part of a file that is parsed and stored at once has at most this many frames, and atoms (but one frame).
PART_FRAMES, PART_ATOMS = 1000, 20_000


# In the info of a structure that is not to be used as it is: why, as a sentence about "frames" goes on.
LEFT_OUT = "equipot:left_out"
UNCONVERGED = "did not converge"


class Text(Protocol):
    """Some consecutive structures of a file, not parsed yet; picklable."""

    num_frames: int

    def parse(self) -> Iterator[ase.Atoms]: ...


@dataclass(frozen=True)
class Contents:
    """What is in a file: its structures, read one at a time.

    A structure carries its labels and whatever else the file says about it in ``info`` (per structure), in
    ``arrays`` (per atom) or in a calculator, under the names the file uses; formats whose layout fixes the
    meaning of a value use the names of ``equipot.quantities``. ``LEFT_OUT`` in ``info`` says why one is not
    to be used.
    """

    structures: Iterator[ase.Atoms | Frame]  # frames: where a format holds what equipot itself has checked
    total: int | None = None  # number of structures, if it is known in advance
    units: dict[str, str] = field(default_factory=dict)  # of "length", and of labels, where the file says
    texts: Iterator["Text"] | None = None  # the same as pieces that are still to be parsed, if a format can


@dataclass(frozen=True)
class Format:
    """A file format.

    ``matches`` must be cheap and must not raise; ``read`` may raise whatever its parsing runs into:
    ``equipot.data.formats.open_contents`` adds file and frame number. It raises DataError where it can say
    more, with ``path`` in the message.
    """

    name: str  # as ``format:`` in the YAML
    what: str  # in messages
    matches: Callable[[Path], bool]
    read: Callable[[Path, Parsing], Contents]


def optional_module(name: str, path: Path) -> ModuleType:
    """Import a library that only some formats need.

    Raises:
        DataError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DataError(
            f"{path}: reading it needs the Python package {name}, which is not installed ({error}). "
            "Run: pip install 'equipot[formats]'"
        ) from error


def element_number(label: str, species: Mapping[str, str], where: str) -> int:
    """The atomic number of what a file calls an atom: a symbol, a number, D or T, or as ``species`` says.

    Raises:
        DataError: none of these; the message begins with ``where``.
    """
    symbol = species.get(label, {"D": "H", "T": "H"}.get(label, label))
    number = int(symbol) if symbol.isdecimal() else atomic_numbers.get(symbol.capitalize(), 0)
    if 0 < number < len(atomic_numbers):
        return number
    likely = next((s for s in (symbol[:2].capitalize(), symbol[:1]) if s in atomic_numbers), "H")
    raise DataError(
        f"{where}: '{label}' is not a chemical element. Say which one it is: `species_map: "
        f"{{{label}: {likely}}}` in `data` or in the entry of the YAML, --species-map {label}={likely} on "
        "the command line."
    )


def make_atoms(numbers, positions, cell=None, pbc=None, values: dict[str, Any] | None = None) -> ase.Atoms:
    """A structure; each of ``values`` becomes an array of its atoms or an entry of its info, by its shape.

    Without ``pbc`` a structure is periodic if it has a cell. ``values`` of None are left out.
    """
    cell = None if cell is None or not np.any(cell) else np.reshape(cell, (3, 3))
    pbc = (cell is not None) if pbc is None else np.broadcast_to(np.ravel(pbc).astype(bool), 3)
    atoms = ase.Atoms(numbers=np.asarray(numbers, dtype=int), positions=positions, cell=cell, pbc=pbc)
    for name, value in (values or {}).items():
        add_value(atoms, name, value)
    return atoms


def add_value(atoms: ase.Atoms, name: str, value: Any) -> None:
    """Attach a value to a structure: vectors of its atoms to ``arrays``, the rest to ``info``."""
    if value is None:
        return
    shape = np.shape(value) if isinstance(value, np.ndarray | list | tuple | np.generic) else ()
    elsewhere = ("positions", "numbers", *(q.name for q in QUANTITIES.values() if not q.per_atom))
    if len(shape) == 2 and shape == (len(atoms), 3) and name not in elsewhere:
        atoms.arrays[name] = np.asarray(value)
    elif isinstance(value, np.ndarray) and value.size == 1:
        atoms.info[name] = value.reshape(()).item()  # an energy stored as an array of one number
    else:
        atoms.info[name] = value
