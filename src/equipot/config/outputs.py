"""Section ``model.outputs``: what a model predicts beside, or instead of, energies."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from equipot.config.section import Section
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
_OF_DIPOLE = {"charge": 1, "length": 1}
_IRREPS = r"^[1-9]\d*x\d+[eo](\+[1-9]\d*x\d+[eo])*$"


class OutputConfig(Section):
    """One output."""

    per: Literal["structure", "atom"] = Field(description="A value for each structure, or for each atom.")
    tensor: Literal[tuple(TENSORS)] | None = Field(
        None,
        description="What one value is: a number, a Cartesian vector or a 3x3 tensor (`traceless` is also "
        "symmetric). An inversion changes the sign of vectors and pseudoscalars, but not of scalars, "
        "pseudovectors and 3x3 tensors. null: `irreps` says it.",
    )
    irreps: Annotated[str, StringConstraints(pattern=_IRREPS)] | None = Field(
        None,
        description="In place of `tensor`: irreducible representations, as in `14x0e+5x1o+2x2e`; files have "
        "their components in the order and normalisation of e3nn.",
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

    @model_validator(mode="after")
    def _says_what_it_is(self):
        if (self.tensor is None) == (self.irreps is None):
            raise ValueError("give either `tensor` or `irreps`.")
        if self.irreps is not None and self.size is not None:
            raise ValueError("`size` goes with `tensor`; `irreps` have numbers of their own, as in 5x0e.")
        if self.positive and self.tensor != "scalar":
            raise ValueError("`positive` goes with `tensor: scalar`.")
        if self.reduce == "mean" and self.per == "atom":
            raise ValueError("`reduce` goes with `per: structure`.")
        if self.derivative_of is not None and (self.per, self.tensor, self.size) != ("atom", "matrix", None):
            raise ValueError("`derivative_of` goes with `per: atom`, `tensor: matrix` and no `size`.")
        if self.modulo is not None and not (
            self.is_structure_vector and compound_unit(self.unit)[1] == _OF_DIPOLE
        ):
            raise ValueError(
                "`modulo: cell` goes with `per: structure`, `tensor: vector`, a sum, and a unit of charge "
                f"times length, such as e*Ang; found the unit '{self.unit}'."
            )
        return self

    @property
    def is_structure_vector(self) -> bool:
        """Whether it is one vector of a structure, the sum of its atoms'."""
        return (self.per, self.tensor, self.size, self.reduce) == ("structure", "vector", None, "sum")

    @property
    def representation(self) -> str:
        """Irreps of one value, of its tensors one after the other."""
        return self.irreps or "+".join([TENSORS[self.tensor][1]] * (self.size or 1))

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one value."""
        if self.irreps is None:
            return (*((self.size,) if self.size else ()), *TENSORS[self.tensor][0])
        parts = re.findall(r"(\d+)x(\d+)", self.irreps)
        return (sum(int(mul) * (2 * int(degree) + 1) for mul, degree in parts),)

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
            "derivative_of": self.derivative_of or "",
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
            irreps=self.irreps or "",
            quantum=0.0 if self.modulo is None else 1 / compound_unit(self.unit)[0],
        )
