"""Every other file that ASE reads: .traj, POSCAR, CIF, output files of electronic-structure programs, ..."""

from collections.abc import Iterator
from pathlib import Path

import ase
import ase.io
from ase.io.formats import UnknownFileTypeError, filetype

from equipot.data.formats.base import Contents, Format
from equipot.errors import DataError


def _read(path: Path) -> Contents:
    return Contents(_structures(path))


def _structures(path: Path) -> Iterator[ase.Atoms]:
    try:
        yield from ase.io.iread(str(path), ":", format=filetype(str(path)), do_not_split_by_at_sign=True)
    except UnknownFileTypeError as error:
        raise DataError(
            f"{path}: ASE does not recognise the file format ({error}). Extended XYZ (.xyz) always works; "
            "`format:` of the entry in the YAML (--format) names one of equipot's formats."
        ) from error


FORMAT = Format("ase", "a file for ASE", Path.is_file, _read)
