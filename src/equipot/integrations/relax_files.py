"""What a relaxation writes: a journal that grows while it runs, and at the end structures and a table."""

import csv
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from rich.table import Table

from equipot.data.structures import Found
from equipot.errors import ConfigError, DataError
from equipot.files import atomic_write, write_json, write_text
from equipot.integrations.relax_batch import Task
from equipot.quantities import KEYS
from equipot.units import EV_A3_TO_GPA, stress_to_voigt

JOURNAL, TABLE, STRUCTURES = "progress.jsonl", "results", "relaxed.extxyz"
FILES = (JOURNAL, f"{TABLE}.json", f"{TABLE}.csv", STRUCTURES)
_FORMAT = 1
_VALUES = ("steps", "state", "problem", "energy", "energy_before", "volume_before", "alone",
           "largest_force", "largest_stress", "closer")  # fmt: skip
_ARRAYS = ("positions", "cell", "forces", "virial")
SHOWN = 40  # rows of a table on the terminal


class Journal:
    """A line for each structure that has ended, or has been on its way for a while; the last one counts.

    The first line says what is done, of which ``steps`` may be more when it goes on. A line that a kill has
    cut is removed.
    """

    def __init__(self, path: Path):
        self.path = path

    def begin(self, origin: Mapping[str, Any]) -> None:
        write_text(self.path, json.dumps({"format": _FORMAT, **origin}) + "\n")

    def resume(self, origin: Mapping[str, Any], tasks: Sequence[Task]) -> None:
        """Bring ``tasks`` to where they were.

        Raises:
            ConfigError: the journal is of something else.
            DataError: damaged, or of a newer format.
        """
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        try:
            first, *lines = [json.loads(line) for line in content[:whole].splitlines()]
            known = first.pop("format")
            if known > _FORMAT:
                raise DataError(f"{self.path}: its format is {known}, newer than this equipot's. Upgrade it.")
            self._require_same(first, origin)
            for line in lines:
                task = tasks[line["number"]]
                for name in _VALUES:
                    setattr(task, name, line[name])
                for name in _ARRAYS:
                    setattr(task, name, np.array(line[name], np.float64).reshape(-1, 3))
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise DataError(
                f"{self.path}: damaged ({type(error).__name__}: {error}). Begin again with --overwrite."
            ) from None
        os.truncate(self.path, whole)
        if first != origin:  # more steps than before
            for task in tasks:
                task.state = "running" if task.state == "unconverged" else task.state
            rest = content[:whole].partition(b"\n")[2].decode()
            write_text(self.path, json.dumps({"format": _FORMAT, **origin}) + "\n" + rest)

    def add(self, tasks: Sequence[Task]) -> None:
        """Write them down, to the disk."""
        with self.path.open("a", encoding="utf-8") as file:
            for task in tasks:
                values = {name: getattr(task, name) for name in _VALUES}
                arrays = {name: getattr(task, name).tolist() for name in _ARRAYS}
                file.write(json.dumps({"number": task.number, **values, **arrays}) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _require_same(self, before: Mapping[str, Any], origin: Mapping[str, Any]) -> None:
        differing = [
            f"{name}: {before.get(name)}, now {origin.get(name)}"
            for name in dict.fromkeys([*before, *origin])
            if before.get(name) != origin.get(name)
            and not (name == "--steps" and before[name] < origin[name])
        ]
        if differing:
            raise ConfigError(
                f"{self.path.parent} holds another relaxation ({'; '.join(differing)}). Name another "
                "--output, give --overwrite to begin again, or set it back to go on."
            )


def rows(found: Sequence[Found], tasks: Sequence[Task]) -> list[dict[str, Any]]:
    """The table: one for each structure, plain numbers."""
    table = []
    for place, task in zip(found, tasks, strict=True):
        size, stress = len(task.types), task.largest_stress * EV_A3_TO_GPA
        volume = task.volume / task.volume_before - 1 if task.volume_before else 0.0
        table.append({
            "index": task.number,
            "file": place.file,
            "frame": place.index,
            "formula": place.atoms.get_chemical_formula(),
            "atoms": size,
            "state": task.state,
            "converged": task.state == "converged",
            "steps": task.steps,
            "energy_eV": task.energy,
            "energy_eV_per_atom": task.energy / size,
            "energy_change_eV_per_atom": (task.energy - task.energy_before) / size,
            "volume_change": volume,
            "largest_force_eV_per_A": task.largest_force,
            "largest_stress_GPa": stress,
            "problem": task.problem,
            "closer_than_training": task.closer,
        })  # fmt: skip
    return [
        {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in row.items()}
        for row in table
    ]


def write_results(
    directory: Path, about: Mapping[str, Any], table: Sequence[Mapping[str, Any]], found: Sequence[Found],
    tasks: Sequence[Task],
) -> None:  # fmt: skip
    """The table as JSON and CSV, and the structures, each file whole or not at all."""
    states = {
        state: sum(row["state"] == state for row in table) for state in ("converged", "unconverged", "failed")
    }
    write_json(directory / f"{TABLE}.json", {**about, **states, "structures": table})
    with (
        atomic_write(directory / f"{TABLE}.csv") as path,
        path.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    with atomic_write(directory / STRUCTURES) as path:
        images = [_image(*one) for one in zip(found, tasks, table, strict=True)]
        ase.io.write(path, images, format="extxyz")


def _image(place: Found, task: Task, row: Mapping[str, Any]) -> Atoms:
    """With what the model says of it, constraints, and what the input said that is no label."""
    atoms = Atoms(place.atoms.numbers, task.positions, cell=task.cell, pbc=place.atoms.pbc)
    atoms.set_constraint(place.atoms.constraints)
    results = {"energy": task.energy, "forces": task.forces}
    if atoms.pbc.all():
        results["stress"] = stress_to_voigt(-task.virial / task.volume)
    results = {name: value for name, value in results.items() if np.isfinite(value).all()}
    atoms.calc = SinglePointCalculator(atoms, **results)
    for name, value in place.atoms.info.items():
        labelled = any(key.means(name) for key in KEYS.values())
        if isinstance(value, str | int | float | bool) and not labelled:
            atoms.info[name] = value
    atoms.info |= {name: row[name] for name in ("index", "file", "frame", "state", "converged", "steps")}
    return atoms


def printed_table(table: Sequence[Mapping[str, Any]], cell: bool) -> Table:
    """For the terminal: all, or of many those that did not converge first."""
    printed = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    columns = {
        "index": "",
        "structure": "",
        "state": "",
        "steps": "",
        "eV/atom": "",
        "change": "",
        "eV/Å": "",
    }
    for name in (*columns, *(("GPa", "volume") if cell else ())):
        printed.add_column(name, justify="left" if name in ("structure", "state") else "right")
    order = sorted(table, key=lambda row: row["converged"]) if len(table) > SHOWN else table
    for row in order[:SHOWN]:
        energies = [
            _number(row[name], "{:.4f}") for name in ("energy_eV_per_atom", "energy_change_eV_per_atom")
        ]
        cells = [str(row["index"]), row["formula"], row["state"], str(row["steps"]), *energies]
        cells.append(_number(row["largest_force_eV_per_A"], "{:.4f}"))
        if cell:
            cells += [_number(row["largest_stress_GPa"], "{:.3f}"), _number(row["volume_change"], "{:+.2%}")]
        printed.add_row(*cells)
    return printed


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
