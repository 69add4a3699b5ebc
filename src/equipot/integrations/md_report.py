"""The log of a simulation: its rows, its plot, its summary."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import ase.units
import numpy as np
from ase import Atoms
from ase.io.extxyz import write_extxyz
from rich.table import Table

from equipot.errors import DataError
from equipot.integrations.md_dynamics import RIGID
from equipot.integrations.md_settings import MDSettings

COLUMNS = (
    "step",
    "time_ps",
    "potential_energy_eV",
    "kinetic_energy_eV",
    "total_energy_eV",
    "temperature_K",
    "volume_A3",
    "pressure_GPa",
)
_UNCERTAINTIES = ("energy_uncertainty", "energy_std")  # of ASE's results, where the model gives them
_ROWS_FOR_DRIFT = 10  # a line through fewer rows says more of the vibrations than of the drift
_LABELS = {
    "time_ps": "time (ps)",
    "wall_time_s": "wall time (s)",
    "ns_per_day": "speed (ns/day)",
    "mean_temperature_K": "mean temperature (K)",
    "drift_meV_per_atom_per_ps": "total energy, drift (meV/atom/ps)",
    "drift_meV_per_atom": "total energy, drift over the run (meV/atom)",
    "fluctuation_meV_per_atom": "total energy, fluctuation (meV/atom)",
    "mean_pressure_GPa": "mean pressure (GPa)",
    "mean_volume_A3": "mean volume (Å³)",
}


def read_log(path: str | Path) -> dict[str, np.ndarray]:
    """Columns of a log.csv by name, (rows,) each; volume and pressure are NaN without a full cell.

    Raises DataError if it is none.
    """
    # What follows the last line end is torn: the run was killed or the disk full.
    try:
        header, *lines = Path(path).read_text().rpartition("\n")[0].splitlines() or [",".join(COLUMNS)]
        names = header.split(",")
        rows = np.array([line.split(",") for line in lines], dtype=np.float64).reshape(-1, len(names))
        if names[: len(COLUMNS)] != list(COLUMNS):
            raise ValueError(f"the first line is '{header[:60]}'")
    except ValueError as error:
        raise DataError(
            f"{path}: expected the log of a simulation, {','.join(COLUMNS[:2])},... and numbers below, but "
            f"found: {error}. Put the whole file back, or start a new run."
        ) from None
    return dict(zip(names, rows.T, strict=True))


def columns_of(results: Mapping[str, Any]) -> list[str]:
    """Of the log of a run that begins with these results of ASE."""
    return [*COLUMNS, *(f"{name}_eV" for name in _UNCERTAINTIES if name in results)]


def summarize(
    log: dict[str, np.ndarray],
    settings: MDSettings,
    steps: int,
    num_atoms: int,
    seconds: float,
    list_builds: int,
) -> dict[str, Any]:
    """Speed, averages over the logged steps and, for nve, the drift of the total energy.

    ``steps`` is what was done, fewer than `settings.steps` if the run was interrupted.
    """
    simulated = steps * settings.timestep  # fs
    summary = {
        "ensemble": settings.ensemble,
        "atoms": num_atoms,
        "steps": steps,
        "steps_requested": settings.steps,
        "time_ps": simulated / 1000.0,
        "wall_time_s": seconds,
        "ns_per_day": simulated * 1e-6 / seconds * 86400.0,
        "steps_per_neighbor_list": steps / max(list_builds, 1),
        "mean_temperature_K": float(log["temperature_K"].mean()),
    }
    if settings.ensemble == "nve" and len(log["step"]) >= _ROWS_FOR_DRIFT:
        summary |= energy_drift(log["time_ps"], log["total_energy_eV"], num_atoms)
    if np.isfinite(log["pressure_GPa"]).all():
        summary["mean_pressure_GPa"] = float(log["pressure_GPa"].mean())
        summary["mean_volume_A3"] = float(log["volume_A3"].mean())
    return summary


def energy_drift(time: np.ndarray, energy: np.ndarray, num_atoms: int) -> dict[str, float]:
    """Straight line through the total energy: its slope, its rise over the run, the scatter about it.

    time (rows,) ps, energy (rows,) eV.
    """
    per_atom = 1e3 * (energy - energy[0]) / num_atoms
    slope, offset = np.polyfit(time, per_atom, 1) if len(time) > 1 else (0.0, 0.0)
    scatter = float((per_atom - slope * time - offset).std())
    return {
        "drift_meV_per_atom_per_ps": float(slope),
        "drift_meV_per_atom": float(slope * (time[-1] - time[0])),
        "fluctuation_meV_per_atom": scatter,
    }


def summary_table(summary: dict[str, Any]) -> Table:
    """For printing: one line per entry."""
    table = Table(show_header=False, box=None)
    for name, value in summary.items():
        label = _LABELS.get(name, name.replace("_", " "))
        table.add_row(label, f"{value:.4g}" if isinstance(value, float) else str(value))
    return table


def plot_log(log: dict[str, np.ndarray], path: Path) -> None:
    """Temperature, energies relative to the start, and volume where there is one, against time."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    time, has_volume = log["time_ps"], np.ptp(log["volume_A3"]) > 0  # False for NaN
    figure = Figure(figsize=(7, 7.5 if has_volume else 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(3 if has_volume else 2, 1, sharex=True)
    axes[0].plot(time, log["temperature_K"], color="tab:red", lw=1)
    axes[0].set_ylabel("temperature (K)")
    for name, color in (("potential", "tab:blue"), ("kinetic", "tab:orange"), ("total", "black")):
        energy = log[f"{name}_energy_eV"]
        axes[1].plot(time, energy - energy[0], color=color, lw=1, label=name)
    axes[1].set_ylabel("energy − start (eV)")
    axes[1].legend(loc="best", ncols=3)
    if has_volume:
        axes[2].plot(time, log["volume_A3"], color="tab:green", lw=1)
        axes[2].set_ylabel("volume (Å³)")
        axes[2].ticklabel_format(axis="y", useOffset=False)
    axes[-1].set_xlabel("time (ps)")
    for ax in axes:
        ax.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def measure(atoms: Atoms, step: int, timestep: float, freedom: int) -> dict[str, float]:
    """One line of the log: `COLUMNS`, and how uncertain the energy is where the model knows it."""
    kinetic = atoms.get_kinetic_energy()
    results = atoms.calc.results
    potential = results.get("energy", np.nan) + sum(
        constraint.adjust_potential_energy(atoms)
        for constraint in atoms.constraints
        if hasattr(constraint, "adjust_potential_energy")
    )
    stress, volume, pressure = results.get("stress"), np.nan, np.nan
    if stress is not None:
        volume = atoms.get_volume()
        # Of the atoms' motion and of the forces; those that keep bonds rigid are not known.
        if not {type(constraint).__name__ for constraint in atoms.constraints} & RIGID:
            pressure = (2.0 * kinetic / (3.0 * volume) - stress[:3].mean()) / ase.units.GPa
    return {
        "step": step,
        "time_ps": step * timestep / 1000.0,
        "potential_energy_eV": potential,
        "kinetic_energy_eV": kinetic,
        "total_energy_eV": potential + kinetic,
        "temperature_K": 2.0 * kinetic / (freedom * ase.units.kB),
        "volume_A3": volume,
        "pressure_GPa": pressure,
        **{f"{name}_eV": results[name] for name in _UNCERTAINTIES if name in results},
    }


def record(
    table: TextIO, trajectory: TextIO, atoms: Atoms, row: dict[str, float], columns: Sequence[str]
) -> None:
    """Add a line to the log and a frame to the trajectory."""
    # Energies with fixed decimals: a drift must not drown in reference energies of 1e5 eV.
    # A run may go on where the uncertainty is not given.
    numbers = ((row.get(c, np.nan), ".9f" if c.endswith("_eV") else ".10g") for c in columns)
    table.write(",".join(f"{value:{digits}}" for value, digits in numbers) + "\n")
    frame = atoms.copy()
    frame.calc = atoms.calc
    frame.info = {"step": row["step"], "time_ps": row["time_ps"], "temperature_K": row["temperature_K"]}
    frame.info |= {name.removesuffix("_eV"): row[name] for name in row.keys() - COLUMNS}
    write_extxyz(trajectory, [frame])
    # Whoever watches the run, or finds it killed, sees whole frames.
    table.flush()
    trajectory.flush()
