"""Relaxation of many structures at once, from files to a table and one file."""

import dataclasses
import hashlib
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from ase.io import jsonio
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from equipot.data.frames import check_distances, frame_from_atoms
from equipot.data.neighbors import neighbor_list
from equipot.data.structures import Found, read_structures
from equipot.data.text import counted
from equipot.deploy.ensemble import load_members
from equipot.deploy.load import DeployedModel
from equipot.devices import most_edges
from equipot.errors import ConfigError, DataError
from equipot.files import naming_errors
from equipot.integrations.packed import PackedList, PackedModel
from equipot.integrations.relax_batch import Batch, Task
from equipot.integrations.relax_files import FILES, JOURNAL, Journal, rows, write_results
from equipot.integrations.relax_settings import RelaxSettings
from equipot.integrations.settings import option_of
from equipot.integrations.signals import StopRequest, stop_requests
from equipot.quantities import FIELD

_SAVE = 60.0  # s between records of structures on their way
_KEPT = {"FixAtoms", "FixCartesian", "FixScaled", "FixedPlane", "FixedLine"}
_NAMED = 5  # structures in a message

log = logging.getLogger("equipot")


@dataclass(frozen=True)
class Relaxed:
    """Where the output is, and the table: a row for each structure, in the order of the input."""

    directory: Path
    table: list[dict[str, Any]]

    @property
    def converged(self) -> bool:
        """Whether all are."""
        return all(row["converged"] for row in self.table)


def run_relax(
    structures: Sequence[str | Path | Atoms],
    model: str | Path | DeployedModel | Sequence[str | Path | DeployedModel],
    output: str | Path,
    settings: RelaxSettings | None = None,
    *,
    species_map: str | None = None,
    device: str = "auto",
    engine: str = "auto",
    skin: float = 0.5,
    max_edges: int | None = None,
    overwrite: bool = False,
    console: Console | None = None,
) -> Relaxed:
    """Relax structures to the next minimum of the energy, many of them in each evaluation.

    Args:
        structures: files that trainings read (all frames; of ``FILE@N`` one), or Atoms.
        model: a deployed file, or an ensemble, whose mean counts.
        output: a folder; receives relaxed.extxyz, results.json, results.csv and progress.jsonl. If it holds
            the same relaxation, interrupted at whatever moment or with fewer ``steps``, that one goes on.
        species_map: elements of labels in the files, as ``HW=H,OW=O``.
        device, engine: as of `EquipotCalculator`.
        skin: Å, that neighbor lists reach beyond the cutoff.
        max_edges: in one evaluation, but for one large structure; None: as suits the device.
        overwrite: replace what is in ``output``.

    Everything is checked before ``output`` is made. A structure that fails on the way is in the table with
    its reason, and the others go on.

    Raises ConfigError, DataError, UnknownSpeciesError, ModelFileError, DeviceError. Ctrl-C and SIGTERM end it
    after the current step, with everything written, and then act as usual.
    """
    settings, output = settings or RelaxSettings(), Path(output)
    if not (np.isfinite(skin) and skin >= 0):
        raise ConfigError(f"--skin must be a length of at least 0 Å, found {skin}.")
    if max_edges is not None and max_edges < 1:
        raise ConfigError(f"--max-edges must be at least 1, found {max_edges}.")
    members = load_members(model, device, engine)
    for member in members:
        member.require_energy("relaxation")
        member.require_capsule()
    found = _found(structures, species_map)
    tasks = _tasks(found, members[0], settings)
    origin = _origin(found, members, settings)
    with naming_errors(output):
        journal = _journal(output, origin, found, tasks, overwrite)
    limit = max_edges or most_edges(members[0].device)
    batch = Batch(PackedModel(members, skin), settings)
    with stop_requests() as stop, naming_errors(output):
        _go_on(batch, tasks, limit, journal, stop, console or Console(stderr=True))
        if stop.signal is not None and any(task.state == "running" for task in tasks):
            log.warning("Stopped; what was done is in %s, and the same command goes on from there.", output)
            stop.leave()
    about = {name: origin[name] for name in origin if name != "structures"}
    table = rows(found, tasks)
    with naming_errors(output):
        write_results(output, about, table, found, tasks)
    _warn(table)
    return Relaxed(output, table)


def _found(structures: Sequence[str | Path | Atoms], species_map: str | None) -> list[Found]:
    found: list[Found] = []
    for number, one in enumerate(structures):
        if isinstance(one, Atoms):
            atoms = one.copy()
            frame_from_atoms(atoms, file="structures", index=number)
            found.append(Found("structures", number, atoms))
        else:
            found += read_structures([one], species_map)
    if not found:
        raise DataError("No structure is given.")
    if any(np.any(one.atoms.info.get(FIELD.name, 0)) for one in found):
        log.warning("Structures have an %s, which is not used: they are relaxed in none.", FIELD.name)
    return found


def _tasks(found: Sequence[Found], model: DeployedModel, settings: RelaxSettings) -> list[Task]:
    """Raises DataError that names those that cannot be relaxed."""
    tasks, problems = [], []
    for number, place in enumerate(found):
        try:
            tasks.append(_task(number, place, model, settings))
        except DataError as error:
            said = str(error) if place.where in str(error) else f"{place.where}: {error}"
            problems.append((type(error), said))
    if len(problems) == 1:
        raise problems[0][0](problems[0][1])
    if problems:
        more = len(problems) - _NAMED
        lines = [text for _, text in problems[:_NAMED]] + ([f"and {more} more"] if more > 0 else [])
        raise problems[0][0](
            f"{len(problems)} of {counted(len(found), 'structure')} cannot be relaxed:\n  "
            + "\n  ".join(lines)
        )
    return tasks


def _task(number: int, place: Found, model: DeployedModel, settings: RelaxSettings) -> Task:
    atoms = place.atoms
    types = model.atom_types(atoms.numbers)
    positions, cell, pbc = atoms.positions.copy(), atoms.cell.array.copy(), atoms.pbc.copy()
    frame = frame_from_atoms(atoms, file=place.file, index=place.index)
    check_distances(frame, *neighbor_list(positions, cell, pbc, cutoff=3.0))
    if settings.cell and not (pbc.all() and atoms.cell.rank == 3):
        raise DataError(
            f"{place.where}: --cell needs structures that are periodic in all three directions; found pbc "
            f"{pbc.tolist()} and a cell of rank {atoms.cell.rank}. Relax it without, or give it a cell (a "
            "slab one with vacuum, and --mask 1 1 0)."
        )
    free = free_directions(atoms)
    return Task(number, types, covalent_radii[atoms.numbers], positions, cell, pbc, free)


def free_directions(atoms: Atoms) -> NDArray[np.float64] | None:
    """(N, 3, 3) projectors onto the directions in which constraints let each atom move; None without any.

    Raises:
        DataError: constraints that are not about directions of single atoms.
    """
    names = {type(constraint).__name__ for constraint in atoms.constraints}
    if names - _KEPT:
        raise DataError(
            f"The structure has constraints of the kind {', '.join(sorted(names - _KEPT))}, which a "
            f"relaxation here does not keep (it keeps {', '.join(sorted(_KEPT))}). Remove them, or relax it "
            "with ASE."
        )
    if not names:
        return None
    fixed = np.zeros((len(atoms), 3, 3))
    for constraint in atoms.constraints:
        moves = np.empty((len(atoms), 3, 3))  # what is left of a step along each axis, in columns
        for axis in range(3):
            moved = atoms.positions + np.eye(3)[axis]
            constraint.adjust_positions(atoms, moved)
            moves[:, :, axis] = moved - atoms.positions
        fixed += np.eye(3) - moves @ np.linalg.pinv(moves, rcond=1e-9)
    return np.eye(3) - fixed @ np.linalg.pinv(fixed, rcond=1e-9)


def _origin(
    found: Sequence[Found], members: Sequence[DeployedModel], settings: RelaxSettings
) -> dict[str, Any]:
    """What makes two relaxations the same."""
    digest = hashlib.sha256()
    for place in found:
        atoms = place.atoms
        digest.update(jsonio.encode([constraint.todict() for constraint in atoms.constraints]).encode())
        for values in (atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc):
            digest.update(np.ascontiguousarray(values).tobytes())
    chosen = {option_of(field): getattr(settings, field.name) for field in dataclasses.fields(settings)}
    model = [f"{one.metadata.weights_sha256[:16]} {json.dumps(one.metadata.tables)}" for one in members]
    structures = f"{len(found)}, digest {digest.hexdigest()[:16]}"
    return json.loads(json.dumps({**chosen, "model": model, "structures": structures}))


def _journal(
    output: Path, origin: dict[str, Any], found: Sequence[Found], tasks: Sequence[Task], overwrite: bool
) -> Journal:
    if output.exists() and not output.is_dir():
        raise ConfigError(f"The output folder {output} is a file. Name another folder.")
    journal = Journal(output / JOURNAL)
    if output.is_dir() and any(output.iterdir()) and not overwrite:
        if not journal.path.is_file():
            raise ConfigError(f"The output folder {output} is not empty. Name another, or give --overwrite.")
        journal.resume(origin, tasks)
        for place, task in zip(found, tasks, strict=True):
            if task.free is not None:  # fixed fractions follow the cell
                place.atoms.set_cell(task.cell, scale_atoms=True)
                task.free = free_directions(place.atoms)
        done = sum(task.state != "running" for task in tasks)
        log.info("Going on in %s, where %d of %s are done.", output, done, counted(len(tasks), "structure"))
        return journal
    output.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        (output / name).unlink(missing_ok=True)
    journal.begin(origin)
    return journal


def _go_on(
    batch: Batch, tasks: Sequence[Task], limit: int, journal: Journal, stop: StopRequest, console: Console
) -> None:
    """Until none is running, or a stop was requested."""
    waiting = [task for task in tasks if task.state == "running"][::-1]
    saved, keep = time.monotonic(), []
    with _progress(console) as progress:
        shown = progress.add_task("Relaxing", total=len(tasks), completed=len(tasks) - len(waiting))
        while stop.signal is None:
            kept = [task for task, running in zip(batch.tasks, keep, strict=True) if running]
            batch.change(keep, _next(waiting, kept, limit, batch.model.neighbors))
            if not batch.tasks:
                return
            keep = [True] * len(batch.tasks)
            while all(keep) and stop.signal is None:
                keep = batch.step()
                if time.monotonic() - saved > _SAVE:
                    journal.add([task for task in batch.tasks if task.state == "running"])
                    saved = time.monotonic()
            ended = [task for task in batch.tasks if task.state != "running"]
            journal.add(batch.tasks if stop.signal is not None else ended)
            progress.advance(shown, len(ended))


def _next(waiting: list[Task], kept: Sequence[Task], limit: int, neighbors: PackedList) -> list[Task]:
    """Taken from the end of ``waiting``, as many as there is room for beside those ``kept``; one at least."""
    new, reach = [], neighbors.cutoff + neighbors.skin
    room = limit - sum(task.estimate(reach) for task in kept)
    while waiting and ((room := room - waiting[-1].estimate(reach)) >= 0 or not (new or kept)):
        new.append(waiting.pop())
    return new


def _progress(console: Console) -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    return Progress(*columns, console=console)


def _warn(table: Sequence[dict[str, Any]]) -> None:
    close = [row for row in table if row["closer_than_training"]]
    if close:
        log.warning(
            "Closer than anything the model was trained on, in %s: index %d, %s.",
            counted(len(close), "relaxed structure"), close[0]["index"], close[0]["closer_than_training"],
        )  # fmt: skip
    for row in [row for row in table if row["state"] == "failed"][:_NAMED]:
        log.warning(
            "Failed: index %d (%s, frame %d): %s.", row["index"], row["file"], row["frame"], row["problem"]
        )
