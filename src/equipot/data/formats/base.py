"""What every file format provides, and what the readers share."""

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import ase
import numpy as np

from equipot.data.frames import Frame
from equipot.errors import DataError
from equipot.quantities import QUANTITIES

# A part of a file that is parsed and stored at once has at most this many frames, and atoms (but one frame).
PART_FRAMES, PART_ATOMS = 1000, 20_000


class Text(Protocol):
    """Some consecutive structures of a file, not parsed yet; picklable."""

    num_frames: int

    def parse(self) -> Iterator[ase.Atoms]: ...


@dataclass(frozen=True)
class Contents:
    """What is in a file: its structures, read one at a time.

    A structure carries its labels and whatever else the file says about it in ``info`` (per structure), in
    ``arrays`` (per atom) or in a calculator, under the names the file uses; formats whose layout fixes the
    meaning of a value use the names of ``equipot.quantities``.
    """

    structures: Iterator[ase.Atoms | Frame]  # frames: where a format holds what equipot itself has checked
    total: int | None = None  # number of structures, if it is known in advance
    units: dict[str, str] = field(
        default_factory=dict
    )  # of "length", and of labels by their names: where the file says
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
    read: Callable[[Path], Contents]


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
