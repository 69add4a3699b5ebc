"""``equipot eos``: equation of state of a crystal."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import ase.io
import numpy as np
from ase import Atoms

from equipot.properties.elastic_tensor import elastic_tensor, require_crystal_in
from equipot.properties.elasticity import moduli
from equipot.properties.equation_of_state import EquationOfState, at_volume, equation_of_state
from equipot.properties.output import Result, Table
from equipot.properties.settings import Common, EosSettings
from equipot.properties.start import Model, prepare
from equipot.properties.strained import with_results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NAMES = {
    "birch_murnaghan": "Birch-Murnaghan",
    "vinet": "Vinet",
    "murnaghan": "Murnaghan",
    "poirier_tarantola": "Poirier-Tarantola",
}
_PARAMETERS = ("energy_eV", "bulk_modulus_GPa", "bulk_modulus_derivative", "volume_A3")  # as `Fit.errors`
_TOO_NARROW = 0.5  # standard error of B', or difference between forms; more is worth a word
_DISAGREE = 0.03  # of the bulk modulus


def eos(
    structure: str | Path | Atoms,
    model: Model,
    common: Common | None = None,
    settings: EosSettings | None = None,
) -> Result:
    """Energies at several volumes (`equation_of_state`), four forms through them, and how far they agree.

    The bulk modulus is compared with that of the elastic tensor of the crystal at the minimum: Reuss's if the
    shape of the cell was relaxed, else Voigt's.

    Args:
        structure, model: as `prepare`.

    Raises what `prepare`, `equation_of_state` and `elastic_tensor` raise.
    """
    common, settings = common or Common(), settings or EosSettings()
    require_crystal_in(structure, common.species_map, "Equations of state")
    start = prepare(structure, model, common, periodic=True)
    relaxing = {"fmax": settings.fmax, "steps": settings.steps}
    found = equation_of_state(
        start.atoms, settings.span, settings.points, shape=settings.shape, symprec=common.symprec, **relaxing
    )
    nearest = found.structures[int(abs(found.volumes - found.best.volume).argmin())].copy()
    nearest.calc = start.atoms.calc
    minimum = at_volume(nearest, found.best.volume, found.shape_relaxed, **relaxing)
    numbers = start.described | _numbers(found)
    if settings.elastic:
        of = moduli(elastic_tensor(minimum, (0.005, 0.01), symprec=common.symprec, **relaxing).tensor)
        mean = "reuss" if found.shape_relaxed else "voigt"
        numbers |= {"bulk_modulus_of_elastic_tensor_GPa": of[f"bulk_{mean}_GPa"], "mean_of_elastic": mean}
    minimum = with_results(minimum)
    return Result(
        "eos",
        numbers,
        [_summary(numbers, found), _checks(numbers, found)],
        [_forms_table(found), _volumes_table(found)],
        {"eos.png": plot_eos(found)},
        {
            "volumes.extxyz": lambda path: ase.io.write(path, list(found.structures), format="extxyz"),
            "minimum.extxyz": lambda path: ase.io.write(path, minimum, format="extxyz"),
        },
        _doubts(found, numbers),
    )


def _numbers(found: EquationOfState) -> dict[str, Any]:
    atoms = len(found.structures[0])
    fits = {
        form: {
            "volume_A3": fit.volume,
            "energy_eV": fit.energy,
            "bulk_modulus_GPa": fit.bulk_modulus,
            "bulk_modulus_derivative": fit.derivative,
            "standard_errors": dict(zip(_PARAMETERS, fit.errors, strict=True)),
            "residual_rms_meV_per_atom": _rms(fit.residuals) / atoms,
        }
        for form, fit in found.fits.items()
    }  # fmt: skip
    return {
        "volume_A3": found.best.volume,
        "volume_A3_per_atom": found.best.volume / atoms,
        "bulk_modulus_GPa": found.best.bulk_modulus,
        "bulk_modulus_derivative": found.best.derivative,
        "forms": fits,
        "shape_relaxed": found.shape_relaxed,
        "volumes_A3": found.volumes,
        "energies_eV": found.energies,
        "pressures_GPa": found.pressures,
        "space_groups": found.space_groups,
        "in_fit": found.phase,
        "cell_lengths_A": [each.cell.lengths() for each in found.structures],
        "cell_angles_degrees": [each.cell.angles() for each in found.structures],
        "pressure_error_GPa": found.pressure_error,
    }


def _rms(residuals: np.ndarray) -> float:
    return float(1e3 * np.sqrt((residuals**2).mean()))


def _summary(numbers: dict[str, Any], found: EquationOfState) -> str:
    best, others = found.best, [f for f in found.fits.values() if f is not found.best]
    moduli_ = [f.bulk_modulus for f in found.fits.values()]
    return (
        f"Equation of state of {numbers['formula']}, by Birch and Murnaghan in third order: the volume is "
        f"{best.volume:.3f} Å³ ({numbers['volume_A3_per_atom']:.3f} Å³ per atom), the bulk modulus "
        f"{best.bulk_modulus:.1f} GPa, its derivative by pressure {best.derivative:.2f}. With "
        f"{', '.join(_NAMES[f.form] for f in others)} the bulk modulus is {min(moduli_):.1f} to "
        f"{max(moduli_):.1f} GPa."
    )


def _checks(numbers: dict[str, Any], found: EquationOfState) -> str:
    how = "relaxed at each volume" if found.shape_relaxed else "kept"
    low, high = found.volumes[[0, -1]] / found.best.volume
    scatter = numbers["forms"]["birch_murnaghan"]["residual_rms_meV_per_atom"]
    text = (
        f"{len(found.volumes)} volumes from {low:.3f} to {high:.3f} of that; the cell's shape was {how}, "
        f"ions were relaxed. Energies are off the curve by {scatter:.2g} meV/atom (rms), pressures by the "
        f"stress are off its slope by at most {found.pressure_error:.2g} GPa."
    )
    if "mean_of_elastic" in numbers:
        other, mean = numbers["bulk_modulus_of_elastic_tensor_GPa"], numbers["mean_of_elastic"].capitalize()
        text += f" The elastic tensor at the minimum gives {other:.1f} GPa ({mean})."
    return text


def _doubts(found: EquationOfState, numbers: dict[str, Any]) -> list[str]:
    texts, best = [], found.best
    if not found.phase.all():
        others = zip(found.volumes, found.space_groups, found.phase, strict=True)
        named = ", ".join(f"{v:.2f} Å³ ({group})" for v, group, same in others if not same)
        texts.append(f"Another phase, or beyond one, and left out of the fits: {named}.")
    spread = np.ptp([fit.derivative for fit in found.fits.values()])
    if best.errors[2] > _TOO_NARROW or spread > _TOO_NARROW:
        texts.append(
            f"The derivative of the bulk modulus is uncertain: its standard error is {best.errors[2]:.2g}, "
            f"and forms differ by {spread:.2g}. Give a larger --span, more --points, a model of less noise."
        )
    elastic = numbers.get("bulk_modulus_of_elastic_tensor_GPa", best.bulk_modulus)
    if abs(elastic - best.bulk_modulus) > _DISAGREE * best.bulk_modulus:
        texts.append(
            "The bulk modulus differs from that of the elastic tensor: the curve is not smooth, or the range "
            "of volumes too wide for its form."
        )
    if found.pressure_error > _DISAGREE * abs(found.pressures).max():
        texts.append(
            "Pressures by the stress and by the energies differ: energies are not of this form (a kink, a "
            "change of the structure that keeps its symmetry, too wide a range)."
        )
    return texts


def _forms_table(found: EquationOfState) -> Table:
    atoms = len(found.structures[0])
    rows = [
        [
            *(_NAMES[form], f"{fit.volume:.4f}", f"{fit.errors[3]:.1g}", f"{fit.bulk_modulus:.2f}"),
            *(f"{fit.errors[1]:.1g}", f"{fit.derivative:.3f}", f"{fit.errors[2]:.1g}"),
            f"{_rms(fit.residuals) / atoms:.2g}",
        ]
        for form, fit in found.fits.items()
    ]
    columns = ["form", "V0 (Å³)", "±", "B0 (GPa)", "±", "B0'", "±", "rms (meV)"]
    return Table("Forms, with standard errors by the scatter; rms per atom", columns, rows)


def _volumes_table(found: EquationOfState) -> Table:
    rows = [
        [f"{volume:.4f}", f"{energy - found.best.energy:.6f}", f"{pressure:.3f}", group]
        for volume, energy, pressure, group in zip(
            found.volumes, found.energies, found.pressures, found.space_groups, strict=True
        )
    ]
    return Table("Volumes", ["V (Å³)", "E − E0 (eV)", "pressure (GPa)", "space group"], rows)


def plot_eos(found: EquationOfState) -> "Figure":
    """Energies with the curves, pressures by the stress, what the forms leave."""
    from matplotlib.figure import Figure

    atoms, best, inside = len(found.structures[0]), found.best, found.phase
    figure = Figure(figsize=(6.4, 7.2), layout="constrained")
    energy, pressure, left = figure.subplots(3, 1, sharex=True, height_ratios=[3, 2, 1.4])
    volumes = np.linspace(found.volumes.min(), found.volumes.max(), 300)
    for axes, curve, points in (
        (energy, 1e3 * (best(volumes) - best.energy) / atoms, 1e3 * (found.energies - best.energy) / atoms),
        (pressure, best.pressure(volumes), found.pressures),
    ):
        axes.plot(volumes / atoms, curve, color="0.5", lw=1, label="Birch-Murnaghan")
        axes.plot(found.volumes[inside] / atoms, points[inside], "o", color="#1f4e79", ms=4)
        axes.plot(
            found.volumes[~inside] / atoms, points[~inside], "x", color="tab:red", label="not in the fit"
        )
        axes.axvline(best.volume / atoms, color="0.8", lw=0.8, zorder=0)
    energy.set(
        ylabel="E − E0 (meV/atom)",
        title=f"{best.volume / atoms:.3f} Å³/atom, {best.bulk_modulus:.1f} GPa, B' {best.derivative:.2f}",
    )
    pressure.set(ylabel="pressure (GPa)")
    for form, fit in found.fits.items():
        left.plot(
            found.volumes[inside] / atoms,
            1e3 * fit.residuals / atoms,
            "o-",
            ms=2.5,
            lw=0.8,
            label=_NAMES[form],
        )
    left.axhline(0, color="0.8", lw=0.8, zorder=0)
    left.set(xlabel="volume (Å³/atom)", ylabel="E − fit (meV/atom)")
    left.margins(y=0.5)
    left.legend(fontsize=7, ncols=4, frameon=False, loc="upper center")
    return figure
