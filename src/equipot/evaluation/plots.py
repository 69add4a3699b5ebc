"""Parity plots with error histograms."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from equipot.data.text import counted
from equipot.evaluation.metrics import ErrorRow
from equipot.evaluation.predict import Comparison
from equipot.files import atomic_write
from equipot.quantities import QUANTITIES, Reported

MANY_POINTS = 400  # more than this are coloured by their density
TOO_MANY_POINTS = 20_000  # more than this are counted in cells, which takes the same time for any number
_CELLS = 200  # along each axis
_COLOR = "#1f4e79"


@dataclass(frozen=True)
class Panel:
    """One quantity: values where both are known, flat, with the errors in the unit the tables use."""

    title: str
    axis: str
    reference: NDArray
    predicted: NDArray
    error: NDArray  # in ``error_unit``
    error_unit: str


def plot_parity(comparison: Comparison, path: Path) -> bool:
    """Write a figure of predicted against reference values; False, and no file, if nothing is labelled."""
    panels = parity_panels(comparison)
    if not panels:
        return False
    figure = Figure(figsize=(3.9 * len(panels), 5.9), layout="constrained", dpi=200)
    axes = figure.subplots(2, len(panels), height_ratios=[3, 1.4], squeeze=False)
    for column, panel in enumerate(panels):
        _draw_parity(axes[0][column], panel)
        _draw_histogram(axes[1][column], panel)
    with atomic_write(path) as temporary:
        figure.savefig(temporary)
    return True


def parity_panels(comparison: Comparison) -> list[Panel]:
    """Each quantity, as far as it is labelled."""
    panels = []
    for quantity in (QUANTITIES[name] for name in comparison.values):
        predicted, reference = comparison.values[quantity.name], comparison.reference[quantity.name]
        axis = f"{quantity.singular}{' component' if quantity.shape else ''} ({quantity.unit})"
        if quantity.normalised:
            predicted, reference = predicted / comparison.num_atoms, reference / comparison.num_atoms
            known = ~np.isnan(reference)
            # Absolute energies per atom are large, and only their differences mean anything.
            origin = reference[known].mean() if known.any() else 0.0
            predicted, reference = predicted - origin, reference - origin
            axis = f"{quantity.singular} per atom − mean ({quantity.unit})"
        panels.append(_panel(quantity.name.capitalize(), axis, reference, predicted, quantity.reported[0]))
    return [panel for panel in panels if panel.error.size]


def _panel(title: str, axis: str, reference: NDArray, predicted: NDArray, reported: Reported) -> Panel:
    known = ~np.isnan(reference) & ~np.isnan(predicted)
    reference, predicted = reference[known], predicted[known]
    return Panel(title, axis, reference, predicted, (predicted - reference) / reported.size, reported.unit)


def _draw_parity(axes: Axes, panel: Panel) -> None:
    low = min(panel.reference.min(), panel.predicted.min())
    high = max(panel.reference.max(), panel.predicted.max())
    margin = 0.05 * (high - low) or 1.0
    limits = (low - margin, high + margin)
    axes.plot(limits, limits, color="0.6", linewidth=0.8, zorder=1)
    _draw_points(axes, panel.reference, panel.predicted, limits)
    axes.set(xlim=limits, ylim=limits, aspect="equal", title=panel.title)
    axes.set_xlabel(f"reference {panel.axis}")
    axes.set_ylabel(f"predicted {panel.axis}")
    _set_ticks(axes)
    axes.tick_params(direction="in", top=True, right=True)
    row = ErrorRow.from_errors(panel.title, panel.error_unit, panel.error, "values")
    text = f"MAE {row.mae:.3g} {row.unit}\nRMSE {row.rmse:.3g} {row.unit}"
    axes.text(0.04, 0.96, text, transform=axes.transAxes, va="top", fontsize=9)


def _draw_points(axes: Axes, x: NDArray, y: NDArray, limits: tuple[float, float]) -> None:
    if x.size > TOO_MANY_POINTS:
        counts, edges, _ = np.histogram2d(x, y, bins=_CELLS, range=[limits, limits])
        shown = np.ma.masked_equal(counts.T, 0)
        axes.pcolormesh(edges, edges, shown, norm=LogNorm(), cmap="viridis", rasterized=True, zorder=2)
        return
    style = {"color": _COLOR, "s": 9}
    if x.size > MANY_POINTS:
        density = point_density(x, y)
        order = np.argsort(density)  # the dense parts on top
        x, y = x[order], y[order]
        style = {"c": np.log(density[order]), "cmap": "viridis", "s": 5}
    axes.scatter(x, y, linewidths=0, rasterized=True, zorder=2, **style)


def _set_ticks(axes: Axes) -> None:
    """The same few ticks on both axes. Slanted, long numbers do not run into each other."""
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    longest = max(len(label) for label in axes.xaxis.get_major_formatter().format_ticks(axes.get_xticks()))
    if longest > 5:
        axes.tick_params(axis="x", labelrotation=30)


def point_density(x: NDArray, y: NDArray, bins: int = 80) -> NDArray:
    """(n,) how many points share the bin of each point, at least 1."""
    counts, x_edges, y_edges = np.histogram2d(x, y, bins=bins)
    column = np.clip(np.searchsorted(x_edges, x, side="right") - 1, 0, bins - 1)
    row = np.clip(np.searchsorted(y_edges, y, side="right") - 1, 0, bins - 1)
    return np.maximum(counts[column, row], 1.0)


def _draw_histogram(axes: Axes, panel: Panel) -> None:
    """All errors, or the central 99 % if outliers would squeeze those into a third of the width."""
    central, largest = np.quantile(np.abs(panel.error), [0.99, 1.0])
    reach = (central if largest > 3 * central > 0 else largest) or 1.0
    shown = panel.error[np.abs(panel.error) <= reach]
    bins = int(np.clip(np.sqrt(shown.size), 10, 80))
    axes.hist(shown, bins=bins, range=(-reach, reach), color=_COLOR, alpha=0.85)
    axes.axvline(0.0, color="0.6", linewidth=0.8)
    axes.set_xlabel(f"predicted − reference ({panel.error_unit})")
    axes.set_ylabel("count")
    outside = panel.error.size - shown.size
    if outside:
        text = f"{outside} of {counted(panel.error.size, 'value')} outside"
        axes.set_title(text, loc="right", fontsize=8)
    axes.tick_params(direction="in")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
