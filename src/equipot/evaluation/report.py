"""Evaluation results: tables for people, JSON for programs, plots."""

import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from equipot.data.text import counted
from equipot.evaluation.metrics import ErrorRow, FrameError, Group, error_groups, error_rows, worst_frames
from equipot.evaluation.plots import plot_parity
from equipot.evaluation.predict import Comparison
from equipot.files import write_json
from equipot.quantities import QUANTITIES

ERRORS = "errors.json"
PARITY = "parity.png"
GROUP_COLUMNS = tuple((q.name, q.reported[-1].unit) for q in QUANTITIES.values())
MAX_GROUPS = 20  # lines of a table; errors.json has all of them
_WORST = 10


def print_report(comparison: Comparison, console: Console) -> None:
    """Print the errors, the errors by file and config_type where there are several, and the worst frames."""
    for table in (*error_tables(comparison, "Errors on"), *worst_tables(comparison)):
        console.print(table)


def error_tables(comparison: Comparison, title: str) -> list[Table]:
    """Errors of all frames, then by file and by config_type where there are several."""
    count = f"{counted(comparison.num_frames, 'frame')}, {counted(len(comparison.atomic_numbers), 'atom')}"
    tables = [error_table(error_rows(comparison), f"{title} {count}")]
    groups = error_groups(comparison)
    for kind in ("file", "config_type"):
        of_kind = [group for group in groups if group.kind == kind]
        if of_kind:
            tables.append(group_table(of_kind))
    return tables


def worst_tables(comparison: Comparison) -> list[Table]:
    """The worst frames by forces and by energy, as far as they are labelled."""
    names = short_names(source.file for source in comparison.sources)
    worst = worst_frames(comparison)
    return [worst_table(frames, quantity, names) for quantity, frames in worst.items() if frames]


def error_table(rows: list[ErrorRow], title: str) -> Table:
    """One line per quantity: MAE, RMSE, largest error, and over how many labelled frames or atoms."""
    table = Table(title=title, title_justify="left")
    table.add_column("quantity")
    for name in ("MAE", "RMSE", "largest"):
        table.add_column(name, justify="right")
    table.add_column("unit")
    table.add_column("over", justify="right")
    for row in rows:
        over = counted(row.count, row.counted.removesuffix("s")) if row.count else "no labels"
        table.add_row(row.quantity, *map(number, (row.mae, row.rmse, row.largest)), row.unit, over)
    return table


def group_table(groups: list[Group]) -> Table:
    """One line per group of one kind: MAE / RMSE of the quantities that are labelled anywhere."""
    kind = groups[0].kind
    columns = {
        key: [row for group in groups for row in group.rows if (row.quantity, row.unit) == key]
        for key in GROUP_COLUMNS
    }
    columns = {key: rows for key, rows in columns.items() if any(row.count for row in rows)}
    table = Table(title=f"By {kind}: MAE / RMSE", title_justify="left")
    table.add_column(kind, overflow="fold")
    table.add_column("frames", justify="right")
    for quantity, unit in columns:
        table.add_column(f"{quantity}\n{unit}", justify="right")
    names = group_names(groups)
    for i, group in enumerate(groups[:MAX_GROUPS]):
        cells = [f"{number(rows[i].mae)} / {number(rows[i].rmse)}" for rows in columns.values()]
        table.add_row(Text(names[i]), str(group.num_frames), *cells)
    if len(groups) > MAX_GROUPS:
        table.caption = f"and {len(groups) - MAX_GROUPS} more, all in {ERRORS} (equipot evaluate --output)"
    return table


def group_names(groups: list[Group]) -> list[str]:
    """How tables name groups of one kind: files without the folders they share."""
    if groups[0].kind == "file":
        return list(short_names(group.name for group in groups).values())
    return ["(none)" if group.name is None else group.name for group in groups]


def worst_table(frames: list[FrameError], quantity: str, names: dict[str, str]) -> Table:
    """The frames with the largest errors of ``quantity``, and where to find them."""
    table = Table(
        title=f"Worst frames by {quantity}: errors of energy, forces (RMSE, largest component)",
        title_justify="left",
    )
    table.add_column("file", overflow="fold")
    table.add_column("frame", justify="right")
    table.add_column("config_type", overflow="fold")
    for name in ("energy\nmeV/atom", "forces\nmeV/Å", "largest\nmeV/Å"):
        table.add_column(name, justify="right")
    table.add_column("atom", justify="right")
    for frame in frames:
        numbers = (frame.energy, frame.forces_rmse, frame.forces_largest)
        atom = "–" if frame.worst_atom is None else f"{frame.worst_atom} ({frame.worst_species})"
        name, group = Text(names[frame.file]), Text(frame.config_type or "")
        table.add_row(name, str(frame.index), group, *map(number, numbers), atom)
    return table


def number(value: float | None) -> str:
    """An error with as many digits as a reader wants."""
    if value is None:
        return "–"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def short_names(files: Iterable[str]) -> dict[str, str]:
    """Each file's name, with as much of its folders as tells them apart."""
    files = list(dict.fromkeys(files))
    names = [Path(file).name for file in files]
    if len(set(names)) < len(files):
        absolute = [os.path.abspath(file) for file in files]  # noqa: PTH100  (does not follow links)
        common = os.path.commonpath(absolute)
        names = [os.path.relpath(file, common) for file in absolute]
    return dict(zip(files, names, strict=True))


def as_dict(comparison: Comparison, model: Path) -> dict[str, Any]:
    """Everything the tables show, as plain numbers: ``errors`` by quantity, each with its unit."""
    groups: dict[str, dict[str, Any]] = {}
    for group in error_groups(comparison):
        errors = {"frames": group.num_frames, "errors": _rows_as_dict(group.rows)}
        groups.setdefault(group.kind, {})[group.name or ""] = errors
    worst = worst_frames(comparison, _WORST)
    return {
        "model": str(model),
        "frames": comparison.num_frames,
        "atoms": len(comparison.atomic_numbers),
        "errors": _rows_as_dict(error_rows(comparison)),
        "groups": groups,
        "worst_frames": {name: [asdict(frame) for frame in frames] for name, frames in worst.items()},
    }


def _rows_as_dict(rows: list[ErrorRow]) -> dict[str, dict[str, Any]]:
    return {
        key_of(row.quantity, row.unit): {
            **{name: getattr(row, name) for name in ("unit", "mae", "rmse", "largest")},
            row.counted: row.count,
        }
        for row in rows
    }


def key_of(quantity: str, unit: str) -> str:
    """``forces H`` -> ``forces_H``; stress in GPa -> ``stress_GPa``: one key for each quantity and unit."""
    is_first = unit == QUANTITIES[quantity.split()[0]].reported[0].unit
    return quantity.replace(" ", "_") + ("" if is_first else f"_{unit}")


def write_evaluation(comparison: Comparison, model: Path, folder: Path) -> list[Path]:
    """Write ``as_dict`` and, if anything is labelled, the parity plots into ``folder``; the files written."""
    files = [folder / ERRORS]
    write_json(folder / ERRORS, as_dict(comparison, model))
    if plot_parity(comparison, folder / PARITY):
        files.append(folder / PARITY)
    return files
