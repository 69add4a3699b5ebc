"""Pictures of phonons."""

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from equipot.properties.phonon_bands import Bands

_COLOR = "#1f4e79"


def plot_bands(bands: Bands, dos: dict[str, NDArray]) -> Figure:
    """Bands beside the density of states, total and of each element."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[3, 1], sharey=True)
    for distances, frequencies in zip(bands.distances, bands.frequencies, strict=True):
        left.plot(distances, np.sort(frequencies, axis=1), color=_COLOR, lw=1)
    places, names = _ticks(bands)
    left.set_xticks(places, names)
    for place in places:
        left.axvline(place, color="0.8", lw=0.8, zorder=0)
    left.set(xlim=(places[0], places[-1]), ylabel="frequency (THz), imaginary as negative")
    axis = dos["frequency_THz"]
    right.fill_betweenx(axis, dos["total_per_THz"], color="0.88")
    right.plot(dos["total_per_THz"], axis, color="0.5", lw=1, label="total")
    for name, values in list(dos.items())[2:]:
        right.plot(values, axis, lw=1, label=name.removesuffix("_per_THz"))
    right.set(xlim=(0, None), xlabel="density of states (1/THz)")
    right.legend(loc="best", fontsize=8)
    for ax in (left, right):
        ax.axhline(0.0, color="0.6", lw=0.8)
        ax.tick_params(direction="in")
    return figure


def _ticks(bands: Bands) -> tuple[list[float], list[str]]:
    """Where segments meet; two names where the path jumps."""
    places, names = [], []
    for (start, end), distances in zip(bands.labels, bands.distances, strict=True):
        name = _shown(start)
        if not names:
            places.append(distances[0])
            names.append(name)
        elif names[-1] != name:
            names[-1] += f"|{name}"
        places.append(distances[-1])
        names.append(_shown(end))
    return places, names


def _shown(label: str) -> str:
    for name, letter in (("SIGMA", "Σ"), ("DELTA", "Δ"), ("LAMBDA", "Λ")):
        label = label.replace(name, letter)
    letter, _, number = label.partition("_")
    return f"{letter}$_{{{number}}}$" if number else letter


def plot_thermal(thermal: dict[str, NDArray]) -> Figure:
    """Free energy, entropy and heat capacity against temperature."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    left = figure.subplots()
    right = left.twinx()
    temperature = thermal["temperature_K"]
    lines = left.plot(temperature, thermal["free_energy_kJ_per_mol"], color=_COLOR, label="F")
    lines += right.plot(temperature, thermal["entropy_J_per_K_mol"], color="tab:orange", label="S")
    lines += right.plot(temperature, thermal["heat_capacity_J_per_K_mol"], color="tab:green", label="Cv")
    left.set(xlabel="temperature (K)", ylabel="F (kJ/mol)", xlim=(temperature[0], temperature[-1]))
    right.set(ylabel="S, Cv (J/K/mol)", ylim=(0, None))
    left.legend(handles=lines, loc="center left")
    left.grid(alpha=0.3)
    return figure
