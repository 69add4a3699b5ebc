"""Units, and the sign and order of stress: every conversion of the project is decided here.

Inside equipot: eV, Å, eV/Å, eV/Å³; stress is ASE's, (1/V) ∂E/∂ε, positive under tension, as full 3×3.
The virial is −V · stress. Voigt order is ASE's: xx yy zz yz xz xy.
"""

import difflib
import math
import re
from functools import cache

from equipot.errors import ConfigError

# CODATA 2014, as in ASE; written out, so that the command line need not load ASE to know its options.
GPA = 0.006241509125883258  # eV/Å³
EV_A3_TO_GPA = 1.0 / GPA
BOHR = 0.5291772105638411  # Å
_ENERGY = {
    "eV": 1.0,
    "meV": 1e-3,
    "Hartree": 27.211386024367243,
    "Rydberg": 13.605693012183622,
    "kcal/mol": 0.04336410390059322,
    "kJ/mol": 0.010364269574711572,
}
_LENGTH = {"Ang": 1.0, "Bohr": BOHR, "nm": 10.0}
COULOMB = 14.399645  # eV Å: e²/4πε₀
EPSILON0 = 1 / (4 * math.pi * COULOMB)  # e²/(eV Å)
_DEBYE = 0.20819433442462576  # e Å
_PRESSURE = {"GPa": GPA, "MPa": 1e-3 * GPA, "kbar": 0.1 * GPA, "bar": 1e-4 * GPA, "Pa": 1e-9 * GPA}
ENERGY_UNITS = tuple(_ENERGY)
LENGTH_UNITS = tuple(_LENGTH)

# Powers of energy and length in a quantity's unit.
Powers = tuple[int, int]
OF_ENERGY, OF_LENGTH, OF_STRESS = (1, 0), (0, 1), (1, -3)
# What files write beside the names above, in lower case.
_ATOMIC = ("au", "a.u.", "atomic", "atomic units")
_SPELLINGS = {
    "eV": ("electronvolt",),
    "Hartree": ("hartrees", "ha", "eh", *_ATOMIC),
    "Rydberg": ("rydbergs", "ry"),
    "kcal/mol": ("kcal_mol", "kcalmol"),
    "kJ/mol": ("kj_mol", "kjmol"),
    "Ang": ("angstrom", "angstroms", "a", "å"),
    "Bohr": ("bohrs", "a0", *_ATOMIC),
    "kbar": ("kb",),
    "Hartree/Bohr": _ATOMIC,
    "Hartree/Bohr^3": _ATOMIC,
}

_VOIGT = ([0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1])


def energy_factor(name: str) -> float:
    """eV in one unit ``name`` (``eV``, ``meV``, ``Hartree``, ``Rydberg``, ``kcal/mol``, ``kJ/mol``)."""
    return unit_factor(name, OF_ENERGY, "energy")


def length_factor(name: str) -> float:
    """Å in one unit ``name`` (``Ang``, ``Bohr``, ``nm``)."""
    return unit_factor(name, OF_LENGTH, "length")


def product(energy: float, length: float, powers: Powers) -> float:
    """The unit that is made of these two."""
    of_energy, of_length = powers
    factor = energy**of_energy
    return factor * length**of_length if of_length >= 0 else factor / length**-of_length


def unit_factor(name: str, powers: Powers, quantity: str) -> float:
    """eV and Å in one unit such as ``Hartree/Bohr`` or ``kbar``; negative with a minus sign before the name.

    Raises:
        ConfigError: no such unit of the ``quantity``; energy and length have no sign.
    """
    sign = "-" if name[:1] == "-" and quantity not in ("energy", "length") else ""
    name = name.removeprefix(sign)
    known = _units(powers)
    if name in known:
        return -known[name] if sign else known[name]
    near = known_unit(name, powers) or next(iter(difflib.get_close_matches(name, known, 1, 0.4)), None)
    hint = "" if near is None else f" Did you mean '{sign}{near}'?"
    if name in _ENERGY and powers[1]:  # whose length nobody can guess
        ways = (f"{sign}{name}/{length}{'^3' if powers == OF_STRESS else ''}" for length in ("Ang", "Bohr"))
        hint = f" That is an energy: name the length, too, as {' or '.join(ways)}."
    shown = [name for name in known if not (powers[0] and powers[1] and "/" in name)]
    if len(shown) < len(known):
        shown.append(f"energies by lengths such as {'eV/Ang^3' if powers == OF_STRESS else 'eV/Ang'}")
    raise ConfigError(f"Unknown {quantity} unit '{sign}{name}'; known: {', '.join(shown)}.{hint}")


def known_unit(text: object, powers: Powers) -> str | None:
    """The unit that a file means by ``text``, which may be spelled in other ways; None if it is none."""
    plain = str(text).strip().lower().replace("**", "^").replace("³", "^3").removeprefix("-")
    return _spelled(powers).get(re.sub(r"(?<=[a-zå])3$", "^3", plain))


def compound_unit(text: str) -> tuple[float, dict[str, int]]:
    """Size (eV, Å, e) and powers of the dimensions of a product such as ``e*Ang`` or ``e²Å²/eV``.

    Raises:
        ConfigError: a factor is not known, or not a name with a power.
    """
    spaced = re.sub("([⁻¹²³⁴]+)\\s*(?=[^⁻¹²³⁴*/·\\s])", r"\1*", text.strip())  # e² Å² is e²*Å²
    plain = re.sub("([⁻¹²³⁴]+)", r"^\1", spaced).translate(str.maketrans("⁻¹²³⁴", "-1234")).replace("**", "^")
    parts = re.split("([*/·])", f"*{plain}")[1:] if plain else []
    size, powers = 1.0, {}
    for sign, factor in zip(parts[::2], parts[1::2], strict=True):
        name, power = re.fullmatch(r"(?s)\s*(.*?)(?:\^(-?\d))?\s*", factor).groups()
        if name not in _FACTORS:
            near = next(iter(difflib.get_close_matches(name, _FACTORS, 1, 0.4)), None)
            hint = f" Did you mean '{near}'?" if near else ""
            known = ", ".join(name for name in _FACTORS if name != "1")
            raise ConfigError(
                f"Unknown factor '{factor.strip()}' in the unit '{text}'; known: {known}.{hint}"
            )
        one, dimension = _FACTORS[name]
        exponent = int(power or 1) * (-1 if sign == "/" else 1)
        size *= one**exponent
        for kind, own in dimension.items():
            powers[kind] = powers.get(kind, 0) + own * exponent
    return size, {kind: power for kind, power in powers.items() if power}


def size_in(text: str, unit: str) -> float:
    """Size of the unit ``text`` in another of its kind; a polarizability may be a volume, α / 4πε₀, too.

    Raises:
        ConfigError: it is of another kind.
    """
    (size, powers), (other, wanted) = compound_unit(text), compound_unit(unit)
    if powers == {"length": 3} and wanted == {"charge": 2, "length": 2, "energy": -1}:
        return size / COULOMB / other
    if powers != wanted:
        raise ConfigError(f"expected a unit such as {unit}, found {text or 'none'}.")
    return size / other


_FACTORS: dict[str, tuple[float, dict[str, int]]] = {
    **{name: (size, {"energy": 1}) for name, size in _ENERGY.items() if "/" not in name},
    **{name: (size, {"length": 1}) for name, size in (*_LENGTH.items(), ("Å", 1.0), ("a0", _LENGTH["Bohr"]))},
    "1": (1.0, {}),
    "e": (1.0, {"charge": 1}),
    "V": (1.0, {"energy": 1, "charge": -1}),
    "Debye": (_DEBYE, {"charge": 1, "length": 1}),
    "D": (_DEBYE, {"charge": 1, "length": 1}),
    "muB": (1.0, {"moment": 1}),
    "cm": (1e8, {"length": 1}),
}


@cache
def _units(powers: Powers) -> dict[str, float]:
    """Names of units of these powers, and their sizes."""
    of_energy, of_length = powers
    lengths = (
        {_raised(unit, abs(of_length)): size for unit, size in _LENGTH.items()} if of_length else {"": 1}
    )
    separator = "/" if of_energy and of_length else ""
    made = {
        f"{energy}{separator}{length}": product(size, factor, powers)
        for energy, size in (_ENERGY if of_energy else {"": 1.0}).items()
        for length, factor in lengths.items()
    }
    return {**_PRESSURE, **made} if powers == OF_STRESS else made


def _raised(unit: str, power: int) -> str:
    return unit if power == 1 else f"{unit}^{power}"


@cache
def _spelled(powers: Powers) -> dict[str, str]:
    """The same units by every spelling, in lower case."""
    found = {}
    for unit in _units(powers):
        energy, _, length = (
            unit.rpartition("/") if powers[0] and powers[1] and "/" in unit else (unit, "", "")
        )
        length, _, power = length.partition("^")
        for one in (energy, *_SPELLINGS.get(energy, ())):
            for other in (length, *_SPELLINGS.get(length, ())) if length else ("",):
                whole = f"{one}/{_raised(other, int(power or 1))}" if length else one
                found[whole.lower()] = unit
        found |= dict.fromkeys(_SPELLINGS.get(unit, ()), unit)
    return found


def stress_to_voigt(stress):
    """(..., 3, 3) tensor or array to (..., 6) in ASE's order; the two off-diagonal halves are averaged."""
    rows, columns = _VOIGT
    return 0.5 * (stress[..., rows, columns] + stress[..., columns, rows])


def voigt_to_stress(voigt):
    """(..., 6) in ASE's order to the symmetric (..., 3, 3)."""
    rows = [[0, 5, 4], [5, 1, 3], [4, 3, 2]]
    return voigt[..., rows]
