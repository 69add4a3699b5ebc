"""Of section ``data``: under which names files have their labels, and in which units."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo

from equipot.config.section import OpenSection, valid_by, with_fields
from equipot.errors import ConfigError
from equipot.quantities import BASIC, BASIC_KEYS, KEYS, QUANTITIES
from equipot.units import (
    ENERGY_UNITS,
    LENGTH_UNITS,
    compound_unit,
    energy_factor,
    length_factor,
    product,
    unit_factor,
)

LabelName = Annotated[str, Field(min_length=1, json_schema_extra={"words": "name that is not empty"})]
_NAMES = {
    name: (LabelName | None, Field(name if name in BASIC else None, description=key.meaning))
    for name, key in BASIC_KEYS.items()
}


class LabelsConfig(with_fields(OpenSection, _NAMES)):
    """Names of the reference values in the structure files; also of those of `model.outputs`."""

    __pydantic_extra__: dict[str, LabelName | None]

    weight: LabelName | None = Field(
        "config_weight",
        description="Name of a frame's own weight, a number ≥ 0 that multiplies its terms of the loss; "
        "frames without one have 1. With it the weights of single labels are read, whose names are fixed: "
        f"{', '.join(f'`{key.weight}`' for key in BASIC_KEYS.values())}; where one is 0, the label counts as "
        "not there. null: read no weights. Reported errors and statistics are not weighted.",
    )

    def names(self, quantity: str) -> dict[str, str]:
        """Under which names the ``quantity`` is looked for, by the keys that say so."""
        known = QUANTITIES.get(quantity)
        keys = [quantity] if known is None else [key.name for key in known.keys]
        found = {key: self.value_of(key) for key in keys}
        return {key: name for key, name in found.items() if name is not None}


def _check_unit(unit: str, info: ValidationInfo) -> str:
    try:
        unit_factor(unit, KEYS[info.field_name].powers, info.field_name)
    except ConfigError as error:
        raise ValueError(str(error)) from None
    return unit


Unit = Annotated[str, AfterValidator(_check_unit), Field(json_schema_extra={"words": "unit"})]


CompoundUnit = Annotated[
    str,
    valid_by(lambda unit: compound_unit(unit.removeprefix("-"))),
    Field(json_schema_extra={"words": "unit"}),
]


class _BasicUnits(OpenSection):
    energy: Literal[ENERGY_UNITS] = Field("eV", description="Unit of energy.")
    length: Literal[LENGTH_UNITS] = Field("Ang", description="Unit of length.")


_UNIT_MEANINGS = {
    "forces": ", such as `Hartree/Bohr`; with a minus sign, as in `-Hartree/Bohr`, where they are gradients",
    "stress": ", such as `kbar`, `GPa` or `eV/Ang^3`; with a minus sign, as in `-kbar`, where it is positive "
    "under compression, as in VASP's output and in pressure tensors",
    "virial": ", such as `eV`; with a minus sign, as in `-eV`, where it is V · stress",
}
_UNITS = {
    name: (
        Unit | None,
        Field(
            None,
            description=f"Unit of the {name}{_UNIT_MEANINGS.get(name, '')}. null: what follows from those "
            "of energy and length.",
        ),
    )
    for name in BASIC_KEYS
    if name != "energy"
}


class UnitsConfig(with_fields(_BasicUnits, _UNITS)):
    """Units of the numbers in the structure files; those of the labels follow from energy and length.

    Values of `model.outputs` are in the unit that is named there, unless this section has another.
    """

    __pydantic_extra__: dict[str, CompoundUnit | None]

    def factor(self, key: str) -> float:
        """From the label ``key`` in these units to eV and Å; negative where its sign is the opposite."""
        powers, stated = KEYS[key].powers, self.value_of(key)
        if key in QUANTITIES and key not in BASIC:
            if stated is None:
                return 1.0
            size = compound_unit(stated.removeprefix("-"))[0] / compound_unit(QUANTITIES[key].unit)[0]
            return -size if stated.startswith("-") else size
        if stated is None:
            return product(energy_factor(self.energy), length_factor(self.length), powers)
        return unit_factor(stated, powers, key)


def check_kind(name: str, stated: str | None, unit: str, place: str) -> None:
    """Raises ValueError if labels of an output are in a unit of another kind than its predictions."""
    if stated is not None and compound_unit(stated.removeprefix("-"))[1] != compound_unit(unit)[1]:
        raise ValueError(
            f"{place}.{name} is {stated}, but the model's {name} is in {unit or 'no unit'}, which is of "
            "another kind."
        )
