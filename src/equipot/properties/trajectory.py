"""What spectra are made of, read from a trajectory or computed by a model along it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import BaseCalculator, PropertyNotImplementedError
from numpy.typing import NDArray

from equipot.errors import ConfigError, DataError
from equipot.integrations.ase import EquipotCalculator
from equipot.properties.settings import SpectrumSettings
from equipot.quantities import QUANTITIES
from equipot.units import COULOMB, size_in

_LARGEST_JUMP = 0.25  # of a quantum, between frames; more and it is not known which way a polarization went


@dataclass
class Signals:
    """Of F frames at equal intervals; None where the trajectory has none."""

    name: str
    interval: float  # fs
    temperature: float  # K
    atoms: Atoms  # the last frame
    frames: int
    volume: float | None  # Å³, the mean
    dipole: NDArray | None  # (F, 3) e Å
    polarizability: NDArray | None  # (F, 3, 3) Å³
    speeds: NDArray | None  # (F, N, 3) √eV: velocities × √mass


def read_signals(
    trajectory: str | Path | Iterable[Atoms], calculator: BaseCalculator | None, settings: SpectrumSettings
) -> Signals:
    """Raises DataError or ConfigError: no such file, other atoms, unequal times, too few frames."""
    name = str(trajectory) if isinstance(trajectory, str | Path) else "the trajectory"
    rows: dict[str, list[Any]] = {k: [] for k in ("dipole", "polarizability", "speeds", "time", "kelvin")}
    cells, first = [], None
    for number, atoms in enumerate(_frames(trajectory)):
        if number < settings.skip:
            continue
        first = atoms if first is None else first
        if not np.array_equal(atoms.numbers, first.numbers):
            raise DataError(f"{name}: frame {number} has other atoms than the first.")
        rows["time"].append(atoms.info.get("time_ps", np.nan))
        rows["kelvin"].append(atoms.info.get("temperature_K", np.nan))
        cells.append(atoms.cell.array)
        if atoms.has("momenta"):
            rows["speeds"].append(atoms.get_momenta() / np.sqrt(atoms.get_masses())[:, None])
        for kind, value in _responses(atoms, calculator, settings).items():
            rows[kind].append(value)
    count = len(cells)
    for kind in ("dipole", "polarizability", "speeds"):
        if rows[kind] and len(rows[kind]) < count:
            raise DataError(
                f"{name}: {len(rows[kind])} of {count} frames have {_words(kind)}; all must, or none."
            )
    for kind in ("dipole", "polarizability"):
        if not rows[kind] and getattr(settings, kind) != kind:
            raise ConfigError(
                f"--{kind} {getattr(settings, kind)}: {'the model' if calculator else name} has nothing of "
                "this name."
            )
    interval, used = _interval(name, np.array(rows["time"], dtype=float), settings)
    found = {k: np.array(rows[k][:used]) if rows[k] else None for k in ("dipole", "polarizability", "speeds")}
    cells = np.array(cells[:used])
    periodic = first.pbc.all() and abs(np.linalg.det(cells)).min() > 0
    if found["dipole"] is not None and periodic:
        found["dipole"] = continuous(found["dipole"], cells)
    temperature = _temperature(name, settings, np.array(rows["kelvin"][:used], dtype=float), found["speeds"])
    volume = float(abs(np.linalg.det(cells)).mean()) if periodic else None
    return Signals(name, interval, temperature, atoms, used, volume, **found)


def _frames(trajectory: str | Path | Iterable[Atoms]) -> Iterator[Atoms]:
    if not isinstance(trajectory, str | Path):
        yield from trajectory
        return
    if not Path(trajectory).is_file():
        raise DataError(f"There is no file {trajectory} with a trajectory.")
    try:
        yield from ase.io.iread(trajectory, ":")
    except (ase.io.formats.UnknownFileTypeError, OSError, ValueError, KeyError, IndexError) as error:
        raise DataError(f"{trajectory}: not read as a trajectory ({error}).") from None


def _responses(
    atoms: Atoms, calculator: BaseCalculator | None, settings: SpectrumSettings
) -> dict[str, NDArray]:
    """Dipole (e Å) and polarizability (Å³) of a frame, as far as there are any."""
    known = {**atoms.info, **(atoms.calc.results if atoms.calc else {})}
    given = {"dipole": settings.dipole_unit, "polarizability": settings.polarizability_unit}
    found = {}
    for kind, unit in given.items():
        name = getattr(settings, kind)
        value = known.get(name)
        if calculator is not None:
            has = name in calculator.implemented_properties
            try:
                value = calculator.get_property(name, atoms) if has else None
            except PropertyNotImplementedError as error:  # as of a dipole with charges in a periodic cell
                raise DataError(f"The model's {error}") from None
            if has and isinstance(calculator, EquipotCalculator):
                unit = "e*Ang" if name == "dipole" else QUANTITIES[name].unit
        if value is not None:
            shape = (3,) if kind == "dipole" else (3, 3)
            value = np.array(value, dtype=float)
            if value.size != 3 ** len(shape):
                raise DataError(f"'{name}' must have shape {shape}, found {value.shape}: is it a {kind}?")
            found[kind] = value.reshape(shape) * _factor(name, kind, unit)
    return found


def _factor(name: str, kind: str, unit: str) -> float:
    """To e Å, or Å³ (of a polarizability divided by 4πε0)."""
    try:
        size = size_in(unit, "e*Ang" if kind == "dipole" else "e^2*Ang^2/eV")
    except ConfigError as error:
        raise ConfigError(f"'{name}': {error}") from None
    return size if kind == "dipole" else size * COULOMB


def _interval(name: str, times: NDArray, settings: SpectrumSettings) -> tuple[float, int]:
    """fs between frames, and how many of them are that far apart; the last of a run may come early."""
    if len(times) < 4:
        raise DataError(f"{name}: a spectrum needs four frames at least, found {len(times)}.")
    if np.isnan(times).any():
        if settings.interval is None:
            raise ConfigError(f"{name} does not say when its frames are (time_ps): give --interval, in fs.")
        return settings.interval, len(times)
    steps = 1e3 * np.diff(times)
    usual = float(np.median(steps))
    used = len(times) - int(abs(steps[-1] - usual) > 1e-3 * usual)
    wrong = np.flatnonzero(abs(steps[: used - 1] - usual) > 1e-3 * usual)
    if usual <= 0 or len(wrong):
        where = int(wrong[0]) if len(wrong) else 0
        raise DataError(
            f"{name}: frames {where} and {where + 1} are {steps[where]:g} fs apart, others {usual:g} fs; a "
            "spectrum takes equal times."
        )
    if settings.interval is not None and abs(settings.interval - usual) > 1e-3 * usual:
        raise ConfigError(f"--interval is {settings.interval:g} fs, but {name} says {usual:g} fs.")
    return usual, used


def _temperature(name: str, settings: SpectrumSettings, kelvin: NDArray, speeds: NDArray | None) -> float:
    if settings.temperature is not None:
        return settings.temperature
    if not np.isnan(kelvin).any():
        return float(kelvin.mean())
    if speeds is None:
        raise ConfigError(f"{name} has neither temperatures nor velocities: give --temperature, in K.")
    atoms = speeds.shape[1]  # whose centre of mass is at rest
    return float((speeds**2).sum(axis=(1, 2)).mean() / (units.kB * (3 * atoms - 3 * (atoms > 1))))


def continuous(dipoles: NDArray, cells: NDArray) -> NDArray:
    """(F, 3) e Å of periodic cells (F, 3, 3), without jumps by quanta e × lattice vector from frame to frame.

    Raises DataError where it is not known by how much it went.
    """
    steps = np.einsum("fa,fab->fb", np.diff(dipoles, axis=0), np.linalg.inv(cells[1:]))
    small = steps - np.round(steps)
    if abs(small).max(initial=0.0) > _LARGEST_JUMP:
        raise DataError(
            f"The dipole changes by {abs(small).max():.2f} of its quantum between two frames: they are too "
            "far apart to follow it, or it is that of another cell."
        )
    return dipoles[0] + np.concatenate(
        [np.zeros((1, 3)), np.cumsum(np.einsum("fa,fab->fb", small, cells[1:]), 0)]
    )


def _words(kind: str) -> str:
    return {"speeds": "velocities", "dipole": "a dipole", "polarizability": "a polarizability"}[kind]
