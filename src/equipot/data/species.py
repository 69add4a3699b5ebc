"""Elements and atom types."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from ase.data import atomic_numbers as number_of
from ase.data import chemical_symbols
from numpy.typing import NDArray

from equipot.errors import UnknownSpeciesError

if TYPE_CHECKING:
    from equipot.data.frames import Frame


def atom_types(
    atomic_numbers: NDArray, species: Sequence[str], where: str = "The structure"
) -> NDArray[np.int64]:
    """(N,) index of each atom's element in ``species``.

    Raises:
        UnknownSpeciesError: an element is not in ``species``; the message starts with ``where``.
    """
    return look_up(np.asarray(atomic_numbers), type_table(species), species, where)


def type_table(species: Sequence[str]) -> NDArray[np.int64]:
    """(Z_max + 1,) atom type of each element, -1 for those not in ``species``."""
    table = np.full(len(chemical_symbols), -1, dtype=np.int64)
    for index, symbol in enumerate(species):
        if symbol not in number_of or symbol == "X":
            raise UnknownSpeciesError(f"'{symbol}' in the species list is not a chemical element.")
        if table[number_of[symbol]] >= 0:
            raise UnknownSpeciesError(f"'{symbol}' is more than once in the species list {list(species)}.")
        table[number_of[symbol]] = index
    return table


def look_up(atomic_numbers: NDArray, table: NDArray, species: Sequence[str], where: str) -> NDArray[np.int64]:
    types = table[atomic_numbers]
    if (types < 0).any():
        unknown = sorted(set(atomic_numbers[types < 0].tolist()))
        names = ", ".join(chemical_symbols[number] for number in unknown)
        raise UnknownSpeciesError(
            f"{where} contains {names}, but the known species are {', '.join(species)}. Train with "
            f"structures that contain {names}, or leave this structure out."
        )
    return types


def species_of(frames: "Sequence[Frame]") -> list[str]:
    """Chemical symbols that occur, sorted by atomic number."""
    numbers = sorted({int(number) for frame in frames for number in np.unique(frame.atomic_numbers)})
    return [chemical_symbols[number] for number in numbers]


def pair_name(one: str, other: str) -> str:
    """Of two elements in either order: ``H-O``."""
    return "-".join(sorted((one, other)))
