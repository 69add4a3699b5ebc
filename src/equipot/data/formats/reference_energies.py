"""What Open Catalyst's download has beside its structures: ``N.txt`` beside ``N.extxyz``, packed or not.

Line i, ``system_id,frame_number,reference_energy``, belongs to frame i. OC20's models are trained on the
energy less the reference energy, which is that of the bare slab and of the gas.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from equipot.data.formats.text_file import PACKED, UNPACKING_ERRORS, open_text, unpacked_name
from equipot.errors import DataError

_LINE = re.compile(r"([^,\s]+),([^,\s]+),([-+]?\d+\.?\d*(?:[eE][-+]?\d+)?)\s*")


class Reference(NamedTuple):
    """Of one frame."""

    system_id: str
    frame_number: str
    energy: float  # eV


def references_of(path: Path) -> Path | None:
    """The file of references beside ``path``, if there is one; other text there is something else."""
    stem = path.name[: len(unpacked_name(path))].rpartition(".")[0]
    for name in (f"{stem}.txt{ending}" for ending in ("", *PACKED)):
        beside = path.with_name(name)
        if beside.is_file():
            try:
                with open_text(beside) as stream:
                    first = stream.readline()
            except (DataError, *UNPACKING_ERRORS):
                return beside  # reading it says what is wrong
            return beside if _LINE.fullmatch(first) else None
    return None


def read_references(path: Path) -> Iterator[Reference]:
    """One after the other. Raises DataError for a line that is none, and where a packed file breaks off."""
    number = 0
    try:
        with open_text(path) as stream:
            for number, line in enumerate(stream, start=1):
                match = _LINE.fullmatch(line)
                if match is None:
                    raise DataError(
                        f"{path}, line {number}: expected system_id,frame_number,reference_energy as in line "
                        f"1, found '{line.strip()[:40]}'."
                    )
                yield Reference(match[1], match[2], float(match[3]))
    except UNPACKING_ERRORS as error:
        raise DataError(
            f"{path} cannot be read after line {number}: {error}. It is truncated or damaged; copy it again."
        ) from error
