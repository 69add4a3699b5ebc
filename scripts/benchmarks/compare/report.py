"""The benchmark's table, JSON file and plot."""

import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path

from cases import TITLES
from driver import Result
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from equipot.machine import processor_name

_COLORS = {"equipot": "#2a6fbb", "nequip": "#e08a2e", "mace": "#6aa84f", "sevennet": "#a64d79"}
# Column, and how it is written; nothing for what a worker did not say.
_COLUMNS = {
    "step": lambda r: _duration(r.seconds),
    "ratio": lambda r: "" if r.ratio is None else f"{r.ratio:.1f}×",
    "CPU": lambda r: "" if r.cpu_ratio is None else f"{r.cpu_ratio:.1f}×",
    "µs/atom": lambda r: f"{r.seconds / r.num_atoms * 1e6:.0f}",
    "prepared in": lambda r: _duration(r.facts["prepare_s"]),
    "peak MB": lambda r: f"{r.facts['peak_run_mb']:.0f}",
    "parameters": lambda r: f"{r.facts['parameters']:,}",
    "edges": lambda r: f"{r.facts['edges']:,.0f}",
}


def print_table(name: str, results: list[Result], console: Console) -> None:
    """One row per contender; a failed one says why."""
    table = Table(title=f"{name}. {TITLES[name]}", title_justify="left", title_style="bold")
    table.add_column("", no_wrap=True)
    for column in _COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    for result in results:
        if result.error is None:
            table.add_row(result.name, *(write(result) for write in _COLUMNS.values()))
        else:
            table.add_row(result.name, "failed")
    console.print(table)
    for result in results:
        if result.error is not None:
            console.print(f"{result.name}: failed: {result.error}", markup=False, highlight=False)
        elif result.facts.get("kernels") is False:
            console.print(f"{result.name} ran its slow reference: the kernels are off or were not compiled.")


def write_json(path: Path, settings: dict, results: dict[str, list[Result]]) -> None:
    """Everything that was measured, with the machine and the settings."""
    record = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "system": platform.platform(),
            "processor": processor_name(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
        },
        "settings": settings,
        "cases": {name: [result.to_dict() for result in rows] for name, rows in results.items()},
    }
    path.write_text(json.dumps(record, indent=1) + "\n")


def plot(path: Path, results: dict[str, list[Result]], threads: int) -> None:
    """A panel per case: the median step of each contender, on a logarithmic scale; lines show the range."""
    measured = {name: [r for r in rows if r.times and r.error is None] for name, rows in results.items()}
    measured = {name: rows for name, rows in measured.items() if rows}
    if not measured:
        return
    heights = [len(rows) + 1 for rows in measured.values()]
    figure = Figure(figsize=(7.5, 0.42 * sum(heights)), layout="constrained")
    panels = figure.subplots(len(measured), squeeze=False, height_ratios=heights)
    for axes, (name, rows) in zip(panels[:, 0], measured.items(), strict=True):
        medians = [r.seconds for r in rows]
        spread = [[r.seconds - min(r.times) for r in rows], [max(r.times) - r.seconds for r in rows]]
        axes.barh(range(len(rows)), medians, xerr=spread, color=[_COLORS[r.program] for r in rows])
        for position, result in enumerate(rows):
            ratio = "" if result.ratio is None else f" ({result.ratio:.1f}×)"
            label = f"  {_duration(result.seconds)}{ratio}"
            axes.text(max(result.times), position, label, va="center", fontsize=8)
        axes.set_yticks(range(len(rows)), [r.name for r in rows], fontsize=8)
        axes.invert_yaxis()
        axes.set_xscale("log")
        axes.set_xlim(min(medians) / 3, max(max(r.times) for r in rows) * 5)
        axes.set_title(f"{name}. {TITLES[name]}", fontsize=9, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1, 0].set_xlabel(f"seconds per step, {threads} thread{'s' * (threads > 1)}")
    figure.savefig(path, dpi=150)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
