"""Opening LMDB files, which are mapped into memory: reading a truncated one would end the process."""

from pathlib import Path
from typing import Any

from equipot.data.formats.base import optional_module
from equipot.errors import DataError


def open_lmdb(path: Path) -> Any:
    """The read-only environment of an LMDB file, or of a folder with a data.mdb.

    Raises:
        DataError: not an LMDB file, or shorter than its header says; the package lmdb is missing.
    """
    lmdb = optional_module("lmdb", path)
    try:
        environment = lmdb.open(
            str(path), subdir=path.is_dir(), readonly=True, lock=False, readahead=False, max_readers=1
        )
    except lmdb.Error as error:
        raise DataError(f"{path}: not an LMDB file ({error}). Copy it again.") from error
    expected = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    size = (path / "data.mdb" if path.is_dir() else path).stat().st_size
    if size < expected:
        environment.close()
        raise DataError(
            f"{path} has {size} bytes, but its header says {expected}: it is truncated. Copy it again."
        )
    return environment
