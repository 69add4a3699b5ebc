"""Which model for which speed: test errors against the time of a step of molecular dynamics.

    scripts/pareto TRAIN.xyz [KEY=VALUE ...] --test TEST.xyz --minutes 5

Models of several sizes (--model, repeatable, in place of the grid below; keys of section `model`) are
trained for the same processor time each, with the recipes and the validation frames of
scripts/learning_curves, deployed, and timed in the engine on one thread, in turns: the median of processor
times of an evaluation of energies and forces at known neighbors. The structure is the largest of the first
test set, a periodic one repeated up to --atoms. A model is on the front if none of the faster ones has a
lower error of validation forces; test errors are shown and choose nothing. Each training has a folder in
OUTPUT/runs. Run again, the script skips what is finished and goes on with what was interrupted.
OUTPUT/results.json and OUTPUT/pareto.png are written after every training.

Models unless --model says otherwise:
"""

import argparse
import re
import shlex
import statistics
import sys
import time
from functools import partial
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from trainings import (
    COLORS,
    NAMES,
    check_arguments,
    configure,
    error_axis,
    for_minutes,
    is_done,
    known_everywhere,
    named_tests,
    parser_of,
    positive,
    read_pool,
    run_one,
    run_script,
    write_frames,
)

from equipot.config import Config
from equipot.data.species import atom_types
from equipot.deploy.export import deploy
from equipot.deploy.structure import make_structure
from equipot.engine.library import Engine, load_library
from equipot.errors import ConfigError
from equipot.files import atomic_write, write_json
from equipot.quantities import QUANTITIES
from equipot.run_directory import RunDirectory

GRID = (
    "type=nequip l_max=0 layers=2 channels=32",
    "type=nequip l_max=1 layers=2 channels=16",
    "type=nequip l_max=1 layers=3 channels=32",
    "type=nequip l_max=2 layers=2 channels=16",
    "type=nequip l_max=2 layers=3 channels=32",
    "type=nequip l_max=2 layers=4 channels=64",
    "type=nequip l_max=3 layers=3 channels=32",
    "type=allegro l_max=1 layers=1 channels=8",
    "type=allegro l_max=2 layers=2 channels=16",
)
_MARKERS = {"nequip": "o", "allegro": "s"}
_SIZE = ("type", "l_max", "layers", "channels")
_ROUNDS = 15


def changes_of(model: str) -> list[str]:
    """``type=nequip l_max=1`` as overrides of a configuration.

    Raises:
        ConfigError: something is not KEY=VALUE.
    """
    try:
        items = shlex.split(model)
    except ValueError as error:
        raise ConfigError(f"--model {model!r}: {error}.") from None
    wrong = [item for item in items if not re.fullmatch(r"\w+(\.\w+)*=.+", item)]
    if wrong or not items:
        raise ConfigError(f"--model {model!r}: expected keys of section model, as in '{GRID[0]}'.")
    return [f"model.{item}" for item in items]


def label_of(config: Config, changes: list[str]) -> str:
    """``NequIP, l_max 2, 3 × 32`` (layers × channels), and what else was said."""
    model = config.model
    kind = NAMES.get(model.type, model.type)
    further = [change for change in changes if change.split(".")[1].split("=")[0] not in _SIZE]
    size = f"{kind}, l_max {model.l_max}, {model.layers} × {model.channels}"
    return ", ".join([size, *(change.removeprefix("model.").replace("=", " ") for change in further)])


def configurations(arguments: argparse.Namespace) -> list[tuple[dict, Config]]:
    """What there is to train: label, model and l_max, and its configuration."""
    found = []
    for model in arguments.model:
        changes = changes_of(model)
        name = re.sub(r"[^\w.]+", "_", model.replace("type=", ""))
        budget = partial(for_minutes, arguments.minutes, arguments.output / "budgets.json")
        config = configure(arguments, name, "train", changes, budget)
        if not config.training.loss.final_weight("forces"):
            raise ConfigError("The front is chosen by the error of forces: training.loss.forces is 0.")
        what = {"label": label_of(config, changes), "model": config.model.type, "l_max": config.model.l_max}
        found.append((what, config))
    return found


def timed_structure(file: Path, most_atoms: int) -> Atoms:
    """The largest frame; a periodic one twice as large in its shortest direction, while it has room."""
    atoms = max(ase.io.read(file, ":"), key=len)
    while atoms.pbc.all() and 2 * len(atoms) <= most_atoms:
        atoms = atoms.repeat(1 + (np.arange(3) == atoms.cell.lengths().argmin()))
    return atoms


def microseconds(files: list[Path], atoms: Atoms) -> list[float]:
    """Of processor time per atom for an evaluation by one thread: medians of rounds of all files in turns."""
    load_library().equipot_set_threads(1)
    calls = []
    for file in files:
        engine = Engine(file)
        types = atom_types(atoms.numbers, engine.species)
        placed = make_structure("", atoms.positions, atoms.cell.array, atoms.pbc, types, engine.cutoff)
        calls.append(partial(engine.evaluate_edges, placed.edge_vec, placed.edge_index, types))
    taken: list[list[float]] = [[] for _ in calls]
    for _ in range(1 + _ROUNDS):
        for call, times in zip(calls, taken, strict=True):
            start = time.process_time()
            call()
            times.append(time.process_time() - start)
    return [1e6 * statistics.median(times[1:]) / len(atoms) for times in taken]


def front(rows: list[dict], error: str) -> list[dict]:
    """The rows that no faster one beats in the validation set's forces, fast ones first."""
    found: list[dict] = []
    for row in sorted(rows, key=lambda row: row["microseconds"]):
        if not found or _deciding(row, error) < _deciding(found[-1], error):
            found.append(row)
    return found


def _deciding(row: dict, error: str) -> float:
    return row["validation"][f"forces_{error}"]


def table(rows: list[dict], error: str) -> Table:
    """A row for each model, fast ones first; • if it is on the front."""
    best, tests = front(rows, error), list(rows[0]["errors"])
    quantities = _quantities(rows, error)
    units = ", ".join(f"{name} in {QUANTITIES[name].reported[0].unit}" for name in quantities)
    found = Table(title=f"{error.upper()}: {units}", title_justify="left")
    for column in ("", "model", "epochs", "CPU s", "µs/atom", "ns/day", "validation", *tests):
        found.add_column(column, justify="left" if column == "model" else "right", no_wrap=column == "model")
    for row in sorted(rows, key=lambda row: row["microseconds"]):
        cells = [f"{row['microseconds']:.3g}", f"{86.4 / row['microseconds']:.3g}"]
        for errors in (row["validation"], *(row["errors"][test] for test in tests)):
            keys = [f"{name}_{error}" for name in quantities]
            cells.append(" / ".join(f"{errors[key]:.3g}" if key in errors else "–" for key in keys))
        facts = (row["label"], f"{row['epochs']:.4g}", f"{row['processor_seconds']:.0f}")
        found.add_row("•" if row in best else "", *facts, *cells)
    return found


def _quantities(rows: list[dict], error: str) -> list[str]:
    """What was trained on and is labelled in one of the test sets, forces first."""
    return list(dict.fromkeys(q for test in rows[0]["errors"] for q in known_everywhere(rows, test, error)))


def advice(rows: list[dict], error: str) -> list[str]:
    """Which model to take for which speed, a line for each on the front."""
    lines = ["Take the last of these that is fast enough (µs per atom and step of one thread):"]
    for row in front(rows, error):
        forces = _deciding(row, error)
        unit = QUANTITIES["forces"].reported[0].unit
        lines.append(f"  {row['microseconds']:8.3g} µs  {row['label']}: {forces:.3g} {unit} in validation")
    return lines


def plot(rows: list[dict], path: Path, error: str) -> None:
    """A column for each test set, a row for each quantity; the front's models are filled and joined."""
    tests, quantities = list(rows[0]["errors"]), _quantities(rows, error)
    shape, best = (len(quantities), len(tests)), front(rows, error)
    figure = Figure(figsize=(0.8 + 5.0 * shape[1], 0.8 + 3.4 * shape[0]), layout="constrained")
    panels = figure.subplots(*shape, squeeze=False, sharex=True)
    for column, test in enumerate(tests):
        panels[0][column].set_title(test)
        panels[-1][column].set_xlabel("µs per atom and step, one thread")
        for axes, quantity in zip(panels[:, column], quantities, strict=True):
            axes.set_xscale("log")
            axes.margins(x=0.15, y=0.1)
            error_axis(axes, quantity, error)
            if quantity in known_everywhere(rows, test, error):
                _draw(
                    axes,
                    rows,
                    best,
                    lambda row, of=(test, f"{quantity}_{error}"): row["errors"][of[0]][of[1]],
                )
    handles = {}
    for axes in panels.flat:
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=150)


def _draw(axes, rows: list[dict], best: list[dict], error) -> None:
    """Points with layers × channels beside them, and the front as a line."""
    axes.plot([row["microseconds"] for row in best], [error(row) for row in best], color="0.7", zorder=0)
    for row in rows:
        color, place = COLORS[row["l_max"]], (row["microseconds"], error(row))
        kind, _, size, *_ = row["label"].split(", ")
        label, marker = f"{kind}, $l_\\mathrm{{max}}$ = {row['l_max']}", _MARKERS.get(row["model"], "D")
        face = color if row in best else "white"
        axes.plot([], [], marker, color=color, label=label)
        axes.plot(*place, marker, color=color, markerfacecolor=face)
        axes.annotate(size, place, (5, 4), textcoords="offset points", fontsize=7, color="0.3")


def main(arguments: argparse.Namespace) -> list[dict]:
    """Everything the command does; a row for each model."""
    output, error = arguments.output, arguments.error
    console = Console(width=None if sys.stdout.isatty() else 130)
    pool = read_pool(arguments)
    write_frames(output / "data" / "train.xyz", pool[: arguments.frames])
    tests, todo, rows = named_tests(arguments), configurations(arguments), []
    atoms = timed_structure([*arguments.test, *tests.values()][0], arguments.atoms)
    facts = {"recipe": arguments.recipe.name, "minutes": arguments.minutes, "seed": arguments.seed}
    facts |= {"overrides": arguments.overrides, "atoms": len(atoms), "formula": atoms.get_chemical_formula()}
    models: list[Path] = []
    console.print(
        f"{len(todo)} models, {arguments.minutes:g} minutes each, by {arguments.recipe}", markup=False
    )
    for number, (what, config) in enumerate(todo, 1):
        console.print(f"\n[{number}/{len(todo)}] {what['label']}", markup=False)
        news = number == len(todo) or not is_done(config)
        rows.append({**what, **run_one(config, tests)})
        directory = RunDirectory(config.run.directory)
        models.append(directory.root / "model.pt")
        if not models[-1].exists():
            deploy(directory.best, models[-1])
        if not news:
            continue
        for row, taken in zip(rows, microseconds(models, atoms), strict=True):
            row["microseconds"] = taken
        chosen = [row["run"] for row in front(rows, error)]
        write_json(output / "results.json", {**facts, "front": chosen, "models": rows})
        plot(rows, output / "pareto.png", error)
    console.print(table(rows, error))
    console.print(f"Timed on {len(atoms)} atoms, {atoms.get_chemical_formula()}; ns/day: 1,000 atoms, 1 fs.")
    for line in [*advice(rows, error), f"Wrote {output / 'results.json'} and {output / 'pareto.png'}"]:
        console.print(line, highlight=False, markup=False)
    return rows


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    grid = "\n".join(f"    --model '{model}'" for model in GRID)
    parser = parser_of(__doc__ + grid, "pareto")
    parser.add_argument("--model", action="append", metavar="'KEY=VALUE ...'", help="repeatable")
    parser.add_argument(
        "--minutes", type=positive(float), default=5.0, help="of processor time for each training (5)"
    )
    parser.add_argument("--frames", type=positive(int), help="training frames (all)")
    parser.add_argument("--atoms", type=positive(int), default=256, help="at most, to time (256)")
    arguments = parser.parse_intermixed_args(argv)
    arguments.model = list(dict.fromkeys(arguments.model or GRID))
    check_arguments(
        parser, arguments, {c.split("=")[0] for model in arguments.model for c in changes_of(model)}
    )
    return arguments


if __name__ == "__main__":
    run_script(main, parse)
