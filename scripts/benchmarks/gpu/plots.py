"""Figures of the results; drawn from results.json alone, so also later and elsewhere."""

from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_COLORS = matplotlib.colormaps["tab10"].colors
_STYLES = {"eager": "o-", "TorchScript": "s--", "ASE, deployed file": "^:"}


def draw(results: list[dict], folder: Path) -> list[str]:
    """Write the figures that there are results for; returns their names, or why one could not be drawn."""
    rows = {part["part"]: [row for case in part["cases"] for row in case["rows"]] for part in results}
    drawn = []
    for name, function in {"steps": _steps, "layers": _layers, "edges": _edges}.items():
        found = [row for row in rows.get(name, []) if {"wall ms", "ns/edge", "each ms"} & row.keys()]
        if not found:
            continue
        try:  # what is left of a part that has failed may not make a figure
            function(found).savefig(folder / f"{name}.png", dpi=150)
        except (ValueError, KeyError, IndexError) as error:
            drawn.append(f"no {name}.png ({type(error).__name__}: {error})")
        else:
            drawn.append(f"{name}.png")
    return drawn


def _steps(rows: list[dict]) -> Figure:
    """Time per atom, and what of a step is the host's."""
    figure = Figure(figsize=(12, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    series: dict[tuple, list[dict]] = {}
    for row in rows:
        if row["model"] != rows[0]["model"] and row["how"] != "eager":
            continue  # in the table
        series.setdefault((row["model"], row["structure"], row["how"]), []).append(row)
    pairs = list(dict.fromkeys(key[:2] for key in series))
    for (model, structure, how), points in series.items():
        color = _COLORS[pairs.index((model, structure)) % len(_COLORS)]
        points = sorted(points, key=lambda row: row["atoms"])
        atoms = [row["atoms"] for row in points]
        label = f"{model}, {structure}, {how}"
        left.plot(atoms, [row["µs/atom"] for row in points], _STYLES[how], color=color, label=label, ms=4)
    left.set(
        xscale="log", yscale="log", xlabel="atoms", ylabel="µs per atom", title="Time of a step per atom"
    )
    left.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    model, structure = pairs[0]
    points = sorted(series.get((model, structure, "eager"), []), key=lambda row: row["atoms"])
    atoms = [row["atoms"] for row in points]
    clocks = {
        "wall ms": ("wall", "o-"),
        "device ms": ("device", "s--"),
        "host ms": ("host, until the call returns", "^:"),
    }
    for number, (key, (label, style)) in enumerate(clocks.items()):
        right.plot(atoms, [row[key] for row in points], style, color=_COLORS[number], label=label, ms=4)
    right.set(xscale="log", yscale="log", xlabel="atoms", ylabel="ms", title=f"{model}, {structure}, eager")
    right.legend(fontsize=8)
    return _clean(figure)


def _layers(rows: list[dict]) -> Figure:
    """A panel for each model and structure: both passes of every layer."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault((row["structure"], row["model"]), []).append(row)
    columns = min(len(groups), 3)
    lines = -(-len(groups) // columns)
    figure = Figure(figsize=(3.6 * columns, 3.0 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flatten()
    for axes, ((structure, model), bars) in zip(panels, groups.items(), strict=False):
        for number, name in enumerate(dict.fromkeys(row["pass"] for row in bars)):
            chosen = [row for row in bars if row["pass"] == name]
            places = [row["layer"] + 0.4 * (number - 0.5) for row in chosen]
            axes.bar(places, [row["ns/edge"] for row in chosen], 0.38, color=_COLORS[number], label=name)
        axes.set(xlabel="layer", ylabel="ns per edge", xticks=sorted({row["layer"] for row in bars}))
        axes.set_title(f"{model}, {structure}", fontsize=9)
    for axes in panels[len(groups) :]:
        axes.set_visible(False)
    panels[0].legend(fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1.1), ncols=2, frameon=False)
    return _clean(figure)


def _edges(rows: list[dict]) -> Figure:
    """The time of each call whose number of edges is new."""
    figure = Figure(figsize=(6.5, 3.6), layout="constrained")
    axes: Axes = figure.subplots()
    for number, row in enumerate(rows):
        times = [float(text) for text in row["each ms"].split()]
        axes.plot(range(1, len(times) + 1), times, "o-", ms=3, color=_COLORS[number], label=row["executor"])
    axes.set(yscale="log", xlabel="call, each with one edge less", ylabel="ms")
    axes.set_title(f"Numbers of edges that change, {rows[0]['atoms']:,} atoms", fontsize=10)
    axes.legend(fontsize=8, title="executor", title_fontsize=8)
    return _clean(figure)


def _clean(figure: Figure) -> Figure:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    return figure
