"""Molecular dynamics with a deployed model: from a structure file to trajectory, log, plot and ns/day."""

import logging
import math
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import ase.io
import ase.units
import numpy as np
from ase import Atoms
from ase.io.extxyz import write_extxyz
from ase.md.langevinbaoab import LangevinBAOAB
from ase.md.md import MolecularDynamics
from ase.md.velocitydistribution import Stationary, ZeroRotation
from ase.md.verlet import VelocityVerlet
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from equipot.errors import ConfigError, DataError, SimulationError
from equipot.files import atomic_write, naming_errors, write_json
from equipot.integrations.ase import EquipotCalculator
from equipot.integrations.md_report import COLUMNS, plot_log, read_log, summarize
from equipot.integrations.md_settings import MDSettings
from equipot.integrations.signals import StopRequest, stop_requests

FILES = ("trajectory.extxyz", "log.csv", "plot.png", "summary.json", "stopped.extxyz")
_BAROSTAT_TIME = 1000.0  # fs; slow against the vibrations, fast against a usual run


log = logging.getLogger("equipot")


@dataclass(frozen=True)
class MDResult:
    """Where the output is, and what `summarize` found."""

    directory: Path
    trajectory: Path
    log: Path
    plot: Path
    summary: dict[str, Any]


def run_md(
    structure: str | Path | Atoms,
    model: str | Path,
    output: str | Path,
    settings: MDSettings | None = None,
    *,
    supercell: tuple[int, int, int] = (1, 1, 1),
    device: str = "auto",
    skin: float = 0.5,
    overwrite: bool = False,
    console: Console | None = None,
) -> MDResult:
    """Run molecular dynamics from seeded Maxwell-Boltzmann velocities.

    nve: velocity Verlet. nvt: Langevin (BAOAB). npt: Langevin-Hoover (BAOAB), the cell keeps its shape.

    Args:
        structure: any file ASE reads (its last frame; ``file@0`` for the first), or Atoms.
        model: a deployed file.
        output: a folder, new or empty; receives trajectory.extxyz, log.csv, plot.png and summary.json.
        supercell: repetitions along the three lattice vectors.
        overwrite: replace the files of an earlier run in ``output``.

    Everything is checked before ``output`` is made. Raises ConfigError, DataError, UnknownSpeciesError,
    ModelFileError, DeviceError; SimulationError if the run explodes. Ctrl-C and SIGTERM end the run after
    the current step, with everything written, and then act as usual (KeyboardInterrupt, exit status 143).
    """
    settings, output, console = settings or MDSettings(), Path(output), console or Console(stderr=True)
    _check_output(output, overwrite)
    if not (math.isfinite(skin) and skin >= 0):
        raise ConfigError(f"--skin must be a length of at least 0 Å, found {skin}.")
    atoms = _repeat(_read_structure(structure), supercell)
    _check_structure(atoms, settings)
    calculator = EquipotCalculator(model, device=device, skin=skin)
    calculator.model.atom_types(atoms.numbers)
    atoms.calc = calculator
    atoms.get_potential_energy()  # a model or structure that cannot be evaluated fails here
    dynamics = _make_dynamics(atoms, settings)

    with naming_errors(output):
        output.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            (output / name).unlink(missing_ok=True)
    builds = calculator.neighbors.builds
    start = time.perf_counter()
    try:
        with stop_requests() as stop, naming_errors(output):
            steps = _run(dynamics, atoms, settings, output, console, stop)
    except BaseException:
        _plot_failed(output)
        raise
    seconds, builds = time.perf_counter() - start, calculator.neighbors.builds - builds
    rows = _plot(output)
    summary = summarize(rows, settings, steps, len(atoms), seconds, builds)
    write_json(output / "summary.json", summary)
    if stop.signal is not None:
        message = f"Stopped at step {steps} of {settings.steps}; what was done is in {output}."
        console.print(message, markup=False, highlight=False, soft_wrap=True)
        stop.leave()
    return MDResult(output, output / "trajectory.extxyz", output / "log.csv", output / "plot.png", summary)


def degrees_of_freedom(atoms: Atoms, ensemble: str) -> int:
    """How many momenta are free: all for Langevin; nve keeps the total and, without pbc, its moment."""
    if ensemble != "nve":
        return 3 * len(atoms)
    if atoms.pbc.any():
        return 3 * len(atoms) - 3
    inertia = atoms.get_moments_of_inertia()
    rotations = int((inertia > 1e-6 * max(inertia.max(), 1.0)).sum())  # 2 for linear molecules
    return 3 * len(atoms) - 3 - rotations


def _check_output(output: Path, overwrite: bool) -> None:
    if output.exists() and not output.is_dir():
        raise ConfigError(f"The output folder {output} is a file. Name another folder.")
    if output.is_dir() and any(output.iterdir()) and not overwrite:
        raise ConfigError(f"The output folder {output} is not empty. Name another, or give --overwrite.")


def _plot(output: Path) -> dict[str, np.ndarray]:
    """Draw the log, if it has rows; return it."""
    rows = read_log(output / "log.csv")
    if len(rows["step"]):
        with atomic_write(output / "plot.png") as temporary:
            plot_log(rows, temporary)
    return rows


def _plot_failed(output: Path) -> None:
    """A stopped run's plot shows how it went wrong; whatever fails here must not hide why it stopped."""
    try:
        _plot(output)
    except Exception as error:
        log.warning("No plot of the stopped run: %s", error)


def _read_structure(structure: str | Path | Atoms) -> Atoms:
    if isinstance(structure, Atoms):
        return structure.copy()
    file = Path(str(structure).partition("@")[0])
    if not file.is_file():
        found = "a folder" if file.is_dir() else "no such file"
        raise DataError(f"{file}: {found}. Expected a structure in a format that ASE reads.")
    try:
        atoms = ase.io.read(str(structure))
    except Exception as error:  # ASE's readers raise anything
        if _has_frames(file, structure):
            message = f"{structure}: {file} has no such frame."
            raise DataError(f"{message} FILE@0 is the first, FILE@-1 the last.") from None
        message = f"{structure}: ASE cannot read this structure ({type(error).__name__}: {error})."
        raise DataError(message) from None
    if not isinstance(atoms, Atoms):
        raise DataError(
            f"{structure}: this means {len(atoms)} frames, but a run starts from one. "
            "Name one, such as FILE@0 for the first or FILE@-1 for the last."
        )
    return atoms


def _has_frames(file: Path, structure: str | Path) -> bool:
    """Whether it is the frame number after the ``@`` that makes ``structure`` unreadable."""
    if str(file) == str(structure):
        return False
    try:
        return bool(ase.io.read(file, ":"))
    except Exception:
        return False


def _repeat(atoms: Atoms, supercell: tuple[int, int, int]) -> Atoms:
    for direction, (count, periodic) in enumerate(zip(supercell, atoms.pbc, strict=True)):
        if count < 1:
            raise ConfigError(f"supercell: expected three numbers of at least 1, found {supercell}.")
        if count > 1 and not periodic:
            raise ConfigError(
                f"supercell {supercell}: the structure is not periodic in direction {direction}."
            )
    return atoms.repeat(supercell)


def _check_structure(atoms: Atoms, settings: MDSettings) -> None:
    if len(atoms) < 2:
        raise DataError(f"Molecular dynamics needs at least 2 atoms, found {len(atoms)}.")
    if atoms.constraints:
        raise DataError("The structure has constraints, which these integrators do not keep. Remove them.")
    if settings.ensemble == "npt" and not (atoms.pbc.all() and atoms.cell.rank == 3):
        raise ConfigError(
            "npt needs a structure that is periodic in all three directions; "
            f"found pbc {atoms.pbc.tolist()} and a cell of rank {atoms.cell.rank}. Use nvt, or give a cell."
        )


def _make_dynamics(atoms: Atoms, settings: MDSettings) -> MolecularDynamics:
    """The integrator, after the initial velocities are drawn."""
    rng = np.random.default_rng(settings.seed)
    masses = atoms.get_masses()[:, None]
    thermal = np.sqrt(masses * ase.units.kB * settings.temperature)
    atoms.set_momenta(thermal * rng.standard_normal((len(atoms), 3)))
    timestep = settings.timestep * ase.units.fs
    if settings.ensemble == "nve":
        Stationary(atoms, preserve_temperature=False)
        if not atoms.pbc.any():
            ZeroRotation(atoms, preserve_temperature=False)
        return VelocityVerlet(atoms, timestep)
    pressure = {}
    if settings.ensemble == "npt":
        pressure = {
            "externalstress": -settings.pressure * ase.units.GPa,
            "hydrostatic": True,
            "P_tau": max(_BAROSTAT_TIME, 20.0 / settings.friction) * ase.units.fs,
        }
    with warnings.catch_warnings():
        # The barostat's mass follows from P_tau by ASE's rule; it warns of that each time.
        warnings.filterwarnings("ignore", message="Using heuristic P_mass")
        damping = ase.units.fs / settings.friction
        return LangevinBAOAB(
            atoms, timestep, temperature_K=settings.temperature, T_tau=damping, rng=rng, **pressure
        )


def _run(
    dynamics: MolecularDynamics,
    atoms: Atoms,
    settings: MDSettings,
    output: Path,
    console: Console,
    stop: StopRequest,
) -> int:
    """All steps, or those until a stop was requested; how many."""
    freedom = degrees_of_freedom(atoms, settings.ensemble)
    with ExitStack() as stack:
        table = stack.enter_context((output / "log.csv").open("w"))
        trajectory = stack.enter_context((output / "trajectory.extxyz").open("w"))
        progress = stack.enter_context(_progress(console))
        task = progress.add_task(settings.ensemble.upper(), total=settings.steps, state="")
        table.write(",".join(COLUMNS) + "\n")
        for step, good in enumerate(_steps(dynamics, atoms, settings.steps)):
            row = _measure(atoms, step, settings.timestep, freedom)
            problem = _problem(row, settings.temperature) if good is None else good
            if problem is not None:
                _write_stopped(output / "stopped.extxyz", atoms)
                raise SimulationError(_stop_message(step, settings, problem, output))
            stopping = stop.signal is not None  # asked once: a signal may come at any time
            if step % settings.log_interval == 0 or step == settings.steps or stopping:
                _record(table, trajectory, atoms, row)
                state = f"{row['temperature_K']:.0f} K, {row['potential_energy_eV']:.3f} eV"
                progress.update(task, completed=step, state=state)
            if stopping:
                break
    return step


def _steps(dynamics: MolecularDynamics, atoms: Atoms, steps: int) -> Iterator[str | None]:
    """Once for the start and once per step: None, or what went wrong inside the integrator."""
    run = dynamics.irun(steps)
    while True:
        try:
            next(run)
        except StopIteration:
            return
        except (DataError, SimulationError, ArithmeticError, ValueError, np.linalg.LinAlgError) as error:
            yield str(error).splitlines()[0].rstrip(".")
            return
        yield None


def _measure(atoms: Atoms, step: int, timestep: float, freedom: int) -> dict[str, float]:
    """One line of the log."""
    kinetic = atoms.get_kinetic_energy()
    results = atoms.calc.results
    potential = results.get("energy", np.nan)
    stress, volume, pressure = results.get("stress"), np.nan, np.nan
    if stress is not None:
        volume = atoms.get_volume()
        # Of the atoms' motion and of the forces.
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
    }


def _problem(row: dict[str, float], temperature: float) -> str | None:
    if not math.isfinite(row["total_energy_eV"]):
        return "the energy is not finite"
    limit = 10.0 * temperature + 2000.0  # far above any fluctuation, even of a small molecule
    if row["temperature_K"] > limit:
        return f"the temperature is {row['temperature_K']:.0f} K (limit {limit:.0f} K)"
    return None


def _record(table: TextIO, trajectory: TextIO, atoms: Atoms, row: dict[str, float]) -> None:
    # Energies with fixed decimals: a drift must not drown in reference energies of 1e5 eV.
    table.write(",".join(f"{row[c]:.9f}" if c.endswith("_eV") else f"{row[c]:.10g}" for c in COLUMNS) + "\n")
    frame = atoms.copy()
    frame.calc = atoms.calc
    frame.info = {"step": row["step"], "time_ps": row["time_ps"], "temperature_K": row["temperature_K"]}
    write_extxyz(trajectory, [frame])
    # Whoever watches the run, or finds it killed, sees whole frames.
    table.flush()
    trajectory.flush()


def _write_stopped(path: Path, atoms: Atoms) -> None:
    frame = atoms.copy()
    with atomic_write(path) as temporary:
        ase.io.write(temporary, frame)


def _stop_message(step: int, settings: MDSettings, problem: str, output: Path) -> str:
    last = (step - 1) // settings.log_interval * settings.log_interval
    good = f"The last good frame, of step {last}, is the last in {output / 'trajectory.extxyz'}. "
    return (
        f"Stopped at step {step} ({step * settings.timestep / 1000.0:.4g} ps): {problem}. "
        f"{good if step > 0 else ''}The atoms as they are now are in {output / 'stopped.extxyz'}. "
        "Usual reasons: structures unlike the training data, atoms too close at the start (relax them "
        f"first), a time step too long ({settings.timestep:g} fs)."
    )


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[state]}"),
        TimeRemainingColumn(),
        console=console,
    )
