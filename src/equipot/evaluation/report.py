"""Evaluation results as a table for people and as JSON for programs."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from equipot.data.text import counted
from equipot.evaluation.metrics import ErrorRow, FrameError, error_rows, grouped_rows, worst_frames
from equipot.evaluation.predict import Comparison
from equipot.files import atomic_write


def print_report(comparison: Comparison, console: Console) -> None:
    """Print the errors, the errors by file and config_type where there are several, and the worst frames."""
    frames = counted(len(comparison.frames), "frame")
    count = f"{frames}, {counted(comparison.num_atoms.sum(), 'atom')}"
    console.print(error_table(error_rows(comparison), f"Errors on {count}"))
    groups = grouped_rows(comparison)
    if groups:
        console.print(group_table(groups))
    worst = worst_frames(comparison)
    if worst:
        console.print(worst_table(worst))


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
        table.add_row(row.quantity, *map(_number, (row.mae, row.rmse, row.largest)), row.unit, over)
    return table


def group_table(groups: dict[str, list[ErrorRow]]) -> Table:
    """One line per data file or config_type: MAE / RMSE of the quantities that are labelled anywhere."""
    shown = ("energy", "meV/atom"), ("forces", "meV/Å"), ("stress", "GPa")
    columns = {
        key: {name: row for name, rows in groups.items() for row in rows if (row.quantity, row.unit) == key}
        for key in shown
    }
    columns = {key: rows for key, rows in columns.items() if any(row.count for row in rows.values())}
    table = Table(title="By file and config_type: MAE / RMSE", title_justify="left")
    table.add_column("", overflow="fold")
    for quantity, unit in columns:
        table.add_column(f"{quantity}\n{unit}", justify="right")
    for name in groups:
        cells = [f"{_number(rows[name].mae)} / {_number(rows[name].rmse)}" for rows in columns.values()]
        table.add_row(Path(name).name, *cells)
    return table


def worst_table(frames: list[FrameError]) -> Table:
    """The frames with the largest errors, and where to find them."""
    table = Table(title="Worst frames", title_justify="left")
    table.add_column("file", overflow="fold")
    table.add_column("frame", justify="right")
    for name in ("energy error\nmeV/atom", "forces RMSE\nmeV/Å", "largest error\nmeV/Å"):
        table.add_column(name, justify="right")
    for frame in frames:
        numbers = (frame.energy, frame.forces_rmse, frame.forces_largest)
        table.add_row(Path(frame.file).name, str(frame.index), *map(_number, numbers))
    return table


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def as_dict(comparison: Comparison, model: Path) -> dict[str, Any]:
    """Everything the tables show, as plain numbers: ``errors`` by quantity, each with its unit."""
    return {
        "model": str(model),
        "frames": len(comparison.frames),
        "atoms": int(comparison.num_atoms.sum()),
        "errors": _rows_as_dict(error_rows(comparison)),
        "groups": {name: _rows_as_dict(rows) for name, rows in grouped_rows(comparison).items()},
        "worst_frames": [asdict(frame) for frame in worst_frames(comparison)],
    }


def _rows_as_dict(rows: list[ErrorRow]) -> dict[str, dict[str, Any]]:
    return {
        _key(row): {
            "unit": row.unit,
            "mae": row.mae,
            "rmse": row.rmse,
            "largest": row.largest,
            row.counted: row.count,
        }
        for row in rows
    }


def _key(row: ErrorRow) -> str:
    """``forces H`` -> ``forces_H``; stress in GPa -> ``stress_GPa``: one key for each quantity and unit."""
    key = row.quantity.replace(" ", "_")
    return f"{key}_GPa" if row.unit == "GPa" else key


def write_json(comparison: Comparison, model: Path, path: Path) -> None:
    """Write ``as_dict`` to ``path``."""
    with atomic_write(path) as temporary:
        text = json.dumps(as_dict(comparison, model), indent=2, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8")
