"""Section ``model.outputs``: what a model predicts beside, or instead of, energies."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from equipot.config.section import Element, Section
from equipot.errors import ConfigError
from equipot.quantities import BASIC, BASIC_KEYS, BASIC_ROWS, Quantity, output
from equipot.units import compound_unit

# Cartesian tensors: shape of one value, irreps of the rotations (l, parity) that it holds.
TENSORS: dict[str, tuple[tuple[int, ...], str]] = {
    "scalar": ((), "0e"),
    "pseudoscalar": ((), "0o"),
    "vector": ((3,), "1o"),
    "pseudovector": ((3,), "1e"),
    "symmetric": ((3, 3), "0e+2e"),
    "traceless": ((3, 3), "2e"),
    "matrix": ((3, 3), "0e+1e+2e"),
}
# Names that files, tables, models' rows and ASE's results use for something else.
_TAKEN = {
    *BASIC,
    *BASIC_KEYS,
    *BASIC_ROWS,
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


def _check_unit(unit: str) -> str:
    try:
        compound_unit(unit)
    except ConfigError as error:
        raise ValueError(str(error)) from None
    return unit


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


class OutputConfig(Section):
    """One output."""

    per: Literal["structure", "atom"] = Field(description="A value for each structure, or for each atom.")
    tensor: Literal[tuple(TENSORS)] | None = Field(
        None,
        description="What one value is: a number, a Cartesian vector or a 3x3 tensor (`traceless` is also "
        "symmetric). An inversion changes the sign of vectors and pseudoscalars, but not of scalars, "
        "pseudovectors and 3x3 tensors. null: `irreps` says it.",
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
    unit: Annotated[str, AfterValidator(_check_unit)] = Field(
        "",
        description="Unit of the predictions, made of eV, Ang, e, Debye and so on, as in `e*Ang` or "
        "`e^2*Ang^2/eV`; empty: a number without one.",
    )
    reduce: Literal["sum", "mean"] = Field(
        "sum", description="A structure's value from those of its atoms: what is extensive is their sum."
    )
    positive: bool = Field(False, description="Make scalars positive, each atom's, by a softplus.")

    @model_validator(mode="after")
    def _says_what_it_is(self):
        if sum(kind is not None for kind in (self.tensor, self.irreps, self.basis)) != 1:
            raise ValueError("give either `tensor` or `irreps` or `basis`.")
        if self.tensor is None and self.size is not None:
            raise ValueError("`size` goes with `tensor`; `irreps` have numbers of their own, as in 5x0e.")
        if self.of_elements and self.per != "atom":
            raise ValueError("what differs between elements goes with `per: atom`.")
        if self.basis is not None and self.unit:
            raise ValueError("coefficients of a `basis` have no `unit`: the density is in e/Bohr³.")
        if self.positive and self.tensor != "scalar":
            raise ValueError("`positive` goes with `tensor: scalar`.")
        if self.reduce == "mean" and self.per == "atom":
            raise ValueError("`reduce` goes with `per: structure`.")
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
    def representation(self) -> str:
        """Irreps of one value, of its tensors one after the other; where elements differ, of all of them."""
        if self.tensor is not None:
            return "+".join([TENSORS[self.tensor][1]] * (self.size or 1))
        if not self.of_elements:
            return self.irreps
        most: dict[str, int] = {}
        for counts in map(_counts, self.of_elements.values()):
            most |= {irrep: max(count, most.get(irrep, 0)) for irrep, count in counts.items()}
        return "+".join(f"{most[irrep]}x{irrep}" for irrep in sorted(most, key=lambda i: (int(i[:-1]), i)))

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one value."""
        if self.tensor is not None:
            return (*((self.size,) if self.size else ()), *TENSORS[self.tensor][0])
        counts = _counts(self.representation)
        return (sum(count * (2 * int(irrep[:-1]) + 1) for irrep, count in counts.items()),)

    def spec(self, name: str) -> dict[str, Any]:
        """What `equipot.models.outputs.OutputSpec` has."""
        return {
            "name": name,
            "irreps": self.representation,
            "shape": self.shape,
            "is_matrix": self.tensor in ("symmetric", "traceless", "matrix"),
            "per_atom": self.per == "atom",
            "mean": self.reduce == "mean",
            "positive": self.positive,
            "of_elements": self.of_elements,
        }

    def quantity(self, name: str) -> Quantity:
        """For `equipot.quantities.declare`."""
        symmetric = self.tensor in ("symmetric", "traceless") and self.size is None
        rank = len(TENSORS[self.tensor][0]) if self.tensor else 0
        return output(
            name,
            shape=self.shape,
            unit=self.unit,
            per_atom=self.per == "atom",
            symmetric=symmetric,
            mean=self.reduce == "mean",
            rank=rank,
            pseudo=(self.tensor or "").startswith("pseudo"),
            irreps="" if self.tensor else self.representation,
            basis={
                element: [shell.model_dump() for shell in shells]
                for element, shells in (self.basis or {}).items()
            },
        )
