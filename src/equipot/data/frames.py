"""One labelled structure, checked and in equipot's units."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import ase
import numpy as np
from numpy.typing import NDArray

from equipot.config import LABELS
from equipot.config.data import LabelsConfig, UnitsConfig
from equipot.data.edges import edge_vectors
from equipot.data.neighbors import periodic_volume
from equipot.errors import DataError
from equipot.units import energy_factor, length_factor, voigt_to_stress

# A 3x3 stress whose halves differ by more than this share of its largest element is not a stress.
_ASYMMETRY_TOLERANCE = 0.05
_EV_AND_ANGSTROM = UnitsConfig()
# No two nuclei come this close in a structure that means anything: atoms listed twice, or a wrong unit.
MIN_DISTANCE = 0.1
NO_LABELS = LabelsConfig(energy=None, forces=None, stress=None, weight=None)


@dataclass(frozen=True, eq=False)
class Edges:
    """A neighbor list that was made before, as ``neighbor_list`` gives it."""

    cutoff: float  # Å
    index: NDArray[np.integer]  # (2, E)
    shift: NDArray[np.integer]  # (E, 3)


@dataclass(frozen=True, eq=False)
class Frame:
    """One structure with its reference values, in eV and Å; None where there is no reference value."""

    positions: NDArray[np.float64]  # (N, 3), Å
    cell: NDArray[np.float64]  # (3, 3), Å, rows are lattice vectors; zeros without a cell
    pbc: NDArray[np.bool_]  # (3,)
    atomic_numbers: NDArray[np.int64]  # (N,)
    energy: float | None = None  # eV
    forces: NDArray[np.float64] | None = None  # (N, 3), eV/Å
    stress: NDArray[np.float64] | None = None  # (3, 3), eV/Å³, positive under tension
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
    dropped = {kind: None for kind in LABELS if getattr(labels, kind) is None}
    own = 1.0 if labels.weight is None else structure.weight
    return replace(structure, **dropped, weight=weight * own, file=file, index=index)


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
    """Names in the structure whose values have the shape of an energy, of forces, of a stress."""
    if isinstance(atoms, Frame):
        kinds = LABELS
        return {kind: set() if getattr(atoms, kind) is None else {kind} for kind in kinds}
    found: dict[str, set[str]] = {"energy": set(), "forces": set(), "stress": set()}
    for name, value in _named_values(atoms).items():
        if name == "positions" or not _is_numeric(value):
            continue
        shape, per_atom = np.shape(value), name in atoms.arrays
        if shape == (len(atoms), 3):
            found["forces"].add(name)
        elif shape == ():
            found["energy"].add(name)
        elif shape in ((6,), (9,), (3, 3)) and not per_atom:
            found["stress"].add(name)
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
    for kind, read in (("energy", _energy), ("forces", _forces), ("stress", _stress)):
        name = getattr(labels, kind)
        if name is not None and values.get(name) is not None:
            found[kind] = read(frame, name, values[name])
    return replace(frame, **found)


def _energy(frame: Frame, name: str, value) -> float:
    array = _numeric(frame, name, value, "one number")
    if array.size != 1:
        raise DataError(f"{frame.where}: energy '{name}' must be one number, but has shape {array.shape}.")
    return float(array.reshape(()))


def _forces(frame: Frame, name: str, value) -> NDArray:
    expected = (frame.num_atoms, 3)
    array = _numeric(frame, name, value, f"numbers of shape {expected}")
    if array.shape != expected:
        raise DataError(
            f"{frame.where}: forces '{name}' must have shape {expected}, one row per atom, "
            f"but have {array.shape}."
        )
    return array


def _stress(frame: Frame, name: str, value) -> NDArray:
    array = _numeric(frame, name, value, "6 or 9 numbers")
    if array.shape not in ((6,), (9,), (3, 3)):
        raise DataError(
            f"{frame.where}: stress '{name}' must be 6 numbers (xx yy zz yz xz xy) or 3x3, "
            f"but has shape {array.shape}."
        )
    if not frame.pbc.all():
        raise DataError(
            f"{frame.where}: stress '{name}' is given, but pbc is {_pbc_text(frame)}; a stress needs a cell "
            "that is periodic in all three directions. Remove it there, or set data.labels.stress to null."
        )
    if array.size == 6:
        return voigt_to_stress(array)
    array = array.reshape(3, 3)
    if np.abs(array - array.T).max() > _ASYMMETRY_TOLERANCE * np.abs(array).max():
        raise DataError(f"{frame.where}: stress '{name}' is not symmetric: {array.tolist()}.")
    return 0.5 * (array + array.T)


def _own_weight(frame: Frame, atoms: ase.Atoms, name: str | None) -> float:
    value = None if name is None else _named_values(atoms).get(name)
    if value is None:
        return 1.0
    array = _numeric(frame, name, value, "one number ≥ 0")
    if array.size != 1 or array.item() < 0:
        raise DataError(
            f"{frame.where}: the weight '{name}' must be one number ≥ 0, but is {value!r}. Correct it, or "
            "set data.labels.weight to null to read no weights."
        )
    return array.item()


def _numeric(frame: Frame, name: str, value, expected: str) -> NDArray:
    if not _is_numeric(value):
        raise DataError(f"{frame.where}: '{name}' must be {expected}, but is {value!r}.")
    array = np.array(value, dtype=np.float64)
    _check_finite(frame, name, array)
    return array


def _converted(frame: Frame, energy: float, length: float) -> Frame:
    def scaled(value, factor):
        return None if value is None else value * factor

    return replace(
        frame,
        positions=frame.positions * length,
        cell=frame.cell * length,
        energy=scaled(frame.energy, energy),
        forces=scaled(frame.forces, energy / length),
        stress=scaled(frame.stress, energy / length**3),
    )


def _pbc_text(frame: Frame) -> str:
    return " ".join("FT"[int(p)] for p in frame.pbc)
