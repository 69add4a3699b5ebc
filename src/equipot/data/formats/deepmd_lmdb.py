"""DeePMD-kit's LMDB (version 3): a msgpack mapping for each frame, and one, ``__metadata__``, for all."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ase
import numpy as np

from equipot.config.data import Parsing
from equipot.data.formats.base import Contents, element_number, optional_module
from equipot.data.formats.deepmd import UNITS, frame_atoms
from equipot.errors import DataError

METADATA = b"__metadata__"
_NAMES = {"coords": "coord", "cells": "box", "energies": "energy", "forces": "force", "virials": "virial"}


def read(path: Path, environment: Any, parsing: Parsing) -> Contents:
    """The frames of an open environment. Raises DataError if its metadata do not say enough."""
    with environment.begin() as transaction:
        metadata = _unpacked(path, "metadata", transaction.get(METADATA))
    missing = [name for name in ("nframes", "type_map") if not metadata.get(name)]
    if missing:
        raise DataError(
            f"{path}: its metadata have no {' and no '.join(missing)}; found {', '.join(metadata)}."
        )
    where = f"{path}, type_map"
    numbers = np.array([element_number(symbol, parsing.species, where) for symbol in metadata["type_map"]])
    return Contents(_structures(path, environment, metadata, numbers), metadata["nframes"], UNITS)


def _structures(path: Path, environment: Any, metadata: dict, numbers: np.ndarray) -> Iterator[ase.Atoms]:
    with environment.begin() as transaction:
        for i in range(metadata["nframes"]):
            content = transaction.get(format(i, metadata.get("frame_idx_fmt", "012d")).encode())
            place = f"frame {i} (the first is 0)"
            if content is None:
                raise DataError(f"{path}, {place} is missing; its metadata say {metadata['nframes']} frames.")
            values = _unpacked(path, place, content)
            yield _atoms(f"{path}, {place}", values, numbers)
    environment.close()


def _unpacked(path: Path, place: str, content: bytes) -> dict[str, Any]:
    msgpack = optional_module("msgpack", path)
    try:
        found = msgpack.unpackb(content, raw=False)
        return {_text(name): _array(value) for name, value in found.items()}
    except Exception as error:
        raise DataError(f"{path}, {place}: not msgpack of plain arrays ({error}).") from error


def _text(name: Any) -> Any:
    return name.decode() if isinstance(name, bytes) else name


def _array(value: Any) -> Any:
    """An array from its type, shape and bytes; anything else as it is."""
    fields = {_text(name): field for name, field in value.items()} if isinstance(value, dict) else {}
    if not {"type", "data"} <= fields.keys():
        return value
    array = np.frombuffer(fields["data"], dtype=np.dtype(_text(fields["type"])))
    return array.reshape(fields.get("shape", [-1])).copy()


def _atoms(where: str, values: dict[str, Any], numbers: np.ndarray) -> ase.Atoms:
    values = {_NAMES.get(name, name): value for name, value in values.items()}
    types = values.pop("atom_types", None)
    if types is None or "coord" not in values:
        raise DataError(f"{where}: no atom_types or no coords; found {', '.join(values)}.")
    if not -1 <= np.min(types) <= np.max(types) < len(numbers) or np.size(values["coord"]) != 3 * len(types):
        raise DataError(
            f"{where}: {len(types)} atom_types from {np.min(types)} to {np.max(types)} and coords of shape "
            f"{np.shape(values['coord'])} do not fit each other, or the {len(numbers)} elements of type_map."
        )
    periodic = "box" in values and not values.pop("nopbc", False)
    arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray | int | float)}
    return frame_atoms(arrays, np.asarray(types), numbers, periodic)
