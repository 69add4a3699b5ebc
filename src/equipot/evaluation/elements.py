"""Errors by element, drawn as a periodic table."""

from collections.abc import Mapping
from pathlib import Path

from ase.data import atomic_numbers
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from equipot.files import atomic_write
from equipot.quantities import FORCES

_NOBLE = (2, 10, 18, 36, 54, 86, 118)


def place(number: int) -> tuple[float, float]:
    """Column 1 to 18 and row 1 to 7 of an element; lanthanides and actinides in rows 8.5 and 9.5 below."""
    row = next(k for k, last in enumerate(_NOBLE, 1) if number <= last)
    offset = number - (0, *_NOBLE)[row - 1]  # 1 for the alkali metal
    length = _NOBLE[row - 1] - (0, *_NOBLE)[row - 1]
    if length == 32 and 3 <= offset <= 16:
        return offset + 0.5, row + 2.5
    return (offset if offset <= (1 if row == 1 else 2) else 18 - length + offset), row


def plot_elements(errors: Mapping[str, float], path: Path) -> None:
    """Write a periodic table of mean absolute force errors (eV/Å), by symbol; absent elements stay white."""
    unit = FORCES.reported[0]
    values = {symbol: error / unit.size for symbol, error in errors.items()}
    most = max(max(values.values()), 1e-3)
    colors = LogNorm(max(min(values.values()), most / 100), most * 1.001)
    figure = Figure(figsize=(7.6, 4.2), layout="constrained")
    axes = figure.subplots()
    map_ = figure.colorbar(ScalarMappable(colors, "viridis"), ax=axes, shrink=0.75, pad=0.01)
    map_.set_label(f"MAE of forces, {unit.unit}")
    for symbol, number in list(atomic_numbers.items())[1:104]:
        column, row = place(number)
        known = symbol in values
        color = map_.cmap(colors(max(values[symbol], colors.vmin))) if known else "white"
        axes.add_patch(
            Rectangle((column - 0.5, row - 0.5), 0.94, 0.94, facecolor=color, edgecolor="0.75", lw=0.5)
        )
        dark = known and sum(color[:3]) < 1.4
        ink = "white" if dark else "black" if known else "0.7"
        axes.text(
            column, row - 0.14 if known else row, symbol, ha="center", va="center", color=ink, fontsize=8
        )
        if known:
            text = f"{values[symbol]:.0f}" if values[symbol] >= 9.95 else f"{values[symbol]:.1f}"
            axes.text(column, row + 0.24, text, ha="center", va="center", color=ink, fontsize=5.5)
    axes.set(xlim=(0.4, 18.6), ylim=(10.1, 0.4), aspect="equal")
    axes.axis("off")
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=150)
