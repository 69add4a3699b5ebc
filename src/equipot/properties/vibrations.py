"""``equipot vibrations``: normal modes of a molecule or an adsorbate, and its thermochemistry."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ase.io
import numpy as np
from ase import Atoms, units

from equipot.data.text import counted
from equipot.errors import SimulationError
from equipot.properties import normal_modes
from equipot.properties.normal_modes import Vibrations
from equipot.properties.output import Result, Table
from equipot.properties.settings import Common, VibrationSettings
from equipot.properties.start import Model, prepare
from equipot.properties.thermochemistry import thermochemistry

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SOFT = 100.0  # cm⁻¹; the harmonic entropy of slower modes is worth little
_FRAMES = 16  # of a period in modes.extxyz
_SWING = 0.3  # Å, the largest displacement shown
_BAR = 1e5  # Pa


def vibrations(
    structure: str | Path | Atoms,
    model: Model,
    common: Common | None = None,
    settings: VibrationSettings | None = None,
) -> Result:
    """Normal modes (`normal_modes.vibrations`), named where imaginary, and ideal-gas thermochemistry.

    Args:
        structure, model: as `prepare`; a molecule, or an adsorbate on a surface with fixed atoms.

    Raises what `prepare`, `normal_modes.vibrations` and `thermochemistry` raise; SimulationError if a saddle
    is expected (``settings.saddle``) and there is not one imaginary mode.
    """
    common, settings = common or Common(), settings or VibrationSettings()
    # The stress of a slab with its vacuum means nothing, and its cell stays.
    common = replace(common, keep_cell=common.relax, max_stress=np.inf)
    start = prepare(structure, model, common, keep_constraints=True)
    found = normal_modes.vibrations(start.atoms, settings.displacement)
    count = int(found.imaginary.sum())
    if settings.saddle and count != 1:
        raise SimulationError(
            f"{start.described['structure']} is no saddle of this model: expected one imaginary mode, found "
            f"{_waves(found, count) or 'none'}."
        )
    numbers = start.described | _numbers(found)
    if count == settings.saddle:
        numbers["thermochemistry"] = thermochemistry(
            found, settings.temperature, settings.pressure * _BAR,
            symmetry=settings.symmetry_number, spin=settings.spin,
        )  # fmt: skip
    return Result(
        "vibrations",
        numbers,
        [_summary(numbers, found), _checks(found), _thermo_text(numbers, settings)],
        [_modes_table(found), *_thermo_table(numbers)],
        {"spectrum.png": plot_spectrum(found)},
        {
            "modes.xyz": lambda path: write_vectors(found, path),
            "modes.extxyz": lambda path: write_swings(found, path),
        },
        _doubts(found, settings),
    )


def _numbers(found: Vibrations) -> dict[str, Any]:
    return {
        "geometry": found.geometry,
        "free_atoms": len(found.free),
        "wavenumbers_per_cm": found.wavenumbers,
        "energies_meV": 1e3 * found.energies,
        "imaginary_modes": int(found.imaginary.sum()),
        "zero_point_energy_eV": found.zero_point_energy,
        "translations_and_rotations_per_cm": found.rigid / units.invcm,
        "asymmetry_eV_per_A2": found.asymmetry,
        "change_with_half_the_displacement_per_cm": found.change,
        "modes_per_sqrt_u": found.modes,
        "hessian_eV_per_A2": found.hessian,
    }


def _waves(found: Vibrations, count: int) -> str:
    return ", ".join(f"{abs(wave):.0f}i cm⁻¹" for wave in found.wavenumbers[:count])


def _summary(numbers: dict[str, Any], found: Vibrations) -> str:
    count, waves = int(found.imaginary.sum()), found.wavenumbers
    kind = {0: "a minimum", 1: "a saddle of first order"}.get(
        count, "no minimum and no saddle of first order"
    )
    where = (
        f"with {counted(len(found.free), 'atom')} free"
        if found.geometry == "fixed"
        else f"a {found.geometry} molecule"
    )
    text = f"{numbers['formula']}, {where}, has {counted(len(waves), 'vibration')}"
    if len(waves) > count:
        text += f", from {waves[count]:.1f} to {waves[-1]:.1f} cm⁻¹"
    text += f"; it is {kind}"
    if count:
        text += f": {_waves(found, count)} imaginary"
    return f"{text}. The zero-point energy is {found.zero_point_energy:.4f} eV."


def _checks(found: Vibrations) -> str:
    text = (
        f"With half of the displacement alone frequencies change by at most {found.change:.2g} cm⁻¹; second "
        f"derivatives differ by at most {found.asymmetry:.2g} eV/Å² in the two orders."
    )
    if not len(found.rigid):
        return text
    largest = abs(found.rigid).max() / units.invcm
    return (
        f"{text} Translations and rotations were projected out; by themselves they would have at most "
        f"{largest:.2g} cm⁻¹, zero for exact forces at the exact minimum."
    )


def _thermo_text(numbers: dict[str, Any], settings: VibrationSettings) -> str:
    thermo = numbers.get("thermochemistry")
    if thermo is None:
        return (
            "No thermochemistry: there are imaginary modes. Of a saddle, --saddle leaves out the one it has."
        )
    if numbers["geometry"] == "fixed":
        return "Thermochemistry of harmonic oscillators alone (an adsorbate neither turns nor moves)."
    how = "as given" if settings.symmetry_number else "as found within 0.05 Å; --symmetry-number sets it"
    spin = "as given" if settings.spin is not None else "assumed; --spin sets it"
    return (
        f"Thermochemistry of an ideal gas, rigid rotor and harmonic oscillators: symmetry number "
        f"{thermo['symmetry_number']} ({how}), spin {thermo['spin']:g} ({spin})."
    )


def _doubts(found: Vibrations, settings: VibrationSettings) -> list[str]:
    texts, waves = [], found.wavenumbers
    if int(found.imaginary.sum()) > settings.saddle:
        texts.append("There are imaginary modes: relax along them (modes.extxyz shows how atoms move).")
    dropped = int(((found.energies <= 0) & ~found.imaginary).sum())
    if dropped:
        texts.append(
            f"{counted(dropped, 'mode')} of zero within the noise: left out of energies and entropies."
        )
    soft = int(((waves > 0) & (waves < _SOFT)).sum())
    if soft:
        texts.append(
            f"{counted(soft, 'mode')} below {_SOFT:.0f} cm⁻¹: harmonic entropies are worth little there."
        )
    rigid = abs(found.rigid).max(initial=0.0) / units.invcm
    if rigid > _SOFT:
        texts.append(
            f"Translations or rotations have {rigid:.0f} cm⁻¹: relax better (--relax), or take another model."
        )
    return texts


def _modes_table(found: Vibrations) -> Table:
    rows = []
    for k, (wave, mode) in enumerate(zip(found.wavenumbers, found.modes, strict=True)):
        moves = np.linalg.norm(mode, axis=1)
        strongest = [
            f"{found.atoms.symbols[i]}{i}" for i in np.argsort(-moves)[:4] if moves[i] > 0.3 * moves.max()
        ]
        shown = f"{abs(wave):.1f}{'i' if found.imaginary[k] else ''}"
        rows.append([k, shown, f"{1e3 * abs(found.energies[k]):.2f}", " ".join(strongest)])
    return Table("Vibrations", ["mode", "cm⁻¹", "meV", "atoms that move most"], rows)


def _thermo_table(numbers: dict[str, Any]) -> list[Table]:
    thermo = numbers.get("thermochemistry")
    if thermo is None:
        return []
    rows = [[name, f"{value:.6g}"] for name, value in thermo.items()]
    return [Table("Thermochemistry; energies with the potential energy of the model", ["", ""], rows)]


def write_vectors(found: Vibrations, path: Path) -> None:
    """Each mode as a frame of XYZ with the displacements as three more columns (Jmol, Avogadro, ...)."""
    frames = []
    for k, mode in enumerate(found.modes):
        lines = [
            f"{s:2s} " + " ".join(f"{x:12.6f}" for x in (*r, *u))
            for s, r, u in zip(found.atoms.symbols, found.atoms.positions, mode, strict=True)
        ]
        frames += [str(len(lines)), f"mode {k}, {_label(found, k)}", *lines]
    path.write_text("\n".join([*frames, ""]), encoding="utf-8")


def write_swings(found: Vibrations, path: Path) -> None:
    """One period of each mode after the other as extended XYZ."""
    frames = []
    for k, mode in enumerate(found.modes):
        swing = mode * _SWING / np.linalg.norm(mode, axis=1).max()
        for phase in np.sin(2 * np.pi * np.arange(_FRAMES) / _FRAMES):
            frame = found.atoms.copy()
            frame.set_constraint()
            frame.positions += phase * swing
            frame.info = {"mode": k, "wavenumber_per_cm": found.wavenumbers[k]}
            frames.append(frame)
    ase.io.write(path, frames, format="extxyz")


def _label(found: Vibrations, k: int) -> str:
    return f"{abs(found.wavenumbers[k]):.1f}{'i' if found.imaginary[k] else ''} cm^-1"


def plot_spectrum(found: Vibrations) -> "Figure":
    """Frequencies as lines, with their density; imaginary ones at negative numbers, in red."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.0), layout="constrained")
    axes, waves, width = figure.subplots(), found.wavenumbers, 15.0
    if len(waves):
        x = np.linspace(min(waves.min(), 0) - 100, waves.max() + 150, 1500)
        density = np.exp(-0.5 * ((x[:, None] - waves) / width) ** 2).sum(axis=1)
        axes.fill_between(x, density, color="#1f4e79", alpha=0.25, lw=0)
        axes.vlines(
            waves, 0, 1, color=["tab:red" if wrong else "#1f4e79" for wrong in found.imaginary], lw=1.2
        )
        axes.set(xlim=(x[0], x[-1]), ylim=(0, None))
    axes.set(xlabel="wavenumber (cm⁻¹), imaginary ones negative", ylabel="modes (15 cm⁻¹ wide)")
    axes.axvline(0, color="0.7", lw=0.8)
    return figure
