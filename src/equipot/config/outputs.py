"""Section ``model.outputs``: what a model predicts beside, or instead of, energies."""

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from equipot.cartesian import MAX_RANK, irreps_basis, permutations, rank_of, symmetric
from equipot.config.section import Element, Section, valid_by
from equipot.quantities import BASIC, BASIC_KEYS, BASIC_ROWS, Quantity, output
from equipot.units import compound_unit

# Numbers, vectors and their irreps (l, parity); those of tensors follow from the symmetry of their indices.
_SIMPLE = {"scalar": "0e", "pseudoscalar": "0o", "vector": "1o", "pseudovector": "1e"}
TENSORS = (*_SIMPLE, "symmetric", "traceless", "matrix")
# Names that files, tables, models' rows and ASE's results use for something else.
_TAKEN = {
    *BASIC,
    *BASIC_KEYS,
    *BASIC_ROWS,
    "electric_field",
    "atom_heat_virials",
    "features",
    "heat_virials",
    "heat_flux",
    "energy_std",
    "forces_std",
    "energy_uncertainty",
    "energies_uncertainty",
    "loss",
    "weight",
    "energies",
    "free_energy",
    "stresses",
    "positions",
    "numbers",
    "cell",
}


def _check_name(name: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name in _TAKEN:
        raise ValueError(
            f"'{name}' cannot name an output: small letters, digits and underscores, and none of "
            f"{', '.join(sorted(_TAKEN))}."
        )
    return name


OutputName = Annotated[str, AfterValidator(_check_name)]
Irreps = Annotated[
    str, StringConstraints(pattern=r"^[1-9]\d*x\d+[eo](\+[1-9]\d*x\d+[eo])*$"), Field(title="irreps")
]


class ShellConfig(Section):
    """Functions r^l Y_lm Σ_k c_k exp(−a_k r²) on an element, in a basis of Gaussians. Each has norm 1."""

    l: Annotated[int, Field(ge=0, le=11)] = Field(description="Degree of the harmonics.")  # noqa: E741
    exponents: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)] = Field(
        description="The a_k in Bohr⁻², as lists of basis sets have them."
    )
    coefficients: Annotated[list[list[float]], Field(min_length=1)] | None = Field(
        None,
        description="The c_k of each function, of primitives of norm 1; null: each is a function itself.",
    )

    @model_validator(mode="after")
    def _as_many_as_exponents(self):
        for number, row in enumerate(self.coefficients or ()):
            if len(row) != len(self.exponents):
                raise ValueError(
                    f"function {number} (the first is 0) has {len(row)} coefficients, but there are "
                    f"{len(self.exponents)} exponents."
                )
            if not any(row):
                raise ValueError(f"all coefficients of function {number} (the first is 0) are 0.")
        return self


Basis = Annotated[dict[Element, Annotated[list[ShellConfig], Field(min_length=1)]], Field(min_length=1)]


def _counts(irreps: str) -> dict[str, int]:
    """How many there are of each irrep."""
    found: dict[str, int] = {}
    for mul, irrep in re.findall(r"(\d+)x(\d+[eo])", irreps):
        found[irrep] = found.get(irrep, 0) + int(mul)
    return found


def _union(of_elements: Iterable[str]) -> str:
    """As many of each irrep as the element with most has, by degree."""
    most: dict[str, int] = {}
    for counts in map(_counts, of_elements):
        most |= {irrep: max(count, most.get(irrep, 0)) for irrep, count in counts.items()}
    return "+".join(f"{most[irrep]}x{irrep}" for irrep in sorted(most, key=lambda i: (int(i[:-1]), i)))


_OF_DIPOLE = {"charge": 1, "length": 1}


class OutputConfig(Section):
    """One output."""

    per: Literal["structure", "atom"] = Field(description="A value for each structure, or for each atom.")
    tensor: Literal[TENSORS] | None = Field(
        None,
        description="What one value is: a number, a Cartesian vector or a 3x3 tensor (`traceless` is also "
        "symmetric). An inversion changes the sign of vectors and pseudoscalars, but not of scalars, "
        "pseudovectors and 3x3 tensors. null: `indices` or `irreps` say it.",
    )
    rank: Annotated[int, Field(ge=2, le=MAX_RANK)] | None = Field(
        None,
        description="Number of indices, all alike, of a tensor that is `symmetric` or `traceless`, as 3 "
        "for a first hyperpolarizability; an inversion changes the sign of odd ones. null: 2.",
    )
    indices: Annotated[str, valid_by(permutations)] | None = Field(
        None,
        description="In place of `tensor`: a Cartesian tensor whose indices have another symmetry, as "
        "`ijk=ikj` (piezoelectric), `ijkl=jikl=klij` (elastic), `ij=-ji` (antisymmetric) or `ijk` (none).",
    )
    irreps: Irreps | Annotated[dict[Element, Irreps], Field(min_length=1)] | None = Field(
        None,
        description="In place of `tensor`: irreducible representations, as in `14x0e+5x1o+2x2e`; files have "
        "their components in the order and normalisation of e3nn. Or those of each element: then a row has "
        "as many as the element with most, by degree, and 0 for what an element lacks.",
    )
    basis: Basis | None = Field(
        None,
        description="In place of `tensor` and `irreps`: the output is a density, Σ c χ in e/Bohr³, of "
        "Gaussian functions χ on the atoms; those of each element, or a JSON file of them. See "
        "[densities](density.md).",
    )
    size: Annotated[int, Field(ge=2)] | None = Field(
        None, description="How many tensors one value has, such as the points of a spectrum; null: one alone."
    )
    unit: Annotated[str, valid_by(compound_unit)] = Field(
        "",
        description="Unit of the predictions, made of eV, Ang, e, Debye and so on, as in `e*Ang` or "
        "`e^2*Ang^2/eV`; empty: a number without one.",
    )
    reduce: Literal["sum", "mean"] = Field(
        "sum", description="A structure's value from those of its atoms: what is extensive is their sum."
    )
    positive: bool = Field(False, description="Make scalars positive, each atom's, by a softplus.")
    layer: Literal["last", "previous"] = Field(
        "last",
        description="The layer whose features it is read from: the last, which then keeps its irreps, or the "
        "one before. An output that [fine-tuning](finetuning.md) adds is read from the one before where the "
        "last one lacks its irreps.",
    )
    modulo: Literal["cell"] | None = Field(
        None,
        description="`cell`: labels are known up to e times lattice vectors, as the polarization of a "
        "periodic cell is: errors are those of the nearest of these values; null: as they are.",
    )
    derivative_of: str | None = Field(
        None,
        description="Name of an output, a structure's vector P, of which this is the derivative by the "
        "positions: of each atom i the `matrix` ∂P_a/∂r_ib, as Born charges are of the polarization. null: "
        "an output of its own.",
    )
    sum: OutputName | None = Field(
        None,
        description="Name of a number of each frame that the values of its atoms (`per: atom`, `tensor: "
        "scalar`) add up to, as `charge`: what is missing is shared equally by all atoms. A frame without it "
        "has 0.",
    )
    charges: OutputName | None = Field(
        None,
        description="Name of an output with a `sum`, whose Σ q_i r_i about the origin of coordinates is "
        "added to this vector of a structure, the dipole of a molecule. Periodic structures are refused.",
    )

    @model_validator(mode="after")
    def _says_what_it_is(self):
        if sum(said is not None for said in (self.tensor, self.indices, self.irreps, self.basis)) != 1:
            raise ValueError("give either `tensor` or `irreps`, or `indices` or `basis`.")
        if self.rank is not None and self.tensor not in ("symmetric", "traceless"):
            raise ValueError("`rank` goes with `tensor: symmetric` or `traceless`; others have `indices`.")
        if not self._is_cartesian and self.size is not None:
            raise ValueError("`size` goes with `tensor`; `irreps` have numbers of their own, as in 5x0e.")
        if self.of_elements and self.per != "atom":
            raise ValueError("what differs between elements goes with `per: atom`.")
        if self.basis is not None and self.unit:
            raise ValueError("coefficients of a `basis` have no `unit`: the density is in e/Bohr³.")
        if self.positive and self.tensor != "scalar":
            raise ValueError("`positive` goes with `tensor: scalar`.")
        if self.reduce == "mean" and self.per == "atom":
            raise ValueError("`reduce` goes with `per: structure`.")
        if self.derivative_of is not None and (self.per, self.tensor, self.size) != ("atom", "matrix", None):
            raise ValueError("`derivative_of` goes with `per: atom`, `tensor: matrix` and no `size`.")
        if self.modulo is not None and not self.is_dipole:
            raise ValueError(
                "`modulo: cell` goes with `per: structure`, `tensor: vector`, a sum, and a unit of charge "
                f"times length, such as e*Ang; found the unit '{self.unit}'."
            )
        kind = self.per, self.tensor, self.size, self.reduce, self.positive
        if self.sum is not None and kind != ("atom", "scalar", None, "sum", False):
            raise ValueError("`sum` goes with `per: atom` and `tensor: scalar`, one that may be negative.")
        if self.charges is not None and kind != ("structure", "vector", None, "sum", False):
            raise ValueError("`charges` goes with `per: structure` and `tensor: vector`, a sum over atoms.")
        return self

    @property
    def of_elements(self) -> dict[str, str]:
        """Irreps by element, where elements differ."""
        if self.basis is None:
            return self.irreps if isinstance(self.irreps, dict) else {}
        return {
            element: "+".join(
                f"{len(shell.coefficients or shell.exponents)}x{shell.l}{'eo'[shell.l % 2]}"
                for shell in shells
            )
            for element, shells in self.basis.items()
        }

    @property
    def is_structure_vector(self) -> bool:
        """Whether it is one vector of a structure, the sum of its atoms'."""
        return (self.per, self.tensor, self.size, self.reduce) == ("structure", "vector", None, "sum")

    @property
    def is_dipole(self) -> bool:
        """Whether it is such a vector in a unit of charge times length."""
        return self.is_structure_vector and compound_unit(self.unit)[1] == _OF_DIPOLE

    @property
    def _is_cartesian(self) -> bool:
        return self.irreps is None and self.basis is None

    @property
    def representation(self) -> str:
        """Irreps of one value, of its tensors one after the other; where elements differ, of all of them."""
        if self.of_elements:
            return _union(self.of_elements.values())
        one = self.irreps or _SIMPLE.get(self.tensor)
        if one is None:
            rank, parity = rank_of(self.symmetry), "eo"[rank_of(self.symmetry) % 2]
            terms = {degree: len(ways) for degree, ways in irreps_basis(self.symmetry).items()}
            kept = (rank,) if self.tensor == "traceless" else terms
            one = "+".join(f"{terms[degree]}x{degree}{parity}" for degree in kept)
        return "+".join([one] * (self.size or 1))

    @property
    def weighted_irreps(self) -> list[str]:
        """What `training.irrep_weights` can have; none where there is but one, or functions of a basis."""
        found = dict.fromkeys(re.findall(r"\d+[eo]", self.representation))
        return list(found) if len(found) > 1 and self.basis is None else []

    @property
    def symmetry(self) -> str:
        """Of its indices, as `equipot.cartesian` writes it; empty of numbers, vectors and irreps."""
        if self.tensor == "matrix":
            return "ij"
        return symmetric(self.rank or 2) if self.tensor in ("symmetric", "traceless") else self.indices or ""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one value."""
        if self._is_cartesian:
            return (*((self.size,) if self.size else ()), *[3] * self._rank)
        counts = _counts(self.representation)
        return (sum(count * (2 * int(irrep[:-1]) + 1) for irrep, count in counts.items()),)

    @property
    def _rank(self) -> int:
        return rank_of(self.symmetry) or int((self.tensor or "").endswith("vector"))

    def spec(self, name: str) -> dict[str, Any]:
        """What `equipot.models.outputs.OutputSpec` has."""
        return {
            "name": name,
            "irreps": self.representation,
            "shape": self.shape,
            "symmetry": self.symmetry,
            "per_atom": self.per == "atom",
            "mean": self.reduce == "mean",
            "positive": self.positive,
            "previous": self.layer == "previous",
            "derivative_of": self.derivative_of or "",
            "of_elements": self.of_elements,
        }

    def quantity(self, name: str) -> Quantity:
        """For `equipot.quantities.declare`."""
        return output(
            name,
            shape=self.shape,
            unit=self.unit,
            per_atom=self.per == "atom",
            symmetry=self.symmetry,
            mean=self.reduce == "mean",
            rank=self._rank,
            pseudo=(self.tensor or "").startswith("pseudo"),
            irreps="" if self._is_cartesian else self.representation,
            basis={
                element: [shell.model_dump() for shell in shells]
                for element, shells in (self.basis or {}).items()
            },
            quantum=0.0 if self.modulo is None else 1 / compound_unit(self.unit)[0],
            total=self.sum or "",
            charges=self.charges or "",
        )


def check_references(outputs: Mapping[str, OutputConfig]) -> None:
    """Raises ValueError for a `sum` or `charges` that names something else than it has to."""
    for name, one in outputs.items():
        if one.sum in outputs or one.sum == name:
            raise ValueError(
                f"outputs.{name}.sum: '{one.sum}' is an output; `sum` names a number that frames are given, "
                "such as charge."
            )
        if one.charges is None:
            continue
        charges = outputs.get(one.charges)
        if charges is None or charges.sum is None:
            what = "is no output" if charges is None else "has no `sum`, which it needs for a dipole"
            raise ValueError(f"outputs.{name}.charges: '{one.charges}' {what}.")
        if compound_unit(f"{charges.unit}*Ang")[1] != compound_unit(one.unit)[1]:
            raise ValueError(
                f"outputs.{name} is in {one.unit or 'no unit'}, but {one.charges} × a length in "
                f"{charges.unit or 'no unit'} × Ang, which is of another kind."
            )
