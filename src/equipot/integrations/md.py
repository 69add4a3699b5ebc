"""Molecular dynamics with a deployed model: from a structure file to trajectory, log, plot and ns/day."""

import logging
import math
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import ase.io
import numpy as np
from ase import Atoms
from ase.md.md import MolecularDynamics
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from equipot.data.structures import read_structure, repeated
from equipot.errors import ConfigError, DataError, SimulationError
from equipot.files import atomic_write, naming_errors, write_json
from equipot.integrations.ase import EquipotCalculator
from equipot.integrations.distances import TooClose
from equipot.integrations.md_dynamics import (
    check_constraints,
    degrees_of_freedom,
    make_integrator,
    set_velocities,
)
from equipot.integrations.md_report import columns_of, measure, plot_log, read_log, record, summarize
from equipot.integrations.md_restart import Restart, origin_of, platform_of, read_restart, write_restart
from equipot.integrations.md_settings import MDSettings
from equipot.integrations.signals import StopRequest, stop_requests

_GROWING = ("trajectory.extxyz", "log.csv")
FILES = (*_GROWING, "restart.npz", "plot.png", "summary.json", "stopped.extxyz")

log = logging.getLogger("equipot")


@dataclass(frozen=True)
class MDResult:
    """Where the output is, and what `summarize` found."""

    directory: Path
    trajectory: Path
    log: Path
    plot: Path
    summary: dict[str, Any]


@dataclass
class _Run:
    """A simulation at work, in its folder."""

    output: Path
    settings: MDSettings
    origin: dict[str, Any]
    atoms: Atoms
    dynamics: MolecularDynamics
    rng: np.random.Generator
    begun: dict[str, Any] | None = None  # progress of the run that is resumed
    start: float = 0.0
    freedom: int = 0  # degrees of it, decided at the start

    @property
    def first(self) -> int:
        return self.begun["step"] if self.begun else 0

    def progress(self) -> dict[str, Any]:
        """What the restart file says, of this invocation and those before it."""
        before = self.begun or {"seconds": 0.0, "builds": 0}
        return {
            "step": self.dynamics.nsteps,
            "freedom": self.freedom,
            "seconds": before["seconds"] + time.perf_counter() - self.start,
            "builds": before["builds"] + self.atoms.calc.neighbors.builds,
            "files": {name: (self.output / name).stat().st_size for name in _GROWING},
        }


def run_md(
    structure: str | Path | Atoms,
    model: str | Path,
    output: str | Path,
    settings: MDSettings | None = None,
    *,
    species_map: str | None = None,
    supercell: tuple[int, int, int] = (1, 1, 1),
    device: str = "auto",
    skin: float = 0.5,
    overwrite: bool = False,
    resume: bool = False,
    console: Console | None = None,
) -> MDResult:
    """Run molecular dynamics, from the structure's velocities or drawn ones.

    nve: velocity Verlet. nvt: Langevin (BAOAB), Nosé-Hoover chains or CSVR. npt: Langevin-Hoover (BAOAB) or
    Martyna-Tobias-Klein; the cell keeps its shape or stretches along the directions of a mask.

    Args:
        structure: any file that trainings read (its last frame; ``file@0`` for the first), or Atoms.
        model: a deployed file.
        output: a folder, new or empty; receives trajectory.extxyz, log.csv, restart.npz, plot.png and
            summary.json.
        species_map: elements of labels in the file, as ``HW=H,OW=O``.
        supercell: repetitions along the three lattice vectors.
        overwrite: replace the files of an earlier run in ``output``.
        resume: go on with the run in ``output``, with all else as before but for a larger number of steps,
            ``restart_interval`` and ``stop_below``; begin it if the folder is new or empty.

    A run that was interrupted, at whatever moment, and resumed on the same machine writes the same trajectory
    and log as one that was not, to the last bit.

    Everything is checked before ``output`` is made. Raises ConfigError, DataError, UnknownSpeciesError,
    ModelFileError, DeviceError; SimulationError if the run explodes or atoms come closer than
    ``stop_below``. Ctrl-C and SIGTERM end the run after the current step, with everything written, and then
    act as usual (KeyboardInterrupt, exit status 143).
    """
    settings, output, console = settings or MDSettings(), Path(output), console or Console(stderr=True)
    restart = _check_output(output, overwrite, resume)
    if not (math.isfinite(skin) and skin >= 0):
        raise ConfigError(f"--skin must be a length of at least 0 Å, found {skin}.")
    atoms = _atoms(structure, species_map, supercell, settings)
    calculator = EquipotCalculator(
        model, device=device, skin=skin, energy=settings.energy, field=settings.field, derivatives=False
    )
    calculator.model.require_energy("molecular dynamics")
    calculator.model.atom_types(atoms.numbers)
    _set_limits(calculator, settings)
    run = _prepare(atoms, calculator, settings, output, skin, restart)
    with naming_errors(output):
        _make_room(output, restart)
    try:
        with stop_requests() as stop, naming_errors(output):
            steps = _go_on(run, console, stop)
    except BaseException:
        try:  # the plot shows how it went wrong; whatever fails here must not hide why it stopped
            _plot(output)
        except Exception as error:
            log.warning("No plot of the stopped run: %s", error)
        raise
    progress, rows = run.progress(), _plot(output)
    summary = summarize(rows, settings, steps, len(atoms), progress["seconds"], progress["builds"])
    write_json(output / "summary.json", summary)
    if stop.signal is not None:
        done = f"Stopped at step {steps} of {settings.steps}; what was done is in {output}. --resume goes on."
        console.print(done, markup=False, highlight=False, soft_wrap=True)
        stop.leave()
    return MDResult(output, output / "trajectory.extxyz", output / "log.csv", output / "plot.png", summary)


def _atoms(
    structure: str | Path | Atoms,
    species_map: str | None,
    supercell: tuple[int, int, int],
    settings: MDSettings,
) -> Atoms:
    """What is simulated, checked."""
    atoms = read_structure(structure, species_map)
    if settings.velocities is None and atoms.get_momenta().any() and math.prod(supercell) > 1:
        raise ConfigError(
            f"supercell {supercell}: the structure has velocities, with which all copies would move alike. "
            "Give --velocities draw, or keep if that is wanted."
        )
    atoms = repeated(atoms, supercell)
    _check_structure(atoms, settings)
    return atoms


def _check_output(output: Path, overwrite: bool, resume: bool) -> Restart | None:
    """The run to go on with, if any."""
    if output.exists() and not output.is_dir():
        raise ConfigError(f"The output folder {output} is a file. Name another folder.")
    if overwrite and resume:
        raise ConfigError("--overwrite begins again and --resume goes on: give one of them.")
    if not output.is_dir() or not any(output.iterdir()) or overwrite:
        if resume:
            log.info("There is no run in %s to resume: it begins.", output)
        return None
    restart = output / "restart.npz"
    if resume and not restart.is_file():
        raise ConfigError(f"Nothing to resume: {output} is not empty and has no {restart.name}.")
    if not resume:
        other = "--overwrite, or --resume to go on" if restart.is_file() else "--overwrite"
        raise ConfigError(f"The output folder {output} is not empty. Name another, or give {other}.")
    return read_restart(restart)


def _make_room(output: Path, restart: Restart | None) -> None:
    output.mkdir(parents=True, exist_ok=True)
    for name in FILES if restart is None else ("stopped.extxyz",):
        (output / name).unlink(missing_ok=True)
    if restart is not None:
        restart.cut_files()
        read_log(output / "log.csv")  # an error now, not at the end


def _set_limits(calculator: EquipotCalculator, settings: MDSettings) -> None:
    """Tell the calculator which distances end the run."""
    if settings.stop_below is None:
        return
    watch = calculator.distances
    limits = settings.stop_limits(watch.shortest)
    if not limits:
        raise ConfigError(
            f"--stop-below {settings.stop_below} is a factor of the shortest distances in the training set, "
            "which this model file does not have. Give a distance, such as 0.8Å, or deploy a new training."
        )
    watch.stop_below(limits if isinstance(limits, dict) else {p: limits for row in watch.pairs for p in row})


def _prepare(
    atoms: Atoms,
    calculator: EquipotCalculator,
    settings: MDSettings,
    output: Path,
    skin: float,
    restart: Restart | None,
) -> _Run:
    """Atoms with velocities, and their integrator. A structure that cannot be evaluated fails here."""
    origin = origin_of(atoms, settings, [member.metadata for member in calculator.members], skin)
    rng = np.random.default_rng(settings.seed)
    if restart is not None:
        restart.require_same(origin, settings.steps)
        atoms = restart.atoms
        calculator.neighbors.restore(restart.geometry)
    run = _Run(output, settings, origin, atoms, None, rng, restart and restart.progress)
    atoms.calc = calculator
    calculator.report_distance = lambda found: _report(found, run)
    atoms.get_potential_energy()
    if restart is None:
        run.dynamics = _make_dynamics(atoms, settings, rng)
        run.freedom = degrees_of_freedom(atoms, settings.ensemble, settings.thermostat)
        return run
    run.dynamics, run.freedom = make_integrator(atoms, settings, rng), restart.progress["freedom"]
    restart.set_up(run.dynamics, rng)
    log.info("Resuming %s at step %d of %d.", output, run.first, settings.steps)
    here = platform_of(calculator)
    before = {name: value for name, value in restart.platform.items() if here.get(name) != value}
    changed = [f"{name} {value}, now {here.get(name, 'not used')}" for name, value in before.items()]
    if changed:
        log.warning("Not to the last bit as without the interruption: %s.", "; ".join(changed))
    return run


def _make_dynamics(
    atoms: Atoms, settings: MDSettings, rng: np.random.Generator | None = None
) -> MolecularDynamics:
    """The integrator, after velocities are set."""
    rng = np.random.default_rng(settings.seed) if rng is None else rng
    if atoms.constraints:
        names = ", ".join(sorted({type(constraint).__name__ for constraint in atoms.constraints}))
        free = atoms.get_number_of_degrees_of_freedom()
        log.info("Constraints are kept (%s): %d of %d coordinates are free.", names, free, 3 * len(atoms))
    log.info(set_velocities(atoms, settings, rng))
    return make_integrator(atoms, settings, rng)


def _report(found: TooClose, run: _Run) -> None:
    step = 0 if run.dynamics is None else run.dynamics.nsteps + 1
    if found.stop:
        raise SimulationError(f"{found}; --stop-below {run.settings.stop_below}.")
    log.warning("Step %d: %s.", step, found)


def _plot(output: Path) -> dict[str, np.ndarray]:
    """Draw the log, if it has rows; return it."""
    rows = read_log(output / "log.csv")
    if len(rows["step"]):
        with atomic_write(output / "plot.png") as temporary:
            plot_log(rows, temporary)
    return rows


def _check_structure(atoms: Atoms, settings: MDSettings) -> None:
    if len(atoms) < 2:
        raise DataError(f"Molecular dynamics needs at least 2 atoms, found {len(atoms)}.")
    check_constraints(atoms, settings)
    if settings.ensemble == "npt" and not (atoms.pbc.all() and atoms.cell.rank == 3):
        raise ConfigError(
            "npt needs a structure that is periodic in all three directions; "
            f"found pbc {atoms.pbc.tolist()} and a cell of rank {atoms.cell.rank}. Use nvt, or give a cell."
        )


def _go_on(run: _Run, console: Console, stop: StopRequest) -> int:
    """All steps that are left, or those until a stop was requested; the number of the last."""
    settings, atoms, output = run.settings, run.atoms, run.output
    run.start = time.perf_counter()
    atoms.calc.neighbors.builds = 0
    with ExitStack() as stack:
        trajectory, table = (stack.enter_context((output / name).open("a")) for name in _GROWING)
        progress = stack.enter_context(_progress(console))
        task = progress.add_task(settings.ensemble.upper(), total=settings.steps, state="")
        if run.begun is None:
            table.write(",".join(columns_of(atoms.calc.results)) + "\n")
            table.flush()
        columns = (output / "log.csv").read_text().partition("\n")[0].split(",")
        for step, good in enumerate(_steps(run.dynamics, settings.steps - run.first), run.first):
            row = measure(atoms, step, settings.timestep, run.freedom)
            problem = _problem(row, settings.temperature) if good is None else good
            if problem is not None:
                with atomic_write(output / "stopped.extxyz") as temporary:
                    ase.io.write(temporary, atoms.copy())
                raise SimulationError(_stop_message(step, settings, problem, output))
            stopping = stop.signal is not None  # asked once: a signal may come at any time
            last, regular = stopping or step == settings.steps, step % settings.log_interval == 0
            if regular and (run.begun is None or step > run.first):
                record(table, trajectory, atoms, row, columns)
            if step % settings.restart_interval == 0 or last:
                _write_restart(run, table, trajectory)
            if last and not regular:  # after the restart file: a run that goes on does not have it
                record(table, trajectory, atoms, row, columns)
            if regular or last:
                state = f"{row['temperature_K']:.0f} K, {row['potential_energy_eV']:.3f} eV"
                progress.update(task, completed=step, state=state)
            if stopping:
                break
    return step


def _write_restart(run: _Run, *files: TextIO) -> None:
    """After what is in the growing files has reached the disk."""
    for file in files:
        file.flush()
        os.fsync(file.fileno())
    write_restart(run.output / "restart.npz", run.origin, run.progress(), run.dynamics, run.rng)


def _steps(dynamics: MolecularDynamics, steps: int) -> Iterator[str | None]:
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


def _problem(row: dict[str, float], temperature: float) -> str | None:
    if not math.isfinite(row["total_energy_eV"]):
        return "the energy is not finite"
    limit = 10.0 * temperature + 2000.0  # far above any fluctuation, even of a small molecule
    if row["temperature_K"] > limit:
        return f"the temperature is {row['temperature_K']:.0f} K (limit {limit:.0f} K)"
    return None


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
