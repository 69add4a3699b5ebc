"""What structures are labelled with and models predict: every quantity is declared here, and only here.

Labels, masks, columns, stores, units, the loss, metrics, tables, plots, reports and the capsule go through
``QUANTITIES`` and name none of them. Only what is physics of one of them does: reference energies, forces and
stress as derivatives of an energy, checks of data that compare them with one another.

Energy, forces and stress are here from the start. What else a model predicts is said in its configuration
(``model.outputs``) or its deployed file, and becomes a quantity by `declare` when one of these is read.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from equipot.cartesian import symmetrised
from equipot.errors import ConfigError, DataError
from equipot.units import (
    GPA,
    OF_ENERGY,
    OF_LENGTH,
    OF_STRESS,
    Powers,
    compound_unit,
    product,
    voigt_to_stress,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Where indices change places, elements that differ by more than this share of the largest are not the same.
ASYMMETRY_TOLERANCE = 0.05


# What is about a label, or is not the label of a whole structure.
_SOMETHING_ELSE = re.compile("weight|unit|std|uncertain|error|per_?atom")


class Reported(NamedTuple):
    """A unit in which people read errors, and the size of one such unit in eV and Å."""

    unit: str
    size: float


class Rows(NamedTuple):
    """What a deployed model gives for each atom, and how checks call it; the quantity is made of it."""

    name: str
    shape: tuple[int, ...]  # of one atom
    unit: str
    called: str
    rank: int = 0  # the last so many axes are those of a Cartesian tensor
    pseudo: bool = False  # an inversion changes its sign once more
    irreps: str = ""  # in place of a tensor: its components in e3nn's order


class Key(NamedTuple):
    """A key of ``data.labels``: a name under which files have a quantity, as it is or as −volume times it."""

    name: str
    meaning: str
    pattern: str  # in names that mean it in files, in lower case
    weight: str  # name of its weight in files, for one structure
    powers: Powers  # of energy and length in its unit
    times_volume: bool = False

    @cache  # noqa: B019 - few keys and names, for good
    def means(self, name: str) -> bool:
        """Whether a file that uses this name means it by that."""
        return re.search(self.pattern, name.lower()) is not None and not _SOMETHING_ELSE.search(name.lower())


@dataclass(frozen=True)
class Quantity:
    """One quantity. Values in memory are in eV, Å and e, with the signs of :mod:`equipot.units`."""

    name: str  # the key of its label and of its weight in the loss
    singular: str  # one value of it, in plots
    meaning: str  # of its key in ``data.labels``
    pattern: str  # as that of ``Key``
    per_atom: bool  # a value for each atom; otherwise one for each structure
    shape: tuple[int, ...]  # of one value, Cartesian: () a number, (3,) a vector, (3, 3) a tensor
    unit: str
    powers: Powers  # of energy and length in its unit
    reported: tuple[Reported, ...]  # the first in logs and plots, all in tables, the last where one is chosen
    rows: Rows
    flag: int  # bit of its label in stores; never to be used again for another quantity
    loss_weight: float = 0.0  # default of ``training.loss``
    normalised: bool = False  # errors are divided by the number of atoms
    symmetry: str = ""  # of its last indices, as `equipot.cartesian` writes it
    needs_volume: bool = False  # defined only for structures that are periodic in all three directions
    usual: bool = False  # shown first, and missed where it is not there
    mean: bool = False  # that of a structure is the mean of its atoms' rows, not their sum
    quantum: float = 0.0  # labels are known up to this times lattice vectors (Å); 0: exactly
    total: str = ""  # of atoms: the quantity of the structure that they add up to, 0 where it has none
    charges: str = ""  # a dipole: the quantity of atoms whose Σ q r, r in Å, is added
    others: tuple[Key, ...] = ()  # further keys under which files have it
    # Of a density: the functions of each element, as `equipot.nn.gaussians.GaussianBasis` takes them.
    basis: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def described(self) -> str:
        """In a few words."""
        return f"{self.looks_like}{'' if self.per_atom else ' per structure'}, unit: {self.unit or 'none'}"

    @property
    def components(self) -> int:
        """Numbers in one value."""
        return math.prod(self.shape)

    @property
    def symmetric(self) -> bool:
        """A 3x3 tensor that files may have as six numbers in ASE's order (xx yy zz yz xz xy)."""
        return self.shape == (3, 3) and self.symmetry == "ij=ji"

    @cached_property
    def keys(self) -> tuple[Key, ...]:
        """Its keys in ``data.labels``; the first is its own."""
        return (
            Key(self.name, self.meaning, self.pattern, f"config_{self.name}_weight", self.powers),
            *self.others,
        )

    def factor(self, energy: float, length: float) -> float:
        """From the units of a file, of which one is ``energy`` eV and ``length`` Å."""
        return product(energy, length, self.powers)

    def of_rows(self, rows: "NDArray") -> "NDArray":
        """That of one structure from the rows of its atoms (N, ...)."""
        if self.per_atom:
            return rows
        return rows.mean(axis=0) if self.mean else rows.sum(axis=0)

    @property
    def per_charge(self) -> float:
        """Of a dipole: what a charge of 1 at 1 Å has, in its unit."""
        return compound_unit(f"{QUANTITIES[self.charges].unit}*Ang")[0] / compound_unit(self.unit)[0]

    def choose(self, of_structures: Any, of_atoms: Any) -> Any:
        """That of its rows: rows are structures, or atoms."""
        return of_atoms if self.per_atom else of_structures

    def error(self, predicted: Any, reference: Any, num_atoms: Any) -> Any:
        """Predicted − reference, of a total of atoms divided by their number; arrays or tensors."""
        difference = predicted - reference
        return difference / num_atoms if self.normalised else difference

    # In files.

    def fits(self, shape: tuple[int, ...], num_atoms: int) -> bool:
        """Whether a value of this shape could be one of it."""
        flat = (6, 9) if self.symmetric else (self.components,) if len(self.shape) > 1 else ()
        shapes = (self.shape, *((size,) for size in flat))
        return shape in (((num_atoms, *one) for one in shapes) if self.per_atom else shapes)

    def expected(self, num_atoms: int) -> str:
        """What a value in a file must do, in words."""
        if self.symmetric:
            return "be 6 numbers (xx yy zz yz xz xy) or 3x3" + (" for each atom" if self.per_atom else "")
        if self.per_atom:
            return f"have shape {(num_atoms, *self.shape)}, one row per atom"
        return "be one number" if self.shape == () else f"have shape {self.shape}"

    @property
    def looks_like(self) -> str:
        """Values that could be of it, in words."""
        one = {(): "single numbers", (3,): "one vector"}.get(self.shape, f"{self.components} numbers")
        one = "6 or 9 numbers" if self.symmetric else one
        return f"{one} per atom" if self.per_atom else one

    def read(self, array: "NDArray", num_atoms: int) -> "NDArray | float | None":
        """The value of a structure from that in a file; None if its shape does not fit.

        Raises:
            DataError: not symmetric; the message goes on from "'name' is".
        """
        in_other_shape = not self.per_atom and not self.symmetric and array.size == self.components
        if not in_other_shape and not self.fits(array.shape, num_atoms):
            return None
        rows = (num_atoms,) if self.per_atom else ()
        if self.symmetric and array.shape == (*rows, 6):
            return voigt_to_stress(array)
        array = array.reshape((*rows, *self.shape))
        if self.symmetry:
            made = symmetrised(array, self.symmetry)
            if 2 * abs(array - made).max(initial=0) > ASYMMETRY_TOLERANCE * abs(array).max(initial=0):
                raise DataError(f"not symmetric ({self.symmetry}): {array.tolist()}.")
            return made
        return array if array.shape else array.item()


MEV = 1e-3  # eV

ENERGY = Quantity(
    name="energy",
    singular="energy",
    meaning="Name of the total energy of a frame; null: do not read it.",
    pattern="energ|^e$",
    per_atom=False,
    shape=(),
    unit="eV",
    powers=(1, 0),
    reported=(Reported("meV/atom", MEV),),
    rows=Rows("atom_energies", (), "eV/atom", "energy"),
    flag=1,
    loss_weight=1.0,
    normalised=True,
    usual=True,
)
FORCES = Quantity(
    name="forces",
    singular="force",
    meaning="Name of the forces, one vector per atom; null: do not read them.",
    pattern="force|^f$|^-.*gradient",
    per_atom=True,
    shape=(3,),
    unit="eV/Å",
    powers=(1, -1),
    reported=(Reported("meV/Å", MEV),),
    rows=Rows("forces", (3,), "eV/Å", "forces", rank=1),
    flag=2,
    loss_weight=1.0,
    usual=True,
)
STRESS = Quantity(
    name="stress",
    singular="stress",
    meaning="Name of the stress, (1/V) ∂E/∂ε, positive under tension; null: do not read it.",
    pattern="stress",
    per_atom=False,
    shape=(3, 3),
    unit="eV/Å³",
    powers=OF_STRESS,
    reported=(Reported("meV/Å³", MEV), Reported("GPa", GPA)),
    rows=Rows("atom_virials", (3, 3), "eV/atom", "virials", rank=2),
    flag=4,
    symmetry="ij=ji",
    needs_volume=True,
    others=(
        Key(
            "virial",
            "Name of the virial, −V · stress, an energy: positive under compression; the stress is then "
            "−virial / V; null: do not read it.",
            "virial",
            "config_virials_weight",
            OF_ENERGY,
            times_volume=True,
        ),
    ),
)


class _Listed(Sequence):
    """Of the quantities that there are by now."""

    def __init__(self, listed: Callable[[], Iterable[Any]]):
        self._listed = listed

    def __getitem__(self, index: Any) -> Any:
        return tuple(self._listed())[index]

    def __len__(self) -> int:
        return len(QUANTITIES)


QUANTITIES: dict[str, Quantity] = {q.name: q for q in (ENERGY, FORCES, STRESS)}
LABELS = _Listed(lambda: QUANTITIES)
# What `data.labels` and `data.units` name in files: each quantity, as it is or in another form.
KEYS: dict[str, Key] = {key.name: key for quantity in QUANTITIES.values() for key in quantity.keys}
# What `data.units` has: powers of energy and length in each.
UNIT_POWERS = {"length": OF_LENGTH, **{key.name: key.powers for key in KEYS.values()}}
# What a deployed model gives for each atom, in this order; a model may end with any of them after the third.
CONTRACT = {quantity.rows.name: quantity.rows for quantity in QUANTITIES.values()}
# Where people read: what every atom has first.
BY_INTEREST = _Listed(lambda: sorted(QUANTITIES.values(), key=lambda quantity: not quantity.per_atom))
USUAL = tuple(name for name, quantity in QUANTITIES.items() if quantity.usual)
BASIC = tuple(QUANTITIES)  # what every potential predicts
BASIC_KEYS, BASIC_ROWS = dict(KEYS), tuple(CONTRACT)  # of these, whatever is declared


def declare(quantity: Quantity) -> None:
    """Make an output of a model a quantity of this process.

    Raises:
        ConfigError: there is another one of this name already.
    """
    if quantity.total:
        declare(output(quantity.total, shape=(), unit=quantity.unit, per_atom=False))
    known = QUANTITIES.get(quantity.name)
    if known is None:
        QUANTITIES[quantity.name] = replace(quantity, flag=_OUTPUT_FLAG << len(QUANTITIES) - len(BASIC))
        KEYS[quantity.name] = quantity.keys[0]
        CONTRACT[quantity.rows.name] = quantity.rows
    elif replace(quantity, flag=known.flag) != known:
        raise ConfigError(
            f"The output '{quantity.name}' ({quantity.described}) is something else than that of this name "
            f"in a model that was read before ({known.described}){_differing(quantity, known)}: rename one, "
            "or use another process. A fine-tuning repeats the outputs of the model that it starts from."
        )


def _differing(one: Quantity, other: Quantity) -> str:
    """What two outputs differ in, where their descriptions are the same."""
    if one.described != other.described:
        return ""
    keys = {"total": "sum", "charges": "charges", "quantum": "modulo", "mean": "reduce", "basis": "basis"}
    found = [said for key, said in keys.items() if getattr(one, key) != getattr(other, key)]
    return f", with another {', '.join(found) or 'symmetry'}"


def output(
    name: str,
    shape: Sequence[int],
    unit: str,
    per_atom: bool,
    symmetry: str = "",
    rank: int = 0,
    pseudo: bool = False,
    irreps: str = "",
    symmetric: bool = False,
    basis: Mapping[str, Any] | None = None,
    **more: Any,
) -> Quantity:
    """The quantity of a model's output, for `declare`; arguments as its fields and those of `Rows`.

    ``symmetric`` is what files of before say of 3x3 tensors.
    """
    singular = name.replace("_", " ")
    return Quantity(
        name=name,
        singular=singular,
        meaning="",
        pattern=f"^{name}$",
        per_atom=per_atom,
        shape=tuple(shape),
        unit=unit,
        powers=(0, 0),
        reported=(Reported(unit, 1.0),),
        rows=Rows(name, tuple(shape), unit, singular, rank, pseudo, irreps),
        flag=0,
        loss_weight=1.0,
        symmetry="ij=ji" if symmetric else symmetry,
        basis=basis or {},
        **more,
    )


_FACTS = ("shape", "unit", "per_atom", "symmetry", "mean", "quantum", "total", "charges", "basis")


# Of frames whose labels are those in it, for models that know it (``model.field``).
FIELD = replace(
    output("electric_field", (3,), "V/Ang", per_atom=False, rank=1),
    pattern="(electric|external)_?field|^e_?field$",
)


def given_quantities() -> set[str]:
    """What is given and not predicted, 0 where it is not: a charge that others add up to, a field."""
    return {quantity.total for quantity in QUANTITIES.values() if quantity.total} | {FIELD.name}


def facts_of_output(name: str) -> dict[str, Any]:
    """Arguments of `output`, beside the name, for the one that is declared; plain values."""
    known = QUANTITIES[name]
    facts = {key: getattr(known, key) for key in _FACTS}
    return facts | {key: getattr(known.rows, key) for key in ("rank", "pseudo", "irreps")}


def of_structure(
    rows: Mapping[str, "NDArray"], outputs: Sequence[str], positions: "NDArray", given: Mapping[str, Any]
) -> "dict[str, NDArray]":
    """Values of one structure (N atoms) from a model's rows of its atoms, by the names of its ``outputs``.

    ``positions`` (N, 3) Å; ``given``: numbers that outputs add up to; 0 what is not there.
    """
    found = {}
    for quantity in sorted((QUANTITIES[name] for name in outputs), key=lambda one: bool(one.charges)):
        values = rows[quantity.name]
        if quantity.total:
            values = values + (float(given.get(quantity.total, 0.0)) - values.sum()) / len(values)
        if quantity.charges:
            values = values + quantity.per_charge * found[quantity.charges][:, None] * positions
        found[quantity.name] = quantity.of_rows(values)
    return found


def rows_by_name(results: Sequence[Any], outputs: Sequence[str]) -> dict[str, Any]:
    """What a model gives of N atoms: the rows of `CONTRACT`, the values of its ``outputs`` apart.

    Without energies it gives these values alone.
    """
    found = dict(zip(CONTRACT, results[: len(BASIC)], strict=False)) if len(results) > 1 else {}
    return found | values_by_name(results[-1] if outputs else None, outputs)


def values_by_name(values: Any, outputs: Sequence[str]) -> dict[str, Any]:
    """Of the values (N, K) of these outputs side by side, each one's (N, ...) by its name.

    The last of these may be missing: derivatives that were not asked for.
    """
    found, start = {}, 0
    for quantity in (QUANTITIES[name] for name in outputs):
        if start >= values.shape[1]:
            break
        own = values[:, start : start + quantity.components]
        found[quantity.rows.name] = own.reshape(len(own), *quantity.shape)
        start += quantity.components
    return found


_OUTPUT_FLAG = 256  # the first bit in stores after those of quantities and structures


class Named:
    """Something with ``values`` by name; those of the energy are attributes too, None where absent."""

    values: Mapping[str, Any]

    energy = property(lambda self: self.values.get("energy"), doc="eV; of several structures (S,).")
    forces = property(lambda self: self.values.get("forces"), doc="(N, 3) eV/Å.")
    stress = property(lambda self: self.values.get("stress"), doc="(3, 3) or (S, 3, 3) eV/Å³.")
