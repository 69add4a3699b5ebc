"""The self-check capsule: reference structures inside a deployed file, with energies, forces and virials.

Whoever loads the file, on whatever machine and device, can re-evaluate them; a wrong build then refuses
instead of giving wrong physics. Edges are stored too, so that a reader needs no neighbor list of its own.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ase.data import atomic_numbers as number_of
from ase.data import covalent_radii

from equipot.deploy.structure import ModelRows, Structure, evaluate, make_structure
from equipot.quantities import BASIC_ROWS, CONTRACT, ENERGY

# Relative to the largest reference value (at least 1 eV, 1 eV/Å). float32 carries 6e-8 per operation and
# a few hundred operations deep sums reach about 1e-6..1e-5; another device or thread count moves results
# within that. A wrong kernel, species order or constant is off by 1e-3 and more.
RELATIVE_TOLERANCE = {"float32": 1e-4, "float64": 1e-9}


@dataclass(frozen=True)
class Reference:
    """A structure and the right answer for it."""

    structure: Structure
    result: ModelRows


@dataclass(frozen=True)
class Capsule:
    """Reference structures and where they come from."""

    source: str
    references: tuple[Reference, ...]

    def to_json(self) -> str:
        entries = [_reference_to_dict(reference) for reference in self.references]
        return json.dumps({"source": self.source, "references": entries})

    @classmethod
    def from_json(cls, text: str) -> "Capsule":
        """Inverse of `to_json`. Raises ValueError if the text is no capsule."""
        content = json.loads(text)
        try:
            return cls(content["source"], tuple(_reference_from_dict(d) for d in content["references"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"the self-check capsule lacks {error}") from None


@dataclass(frozen=True)
class Deviation:
    """How far something is off, at most, and what is tolerated."""

    name: str  # of a capsule's quantity ("energy", "forces", "virials", ...), or of a check
    unit: str
    value: float
    tolerance: float
    note: str = ""

    @property
    def passed(self) -> bool:
        return self.value <= self.tolerance  # False for NaN

    def __str__(self) -> str:
        return f"{self.name} off by {self.value:.3g} {self.unit} (tolerance {self.tolerance:.1g})"


def make_capsule(module, structures: Sequence[Structure], source: str) -> Capsule:
    """Evaluate the structures with a trusted (eager, eval mode) potential; ValueError if not finite."""
    references = tuple(Reference(structure, evaluate(module, structure)) for structure in structures)
    for reference in references:
        if not reference.result.finite:
            name = reference.structure.name
            raise ValueError(f"the model gives non-finite results for the structure '{name}'")
    return Capsule(source, references)


def compare_capsule(module, capsule: Capsule, dtype: str, atomic_energies) -> list[Deviation]:
    """Re-evaluate the capsule: deviation of each quantity, worst structure each.

    ``atomic_energies`` (T,) in eV are taken off before the scale of an energy is judged: a reference
    energy of thousands of eV must not hide an error in the interaction.
    """
    relative = RELATIVE_TOLERANCE[dtype]
    worst: dict[str, tuple[float, float, float]] = {}  # ratio, deviation, tolerance
    offsets = np.asarray(atomic_energies)
    for reference in capsule.references:
        found = evaluate(module, reference.structure).rows
        for name, right in reference.result.rows.items():
            deviation = float(np.abs(found[name] - right).max())
            if name == ENERGY.rows.name:
                right = right - offsets[reference.structure.atom_types]
            tolerance = relative * max(1.0, float(np.abs(right).max()))
            ratio = deviation / tolerance if np.isfinite(deviation) else np.inf
            worst[name] = max(worst.get(name, (-1.0, 0.0, 0.0)), (ratio, deviation, tolerance))
    return [Deviation(CONTRACT[n].called, CONTRACT[n].unit, *found) for n, (_, *found) in worst.items()]


def synthetic_structures(species: Sequence[str], cutoff: float) -> list[Structure]:
    """A cluster with every species, and a skew periodic cell smaller than the cutoff (self-images)."""
    rng = np.random.default_rng(0)
    radius = max(covalent_radii[number_of[symbol]] for symbol in species)
    spacing = min(2.3 * radius, 0.7 * cutoff)
    num_atoms = max(len(species), 6)
    side = int(np.ceil(num_atoms ** (1 / 3)))
    grid = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)[:num_atoms]
    positions = spacing * (grid + rng.uniform(-0.08, 0.08, grid.shape))
    types = np.arange(num_atoms) % len(species)
    no_cell, open_ends = np.zeros((3, 3)), [False] * 3
    cluster = make_structure("cluster of every species", positions, no_cell, open_ends, types, cutoff)

    cell = spacing * np.array([[2.0, 0.0, 0.0], [0.3, 1.1, 0.0], [0.1, -0.2, 1.2]])
    pair = np.array([[0.0, 0.0, 0.0], [1.04 * spacing, 0.1, 0.05]])
    pair_types = np.arange(2) % len(species)
    crystal = make_structure("small periodic cell", pair, cell, [True] * 3, pair_types, cutoff)
    return [cluster, crystal]


def _reference_to_dict(reference: Reference) -> dict:
    structure, result = reference.structure, reference.result
    arrays = {name: getattr(structure, name).tolist() for name in _STRUCTURE_ARRAYS}
    results = {name: rows.tolist() for name, rows in result.rows.items()}
    return {"name": structure.name, **arrays, **results}


def _reference_from_dict(entry: dict) -> Reference:
    arrays = {
        name: np.array(entry[name], dtype=dtype).reshape(shape)
        for name, (dtype, shape) in _STRUCTURE_ARRAYS.items()
    }
    needed = BASIC_ROWS if set(BASIC_ROWS) & set(entry) else ()  # not of a model without energies
    found = dict.fromkeys([*needed, *(name for name in CONTRACT if name in entry)])
    rows = {
        name: np.array(entry[name], dtype=np.float64).reshape(-1, *CONTRACT[name].shape) for name in found
    }
    return Reference(Structure(entry["name"], **arrays), ModelRows(rows))


# Shapes are given because an empty list has lost its own (a lone atom has no edges).
_STRUCTURE_ARRAYS = {
    "positions": (np.float64, (-1, 3)),
    "cell": (np.float64, (3, 3)),
    "pbc": (bool, (3,)),
    "atom_types": (np.int64, (-1,)),
    "edge_index": (np.int64, (2, -1)),
    "edge_shift": (np.int64, (-1, 3)),
}
