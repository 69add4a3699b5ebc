"""Units that files name themselves, compared with those in which they are read."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from equipot.config.data import LabelsConfig, UnitsConfig
from equipot.errors import ConfigError, DataError
from equipot.quantities import KEYS, QUANTITIES, UNIT_POWERS
from equipot.units import compound_unit, known_unit, length_factor, unit_factor

_UNIT_KEY = re.compile(r"(?:(?P<of>.+?)[-_ .]?)?units?")
_LENGTH_KEY = re.compile("len|pos|dist|coord|cell|lattice|^r$")
# LAMMPS's names for whole systems of units.
_SYSTEMS = {"metal": "eV Ang", "real": "kcal/mol Ang", "atomic": "Hartree Bohr"}


def units_in_header(info: Mapping[str, Any]) -> dict[str, str]:
    """What ``energy-unit=hartree``, ``pos_unit``, ``units="eV Ang"`` and so on say, by label or `length`."""
    stated = {}
    for name, value in info.items():
        match = _UNIT_KEY.fullmatch(str(name).lower())
        if match is None or not isinstance(value, str | np.ndarray | list):
            continue
        text, of = " ".join(np.ravel(value).astype(str)), match["of"]
        if of is None:
            stated |= _units_in_text(text)
        elif _LENGTH_KEY.search(of):
            stated["length"] = text
        else:
            stated |= {key.name: text for key in KEYS.values() if key.means(of)}
    return stated


def names_of_units(info: Mapping[str, Any]) -> set[str]:
    """Of what `units_in_header` reads: units of labels and lengths."""
    return {name for name in info if units_in_header({name: info[name]})}


def _units_in_text(text: str) -> dict[str, str]:
    words = re.split(r"[\s,;]+", _SYSTEMS.get(text.strip().lower(), text.strip()))
    stated = {}
    for word in words:
        meant = {
            of: word for of in ("energy", "length", "forces", "stress") if known_unit(word, UNIT_POWERS[of])
        }
        stated |= meant or {"energy": word}  # which is then refused
    return stated


def check_units(
    where: str | Path, stated: Mapping[str, str], labels: LabelsConfig, units: UnitsConfig, entry: str
) -> None:
    """Raise DataError if a file names other units than ``units``.

    Args:
        where: the file, or a frame of it, for the message.
        stated: unit by ``length`` and by name or key of a label; of those that are read.
        labels, units: as the file is read.
        entry: name of the file in an entry of ``data``, for the message.
    """
    named = {key: name for key in KEYS if (name := labels.value_of(key)) is not None}
    for of in ("energy", "length", *(key for key in named if key != "energy")):
        text = stated.get(named.get(of, "")) or stated.get(of)
        if not text:
            continue
        unit = known_unit(text, UNIT_POWERS[of]) if of in UNIT_POWERS else _compound(of, text)
        if unit is None:
            raise DataError(
                f"{where} names '{text}' as its unit of {of}, which is not known. Correct it there, or "
                f"remove it and set data.units.{of} (--{of}-unit)."
            )
        size = unit_factor(unit, UNIT_POWERS[of], of) if of in UNIT_POWERS else _ratio(of, unit)
        if not math.isclose(size, abs(_size(of, units)), rel_tol=1e-6):
            raise DataError(
                f"{where} names {unit} as its unit of {of}, but data.units.{of} is {_read_in(of, units)}. "
                f"Set it to {unit} (--{of}-unit {unit}), for this entry alone: {{path: {entry}, units: "
                f"{{{of}: {unit}}}}}."
            )


def _compound(of: str, text: str) -> str | None:
    """A unit of an output, if it is one of its kind."""
    try:
        return text if compound_unit(text)[1] == compound_unit(QUANTITIES[of].unit)[1] else None
    except ConfigError:
        return None


def _ratio(of: str, unit: str) -> float:
    return compound_unit(unit)[0] / compound_unit(QUANTITIES[of].unit)[0]


def _size(of: str, units: UnitsConfig) -> float:
    return length_factor(units.length) if of == "length" else units.factor(of)


def _read_in(of: str, units: UnitsConfig) -> str:
    given = units.value_of(of)
    if of not in UNIT_POWERS:
        return given or f"that of the output, {QUANTITIES[of].unit or 'none'}"
    return given if given is not None else f"what follows from {units.energy} and {units.length}"
