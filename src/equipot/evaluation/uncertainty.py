"""A single model's uncertainty of its energies beside the errors that were found."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from equipot.deploy.rigidity import agreement
from equipot.evaluation.ensemble import draw_calibration
from equipot.evaluation.metrics import frames_in_groups
from equipot.evaluation.predict import Comparison
from equipot.evaluation.report import MAX_GROUPS, number, numeric, short_names
from equipot.files import atomic_write, write_json
from equipot.quantities import MEV


def print_uncertainty(comparison: Comparison, console: Console) -> None:
    """Print how well uncertainties foretell errors: of all frames, and of groups if there are several."""
    rows = uncertainty_rows(comparison)
    if not rows:
        return
    numbers = numeric("predicted", "found", "found /\npredicted", "miscali-\nbration", "rank\ncorr.", "over")
    title = "Uncertainty of the energy: RMS in meV/atom"
    table = Table(Column("frames", overflow="fold"), *numbers, title=title, title_justify="left")
    for row in rows[: 1 + MAX_GROUPS]:
        sizes = (number(row[name] / MEV) for name in ("predicted_rms", "error_rms"))
        others = (row[name] for name in ("ratio_rms", "miscalibration", "rank_correlation"))
        table.add_row(
            Text(row["name"]), *sizes, *("–" if v is None else f"{v:.2f}" for v in others), str(row["frames"])
        )
    console.print(table)


def write_uncertainty(comparison: Comparison, folder: Path) -> list[Path]:
    """Write the rows, each frame's uncertainty, and if there are labels the calibration plot; the files."""
    folder.mkdir(parents=True, exist_ok=True)
    frames = [
        {"file": source.file, "index": source.index, "uncertainty": float(sigma)}
        for source, sigma in zip(comparison.sources, comparison.uncertainty, strict=True)
    ]
    files = [folder / "uncertainty.json"]
    write_json(files[0], {"unit": "eV/atom", "groups": uncertainty_rows(comparison), "frames": frames})
    sigma, errors = _labelled(comparison)
    if len(errors) > 1:
        figure = Figure(figsize=(3.9, 4.0), layout="constrained", dpi=200)
        draw_calibration(figure.subplots(), "energy", "meV/atom", sigma / MEV, errors / MEV, "uncertainty")
        files.append(folder / "calibration.png")
        with atomic_write(files[1]) as temporary:
            figure.savefig(temporary)
    return files


def uncertainty_rows(comparison: Comparison) -> list[dict]:
    """`agreement` of uncertainties and errors (eV/atom): of all frames, of each file, of each config_type."""
    files = short_names(source.file for source in comparison.sources)
    groups = [("all", np.ones(comparison.num_frames, dtype=bool))]
    for _, name, chosen in frames_in_groups(comparison):
        groups.append((files.get(name, name or "(none)"), chosen))
    rows = []
    for name, chosen in groups:
        sigma, errors = _labelled(comparison.select(chosen))
        if len(errors):
            unknown = {"name": name, "frames": len(errors), "rank_correlation": None}
            rows.append(unknown | agreement(sigma, errors))
    return rows


def _labelled(comparison: Comparison) -> tuple[np.ndarray, np.ndarray]:
    """Uncertainties and absolute errors, eV/atom; frames without features (lone atoms) cannot be judged."""
    errors = np.abs(comparison.error("energy"))
    known = ~np.isnan(errors) & (comparison.uncertainty > 0)
    return comparison.uncertainty[known], errors[known]
