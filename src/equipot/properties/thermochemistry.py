"""Thermochemistry of molecules and adsorbates from their normal modes."""

from typing import Any

import numpy as np
from ase import Atoms, units
from ase.thermochemistry import HarmonicThermo, IdealGasThermo
from numpy.typing import NDArray

from equipot.errors import ConfigError, SimulationError
from equipot.properties.normal_modes import Vibrations, shape_of

TOLERANCE = 0.05  # Å, by which a turned molecule may differ from itself


def thermochemistry(
    found: Vibrations,
    temperature: float = 298.15,
    pressure: float = 101325.0,
    *,
    symmetry: int | None = None,
    spin: float | None = None,
) -> dict[str, Any]:
    """Ideal gas in the rigid-rotor, harmonic-oscillator approximation; of adsorbates the oscillators alone.

    Args:
        temperature: K. pressure: Pa.
        symmetry: rotations onto itself; by default those that are found.
        spin: S; by default 0, or 1/2 for an odd number of electrons (of the neutral molecule).

    Raises:
        ConfigError: values that make no sense; SimulationError: imaginary modes but for the one of a saddle.
    """
    if not 0 < temperature <= 1e4 or not 0 < pressure < np.inf:
        raise ConfigError(
            f"Expected a temperature up to 1e4 K and a pressure above 0, found {temperature}, {pressure}."
        )
    if found.imaginary.sum() > 1:
        raise SimulationError(
            "Thermochemistry needs a minimum or a saddle; there are several imaginary modes."
        )
    real = found.energies[found.energies > 0]
    potential = float(found.atoms.get_potential_energy())
    at = {"temperature_K": temperature}
    if found.geometry == "fixed":
        thermo = HarmonicThermo(real, potential)
        inner = float(thermo.get_internal_energy(temperature, verbose=False))
        entropy = float(thermo.get_entropy(temperature, verbose=False))
        free = {"helmholtz_energy_eV": inner - temperature * entropy}
        return at | {"internal_energy_eV": inner, "entropy_eV_per_K": entropy} | free
    symmetry = symmetry_number(found.atoms) if symmetry is None else symmetry
    spin = _spin(found.atoms, spin)
    if symmetry < 1:
        raise ConfigError(f"--symmetry-number must be at least 1, found {symmetry}.")
    thermo = IdealGasThermo(
        real, found.geometry, potential, found.atoms, symmetry, spin, vib_selection="all"
    )  # fmt: skip
    below, enthalpy, above = (thermo.get_enthalpy(temperature + d, verbose=False) for d in (-0.5, 0.0, 0.5))
    entropy = thermo.get_entropy(temperature, pressure, verbose=False)
    return at | {
        "pressure_Pa": pressure,
        "symmetry_number": symmetry,
        "spin": spin,
        "internal_energy_eV": float(thermo.get_internal_energy(temperature, verbose=False)),
        "enthalpy_eV": float(enthalpy),
        "entropy_eV_per_K": float(entropy),
        "entropy_J_per_mol_K": float(entropy / (units.J / units.mol)),
        "heat_capacity_J_per_mol_K": float((above - below) / (units.J / units.mol)),
        "gibbs_energy_eV": float(enthalpy - temperature * entropy),
    }


def _spin(atoms: Atoms, spin: float | None) -> float:
    odd = int(atoms.numbers.sum()) % 2
    if spin is None:
        return 0.5 * odd
    if spin < 0 or (2 * spin) % 1 or int(2 * spin) % 2 != odd:
        raise ConfigError(
            f"--spin {spin:g} does not fit {atoms.get_chemical_formula()}, which has an "
            f"{'odd' if odd else 'even'} number of electrons: expected {'0.5, 1.5' if odd else '0, 1'}, ..."
        )
    return float(spin)


def symmetry_number(atoms: Atoms, tolerance: float = TOLERANCE) -> int:
    """How many rotations bring a molecule onto itself, atoms within ``tolerance`` (Å).

    A rotation about the center of mass is known by the images of two atoms that are not in line with it: two
    of the rarest kinds, by element and distance from the center, are taken.
    """
    if len(atoms) == 1:
        return 1
    points = atoms.positions - atoms.get_center_of_mass()
    if shape_of(atoms) == "linear":
        return 2 if _maps(-np.eye(3), points, atoms.numbers, tolerance) else 1
    radii = np.linalg.norm(points, axis=1)
    alike = (atoms.numbers[:, None] == atoms.numbers) & (abs(radii[:, None] - radii) < 2 * tolerance)
    order = [i for i in np.argsort(alike.sum(axis=1), kind="stable") if radii[i] > 0.3]
    first = order[0]
    sines = np.linalg.norm(np.cross(points, points[first]), axis=1) / np.maximum(radii * radii[first], 1e-9)
    second = next((i for i in order if sines[i] > 0.5), sines.argmax())
    found: list[NDArray] = []
    for i in np.flatnonzero(alike[first]):
        for j in np.flatnonzero(alike[second]):
            turn = _rotation(points[[first, second]], points[[i, j]], 3 * tolerance)
            if turn is None or any(np.trace(turn.T @ other) > 2.99 for other in found):
                continue
            if _maps(turn, points, atoms.numbers, tolerance):
                found.append(turn)
    return len(found)


def _rotation(two: NDArray, images: NDArray, tolerance: float) -> NDArray | None:
    """(3, 3) that turns two vectors (2, 3) into their images, if any does."""
    if abs(np.linalg.norm(two[0] - two[1]) - np.linalg.norm(images[0] - images[1])) > tolerance:
        return None
    frames = []
    for a, b in (two, images):
        x = a / np.linalg.norm(a)
        z = np.cross(a, b)
        z /= np.linalg.norm(z)
        frames.append(np.array([x, np.cross(z, x), z]))
    return frames[1].T @ frames[0]


def _maps(operation: NDArray, points: NDArray, numbers: NDArray, tolerance: float) -> bool:
    """Whether each atom comes onto one of its element."""
    distances = np.linalg.norm((points @ operation.T)[:, None] - points, axis=2)
    distances[numbers[:, None] != numbers] = np.inf
    nearest = distances.argmin(axis=1)
    return bool(distances.min(axis=1).max() < tolerance) and len(set(nearest)) == len(nearest)
