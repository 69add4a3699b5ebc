"""One labelled structure, checked and in equipot's units."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ase
import numpy as np
from ase.constraints import FixAtoms, FixCartesian, FixScaled
from numpy.typing import NDArray

from equipot.config.data import LabelsConfig, Source, UnitsConfig
from equipot.data.edges import MIN_DISTANCE, edge_vectors, squared_lengths
from equipot.data.neighbors import periodic_volume
from equipot.data.stated_units import check_units, units_in_header
from equipot.errors import DataError
from equipot.quantities import BASIC_KEYS, BY_INTEREST, FIELD, KEYS, QUANTITIES, Key, Named, Quantity
from equipot.units import length_factor

_EV_AND_ANGSTROM = UnitsConfig()
# A stress and a virial that differ by less than this share of the largest element say the same.
_AGREEMENT = 0.01
# Å between the planes of a lattice: no crystal of one atom per cell has its atoms so far apart.
_ALONE = 8.0
_NO_FORCE = 0.05  # eV/Å
FIXED = 128  # the bit of `Frame.marks`
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
    label_weights: Mapping[str, float] = field(default_factory=dict)  # other than 1; 0: there, but not used
    level: str | None = None  # level of theory of the reference values
    edges: Edges | None = None  # used where the cutoff is the same
    marks: NDArray[np.uint8] | None = None  # (N,) tag, and FIXED more where held fixed; None: all zero
    free_only: bool = False  # forces on fixed atoms are no labels

    @property
    def num_atoms(self) -> int:
        return len(self.atomic_numbers)

    @property
    def free(self) -> NDArray[np.bool_] | None:
        """(N,) whose forces are labels; None: those of all atoms."""
        return self.marks < FIXED if self.free_only and self.marks is not None else None

    @property
    def electric_field(self) -> NDArray[np.float64] | None:
        """(3,) V/Å, in which its labels are; None: in none, or it is not read."""
        found = self.values.get(FIELD.name)
        return found if found is not None and found.any() else None

    @property
    def where(self) -> str:
        """How messages name this frame."""
        return f"{self.file}, frame {self.index} (the first is 0)" if self.file else "The structure"

    @property
    def is_isolated_atom(self) -> bool:
        """One atom: marked ``config_type=IsolatedAtom``, without a periodic direction, or alone in a box."""
        marked = (self.config_type or "").lower().replace("_", "") == "isolatedatom"
        return self.num_atoms == 1 and (marked or not self.pbc.any() or self.is_alone_in_box)

    @property
    def is_alone_in_box(self) -> bool:
        """One atom 8 Å or more from the planes of its periodic images, with no force to speak of."""
        if self.num_atoms > 1 or not self.pbc.any():
            return False
        cell = np.where(self.pbc[:, None], self.cell, 0.0)
        heights = 1 / np.maximum(np.linalg.norm(np.linalg.pinv(cell), axis=0), 1e-9)  # between lattice planes
        still = self.forces is None or bool((np.abs(self.forces) < _NO_FORCE).all())
        return bool(heights[self.pbc].min() >= _ALONE) and still


def frame_of(structure: ase.Atoms | Frame, source: Source, file: str, index: int) -> Frame:
    """The frame of what a format yields; a ready frame only loses the labels and weights not to be read.

    Raises:
        DataError: as ``frame_from_atoms``.
    """
    labels = source.labels
    if isinstance(structure, Frame):
        structure = replace(structure, file=file, index=index)
        _refuse_unread_field(structure, structure.values, labels)
        values = {kind: value for kind, value in structure.values.items() if labels.names(kind)}
        weights, own = structure.label_weights, structure.weight
        if labels.weight is None:
            weights, own = {kind: weight for kind, weight in weights.items() if not weight}, 1.0
        weight = source.weight * own
        frame = replace(structure, values=values, label_weights=weights, weight=weight)
    else:
        frame = frame_from_atoms(
            structure,
            labels,
            source.units,
            weight=source.weight,
            missing=source.missing,
            file=file,
            index=index,
        )
    return replace(frame, level=source.level, free_only=source.parsing.fixed_atoms == "leave_out")


def frame_from_atoms(
    atoms: ase.Atoms,
    labels: LabelsConfig | None = None,
    units: UnitsConfig = _EV_AND_ANGSTROM,
    *,
    weight: float = 1.0,
    missing: str = "error",
    file: str = "",
    index: int = 0,
) -> Frame:
    """Check a structure, pick its labels by name and convert it to eV and Å. Without ``labels``: none.

    ``weight`` is that of the source; the structure's own weight, if it has one, multiplies it. A label with a
    weight of 0 of its own, and the stress of a structure that is not periodic in all three directions, are
    left out; with ``missing`` of ``nan`` also one that is nothing but NaN.

    Raises:
        DataError: no atoms, unknown elements, non-finite numbers, a wrong shape, a periodic direction without
            a lattice vector, a stress without any cell, a stress and a virial that contradict each other,
            an electric field that is not read.
    """
    length = length_factor(units.length)
    frame = Frame(
        positions=np.array(atoms.positions, dtype=np.float64) * length,
        cell=np.array(atoms.cell, dtype=np.float64) * length,
        pbc=np.array(atoms.pbc, dtype=bool),
        atomic_numbers=np.array(atoms.numbers, dtype=np.int64),
        file=file,
        index=index,
        config_type=None if (group := atoms.info.get("config_type")) is None else str(group),
        marks=_marks(atoms),
    )
    _check_structure(frame)
    if labels is None:
        return frame
    check_units(frame.where, units_in_header(atoms.info), labels, units, Path(file).name)
    named = named_values(atoms)
    _refuse_unread_field(frame, named, labels)
    values, weights = _labels(frame, named, labels, units, missing)
    own = _weight(frame, named, labels.weight)
    return replace(frame, values=values, label_weights=weights, weight=weight * own)


def check_distances(frame: Frame, edge_index: NDArray, edge_shift: NDArray) -> None:
    """Raise DataError if two atoms that an edge joins coincide."""
    center, neighbor = edge_index
    edge_vec = edge_vectors(frame.positions, frame.cell, edge_index, edge_shift)
    squared = squared_lengths(edge_vec)
    if len(squared) and squared.min() < MIN_DISTANCE**2:
        edge = int(squared.argmin())
        i, j = int(center[edge]), int(neighbor[edge])
        raise DataError(
            f"{frame.where}: atoms {i} and {j} are {np.sqrt(squared[edge]):.4f} Å apart"
            f"{' (across the cell boundary)' if edge_shift[edge].any() else ''}. Remove the duplicate, or "
            "correct the positions, the cell or the length unit."
        )


def label_candidates(atoms: ase.Atoms | Frame) -> dict[str, set[str]]:
    """Names in the structure for each of ``KEYS``: those that mean it (``Key.means``), and those of fitting
    shape that mean nothing known. So a virial is not offered as a stress.
    """
    if isinstance(atoms, Frame):
        return {key: {key} & atoms.values.keys() for key in KEYS}
    found: dict[str, set[str]] = {key: set() for key in KEYS}
    others = {"positions", "numbers", LabelsConfig().weight, *(key.weight for key in KEYS.values())}
    for name, value in named_values(atoms).items():
        if name in others or not _is_numeric(value):
            continue
        fitting = [q for q in BY_INTEREST if q.fits(np.shape(value), len(atoms))]
        if name in atoms.arrays or any(q.per_atom for q in fitting):  # three vectors look like a tensor
            fitting = [q for q in fitting if q.per_atom]
        meant = [key for quantity in fitting for key in quantity.keys if key.means(name)]
        for key in meant or [quantity.keys[0] for quantity in fitting]:
            found[key.name].add(name)
    return found


def _marks(atoms: ase.Atoms) -> NDArray[np.uint8] | None:
    """``Frame.marks``. Tags below 0 or above 127 are something else, and are not kept."""
    tags = atoms.get_tags()
    marks = np.where(((tags >= 0) & (tags < FIXED)).all(), tags, 0).astype(np.uint8)
    for constraint in atoms.constraints:
        partial = isinstance(constraint, FixCartesian | FixScaled) and not np.all(constraint.mask)
        if isinstance(constraint, FixAtoms | FixCartesian | FixScaled) and not partial:
            marks[constraint.index] |= FIXED
    return marks if marks.any() else None


def set_marks(atoms: ase.Atoms, marks: NDArray[np.uint8] | None) -> None:
    """Give tags and constraints that ``Frame.marks`` was made of to the atoms of that frame."""
    if marks is not None:
        atoms.set_tags(marks % FIXED)
        atoms.set_constraint(FixAtoms(mask=marks >= FIXED) if (marks >= FIXED).any() else None)


def named_values(atoms: ase.Atoms) -> Mapping[str, object]:
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
            f"{frame.where}: pbc is {' '.join('FT'[int(p)] for p in frame.pbc)}, but the lattice vectors of "
            "the periodic directions are zero or parallel: "
            f"cell = {frame.cell.tolist()}. Give the cell, or set pbc to F F F."
        )


def _check_finite(frame: Frame, name: str, value: NDArray, advice: str = "") -> None:
    if np.isfinite(value).all():
        return
    bad = np.argwhere(~np.isfinite(value))[0]
    place = f" of atom {bad[0]}" if value.shape == (frame.num_atoms, 3) and name != "cell" else ""
    raise DataError(
        f"{frame.where}: '{name}' is {value[tuple(bad)]}{place}; every number must be finite. "
        f"Remove the frame or correct the value.{advice}"
    )


def _labels(
    frame: Frame, named: Mapping[str, Any], labels: LabelsConfig, units: UnitsConfig, missing: str
) -> tuple[dict[str, Any], dict[str, float]]:
    """The labels of a frame and their weights other than 1, by quantity."""
    values, weights = {}, {}
    for kind, quantity in QUANTITIES.items():
        found: dict[str, Any] = {}  # by key
        for key in quantity.keys:
            name = labels.value_of(key.name)
            if name is None or named.get(name) is None:
                continue
            weight = 1.0 if labels.weight is None else _weight(frame, named, key.weight)
            undefined = quantity.needs_volume and not frame.pbc.all()
            if weight and undefined and not frame.cell.any() and np.any(named[name]):
                raise DataError(_without_cell(frame, key.name, name))
            if weight == 0 or undefined:
                weights.setdefault(kind, 0.0)
                continue
            value = _label(frame, quantity, key, name, named[name], missing)
            if value is None:
                continue
            if not found:
                weights[kind] = weight
            value = value * units.factor(key.name)
            found[key.name] = -value / periodic_volume(frame.cell, frame.pbc) if key.times_volume else value
        if len(found) > 1:
            _check_agreement(frame, labels, found)
        if found:
            values[kind] = next(iter(found.values()))
    return values, {kind: weight for kind, weight in weights.items() if weight != 1}


def _refuse_unread_field(frame: Frame, named: Mapping[str, Any], labels: LabelsConfig) -> None:
    """Labels in a field are those of other energies, E(r) − P·F, than a model without one learns."""
    read = labels.value_of(FIELD.name, "")  # None: the user says to leave it out
    for name in named if read is not None else ():
        if name == read or not FIELD.keys[0].means(name) or not _is_numeric(named[name]):
            continue
        if np.any(named[name]) and labels != NO_LABELS:
            raise DataError(
                f"{frame.where}: '{name}' is {np.ravel(named[name]).tolist()}, an electric field that is not "
                f"read, but energies in a field are other ones. A model with model.field: true reads it "
                f"(data.labels.{FIELD.name}: {name}, --electric-field-key {name}); null (none) in its place "
                "takes the labels as they are."
            )


def _without_cell(frame: Frame, key: str, name: str) -> str:
    return (
        f"{frame.where}: {key} '{name}' is given, but the structure has no cell: was it lost? Give it (in "
        f'extended XYZ as Lattice="..." with pbc="T T T"), or do without the {key}: data.labels.{key}: null '
        f"(--{key}-key none)."
    )


def _label(
    frame: Frame, quantity: Quantity, key: Key, name: str, value: Any, missing: str
) -> NDArray | float | None:
    """In the file's unit; None if it is missing."""
    expected = quantity.expected(frame.num_atoms)
    array = _numeric(frame, name, value, expected)
    absent = np.isnan(array)
    if missing == "nan" and absent.size and absent.all():
        return None
    advice = " `missing: nan` leaves a label out only where all of its numbers are NaN."
    if missing != "nan":
        advice = (
            " If NaN says that it is not known, set `missing: nan` in the section `data` or in the entry "
            "(--missing nan)."
            if absent.all()
            else ""
        )
    _check_finite(frame, name, array, advice)
    try:
        found = quantity.read(array, frame.num_atoms)
    except DataError as error:
        raise DataError(
            f"{frame.where}: {key.name} '{name}' is {error} Correct it, or do without: "
            f"data.labels.{key.name}: null"
            + (f" (--{key.name}-key none)." if key.name in BASIC_KEYS else ".")
        ) from None
    if found is None:
        raise DataError(f"{frame.where}: {key.name} '{name}' must {expected}, but has shape {array.shape}.")
    return found


def _check_agreement(frame: Frame, labels: LabelsConfig, found: Mapping[str, Any]) -> None:
    """Raise DataError if one quantity is there in two forms that say different things."""
    (first, value), *others = found.items()
    for other, alternative in others:
        scale = max(np.abs(value).max(), np.abs(alternative).max())
        if np.abs(value - alternative).max() > _AGREEMENT * scale + 1e-6:
            names = f"{first} '{labels.value_of(first)}' and {other} '{labels.value_of(other)}'"
            largest = f"{_largest(value):.4g} and {_largest(alternative):.4g} {QUANTITIES[first].unit}"
            raise DataError(
                f"{frame.where}: {names} contradict each other: their largest elements mean a {first} of "
                f"{largest}. Correct data.units.{first} or data.units.{other} (--{first}-unit, "
                f"--{other}-unit), which hold the signs, too; or read one of them only: data.labels.{other}: "
                f"null (--{other}-key none) or data.labels.{first}: null (--{first}-key none)."
            )


def _largest(value: NDArray) -> float:
    return np.ravel(value)[np.abs(value).argmax()]


def _weight(frame: Frame, named: Mapping[str, Any], name: str | None) -> float:
    """The weight of this name; 1 where there is none."""
    value = None if name is None else named.get(name)
    if value is None:
        return 1.0
    array = _numeric(frame, name, value, "be one number ≥ 0")
    _check_finite(frame, name, array)
    if array.size != 1 or array.item() < 0:
        raise DataError(
            f"{frame.where}: the weight '{name}' must be one number ≥ 0, but is {array.tolist()}. Correct "
            "it, or set data.labels.weight to null (--weight-key none) to read no weights."
        )
    return array.item()


def _numeric(frame: Frame, name: str, value, expected: str) -> NDArray:
    if not _is_numeric(value):
        raise DataError(f"{frame.where}: '{name}' must {expected}, but is {value!r}.")
    return np.array(value, dtype=np.float64)
