"""Tables and histograms on the terminal."""

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from equipot.data.quality.findings import Findings
from equipot.data.quality.summary import Summary
from equipot.data.text import counted
from equipot.quantities import KEYS

_COLORS = {"error": "red", "warning": "yellow", "note": "dim"}
_BARS = " ▁▂▃▄▅▆▇█"
_BINS = 24


def print_report(report: Findings, console: Console) -> None:
    """One row for each finding, the gravest first, and a last line that counts them."""
    table = Table(show_lines=True)
    for column in ("", "check", "finding", "frames"):
        table.add_column(column, justify="left", overflow="fold")
    for finding in report.findings:
        color = _COLORS[finding.severity]
        severity = f"[{color}]{finding.severity}[/{color}]"
        frames = _frame_list([index for _, index in finding.frames])
        table.add_row(severity, finding.check, escape(finding.message), frames)
    if report.findings:
        console.print(table)
    counts = ", ".join(counted(report.count(severity), severity) for severity in ("error", "warning"))
    frames = counted(sum(report.files.values()), "usable frame")
    console.print(f"{frames} in {counted(len(report.files), 'file')}: {counts}.")


def print_summary(summary: Summary, console: Console) -> None:
    """What is in a file, names of labels, ranges and histograms, suspicions."""
    console.print(f"[bold]{escape(summary.path)}[/bold] ({summary.format})", soft_wrap=True)
    low, high = summary.atoms
    lines = {
        "frames": f"{summary.num_frames}, of {low if low == high else f'{low} to {high}'} atoms",
        "species": ", ".join(f"{symbol} ({count} atoms)" for symbol, count in summary.species.items()),
        "periodic": ", ".join(f"{pbc}: {count} frames" for pbc, count in summary.periodicity.items()),
        "groups": ", ".join(f"{name}: {count}" for name, count in summary.groups.items()),
    }
    for kind, names in summary.names.items():
        ordered = sorted(names.items(), key=lambda item: not KEYS[kind].means(item[0]))
        found = ", ".join(
            f"'{name}' in {count}{'' if KEYS[kind].means(name) else ' (by its shape only)'}"
            for name, count in ordered
        )
        if kind in summary.labelled:
            found = f"{summary.labelled[kind]} frames labelled; {found or 'no name has the shape'}"
        lines[kind] = found
    for name, text in lines.items():
        if text:
            console.print(f"  {name:9} {escape(text)}", soft_wrap=True, highlight=False)
    if summary.values:
        console.print(_value_table(summary.values))
    for text in summary.suspicions:
        console.print(f"  [yellow]Units?[/yellow] {escape(text)}", soft_wrap=True)
    for text in summary.problems[:10]:
        console.print(f"  [red]unusable[/red] {escape(text)}", soft_wrap=True)
    if len(summary.problems) > 10:
        console.print(f"  and {len(summary.problems) - 10} more unusable frames")


def _value_table(values: dict[str, NDArray]) -> Table:
    table = Table()
    table.add_column("quantity")
    for column in ("smallest", "mean", "largest", "deviation"):
        table.add_column(column, justify="right")
    table.add_column("histogram")
    for name, found in values.items():
        numbers = [f"{x:.5g}" for x in (found.min(), found.mean(), found.max(), found.std())]
        table.add_row(name, *numbers, histogram(found))
    return table


def histogram(values: NDArray) -> str:
    """Bars from the smallest to the largest value; any value at all shows."""
    if values.min() == values.max():
        return "all equal"
    counts, _ = np.histogram(values, bins=_BINS)
    heights = np.ceil(counts / counts.max() * (len(_BARS) - 1)).astype(int)
    return "".join(_BARS[height] for height in heights)


def _frame_list(indices: list[int], most: int = 6) -> str:
    if not indices:
        return ""
    shown = ", ".join(str(index) for index in indices[:most])
    return shown if len(indices) <= most else f"{shown}, ... ({len(indices)})"
