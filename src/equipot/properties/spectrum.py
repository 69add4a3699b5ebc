"""``equipot spectrum``: infrared, Raman and vibrational densities of states of a trajectory."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import BaseCalculator
from numpy.typing import NDArray

from equipot import __version__
from equipot.errors import ConfigError
from equipot.integrations.ase import EquipotCalculator
from equipot.properties.correlation import LIGHT, density_of_rate, spectral_density
from equipot.properties.output import Result, Table, write_columns
from equipot.properties.settings import Common, SpectrumSettings
from equipot.properties.start import Model, describe_model
from equipot.properties.trajectory import Signals, read_signals

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# N_A e² / (12 ε0 c² u), in km/mol: intensity of a mode with a dipole derivative of 1 e/√u.
INTENSITY = units._Nav * units._e**2 / (12 * units._eps0 * units._c**2 * units._amu) / 1e3
_HIGH = 0.02  # of the highest; lower maxima are not listed
_SHOWN = {
    "infrared_km_per_mol_cm": "infrared (km/mol cm)",
    "raman_activity_A4_per_u_cm": "Raman activity (Å⁴/u cm)",
    "density_of_states_cm": "modes (cm)",
}


def spectrum(
    trajectory: str | Path | Iterable[Atoms],
    model: Model | None = None,
    common: Common | None = None,
    settings: SpectrumSettings | None = None,
) -> Result:
    """Spectra of what the trajectory has, or of what ``model`` computes along it (`spectra`).

    Args:
        trajectory: of `equipot md`, or another file that ASE reads: dipoles, polarizabilities, velocities.
        model: a deployed file with these outputs, or an ASE calculator.

    Raises what `read_signals` and `EquipotCalculator` raise; ConfigError if there is nothing to make a
    spectrum of.
    """
    common, settings = common or Common(), settings or SpectrumSettings()
    calculator = model
    if model is not None and not isinstance(model, BaseCalculator):
        calculator = EquipotCalculator(model, device=common.device)
    signals = read_signals(trajectory, calculator, settings)
    waves, columns = spectra(signals, settings)
    described = {"trajectory": signals.name, "formula": signals.atoms.get_chemical_formula()}
    described |= {} if calculator is None else describe_model(calculator, model)
    numbers = described | {
        "equipot_version": __version__,
        "frames": signals.frames,
        "interval_fs": signals.interval,
        "length_ps": signals.frames * signals.interval / 1e3,
        "temperature_K": signals.temperature,
        "resolution_per_cm": settings.resolution,
        "correction": settings.correction,
        "laser_nm": settings.laser,
        "wavenumbers_per_cm": waves,
        **columns,
    }
    return Result(
        "spectrum",
        numbers,
        [_text(numbers, signals)],
        [_peaks(waves, columns)],
        {"spectrum.png": plot(waves, columns)},
        {"spectrum.csv": lambda path: write_columns(path, {"wavenumber_per_cm": waves, **columns})},
        _doubts(signals, settings),
    )


def spectra(signals: Signals, settings: SpectrumSettings) -> tuple[NDArray, dict[str, NDArray]]:
    """(K,) cm⁻¹ and columns (K,) with a unit in each name.

    With S[x], the density of ẋ divided by kT: infrared N_A/(12 ε0 c²) S[M], by napierian logarithms; Raman
    S[a] of a third of the trace, S[γ] of γ² = 3/2 Tr β² of what is traceless, activity 45 S[a] + 7 S[γ],
    depolarised to polarised 3 S[γ] / (45 S[a] + 4 S[γ]); density of states S[√m r], whose integral is the
    number of modes. A classical oscillator has kT, so bands have the areas of the double-harmonic
    approximation at any temperature; other corrections multiply all but the last (Ramírez et al., J. Chem.
    Phys. 121, 3973 (2004)).
    """
    how = signals.interval, settings.resolution
    kt = units.kB * signals.temperature
    columns: dict[str, NDArray] = {}
    waves = np.zeros(0)
    if signals.dipole is not None:
        waves, found = density_of_rate(signals.dipole, *how)
        columns["infrared_km_per_mol_cm"] = INTENSITY * found / kt * _correction(waves, kt, settings)
    if signals.polarizability is not None:
        waves, raman = _raman(signals.polarizability, how, settings, kt)
        columns |= raman
    if signals.speeds is not None:
        symbols = np.array(signals.atoms.get_chemical_symbols())  # from the second frame on, as rates are
        each = {s: spectral_density(signals.speeds[1:, symbols == s], *how) for s in dict.fromkeys(symbols)}
        waves = next(iter(each.values()))[0]
        columns["density_of_states_cm"] = sum(found for _, found in each.values()) / kt
        if len(each) > 1:
            columns |= {f"density_of_states_{s}_cm": found / kt for s, (_, found) in each.items()}
    if not columns:
        raise ConfigError(
            f"{signals.name} has no '{settings.dipole}', no '{settings.polarizability}' and no velocities, "
            "and there is no model that predicts them: give --model, or --dipole and --polarizability as the "
            "outputs or the labels are called."
        )
    kept = waves <= settings.max_wavenumber
    if signals.volume is not None and "infrared_km_per_mol_cm" in columns:
        per_volume = 1e5 / (units._Nav * signals.volume * 1e-24)
        columns["absorption_per_cm"] = per_volume * columns["infrared_km_per_mol_cm"]
    return waves[kept], {name: column[kept] for name, column in columns.items()}


def _raman(
    polarizability: NDArray, how: tuple[float, float], settings: SpectrumSettings, kt: float
) -> tuple[NDArray, dict[str, NDArray]]:
    mean = np.trace(polarizability, axis1=1, axis2=2) / 3
    traceless = 0.5 * (polarizability + polarizability.swapaxes(1, 2)) - mean[:, None, None] * np.eye(3)
    waves, isotropic = density_of_rate(mean, *how)
    factor = _correction(waves, kt, settings) / kt
    isotropic = isotropic * factor
    anisotropic = 1.5 * density_of_rate(traceless, *how)[1] * factor
    activity = 45 * isotropic + 7 * anisotropic
    with np.errstate(divide="ignore", invalid="ignore"):
        quanta = -np.expm1(-_quantum(waves) / kt)
        intensity = activity * (1e7 / settings.laser - waves) ** 4 / (waves * quanta)
        ratio = 3 * anisotropic / (45 * isotropic + 4 * anisotropic)
        intensity[waves < settings.resolution] = np.nan  # diverges at 0, where rotations are
        intensity /= np.nanmax(intensity[waves <= settings.max_wavenumber], initial=0.0)
    return waves, {
        "raman_isotropic_A4_per_u_cm": isotropic,
        "raman_anisotropic_A4_per_u_cm": anisotropic,
        "raman_activity_A4_per_u_cm": activity,
        "raman_depolarisation_ratio": ratio,
        "raman_intensity_relative": intensity,
    }


def _quantum(waves: NDArray) -> NDArray:
    """eV of a quantum of these wavenumbers (cm⁻¹)."""
    return waves * units.invcm


def _correction(waves: NDArray, kt: float, settings: SpectrumSettings) -> NDArray:
    """Relative to the harmonic one, x / (1 − exp(−x)), x = ħω/kT, which cancels what the absorption has."""
    x = np.maximum(_quantum(waves) / kt, 1e-6)
    if settings.correction == "harmonic":
        return np.ones_like(x)
    factors = {"none": 1.0, "standard": 2 / (1 + np.exp(-x)), "schofield": np.exp(x / 2)}
    return -np.expm1(-x) / x * factors[settings.correction]


def _narrowest(signals: Signals) -> float:
    """cm⁻¹, the width of lines that follows from the length of the trajectory alone."""
    return 0.9 / (LIGHT * signals.frames * signals.interval)


def _text(numbers: dict[str, Any], signals: Signals) -> str:
    text = (
        f"{numbers['formula']}: {signals.frames} frames, {signals.interval:g} fs apart, "
        f"{numbers['length_ps']:.3g} ps in all, at {signals.temperature:.4g} K; lines are "
        f"{max(numbers['resolution_per_cm'], _narrowest(signals)):.3g} cm⁻¹ wide. "
    )
    how = (
        "Intensities of harmonic oscillators are those of quantum mechanics."
        if numbers["correction"] == "harmonic"
        else f"Quantum correction: {numbers['correction']}."
    )
    return text + how


def _doubts(signals: Signals, settings: SpectrumSettings) -> list[str]:
    texts = []
    width, shortest = settings.resolution, _narrowest(signals)
    if shortest > width:
        texts.append(f"The trajectory is too short for {width:g} cm⁻¹: lines are {shortest:.1f} cm⁻¹ wide.")
    highest = 0.5 / (LIGHT * signals.interval)
    if highest < settings.max_wavenumber:
        texts.append(
            f"Frames {signals.interval:g} fs apart hold nothing above {highest:.0f} cm⁻¹: what vibrates "
            "faster shows at a wrong place. Write frames more often."
        )
    return texts


def _peaks(waves: NDArray, columns: dict[str, NDArray]) -> Table:
    rows = []
    for name, called in _SHOWN.items():
        column = columns.get(name)
        if column is None:
            continue
        low, inner, high = column[:-2], column[1:-1], column[2:]
        top = (inner > low) & (inner >= high) & (inner > _HIGH * column.max())
        places = np.flatnonzero(top) + 1
        rows += [[called, f"{waves[i]:.1f}", float(column[i])] for i in places]
    return Table(f"Maxima above {100 * _HIGH:.0f} % of the highest", ["spectrum", "cm⁻¹", "height"], rows)


def plot(waves: NDArray, columns: dict[str, NDArray]) -> "Figure":
    """Infrared, Raman (with its isotropic part) and density of states, one above the other."""
    from matplotlib.figure import Figure

    shown = [(name, called) for name, called in _SHOWN.items() if name in columns]
    figure = Figure(figsize=(7.2, 0.8 + 2.0 * len(shown)), layout="constrained")
    for axes, (name, called) in zip(
        figure.subplots(len(shown), sharex=True, squeeze=False)[:, 0], shown, strict=True
    ):
        axes.fill_between(waves, columns[name], color="#1f4e79", alpha=0.25, lw=0)
        axes.plot(waves, columns[name], color="#1f4e79", lw=1.2, label="all")
        if name.startswith("raman"):
            part = 45 * columns["raman_isotropic_A4_per_u_cm"]
            axes.plot(waves, part, color="tab:red", lw=1, label="isotropic part")
            axes.legend(fontsize=8)
        for other in columns:
            if name.startswith("density") and other.startswith("density") and other != name:
                axes.plot(waves, columns[other], lw=1, label=other.split("_")[3])
                axes.legend(fontsize=8)
        axes.set(ylabel=called, ylim=(0, None), xlim=(0, waves[-1]))
    axes.set_xlabel("wavenumber (cm⁻¹)")
    return figure
