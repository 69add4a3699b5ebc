"""DeePMD-kit's npy folders: type.raw, type_map.raw, set.*/coord.npy, ...; also with mixed types.

The layout fixes units (eV, Å) and meaning: ``energy``, ``forces``, and ``stress`` = −virial / volume.
"""

from collections.abc import Iterator
from pathlib import Path

import ase
import numpy as np
from ase.data import atomic_numbers as number_of

from equipot.data.formats.base import Contents, Format, make_atoms
from equipot.errors import DataError

_NAMES = {"energy": "energy", "force": "forces"}
_UNITS = {"length": "Ang", "energy": "eV", "forces": "eV/Ang", "stress": "eV/Ang^3"}


def _matches(path: Path) -> bool:
    return path.is_dir() and (path / "type.raw").is_file()


def _read(path: Path) -> Contents:
    numbers = _element_numbers(path)
    types = np.loadtxt(path / "type.raw", dtype=int, ndmin=1)
    sets = sorted(folder for folder in path.glob("set.*") if folder.is_dir())
    if not sets:
        raise DataError(f"{path}: no folder set.000 or similar with the frames in it.")
    arrays = [_load_set(folder, len(types)) for folder in sets]
    periodic = not (path / "nopbc").exists()
    for folder, found in zip(sets, arrays, strict=True):
        _check_types(folder, found.get("real_atom_types", types), numbers)
        if periodic and "box" not in found:
            raise DataError(
                f"{folder}: no box.npy, and no file 'nopbc' in {path} that says there is no cell."
            )
    structures = (atoms for found in arrays for atoms in _structures(found, types, numbers, periodic))
    return Contents(structures, sum(len(found["coord"]) for found in arrays), _UNITS)


def _element_numbers(path: Path) -> np.ndarray:
    """(T,) atomic number of each type."""
    file = path / "type_map.raw"
    if not file.is_file():
        raise DataError(
            f"{path}: no type_map.raw, so it is not known which element each type is. Write it: one chemical "
            "symbol a line, in the order of the types."
        )
    symbols = file.read_text().split()
    unknown = [symbol for symbol in symbols if symbol not in number_of]
    if unknown:
        raise DataError(f"{file}: '{unknown[0]}' is not a chemical element.")
    return np.array([number_of[symbol] for symbol in symbols], dtype=int)


def _load_set(folder: Path, num_atoms: int) -> dict[str, np.ndarray]:
    arrays = {}
    for file in sorted(folder.glob("*.npy")):
        try:
            arrays[file.stem] = np.load(file, allow_pickle=False, mmap_mode="r")
        except (ValueError, EOFError) as error:
            raise DataError(f"{file}: not a complete array of numbers ({error}).") from error
    if "coord" not in arrays:
        raise DataError(f"{folder}: no coord.npy.")
    frames = len(arrays["coord"])
    expected = {"coord": 3 * num_atoms, "force": 3 * num_atoms, "energy": 1, "virial": 9, "box": 9}
    expected["real_atom_types"] = num_atoms
    for name, columns in expected.items():
        if name in arrays and arrays[name].size != frames * columns:
            raise DataError(
                f"{folder}/{name}.npy has shape {arrays[name].shape}; expected ({frames}, {columns}), "
                f"for the {frames} frames of coord.npy and the {num_atoms} atoms of type.raw."
            )
    return arrays


def _check_types(folder: Path, types: np.ndarray, numbers: np.ndarray) -> None:
    if len(types) and not -1 <= np.min(types) <= np.max(types) < len(numbers):
        raise DataError(
            f"{folder}: atom types from {np.min(types)} to {np.max(types)}, but type_map.raw has "
            f"{len(numbers)} elements (types 0 to {len(numbers) - 1})."
        )


def _structures(arrays, types: np.ndarray, numbers: np.ndarray, periodic: bool) -> Iterator[ase.Atoms]:
    frames = len(arrays["coord"])
    for i in range(frames):
        frame_types = np.asarray(arrays["real_atom_types"][i] if "real_atom_types" in arrays else types)
        real = frame_types >= 0  # folders of mixed types fill frames up with atoms of type -1
        vectors = {
            name: np.array(array[i], dtype=np.float64).reshape(-1, 3)[real]
            for name, array in arrays.items()
            if array.size == frames * 3 * len(types) and name not in ("box", "virial")
        }
        scalars = {
            name: np.array(array).reshape(-1)[i] for name, array in arrays.items() if array.size == frames
        }
        cell = np.array(arrays["box"][i], dtype=np.float64).reshape(3, 3) if periodic else None
        values = {_NAMES.get(name, name): value for name, value in {**scalars, **vectors}.items()}
        values.pop("coord", None)
        if periodic and "virial" in arrays:
            volume = abs(np.linalg.det(cell))
            values["stress"] = -np.array(arrays["virial"][i], dtype=np.float64).reshape(3, 3) / volume
        yield make_atoms(numbers[frame_types[real]], vectors["coord"], cell, periodic, values)


FORMAT = Format("deepmd", "a DeePMD-kit npy folder", _matches, _read)
