"""Section ``data``: which structures, how they are labelled, how they are split."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from equipot.config.section import Element, Elements, Paths, Section, paths_from_strings
from equipot.units import ENERGY_UNITS, LENGTH_UNITS

LabelName = Annotated[str, Field(min_length=1)]


class LabelsConfig(Section):
    """Names of the reference values in the structure files."""

    energy: LabelName | None = Field(
        "energy", description="Name of the total energy of a frame; null: do not read it."
    )
    forces: LabelName | None = Field(
        "forces", description="Name of the forces, one vector per atom; null: do not read them."
    )
    stress: LabelName | None = Field(
        "stress",
        description="Name of the stress, (1/V) ∂E/∂ε, positive under tension; null: do not read it.",
    )


class UnitsConfig(Section):
    """Units of the numbers in the structure files; those of forces and stress follow from these two."""

    energy: Literal[ENERGY_UNITS] = Field("eV", description="Unit of energy.")
    length: Literal[LENGTH_UNITS] = Field("Ang", description="Unit of length.")


def _paths_unless_number(value: Any) -> Any:
    return value if isinstance(value, int | float) else paths_from_strings(value)


class DataConfig(Section):
    """Structures with their reference energies, forces and stresses."""

    train: Paths = Field(
        description="Training structures: a file or a list of files in any format ASE reads. Wildcards (`*`, "
        "`?`) are allowed; relative names start at the folder of the YAML file."
    )
    validation: Annotated[
        Paths | Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)],
        BeforeValidator(_paths_unless_number),
    ] = Field(
        0.1,
        description="Validation structures: a file or a list of files; or how many frames (a whole number) "
        "or which fraction (between 0 and 1) to draw from `train`, at random with `seed`.",
    )
    test: Paths | None = Field(
        None, description="Test structures, evaluated once after training: a file or a list of files."
    )
    train_frames: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="Use only this many of the training frames that remain after the validation frames are "
        "drawn, at random with `seed`; null: all.",
    )
    seed: int = Field(0, ge=0, description="Seed of the split.")
    labels: LabelsConfig = Field(LabelsConfig(), description="Names of the reference values in the files.")
    units: UnitsConfig = Field(UnitsConfig(), description="Units in the files.")
    atomic_energies: (
        Literal["auto", "isolated_atoms", "least_squares", "none"]
        | Annotated[dict[Element, float], Field(min_length=1)]
    ) = Field(
        "auto",
        description="Reference energy of each element, subtracted from the total energy. "
        "`isolated_atoms`: from the single-atom frames in `train`; `least_squares`: fitted to the training "
        "energies; `auto`: the former if every element has such a frame, else the latter; `none`: zero; or "
        "numbers in the unit of `units.energy`, as in `{H: -13.6, O: -430.0}`.",
    )
    species: Elements | None = Field(
        None, description="Elements of the model; null: those of the training structures, by atomic number."
    )

    @model_validator(mode="after")
    def _species_agree(self):
        if self.species is None:
            return self
        repeated = sorted({symbol for symbol in self.species if self.species.count(symbol) > 1})
        if repeated:
            raise ValueError(f"`species` lists {', '.join(repeated)} more than once.")
        if isinstance(self.atomic_energies, dict):
            missing = [symbol for symbol in self.species if symbol not in self.atomic_energies]
            if missing:
                raise ValueError(f"`atomic_energies` has no entry for {', '.join(missing)} of `species`.")
        return self
