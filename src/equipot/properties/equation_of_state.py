"""Equations of state: energies of a crystal at several volumes, and the curves through them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.eos import birchmurnaghan, murnaghan, pouriertarantola, vinet
from numpy.typing import NDArray
from scipy.optimize import curve_fit

from equipot.errors import SimulationError
from equipot.properties.elastic_tensor import require_crystal
from equipot.properties.elasticity import crystal_symmetry
from equipot.properties.settings import EosSettings
from equipot.properties.strained import FMAX, deformed, relax_ions, relax_shape, with_results
from equipot.units import EV_A3_TO_GPA

# E(V; E0, B0, B0', V0) as ASE has them; Birch-Murnaghan is that of third order.
FORMS: dict[str, Callable] = {
    "birch_murnaghan": birchmurnaghan,
    "vinet": vinet,
    "murnaghan": murnaghan,
    "poirier_tarantola": pouriertarantola,
}
_INSIDE = 0.2  # of the range of volumes, between its ends and the minimum


@dataclass(frozen=True)
class Fit:
    """One form through the energies, with standard errors of its parameters by the scatter."""

    form: str
    energy: float  # eV, at the minimum
    bulk_modulus: float  # GPa
    derivative: float  # ∂B/∂p
    volume: float  # Å³
    errors: tuple[float, float, float, float]  # of these four
    residuals: NDArray  # (K,) eV

    def __call__(self, volume: NDArray | float) -> NDArray:
        """(...) eV."""
        bulk = self.bulk_modulus / EV_A3_TO_GPA
        return FORMS[self.form](np.asarray(volume), self.energy, bulk, self.derivative, self.volume)

    def pressure(self, volume: NDArray) -> NDArray:
        """(...) GPa, −∂E/∂V by central differences."""
        step = 1e-4 * self.volume
        return -(self(volume + step) - self(volume - step)) / (2 * step) * EV_A3_TO_GPA


@dataclass(frozen=True)
class EquationOfState:
    """K volumes in ascending order; those of another phase are no part of the fits."""

    volumes: NDArray  # (K,) Å³
    energies: NDArray  # (K,) eV
    pressures: NDArray  # (K,) GPa, by the stress
    space_groups: tuple[str, ...]
    structures: tuple[Atoms, ...]
    phase: NDArray  # (K,) bool: has the symmetry of the start
    shape_relaxed: bool
    fits: dict[str, Fit]

    @property
    def best(self) -> Fit:
        return self.fits["birch_murnaghan"]

    @property
    def pressure_error(self) -> float:
        """GPa, the largest difference of pressures by the stress and by the fitted energies."""
        inside = self.phase
        return float(abs(self.best.pressure(self.volumes[inside]) - self.pressures[inside]).max())


def equation_of_state(
    atoms: Atoms,
    span: float = 0.06,
    points: int = 11,
    *,
    shape: str = "auto",
    fmax: float = FMAX,
    steps: int = 500,
    symprec: float = 1e-3,
) -> EquationOfState:
    """Relax a crystal with a calculator at ``points`` volumes, from 1 − ``span`` to 1 + ``span`` of its own.

    Ions are relaxed to ``fmax`` (eV/Å), from the neighboring volume outwards; the cell's shape too, at its
    volume, if ``shape`` is "relax", or "auto" and the crystal is not cubic. A volume at which another space
    group is found (within 10 ``symprec``, Å) and all beyond it are left out of the fits.

    Raises ConfigError for settings that make no sense, DataError for slabs and molecules, SimulationError if
    structures do not relax, too few volumes keep their symmetry, or the minimum is not well inside.
    """
    EosSettings(span=span, points=points, shape=shape)  # an error if they make no sense
    require_crystal(atoms, "Equations of state")
    start = crystal_symmetry(atoms, 10 * symprec)
    shaped = shape == "relax" or (shape == "auto" and start.crystal_class != "cubic")
    factors = np.linspace(1 - span, 1 + span, points)
    middle, found = points // 2, {}
    for k in [*range(middle, points), *reversed(range(middle))]:
        nearest = found.get(k - 1 if k > middle else k + 1, atoms).copy()
        nearest.calc = atoms.calc
        found[k] = with_results(at_volume(nearest, factors[k] * atoms.get_volume(), shaped, fmax, steps))
    structures = [found[k] for k in range(points)]
    groups = [crystal_symmetry(each, 10 * symprec).label for each in structures]
    phase = _same_phase(groups, start.label, middle)
    volumes = np.array([each.get_volume() for each in structures])
    energies = np.array([each.get_potential_energy() for each in structures])
    pressures = np.array([-each.get_stress()[:3].mean() * EV_A3_TO_GPA for each in structures])
    if phase.sum() < 5:
        changed = ", ".join(
            f"{g} at {v:.4g} Å³" for g, v in zip(groups, volumes, strict=True) if g != start.label
        )
        raise SimulationError(
            f"The crystal, {start.label}, is another one at most volumes once relaxed: {changed}. "
            "Give a smaller --span, or the phase that is stable."
        )
    fits = {form: fit(form, volumes[phase], energies[phase]) for form in FORMS}
    return EquationOfState(
        volumes, energies, pressures, tuple(groups), tuple(structures), phase, shaped, fits
    )


def at_volume(atoms: Atoms, volume: float, shape: bool, fmax: float = FMAX, steps: int = 500) -> Atoms:
    """A copy scaled to the volume (Å³) and relaxed."""
    scaled = deformed(atoms, np.eye(3) * (volume / atoms.get_volume()) ** (1 / 3))
    (relax_shape if shape else relax_ions)(scaled, fmax, steps, what=f"The structure at {volume:.5g} Å³")
    return scaled


def _same_phase(groups: list[str], start: str, middle: int) -> NDArray:
    """(K,) bool: what hangs together, around the middle, in the space group of the start."""
    same = np.array([group == start for group in groups])
    same[:middle] = np.minimum.accumulate(same[:middle][::-1])[::-1]
    same[middle:] = np.minimum.accumulate(same[middle:])
    return same


def fit(form: str, volumes: NDArray, energies: NDArray) -> Fit:
    """Least squares, from the parabola. Raises SimulationError if the minimum is not well inside."""
    low, high = volumes.min(), volumes.max()
    curve = np.polynomial.Polynomial.fit(volumes, energies, 2).convert()
    guess = -curve.coef[1] / (2 * curve.coef[2])
    if curve.coef[2] <= 0 or not low <= guess <= high:
        raise SimulationError(
            _one_sided(low, high, f"near {guess:.5g} Å³" if curve.coef[2] > 0 else "nowhere")
        )
    origin = energies.min()  # energies of whole atoms are 1e5 eV, and differences 1e-3
    begin = (curve(guess) - origin, 2 * guess * curve.coef[2], 4.0, guess)
    try:
        found, covariance = curve_fit(FORMS[form], volumes, energies - origin, begin, maxfev=10_000)
    except RuntimeError as error:
        raise SimulationError(f"No curve of the form {form} goes through the energies: {error}") from None
    energy, bulk, derivative, volume = map(float, found)
    if not low + _INSIDE * (high - low) <= volume <= high - _INSIDE * (high - low):
        raise SimulationError(_one_sided(low, high, f"at {volume:.5g} Å³"))
    errors = np.sqrt(np.diag(covariance)) * (1, EV_A3_TO_GPA, 1, 1)
    residuals = energies - origin - FORMS[form](volumes, *found)
    return Fit(
        form, energy + origin, bulk * EV_A3_TO_GPA, derivative, volume, tuple(errors.tolist()), residuals
    )


def _one_sided(low: float, high: float, where: str) -> str:
    return (
        f"The volumes, {low:.5g} to {high:.5g} Å³, lie on one side: the minimum is {where}, not well inside. "
        "Begin at the minimum (--relax), or give a larger --span."
    )
