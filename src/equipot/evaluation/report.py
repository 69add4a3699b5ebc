"""Evaluation results: tables for people, JSON for programs, plots."""

import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from equipot.data.text import counted
from equipot.evaluation.metrics import (
    ErrorRow,
    FrameError,
    component_errors,
    error_groups,
    error_rows,
    worst_frames,
)
from equipot.evaluation.plots import plot_parity
from equipot.evaluation.predict import Comparison
from equipot.evaluation.s2ef import s2ef_rows
from equipot.files import write_json
from equipot.quantities import QUANTITIES

ERRORS = "errors.json"
PARITY = "parity.png"
S2EF = "Open Catalyst S2EF: MAE of total energies and of forces on free atoms"
MAX_GROUPS = 20  # lines of a table; errors.json has all of them
_WORST = 10


def print_report(comparison: Comparison, console: Console) -> None:
    """Print the errors, the errors by file and config_type where there are several, and the worst frames."""
    for table in (*error_tables(comparison, "Errors on"), *worst_tables(comparison)):
        console.print(table)


def error_tables(comparison: Comparison, title: str) -> list[Table]:
    """Errors of all frames, by file and config_type where there are several, and in S2EF's measures."""
    count = f"{counted(comparison.num_frames, 'frame')}, {counted(len(comparison.atomic_numbers), 'atom')}"
    groups = _groups_as_dict(comparison)
    by_group = [group_table(kind, of_kind) for kind, of_kind in groups.items()]
    return [error_table(error_rows(comparison), f"{title} {count}"), *by_group, *s2ef_tables(comparison)]


def s2ef_tables(comparison: Comparison) -> list[Table]:
    """A line of measures for all frames and each set, if atoms have tags."""
    rows = s2ef_rows(comparison)
    if not rows:
        return []
    tags, names = s2ef_tags(rows), {"all": "all", **short_names(row["name"] for row in rows[1:])}
    by_tag = (f"tag {tag}\nmeV/Å" for tag in tags)
    columns = numeric("frames", "energy\nmeV", "forces\nmeV/Å", *by_tag, "force\ncosine", "EFwT\n%")
    table = Table(Column("frames of", overflow="fold"), *columns, title=S2EF, title_justify="left")
    for row in rows[: 1 + MAX_GROUPS]:
        of_tags = (number(row["force_mae_by_tag"].get(tag)) for tag in tags)
        numbers = number(row["energy_mae"]), number(row["force_mae"]), *of_tags, number(row["force_cosine"])
        share = "–" if row["efwt"] is None else f"{100 * row['efwt']:.2f}"
        table.add_row(Text(names[row["name"]]), str(row["frames"]), *numbers, share)
    return [table]


def s2ef_tags(rows: list[dict[str, Any]]) -> list[str]:
    """Tags that occur, in order."""
    return sorted({tag for row in rows for tag in row["force_mae_by_tag"]}, key=int)


def worst_tables(comparison: Comparison) -> list[Table]:
    """The worst frames by forces and by energy, as far as they are labelled."""
    names = short_names(source.file for source in comparison.sources)
    worst = worst_frames(comparison)
    return [worst_table(frames, quantity, names) for quantity, frames in worst.items() if frames]


def error_table(rows: list[ErrorRow], title: str) -> Table:
    """One line per quantity: MAE, RMSE, largest error, the spread of labels, and over how many."""
    columns = "quantity", *numeric("MAE", "RMSE", "largest", "labels' std"), "unit", *numeric("over")
    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        over = counted(row.count, row.counted.removesuffix("s")) if row.count else "no labels"
        table.add_row(
            row.quantity, *map(number, (row.mae, row.rmse, row.largest, row.spread)), row.unit, over
        )
    return table


def group_rows(kind: str, groups: dict[str, dict]) -> dict[str, Any]:
    """What is shown of the groups of one kind in ``as_dict``: what is labelled anywhere, of the first few."""
    names = short_names(groups) if kind == "file" else {name: name or "(none)" for name in groups}
    possible = [(quantity.name, quantity.reported[-1].unit) for quantity in QUANTITIES.values()]
    found = {c: [group["errors"].get(key_of(*c)) for group in groups.values()] for c in possible}
    columns = [c for c, rows in found.items() if any(row and row["mae"] is not None for row in rows)]
    shown = list(groups.items())[:MAX_GROUPS]
    rows = [
        {"name": names[n], "frames": g["frames"], "errors": [g["errors"][key_of(*c)] for c in columns]}
        for n, g in shown
    ]
    return {"columns": columns, "rows": rows, "more": len(groups) - len(shown)}


def group_table(kind: str, groups: dict[str, dict]) -> Table:
    """One line per group of one kind: MAE / RMSE of the quantities that are labelled anywhere."""
    shown = group_rows(kind, groups)
    columns = numeric("frames", *(f"{quantity}\n{unit}" for quantity, unit in shown["columns"]))
    title = f"By {kind}: MAE / RMSE"
    table = Table(Column(kind, overflow="fold"), *columns, title=title, title_justify="left")
    for row in shown["rows"]:
        cells = [f"{number(error['mae'])} / {number(error['rmse'])}" for error in row["errors"]]
        table.add_row(Text(row["name"]), str(row["frames"]), *cells)
    if shown["more"]:
        table.caption = f"and {shown['more']} more, all in {ERRORS} (equipot evaluate --output)"
    return table


def worst_table(frames: list[FrameError], quantity: str, names: dict[str, str]) -> Table:
    """The frames with the largest errors of ``quantity``, and where to find them."""
    table = Table(
        *(Column("file", overflow="fold"), *numeric("frame"), Column("config_type", overflow="fold")),
        *numeric("energy\nmeV/atom", "forces\nmeV/Å", "largest\nmeV/Å", "atom"),
        title=f"Worst frames by {quantity}: errors of energy, forces (RMSE, largest component)",
        title_justify="left",
    )
    for frame in frames:
        numbers = (frame.energy, frame.forces_rmse, frame.forces_largest)
        atom = "–" if frame.worst_atom is None else f"{frame.worst_atom} ({frame.worst_species})"
        name, group = Text(names[frame.file]), Text(frame.config_type or "")
        table.add_row(name, str(frame.index), group, *map(number, numbers), atom)
    return table


def numeric(*names: str) -> list[Column]:
    """Columns of numbers."""
    return [Column(name, justify="right") for name in names]


def number(value: float | None) -> str:
    """An error with as many digits as a reader wants."""
    if value is None:
        return "–"
    if 0 < abs(value) < 0.1:
        return f"{value:.3g}"
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
    worst = worst_frames(comparison, _WORST)
    return {
        "model": str(model),
        "frames": comparison.num_frames,
        "atoms": len(comparison.atomic_numbers),
        "errors": _rows_as_dict(error_rows(comparison)),
        "components": component_errors(comparison),
        "groups": _groups_as_dict(comparison),
        "s2ef": s2ef_rows(comparison),
        "worst_frames": {name: [asdict(frame) for frame in frames] for name, frames in worst.items()},
    }


def _groups_as_dict(comparison: Comparison) -> dict[str, dict[str, Any]]:
    groups: dict[str, dict[str, Any]] = {}
    for group in error_groups(comparison):
        errors = {"frames": group.num_frames, "errors": _rows_as_dict(group.rows)}
        groups.setdefault(group.kind, {})[group.name or ""] = errors
    return groups


def _rows_as_dict(rows: list[ErrorRow]) -> dict[str, dict[str, Any]]:
    return {
        key_of(row.quantity, row.unit): {
            **{name: getattr(row, name) for name in ("unit", "mae", "rmse", "largest", "spread")},
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
