"""One labelled structure, checked and in equipot's units."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import ase
import numpy as np
from numpy.typing import NDArray

from equipot.config.data import LabelsConfig, UnitsConfig
from equipot.data.edges import edge_vectors
from equipot.data.neighbors import periodic_volume
from equipot.errors import DataError
from equipot.quantities import BY_INTEREST, LABELS, QUANTITIES, Named, Quantity
from equipot.units import energy_factor, length_factor

_EV_AND_ANGSTROM = UnitsConfig()
# No two nuclei come this close in a structure that means anything: atoms listed twice, or a wrong unit.
MIN_DISTANCE = 0.1
NO_LABELS = LabelsConfig(**dict.fromkeys(LabelsConfig.model_fields))


@dataclass(frozen=True, eq=False)
class Edges:
    """A neighbor list that was made before, as ``neighbor_list`` gives it."""

    cutoff: float  # Å
    index: NDArray[np.integer]  # (2, E)
    shift: NDArray[np.integer]  # (E, 3)


@dataclass(frozen=True, eq=False)
class Frame(Named):
    """One structure with its reference values, in eV and Å."""

    positions: NDArray[np.float64]  # (N, 3), Å
    cell: NDArray[np.float64]  # (3, 3), Å, rows are lattice vectors; zeros without a cell
    pbc: NDArray[np.bool_]  # (3,)
    atomic_numbers: NDArray[np.int64]  # (N,)
    values: Mapping[str, Any] = field(default_factory=dict)  # reference values, by their quantities' names
    file: str = ""
    index: int = 0  # position in the file, from 0
    config_type: str | None = None
    weight: float = 1.0  # of this frame's terms of the loss
    level: str | None = None  # level of theory of the reference values
    edges: Edges | None = None  # used where the cutoff is the same

    @property
    def num_atoms(self) -> int:
        return len(self.atomic_numbers)

    @property
    def where(self) -> str:
        """How messages name this frame."""
        return f"{self.file}, frame {self.index} (the first is 0)" if self.file else "The structure"

    @property
    def is_isolated_atom(self) -> bool:
        """One atom that is marked ``config_type=IsolatedAtom`` or has no periodic direction."""
        marked = (self.config_type or "").lower().replace("_", "") == "isolatedatom"
        return self.num_atoms == 1 and (marked or not self.pbc.any())


def frame_of(
    structure: ase.Atoms | Frame,
    labels: LabelsConfig,
    units: UnitsConfig,
    weight: float,
    file: str,
    index: int,
) -> Frame:
    """The frame of what a format yields; a ready frame only loses the labels whose name is None.

    Raises:
        DataError: as ``frame_from_atoms``.
    """
    if not isinstance(structure, Frame):
        return frame_from_atoms(structure, labels, units, weight=weight, file=file, index=index)
    values = {kind: value for kind, value in structure.values.items() if getattr(labels, kind) is not None}
    own = 1.0 if labels.weight is None else structure.weight
    return replace(structure, values=values, weight=weight * own, file=file, index=index)


def frame_from_atoms(
    atoms: ase.Atoms,
    labels: LabelsConfig | None = None,
    units: UnitsConfig = _EV_AND_ANGSTROM,
    *,
    weight: float = 1.0,
    file: str = "",
    index: int = 0,
) -> Frame:
    """Check a structure, pick its labels by name and convert it to eV and Å. Without ``labels``: none.

    ``weight`` is that of the source; the structure's own weight, if it has one, multiplies it.

    Raises:
        DataError: no atoms, unknown elements, non-finite numbers, a wrong shape, a periodic direction without
            a lattice vector, or a stress without a cell that is periodic in all three directions.
    """
    frame = Frame(
        positions=np.array(atoms.positions, dtype=np.float64),
        cell=np.array(atoms.cell, dtype=np.float64),
        pbc=np.array(atoms.pbc, dtype=bool),
        atomic_numbers=np.array(atoms.numbers, dtype=np.int64),
        file=file,
        index=index,
        config_type=_config_type(atoms),
    )
    _check_structure(frame)
    if labels is not None:
        frame = _with_labels(frame, atoms, labels)
        frame = replace(frame, weight=weight * _own_weight(frame, atoms, labels.weight))
    return _converted(frame, energy_factor(units.energy), length_factor(units.length))


def check_distances(frame: Frame, edge_index: NDArray, edge_shift: NDArray) -> None:
    """Raise DataError if two atoms that an edge joins coincide."""
    center, neighbor = edge_index
    edge_vec = edge_vectors(frame.positions, frame.cell, edge_index, edge_shift)
    squared = np.einsum("ea,ea->e", edge_vec, edge_vec)
    if len(squared) and squared.min() < MIN_DISTANCE**2:
        edge = int(squared.argmin())
        i, j = int(center[edge]), int(neighbor[edge])
        raise DataError(
            f"{frame.where}: atoms {i} and {j} are {np.sqrt(squared[edge]):.4f} Å apart"
            f"{' (across the cell boundary)' if edge_shift[edge].any() else ''}. Remove the duplicate, or "
            "correct the positions, the cell or the length unit."
        )


def label_candidates(atoms: ase.Atoms | Frame) -> dict[str, set[str]]:
    """Names in the structure whose values have the shape of each quantity."""
    if isinstance(atoms, Frame):
        return {kind: {kind} & atoms.values.keys() for kind in LABELS}
    found: dict[str, set[str]] = {kind: set() for kind in LABELS}
    for name, value in _named_values(atoms).items():
        if name == "positions" or not _is_numeric(value):
            continue
        fitting = [q for q in BY_INTEREST if q.fits(np.shape(value), len(atoms))]
        if name in atoms.arrays or any(q.per_atom for q in fitting):  # three vectors look like a tensor
            fitting = [q for q in fitting if q.per_atom]
        for quantity in fitting:
            found[quantity.name].add(name)
    return found


def _config_type(atoms: ase.Atoms) -> str | None:
    value = atoms.info.get("config_type")
    return None if value is None else str(value)


def _named_values(atoms: ase.Atoms) -> Mapping[str, object]:
    """Everything a label name can refer to. ASE moves its own names (energy, forces, ...) to a calculator."""
    results = getattr(atoms.calc, "results", {}) if atoms.calc is not None else {}
    return {**results, **atoms.arrays, **atoms.info}


def _is_numeric(value) -> bool:
    try:
        return np.asarray(value).dtype.kind in "iuf"
    except ValueError:  # ragged nested lists
        return False


def _check_structure(frame: Frame) -> None:
    if frame.num_atoms == 0:
        raise DataError(f"{frame.where} has no atoms.")
    if (frame.atomic_numbers < 1).any():
        bad = int(np.flatnonzero(frame.atomic_numbers < 1)[0])
        raise DataError(f"{frame.where}: atom {bad} is not a chemical element (atomic number 0, symbol X).")
    _check_finite(frame, "positions", frame.positions)
    _check_finite(frame, "cell", frame.cell)
    if periodic_volume(frame.cell, frame.pbc) < 1e-6:
        raise DataError(
            f"{frame.where}: pbc is {_pbc_text(frame)}, but the lattice vectors of the periodic directions "
            f"are zero or parallel: cell = {frame.cell.tolist()}. Give the cell, or set pbc to F F F."
        )


def _check_finite(frame: Frame, name: str, value: NDArray) -> None:
    if np.isfinite(value).all():
        return
    bad = np.argwhere(~np.isfinite(value))[0]
    place = f" of atom {bad[0]}" if value.shape == (frame.num_atoms, 3) and name != "cell" else ""
    raise DataError(
        f"{frame.where}: '{name}' is {value[tuple(bad)]}{place}; every number must be finite. "
        "Remove the frame or correct the value."
    )


def _with_labels(frame: Frame, atoms: ase.Atoms, labels: LabelsConfig) -> Frame:
    values = _named_values(atoms)
    found = {}
    for kind, quantity in QUANTITIES.items():
        name = getattr(labels, kind)
        if name is not None and values.get(name) is not None:
            found[kind] = _label(frame, quantity, name, values[name])
    return replace(frame, values=found)


def _label(frame: Frame, quantity: Quantity, name: str, value) -> NDArray | float:
    expected = quantity.expected(frame.num_atoms)
    array = _numeric(frame, name, value, expected)
    if quantity.needs_volume and not frame.pbc.all():
        raise DataError(
            f"{frame.where}: {quantity.name} '{name}' is given, but pbc is {_pbc_text(frame)}; it "
            "needs a cell that is periodic in all three directions. Remove it there, or set "
            f"data.labels.{quantity.name} to null."
        )
    try:
        found = quantity.read(array, frame.num_atoms)
    except DataError as error:
        raise DataError(f"{frame.where}: {quantity.name} '{name}' is {error}") from None
    if found is None:
        raise DataError(
            f"{frame.where}: {quantity.name} '{name}' must {expected}, but has shape {array.shape}."
        )
    return found


def _own_weight(frame: Frame, atoms: ase.Atoms, name: str | None) -> float:
    value = None if name is None else _named_values(atoms).get(name)
    if value is None:
        return 1.0
    array = _numeric(frame, name, value, "be one number ≥ 0")
    if array.size != 1 or array.item() < 0:
        raise DataError(
            f"{frame.where}: the weight '{name}' must be one number ≥ 0, but is {value!r}. Correct it, or "
            "set data.labels.weight to null to read no weights."
        )
    return array.item()


def _numeric(frame: Frame, name: str, value, expected: str) -> NDArray:
    if not _is_numeric(value):
        raise DataError(f"{frame.where}: '{name}' must {expected}, but is {value!r}.")
    array = np.array(value, dtype=np.float64)
    _check_finite(frame, name, array)
    return array


def _converted(frame: Frame, energy: float, length: float) -> Frame:
    values = {name: value * QUANTITIES[name].factor(energy, length) for name, value in frame.values.items()}
    return replace(frame, positions=frame.positions * length, cell=frame.cell * length, values=values)


def _pbc_text(frame: Frame) -> str:
    return " ".join("FT"[int(p)] for p in frame.pbc)
