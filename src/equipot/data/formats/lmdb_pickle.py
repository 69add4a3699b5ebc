"""LMDB with pickled torch_geometric Data, as of OC20, read without running what a pickle may contain.

``y`` (or ``energy``) is the energy, ``force`` (or ``forces``) the forces; ``tags`` are those of ASE,
``fixed`` is a constraint; other attributes keep their names. Structures are periodic in all directions if
they have a cell and do not say otherwise. DeePMD-kit's LMDB has no pickles: ``deepmd_lmdb.py`` reads it.
"""

import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import ase
import numpy as np
from ase.constraints import FixAtoms

from equipot.config.data import Parsing
from equipot.data.formats.base import Contents, Format, make_atoms
from equipot.data.formats.deepmd_lmdb import METADATA
from equipot.data.formats.deepmd_lmdb import read as read_deepmd
from equipot.data.formats.lmdb_file import open_lmdb
from equipot.data.formats.safe_pickle import PlainObject, RefusedPickleError, load
from equipot.errors import DataError

_NAMES = {"y": "energy", "force": "forces"}
_PIECE = 250  # frames that are read at once


def _matches(path: Path) -> bool:
    return (path / "data.mdb").is_file() if path.is_dir() else path.is_file() and path.suffix == ".lmdb"


def _read(path: Path, parsing: Parsing) -> Contents:
    environment = open_lmdb(path)
    with environment.begin() as transaction:
        keys = list(transaction.cursor().iternext(values=False))
        length = transaction.get(b"length")
        metadata = transaction.get(METADATA, b"")
    if metadata and metadata[:1] != pickle.PROTO:  # NequIP pickles its own
        return read_deepmd(path, environment, parsing)
    if b"nextid" in keys:
        raise DataError(
            f"{path}: this is an ASE database on LMDB; set `format: ase_db`, or rename it .aselmdb."
        )
    environment.close()
    frames = sorted((key for key in keys if key.isdigit()), key=int)
    if length is not None and _load(path, "length", length) != len(frames):
        raise DataError(
            f"{path}: says it holds {_load(path, 'length', length)} frames, but has {len(frames)}."
        )
    structures = chain.from_iterable(piece.parse() for piece in _pieces(path, frames))
    return Contents(structures, len(frames), texts=_pieces(path, frames))


@dataclass(frozen=True)
class _Piece:
    """Some pickles, to be read by another process: that takes most of the time."""

    path: Path
    first: int  # number of the first in the file
    items: tuple[tuple[bytes, bytes], ...]  # key and pickle

    @property
    def num_frames(self) -> int:
        return len(self.items)

    def parse(self) -> Iterator[ase.Atoms]:
        for number, (key, content) in enumerate(self.items, start=self.first):
            where = f"frame {number} (key '{key.decode()}')"
            yield _atoms(self.path, where, _load(self.path, where, content))


def _pieces(path: Path, keys: list[bytes]) -> Iterator[_Piece]:
    with open_lmdb(path) as environment, environment.begin() as transaction:
        for first in range(0, len(keys), _PIECE):
            chosen = keys[first : first + _PIECE]
            yield _Piece(path, first, tuple((key, transaction.get(key)) for key in chosen))


def _load(path: Path, where: str, content: bytes) -> Any:
    try:
        return load(content)
    except RefusedPickleError as error:
        raise DataError(
            f"{path}, {where}: the pickle asks for {error}, which is not plain data and could run any "
            "program, so it is refused. Convert the file to .aselmdb or .xyz where you trust it."
        ) from error


def _atoms(path: Path, where: str, data: Any) -> ase.Atoms:
    values = {name: _numpy(value) for name, value in _attributes(data).items() if value is not None}
    missing = [name for name in ("pos", "atomic_numbers") if name not in values]
    if missing:
        raise DataError(
            f"{path}, {where}: no {' and no '.join(missing)}; found {', '.join(values) or 'nothing'}."
        )
    numbers, positions = values.pop("atomic_numbers"), values.pop("pos")
    if np.shape(positions) != (len(numbers), 3):
        raise DataError(
            f"{path}, {where}: pos has shape {np.shape(positions)}, but there are {len(numbers)} "
            "atomic_numbers."
        )
    cell, pbc = values.pop("cell", None), values.pop("pbc", None)
    of_atoms = {name: values.pop(name) for name in ("tags", "fixed") if name in values}
    for name, value in of_atoms.items():
        if np.shape(value) != (len(numbers),):
            raise DataError(
                f"{path}, {where}: {name} must be one number per atom ({len(numbers)}), but has shape "
                f"{np.shape(value)}."
            )
    labels = {_NAMES.get(name, name): value for name, value in values.items()}
    atoms = make_atoms(numbers, positions, cell, pbc, labels)
    atoms.set_tags(of_atoms.get("tags"))
    if np.any(of_atoms.get("fixed", False)):
        atoms.set_constraint(FixAtoms(mask=np.asarray(of_atoms["fixed"], dtype=bool)))
    return atoms


def _attributes(data: Any) -> dict[str, Any]:
    """Of a Data object: torch_geometric 1 keeps them on it, later versions in a storage."""
    if isinstance(data, dict):
        return data
    found = vars(data) if isinstance(data, PlainObject) else {}
    store = found.get("_store")
    return dict(vars(store).get("_mapping", {})) if isinstance(store, PlainObject) else found


def _numpy(value: Any) -> Any:
    array = value.detach().numpy() if hasattr(value, "detach") else value  # a tensor
    # A stress or a cell of one structure has a leading 1.
    return array[0] if isinstance(array, np.ndarray) and array.ndim == 3 and len(array) == 1 else array


FORMAT = Format("lmdb_pickle", "LMDB of pickled structures (OC20)", _matches, _read)
