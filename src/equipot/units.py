"""Units, and the sign and order of stress: every conversion of the project is decided here.

Inside equipot: eV, Å, eV/Å, eV/Å³; stress is ASE's, (1/V) ∂E/∂ε, positive under tension, as full 3×3.
The virial is −V · stress. Voigt order is ASE's: xx yy zz yz xz xy.
"""

import difflib

from equipot.errors import ConfigError

# CODATA 2014, as in ASE; written out, so that the command line need not load ASE to know its options.
GPA = 0.006241509125883258  # eV/Å³
EV_A3_TO_GPA = 1.0 / GPA
_ENERGY = {
    "eV": 1.0,
    "meV": 1e-3,
    "Hartree": 27.211386024367243,
    "Rydberg": 13.605693012183622,
    "kcal/mol": 0.04336410390059322,
    "kJ/mol": 0.010364269574711572,
}
_LENGTH = {"Ang": 1.0, "Bohr": 0.5291772105638411, "nm": 10.0}
ENERGY_UNITS = tuple(_ENERGY)
LENGTH_UNITS = tuple(_LENGTH)

_VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))


def energy_factor(name: str) -> float:
    """eV in one unit ``name`` (``eV``, ``meV``, ``Hartree``, ``Rydberg``, ``kcal/mol``, ``kJ/mol``)."""
    return _lookup(name, _ENERGY, "energy")


def length_factor(name: str) -> float:
    """Å in one unit ``name`` (``Ang``, ``Bohr``, ``nm``)."""
    return _lookup(name, _LENGTH, "length")


def known_unit(name: object, units: tuple[str, ...]) -> str | None:
    """That of ``units`` which a file means by ``name``, in any case of letters."""
    return next((unit for unit in units if str(name).lower() == unit.lower()), None)


def _lookup(name: str, table: dict[str, float], quantity: str) -> float:
    if name not in table:
        near = difflib.get_close_matches(name, table, n=1, cutoff=0.4)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise ConfigError(f"Unknown {quantity} unit '{name}'; known: {', '.join(table)}.{hint}")
    return table[name]


def stress_to_voigt(stress):
    """(..., 3, 3) tensor or array to (..., 6) in ASE's order; the two off-diagonal halves are averaged."""
    import numpy as np
    import torch

    columns = [0.5 * (stress[..., a, b] + stress[..., b, a]) for a, b in _VOIGT]
    return torch.stack(columns, dim=-1) if isinstance(stress, torch.Tensor) else np.stack(columns, axis=-1)


def voigt_to_stress(voigt):
    """(..., 6) in ASE's order to the symmetric (..., 3, 3)."""
    rows = [[0, 5, 4], [5, 1, 3], [4, 3, 2]]
    return voigt[..., rows]
