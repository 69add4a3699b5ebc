"""What structures are labelled with and models predict: every quantity is declared here, and only here.

Labels, masks, columns, stores, units, the loss, metrics, tables, plots, reports and the capsule go through
``QUANTITIES`` and name none of them. Only what is physics of one of them does: reference energies, forces and
stress as derivatives of an energy, checks of data that compare them with one another.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from equipot.errors import DataError
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
    shape: tuple[int, ...]  # of one atom: a Cartesian tensor
    unit: str
    called: str


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
    others: tuple[Key, ...] = ()  # further keys under which files have it

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
        if self.symmetric:
            return shape in ((6,), (9,), self.shape)
        return shape == ((num_atoms, *self.shape) if self.per_atom else self.shape)

    def expected(self, num_atoms: int) -> str:
        """What a value in a file must do, in words."""
        if self.symmetric:
            return "be 6 numbers (xx yy zz yz xz xy) or 3x3"
        if self.per_atom:
            return f"have shape {(num_atoms, *self.shape)}, one row per atom"
        return "be one number" if self.shape == () else f"have shape {self.shape}"

    @property
    def looks_like(self) -> str:
        """Values that could be of it, in words."""
        if self.symmetric:
            return "6 or 9 numbers"
        one = {(): "single numbers", (3,): "one vector"}.get(self.shape, f"{self.components} numbers")
        return f"{one} per atom" if self.per_atom else one

    def read(self, array: "NDArray", num_atoms: int) -> "NDArray | float | None":
        """The value of a structure from that in a file; None if its shape does not fit.

        Raises:
            DataError: not symmetric; the message goes on from "'name' is".
        """
        in_other_shape = not self.per_atom and not self.symmetric and array.size == self.components
        if not in_other_shape and not self.fits(array.shape, num_atoms):
            return None
        if self.symmetric and array.shape == (6,):
            return voigt_to_stress(array)
        if self.symmetric:
            array = array.reshape(self.shape)
            if abs(array - array.T).max() > _ASYMMETRY_TOLERANCE * abs(array).max():
                raise DataError(f"not symmetric: {array.tolist()}.")
            return 0.5 * (array + array.T)
        if self.per_atom:
            return array
        return array.reshape(self.shape) if self.shape else array.item()


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
    rows=Rows("forces", (3,), "eV/Å", "forces"),
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
    rows=Rows("atom_virials", (3, 3), "eV/atom", "virials"),
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

QUANTITIES: dict[str, Quantity] = {q.name: q for q in (ENERGY, FORCES, STRESS)}
LABELS = tuple(QUANTITIES)
# What `data.labels` and `data.units` name in files: each quantity, as it is or in another form.
KEYS: dict[str, Key] = {key.name: key for quantity in QUANTITIES.values() for key in quantity.keys}
# What `data.units` has: powers of energy and length in each.
UNIT_POWERS = {"length": OF_LENGTH, **{key.name: key.powers for key in KEYS.values()}}
# What a deployed model gives for each atom, in this order; a model may end with any of them after the third.
CONTRACT = {quantity.rows.name: quantity.rows for quantity in QUANTITIES.values()}
# Where people read: what every atom has first.
BY_INTEREST = tuple(sorted(QUANTITIES.values(), key=lambda quantity: not quantity.per_atom))
USUAL = tuple(name for name, quantity in QUANTITIES.items() if quantity.usual)


class Named:
    """Something with ``values`` by name; those of the energy are attributes too, None where absent."""

    values: Mapping[str, Any]

    energy = property(lambda self: self.values.get("energy"), doc="eV; of several structures (S,).")
    forces = property(lambda self: self.values.get("forces"), doc="(N, 3) eV/Å.")
    stress = property(lambda self: self.values.get("stress"), doc="(3, 3) or (S, 3, 3) eV/Å³.")
