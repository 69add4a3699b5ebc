"""DeePMD-kit's folders: type.raw, type_map.raw and set.*/coord.npy, also with mixed types; or coord.raw.

The layout fixes units (eV, Å) and meaning: ``energy``, ``forces``, and ``stress`` = −virial / volume.
"""

from collections.abc import Iterator
from pathlib import Path

import ase
import numpy as np

from equipot.config.data import Parsing
from equipot.data.formats.base import Contents, Format, element_number, make_atoms
from equipot.errors import DataError

_NAMES = {"energy": "energy", "force": "forces"}
UNITS = {"length": "Ang", "energy": "eV", "forces": "eV/Ang", "stress": "eV/Ang^3"}


def _matches(path: Path) -> bool:
    return path.is_dir() and (path / "type.raw").is_file()


def _read(path: Path, parsing: Parsing) -> Contents:
    numbers = _element_numbers(path, parsing)
    types = np.loadtxt(path / "type.raw", dtype=int, ndmin=1)
    sets = sorted(folder for folder in path.glob("set.*") if folder.is_dir())
    if not sets and not (path / "coord.raw").is_file():
        raise DataError(f"{path}: no folder set.000 or similar with the frames in it, and no coord.raw.")
    arrays = [_shaped(folder, _load_set(folder), len(types)) for folder in sets]
    if not sets:
        sets, arrays = [path], [_shaped(path, _load_raw(path), len(types))]
    periodic = not (path / "nopbc").exists()
    for folder, found in zip(sets, arrays, strict=True):
        _check_types(folder, found.get("real_atom_types", types), numbers)
        if periodic and "box" not in found:
            raise DataError(
                f"{folder}: no box{_ending(folder)}, and no file 'nopbc' in {path} that says there is no "
                "cell."
            )
    structures = (atoms for found in arrays for atoms in _structures(found, types, numbers, periodic))
    return Contents(structures, sum(len(found["coord"]) for found in arrays), UNITS)


def _element_numbers(path: Path, parsing: Parsing) -> np.ndarray:
    """(T,) atomic number of each type."""
    file = path / "type_map.raw"
    if not file.is_file():
        raise DataError(
            f"{path}: no type_map.raw, so it is not known which element each type is. Write it: one chemical "
            "symbol a line, in the order of the types."
        )
    symbols = file.read_text().split()
    return np.array([element_number(symbol, parsing.species, f"{file}") for symbol in symbols], dtype=int)


def _load_set(folder: Path) -> dict[str, np.ndarray]:
    arrays = {}
    for file in sorted(folder.glob("*.npy")):
        try:
            arrays[file.stem] = np.load(file, allow_pickle=False, mmap_mode="r")
        except (ValueError, EOFError) as error:
            raise DataError(f"{file}: not a complete array of numbers ({error}).") from error
    return arrays


def _load_raw(path: Path) -> dict[str, np.ndarray]:
    """Text, a frame in each line."""
    arrays = {}
    for file in sorted(path.glob("*.raw")):
        if file.stem not in ("type", "type_map"):
            try:
                arrays[file.stem] = np.loadtxt(file, ndmin=2)
            except ValueError as error:
                raise DataError(f"{file}: not a table of numbers ({error}).") from error
    return arrays


def _ending(folder: Path) -> str:
    return ".npy" if folder.name.startswith("set.") else ".raw"


def _shaped(folder: Path, arrays: dict[str, np.ndarray], num_atoms: int) -> dict[str, np.ndarray]:
    """Check shapes; the frames of a single one may lack their axis."""
    if "coord" not in arrays:
        raise DataError(f"{folder}: no coord{_ending(folder)}.")
    if arrays["coord"].ndim == 1 and arrays["coord"].size == 3 * num_atoms:
        arrays = {name: np.reshape(array, (1, -1)) for name, array in arrays.items()}
    frames = len(arrays["coord"])
    expected = {"coord": 3 * num_atoms, "force": 3 * num_atoms, "energy": 1, "virial": 9, "box": 9}
    expected["real_atom_types"] = num_atoms
    for name, columns in expected.items():
        if name in arrays and arrays[name].size != frames * columns:
            raise DataError(
                f"{folder}/{name}{_ending(folder)} has shape {arrays[name].shape}; expected ({frames}, "
                f"{columns}), for the {frames} frames of coord and the {num_atoms} atoms of type.raw."
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
        values = {name: array[i] for name, array in arrays.items() if len(array) == frames}
        frame_types = np.asarray(values.pop("real_atom_types", types))
        yield frame_atoms(values, frame_types, numbers, periodic)


def frame_atoms(
    values: dict[str, np.ndarray], types: np.ndarray, numbers: np.ndarray, periodic: bool
) -> ase.Atoms:
    """The structure of one frame from its arrays in DeePMD-kit's units; those of other sizes are left out."""
    real = types >= 0  # frames of mixed types are filled up with atoms of type -1
    found = {}
    for name, value in values.items():
        array = np.asarray(value, dtype=np.float64)
        if array.size == 3 * len(types) and name not in ("box", "virial"):
            found[_NAMES.get(name, name)] = array.reshape(-1, 3)[real]
        elif array.size == 1:
            found[_NAMES.get(name, name)] = array.item()
    positions = found.pop("coord")
    cell = np.array(values["box"], dtype=np.float64).reshape(3, 3) if periodic else None
    if periodic and "virial" in values:
        virial = np.array(values["virial"], dtype=np.float64).reshape(3, 3)
        found["stress"] = -virial / abs(np.linalg.det(cell))
    return make_atoms(numbers[types[real]], positions, cell, periodic, found)


FORMAT = Format("deepmd", "a DeePMD-kit folder", _matches, _read)
