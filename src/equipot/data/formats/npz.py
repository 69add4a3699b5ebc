"""NumPy archives of one molecule or crystal: rMD17 (nuclear_charges, coords, ...) and sGDML (z, R, E, F).

The elements are common to all frames. Energies and forces get the names ``energy`` and ``forces``; other
arrays with one entry per frame keep theirs. Pickled arrays are refused.
"""

import zipfile
from collections.abc import Iterator
from pathlib import Path

import ase
import numpy as np

from equipot.config.data import Parsing
from equipot.data.formats.base import Contents, Format, make_atoms
from equipot.errors import DataError

_ROLES = {
    "numbers": ("nuclear_charges", "z", "atomic_numbers", "numbers"),
    "positions": ("coords", "R", "positions", "coordinates", "pos"),
    "energy": ("energies", "E", "energy"),
    "forces": ("forces", "F"),
    "cell": ("cell", "lattice", "cells"),
    "pbc": ("pbc",),
}
_FRAME_SHAPE = {"energy": "(F,) or (F, 1)", "forces": "(F, N, 3)", "positions": "(F, N, 3)"}


def _matches(path: Path) -> bool:
    return path.is_file() and path.suffix == ".npz"


def _read(path: Path, parsing: Parsing) -> Contents:
    arrays = _load(path)
    names = {role: next((n for n in known if n in arrays), None) for role, known in _ROLES.items()}
    for role in ("numbers", "positions"):
        if names[role] is None:
            raise DataError(
                f"{path}: no array with the {role}; expected one called {' or '.join(_ROLES[role])}, found "
                f"{', '.join(arrays) or 'none'}."
            )
    _check_shapes(path, arrays, names)
    return Contents(_structures(arrays, names), len(arrays[names["positions"]]), _units(arrays))


def _load(path: Path) -> dict[str, np.ndarray]:
    found = {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            for name in archive.files:
                try:
                    found[name] = archive[name]
                except ValueError as error:
                    if "pickle" not in str(error).lower():
                        raise
                    raise DataError(
                        f"{path}: array '{name}' is a Python pickle, which can run any program when it is "
                        "loaded, so it is refused. Save plain numbers (np.savez without dtype=object)."
                    ) from error
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise DataError(f"{path}: not a complete .npz archive ({error}). Copy it again.") from error
    return found


def _check_shapes(path: Path, arrays: dict[str, np.ndarray], names: dict[str, str | None]) -> None:
    numbers, positions = arrays[names["numbers"]], arrays[names["positions"]]
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
        raise DataError(
            f"{path}: '{names['numbers']}' must hold one atomic number per atom, (N,) integers; it has shape "
            f"{numbers.shape} and type {numbers.dtype}."
        )
    expected = {"positions": (len(positions), len(numbers), 3), "forces": (len(positions), len(numbers), 3)}
    expected["energy"] = (len(positions),)
    for role, shape in expected.items():
        name = names[role]
        found = None if name is None else arrays[name].shape
        if found is not None and found != shape and not (role == "energy" and found == (*shape, 1)):
            raise DataError(
                f"{path}: '{name}' has shape {found}, but {_FRAME_SHAPE[role]} with F = {len(positions)} "
                f"frames and N = {len(numbers)} atoms was expected: {shape}."
            )


def _structures(arrays: dict[str, np.ndarray], names: dict[str, str | None]) -> Iterator[ase.Atoms]:
    positions = arrays[names["positions"]]
    role_of = {name: role for role, name in names.items() if name is not None}
    others = [n for n, a in arrays.items() if n not in role_of and a.ndim and len(a) == len(positions)]

    def per_frame(role: str, size: int, i: int) -> np.ndarray | None:
        value = None if names[role] is None else arrays[names[role]]
        return value[i] if value is not None and value.size == size * len(positions) else value

    for i in range(len(positions)):
        values = {role: arrays[names[role]][i] for role in ("energy", "forces") if names[role] is not None}
        values |= {name: arrays[name][i] for name in others}
        yield make_atoms(
            arrays[names["numbers"]], positions[i], per_frame("cell", 9, i), per_frame("pbc", 3, i), values
        )


def _units(arrays: dict[str, np.ndarray]) -> dict[str, str]:
    """sGDML names its units in e_unit and r_unit."""
    found = {}
    for kind, key in (("energy", "e_unit"), ("length", "r_unit")):
        text = arrays[key].item() if key in arrays and arrays[key].size == 1 else ""
        found[kind] = text.decode() if isinstance(text, bytes) else str(text)
    return found


FORMAT = Format("npz", "a NumPy archive (rMD17 or sGDML)", _matches, _read)
