"""Errors of predicted spectra: of their numbers, their means over the grid, and their shapes.

    equipot evaluate model.pt test.xyz --predictions predictions.xyz
    python scripts/spectra.py predictions.xyz --name phonon_dos --grid -300 1000 \
        --where duplicate_of_train=none

The mean of a spectrum g over its grid w is Σ g w / Σ g; its unit is that of the grid. What follows ± is the
standard error over the structures. ``--where KEY=VALUE``: only structures whose own file says so.
"""

import argparse
from collections.abc import Sequence

import ase.io
import numpy as np
from ase import Atoms
from numpy.typing import NDArray


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Print the errors and return them: ``mae``, ``mean`` and ``correlation``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("predictions", help="what equipot evaluate --predictions has written")
    parser.add_argument("--name", required=True, help="of the output")
    parser.add_argument("--grid", required=True, nargs=2, type=float, metavar=("FIRST", "LAST"))
    parser.add_argument("--where", metavar="KEY=VALUE")
    parser.add_argument("--plot", metavar="FILE", help="predictions beside references")
    chosen = parser.parse_args(arguments)
    frames = ase.io.read(chosen.predictions, ":", format="extxyz")
    kept = frames if chosen.where is None else _where(frames, *chosen.where.split("=", 1))
    if not kept:
        parser.error(f"none of {len(frames)} structures has {chosen.where}")
    predicted, reference = (
        np.array([atoms.info[f"{kind}_{chosen.name}"] for atoms in kept])
        for kind in ("predicted", "reference")
    )
    grid = np.linspace(*chosen.grid, reference.shape[1])
    of_each = errors(predicted, reference, grid)
    print(f"{chosen.name} of {len(kept)} of {len(frames)} structures")
    for text, values in of_each.items():
        print(f"  {text:<12} {values.mean():8.4f} ± {values.std(ddof=1) / len(values) ** 0.5:.4f}")
    if chosen.plot:
        plot([atoms.get_chemical_formula() for atoms in kept], predicted, reference, grid, chosen.plot)
    return {text: float(values.mean()) for text, values in of_each.items()}


def errors(predicted: NDArray, reference: NDArray, grid: NDArray) -> dict[str, NDArray]:
    """(S, G), (S, G), (G,) → (S,) of each structure: ``mae``, that of the ``mean``, ``correlation``."""
    means = [(g @ grid) / g.sum(axis=1) for g in (predicted, reference)]
    pairs = zip(predicted, reference, strict=True)
    return {
        "mae": np.abs(predicted - reference).mean(axis=1),
        "mean": np.abs(means[0] - means[1]),
        "correlation": np.array([np.corrcoef(*pair)[0, 1] for pair in pairs]),
    }


def plot(names: Sequence[str], predicted: NDArray, reference: NDArray, grid: NDArray, file: str) -> None:
    """Twelve structures, from the smallest error to the largest."""
    from matplotlib.figure import Figure

    order = np.argsort(np.abs(predicted - reference).mean(axis=1))
    shown = order[np.linspace(0, len(order) - 1, min(12, len(order))).round().astype(int)]
    figure = Figure(figsize=(10, 7), layout="constrained")
    for axes, i in zip(figure.subplots(3, 4, sharex=True).flat, shown, strict=False):
        axes.fill_between(grid, reference[i], color="0.8", label="reference")
        axes.plot(grid, predicted[i], color="tab:blue", label="predicted")
        axes.set_title(names[i], fontsize=9)
    figure.axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(file, dpi=150)


def _where(frames: Sequence[Atoms], key: str, value: str) -> list[Atoms]:
    """Those whose frame in the file that they come from has this in its header."""
    files = {name: ase.io.read(name, ":") for name in {atoms.info["source_file"] for atoms in frames}}
    sources = [files[atoms.info["source_file"]][atoms.info["source_index"]] for atoms in frames]
    return [a for a, source in zip(frames, sources, strict=True) if str(source.info.get(key)) == value]


if __name__ == "__main__":
    main()
