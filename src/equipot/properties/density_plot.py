"""The picture of an electron density."""

from collections.abc import Callable

import numpy as np
from ase import Atoms
from ase.data.colors import jmol_colors
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from equipot.units import BOHR

_MARGIN, _POINTS, _STEP = 2.4, 241, 0.2  # Å around atoms; points along an axis of the slice; Å across it
_LEVELS = np.geomspace(1e-3, 100, 16)  # e/Å³ or e/Å²
_NEAR = 0.3  # Å from the plane, within which an atom is drawn full


def plot_density(atoms: Atoms, density: Callable[[NDArray], NDArray]) -> Figure:
    """A slice through the plane nearest to the atoms, and beside it all electrons along its normal.

    ``density``: (..., 3) Å → (...) e/Bohr³.
    """
    center = atoms.positions.mean(axis=0)
    axes = np.linalg.svd(atoms.positions - center, full_matrices=True)[2]  # by the spread along them
    places = (atoms.positions - center) @ axes.T
    low, high = places.min(axis=0) - _MARGIN, places.max(axis=0) + _MARGIN
    u, v = (np.linspace(low[k], high[k], _POINTS) for k in (0, 1))
    plane = np.stack(np.meshgrid(u, v), axis=-1) @ axes[:2] + center
    depth = np.arange(low[2], high[2] + _STEP, _STEP)
    through = plane[::3, ::3, None] + depth[:, None] * axes[2]
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    per_volume = 1 / BOHR**3
    _panel(left, u, v, density(plane) * per_volume, "in the plane nearest to the atoms", "e/Å³")
    column = density(through).sum(axis=2) * _STEP * per_volume
    _panel(right, u[::3], v[::3], column, "along the normal of that plane", "e/Å²")
    for place, number, symbol in zip(places, atoms.numbers, atoms.symbols, strict=True):
        for ax in (left, right):
            inside = ax is right or abs(place[2]) < _NEAR
            face = jmol_colors[number] if inside else "none"
            ax.plot(*place[:2], "o", ms=6, mfc=face, mec="black", mew=0.8)
            ax.annotate(symbol, place[:2], (4, 4), textcoords="offset points", fontsize=8)
    return figure


def _panel(ax: Axes, u: NDArray, v: NDArray, values: NDArray, title: str, unit: str) -> None:
    levels, norm = _LEVELS, LogNorm(_LEVELS[0], _LEVELS[-1])
    shown = ax.contourf(u, v, np.clip(values, 1e-9, None), levels, norm=norm, cmap="viridis", extend="both")
    ax.contour(u, v, values, levels, colors="white", linewidths=0.4)
    ax.set(title=title, xlabel="Å", ylabel="Å", aspect="equal")
    bar = ax.figure.colorbar(shown, ax=ax, shrink=0.85, label=unit)
    bar.set_ticks([10.0**k for k in range(-3, 3)])
