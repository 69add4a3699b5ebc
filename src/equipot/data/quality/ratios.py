"""What a ratio of energies to the work of the forces says of units."""

import numpy as np

from equipot.units import energy_factor, length_factor

_BOHR, _HARTREE = length_factor("Bohr"), energy_factor("Hartree")
# Energies over the work of the forces, where one is read in the wrong unit.
_RATIOS = [
    (1 / _BOHR, "the forces seem to be by Bohr: set data.units.forces: eV/Bohr"),
    (_BOHR, "the positions seem to be in Bohr: set data.units.length: Bohr (and data.units.forces)"),
    (_HARTREE / _BOHR, "the forces seem to be in Hartree/Bohr: set data.units.forces: Hartree/Bohr"),
    (
        1 / _HARTREE,
        "the labels seem to be in Hartree and eV/Å: set data.units.energy: Hartree and "
        "data.units.forces: eV/Ang",
    ),
    (_HARTREE, "the forces seem to be in Hartree/Å: set data.units.forces: Hartree/Ang"),
    (_HARTREE / 2 / _BOHR, "the forces seem to be in Rydberg/Bohr: set data.units.forces: Rydberg/Bohr"),
    (2.0, "the forces are half as large as they should be, or the energies twice"),
    (0.5, "the forces are twice as large as they should be, or the energies half"),
]
for _unit in ("kcal/mol", "kJ/mol"):
    _size = energy_factor(_unit)
    _RATIOS += [
        (
            1 / _size,
            f"the labels seem to be in {_unit} and eV/Å: set data.units.energy: {_unit} and "
            "data.units.forces: eV/Ang",
        ),
        (_size, f"the forces seem to be in {_unit}/Å: set data.units.forces: {_unit}/Ang"),
    ]


def ratio_words(slope: float) -> str:
    """What mistake of units gives this ratio of energies to the work of forces, and which key mends it."""
    near = [ratio for ratio in _RATIOS if abs(np.log(slope / ratio[0])) < 0.08]
    near.sort(key=lambda ratio: abs(np.log(slope / ratio[0])))
    if near:
        return "; or ".join(words for _, words in near)
    return "another unit (data.units.energy, data.units.length, data.units.forces) or another calculation"
