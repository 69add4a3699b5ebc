"""HDF5: a group holds a set of structures with the same number of atoms; groups may be nested.

Layouts read: nequip's HDF5Dataset (``atomic_numbers`` (F, N), ``pos`` (F, N, 3), ...), SPICE and ANI
(``atomic_numbers`` or ``species`` (N,), ``conformations`` or ``coordinates`` (F, N, 3)), and
mace_prepare_data (a group for each structure, its labels in a group ``properties``, their weights in
``property_weights`` or as ``energy_weight``). Other datasets are labels under their own name; one called
a gradient is offered as its negative, which are forces: ``-dft_total_gradient``.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase
import numpy as np

from equipot.config.data import Parsing
from equipot.data.formats.base import Contents, Format, element_number, make_atoms, optional_module
from equipot.errors import DataError
from equipot.quantities import KEYS

_NUMBERS = ("atomic_numbers", "species", "numbers", "z")
_POSITIONS = ("positions", "pos", "coordinates", "conformations", "coords")
_BLOCK = 512  # frames read at once
_MAGIC = b"\x89HDF\r\n\x1a\n"


@dataclass(frozen=True)
class _System:
    """Datasets of one group; F frames of N atoms, or one frame if ``single``."""

    name: str
    numbers: Any
    positions: Any
    others: dict[str, Any]
    single: bool

    @property
    def num_frames(self) -> int:
        return 1 if self.single else len(self.positions)


def _matches(path: Path) -> bool:
    if not path.is_file():
        return False
    if path.suffix in (".h5", ".hdf5"):
        return True
    with path.open("rb") as stream:
        return stream.read(len(_MAGIC)) == _MAGIC


def _read(path: Path, parsing: Parsing) -> Contents:
    h5py = optional_module("h5py", path)
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise DataError(f"{path}: not a complete HDF5 file ({error}).") from error
    systems: list[_System] = []
    _collect(path, file, systems, h5py)
    if not systems:
        raise DataError(
            f"{path}: no group holds both elements ({', '.join(_NUMBERS)}) and positions "
            f"({', '.join(_POSITIONS)}); at the top are {', '.join(list(file)[:8]) or 'no entries'}."
        )
    structures = (atoms for system in systems for atoms in _structures(path, system, parsing.species))
    return Contents(structures, sum(system.num_frames for system in systems))


def _collect(path: Path, group, systems: list[_System], h5py) -> None:
    """Append the systems of a group and of the groups in it, in order of their names."""
    datasets = {name: item for name, item in group.items() if isinstance(item, h5py.Dataset)}
    numbers = next((datasets.pop(name) for name in _NUMBERS if name in datasets), None)
    positions = next((datasets.pop(name) for name in _POSITIONS if name in datasets), None)
    if numbers is not None and positions is not None:
        if isinstance(group.get("properties"), h5py.Group):
            datasets.update(group["properties"].items())
        for key in KEYS.values():
            label = key.weight.removeprefix("config_").removesuffix("_weight")
            for name in (f"property_weights/{label}", f"{label}_weight"):
                if name in group:
                    datasets.pop(name, None)
                    datasets[key.weight] = group[name]
        systems.append(_system(path, group.name, numbers, positions, datasets))
        return
    for name in sorted(group, key=_natural):
        if isinstance(group[name], h5py.Group):
            _collect(path, group[name], systems, h5py)


def _natural(name: str) -> tuple:
    """config_2 before config_10."""
    head, _, tail = name.rpartition("_")
    return (head, int(tail), "") if tail.isdigit() else (name, -1, tail)


def _system(path: Path, name: str, numbers, positions, others: dict) -> _System:
    shape = positions.shape
    if len(shape) not in (2, 3) or shape[-1] != 3 or numbers.shape not in (shape[-2:-1], shape[:-1]):
        raise DataError(
            f"{path}, group {name}: elements of shape {numbers.shape} and positions of shape {shape} do not "
            "fit; expected (N,) or (F, N), and (F, N, 3) or (N, 3)."
        )
    return _System(name, numbers, positions, others, single=len(shape) == 2)


def _structures(path: Path, system: _System, species: Mapping[str, str]) -> Iterator[ase.Atoms]:
    frames = system.num_frames
    for start in range(0, frames, _BLOCK):
        stop = min(start + _BLOCK, frames)

        def block(dataset, per_frame: bool, start=start, stop=stop):
            return dataset[start:stop] if per_frame else [dataset[()]] * (stop - start)

        is_block = not system.single
        numbers = block(system.numbers, is_block and len(system.numbers.shape) == 2)
        positions = block(system.positions, is_block)
        values = {
            name: block(data, is_block and data.shape[:1] == (frames,) and not _is_common(name, data))
            for name, data in system.others.items()
        }
        for i in range(stop - start):
            own = {name: value[i] for name, value in values.items()}
            yield _atoms(_numbers(path, system.name, numbers[i], species), positions[i], own)


def _is_common(name: str, dataset) -> bool:
    """A cell (3, 3) or pbc (3,) for all frames, even when there happen to be three of them."""
    return (name, dataset.shape) in (("cell", (3, 3)), ("pbc", (3,)))


def _atoms(numbers: np.ndarray, positions, values: dict[str, Any]) -> ase.Atoms:
    values = {name: value for name, value in ((n, _plain(v)) for n, v in values.items()) if value is not None}
    values = {
        f"-{name}" if "gradient" in name.lower() else name: -value if "gradient" in name.lower() else value
        for name, value in values.items()
    }
    if "weight" in values:  # mace_prepare_data's name for it
        values.setdefault("config_weight", values.pop("weight"))
    cell, pbc = values.pop("cell", None), values.pop("pbc", None)
    return make_atoms(numbers, positions, cell, pbc, values)


def _plain(value: Any) -> Any:
    """Text as str; mace_prepare_data writes "None" for what is not there."""
    text = value.decode() if isinstance(value, bytes) else value
    return None if isinstance(text, str) and text == "None" else text


def _numbers(path: Path, group: str, values, species: Mapping[str, str]) -> np.ndarray:
    values = np.asarray(values)
    if values.dtype.kind in "iu":
        return values
    symbols = [v.decode() if isinstance(v, bytes) else str(v) for v in values]
    return np.array([element_number(symbol, species, f"{path}, group {group}") for symbol in symbols])


FORMAT = Format("hdf5", "HDF5", _matches, _read)
