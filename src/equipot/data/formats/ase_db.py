"""ASE databases: SQLite (.db), JSON (.json), and LMDB as fairchem and OMat24 use it (.aselmdb).

Labels are what the rows hold as calculator results, as key-value pairs and as data. In SchNetPack's databases
the labels are data, and the metadata names the units.
"""

from collections.abc import Iterator
from pathlib import Path

import ase
import ase.db

from equipot.config.data import Parsing
from equipot.data.formats.base import Contents, Format, add_value, optional_module
from equipot.data.formats.lmdb_file import open_lmdb

_SQLITE = b"SQLite format 3"


def _matches(path: Path) -> bool:
    if not path.is_file():
        return False
    if path.suffix == ".aselmdb" or (path.suffix == ".json" and _is_ase_json(path)):
        return True
    with path.open("rb") as stream:
        return stream.read(len(_SQLITE)) == _SQLITE


def _is_ase_json(path: Path) -> bool:
    with path.open("rb") as stream:
        return b'"ctime"' in stream.read(4096)


def _read(path: Path, parsing: Parsing) -> Contents:
    database = _connect(path)
    return Contents(_structures(database), database.count(), _units(database.metadata))


def _connect(path: Path):
    if path.suffix == ".json":
        return ase.db.connect(path, type="json", use_lock_file=False)
    with path.open("rb") as stream:
        if stream.read(len(_SQLITE)) == _SQLITE:
            return ase.db.connect(path, type="db", use_lock_file=False)
    open_lmdb(path).close()  # refuses a truncated file
    backend = optional_module("ase_db_backends.aselmdb", path)
    return backend.LMDBDatabase(path, readonly=True, use_lock_file=False)


def _structures(database) -> Iterator[ase.Atoms]:
    for row in database.select():
        atoms = row.toatoms()
        for name, value in {**row.key_value_pairs, **row.data}.items():
            add_value(atoms, name, value)
        yield atoms


def _units(metadata: dict) -> dict[str, str]:
    """SchNetPack's: _distance_unit is a name, _property_unit_dict gives one for each property."""
    properties = metadata.get("_property_unit_dict")
    length = {"length": metadata["_distance_unit"]} if "_distance_unit" in metadata else {}
    return {**(properties if isinstance(properties, dict) else {}), **length}


FORMAT = Format("ase_db", "an ASE database", _matches, _read)
