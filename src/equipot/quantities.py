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
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from equipot.errors import ConfigError, DataError
from equipot.units import GPA, OF_ENERGY, OF_LENGTH, OF_STRESS, Powers, product, voigt_to_stress

if TYPE_CHECKING:
    from numpy.typing import NDArray

# A 3x3 tensor whose halves differ by more than this share of its largest element is not symmetric.
_ASYMMETRY_TOLERANCE = 0.05


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
    symmetric: bool = False  # in files six numbers in ASE's order (xx yy zz yz xz xy) or nine
    needs_volume: bool = False  # defined only for structures that are periodic in all three directions
    usual: bool = False  # shown first, and missed where it is not there
    mean: bool = False  # that of a structure is the mean of its atoms' rows, not their sum
    others: tuple[Key, ...] = ()  # further keys under which files have it

    @property
    def described(self) -> str:
        """In a few words."""
        return f"{self.looks_like}{'' if self.per_atom else ' per structure'}, unit: {self.unit or 'none'}"

    @property
    def components(self) -> int:
        """Numbers in one value."""
        return math.prod(self.shape)

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
        if self.symmetric:
            other = array.swapaxes(-1, -2)
            if abs(array - other).max(initial=0) > _ASYMMETRY_TOLERANCE * abs(array).max(initial=0):
                raise DataError(f"not symmetric: {array.tolist()}.")
            return 0.5 * (array + other)
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
    symmetric=True,
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
    known = QUANTITIES.get(quantity.name)
    if known is None:
        QUANTITIES[quantity.name] = replace(quantity, flag=_OUTPUT_FLAG << len(QUANTITIES) - len(BASIC))
        KEYS[quantity.name] = quantity.keys[0]
        CONTRACT[quantity.rows.name] = quantity.rows
    elif replace(quantity, flag=known.flag) != known:
        raise ConfigError(
            f"The output '{quantity.name}' ({quantity.described}) is something else than that of this name "
            f"in a model that was read before ({known.described}): rename one, or use another process."
        )


def output(
    name: str,
    shape: Sequence[int],
    unit: str,
    per_atom: bool,
    symmetric: bool = False,
    mean: bool = False,
    rank: int = 0,
    pseudo: bool = False,
    irreps: str = "",
) -> Quantity:
    """The quantity of a model's output, for `declare`; arguments as its fields and those of `Rows`."""
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
        symmetric=symmetric,
        mean=mean,
    )


def facts_of_output(name: str) -> dict[str, Any]:
    """Arguments of `output`, beside the name, for the one that is declared; plain values."""
    known = QUANTITIES[name]
    facts = {key: getattr(known, key) for key in ("shape", "unit", "per_atom", "symmetric", "mean")}
    return facts | {key: getattr(known.rows, key) for key in ("rank", "pseudo", "irreps")}


def rows_by_name(results: Sequence[Any], outputs: Sequence[str]) -> dict[str, Any]:
    """What a model gives of N atoms: the rows of `CONTRACT`, the values of its ``outputs`` apart.

    Without energies it gives these values alone.
    """
    found = dict(zip(CONTRACT, results[: len(BASIC)], strict=False)) if len(results) > 1 else {}
    start = 0
    for quantity in (QUANTITIES[name] for name in outputs):
        values = results[-1][:, start : start + quantity.components]
        found[quantity.rows.name] = values.reshape(len(values), *quantity.shape)
        start += quantity.components
    return found


_OUTPUT_FLAG = 256  # the first bit in stores after those of quantities and structures


class Named:
    """Something with ``values`` by name; those of the energy are attributes too, None where absent."""

    values: Mapping[str, Any]

    energy = property(lambda self: self.values.get("energy"), doc="eV; of several structures (S,).")
    forces = property(lambda self: self.values.get("forces"), doc="(N, 3) eV/Å.")
    stress = property(lambda self: self.values.get("stress"), doc="(3, 3) or (S, 3, 3) eV/Å³.")
