"""Ensembles evaluated: their mean, how much the members disagree, and how well that foretells the error."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr

from equipot.data.frames import Frame
from equipot.deploy.ensemble import deviation, find_members, refuse_strangers
from equipot.errors import ModelFileError
from equipot.evaluation.model import LoadedModel
from equipot.evaluation.predict import Comparison, predict_frames
from equipot.evaluation.report import numeric
from equipot.files import atomic_write, write_json
from equipot.quantities import MEV
from equipot.run_directory import RunDirectory

_BINS = 10


@dataclass(frozen=True)
class Disagreement:
    """Standard deviations over the members of an ensemble, for S frames with N atoms in all."""

    energy: NDArray  # (S,) eV/atom
    forces: NDArray  # (N,) eV/Å, √(Σ |F_m − F̄|² / (M − 1)) of each atom
    offsets: NDArray  # (S + 1,) frame i holds the atoms offsets[i] to offsets[i + 1]

    @property
    def largest_force(self) -> NDArray:
        """(S,) eV/Å, of the atom of each frame that the members disagree on most."""
        return _largest(self.forces, self.offsets)


@dataclass(frozen=True)
class DisagreementRow:
    """How much the members disagree on one quantity, and what that says of the error of their mean.

    ``spearman`` is the rank correlation of disagreement and error, ``error_ratio`` the RMS error over the
    RMS disagreement: 1 if the one is a measure of the other. None without labels.
    """

    quantity: str
    unit: str
    mean: float
    largest: float
    spearman: float | None
    error_ratio: float | None
    count: int  # values with a label


def member_paths(path: str | Path) -> list[Path]:
    """The members of an ensemble, of run directories or deployed files; ``path`` itself if it is none.

    Raises:
        ModelFileError: a member is missing or has not been trained yet.
    """
    members = find_members(path)
    untrained = [m.name for m in members if m.is_dir() and not RunDirectory(m).best.is_file()]
    if untrained:
        raise ModelFileError(
            f"'{path}' is an ensemble of {len(members)}, of which {', '.join(untrained)} "
            f"{'has' if len(untrained) == 1 else 'have'} no weights yet: go on with "
            f"equipot train CONFIG --ensemble {len(members)} --resume {path}."
        )
    return members or [Path(path)]


def predict_members(
    members: Sequence[LoadedModel], frames: Sequence[Frame], max_edges: int | None = None
) -> tuple[Comparison, Disagreement | None]:
    """Predict ``frames`` with every member: the mean, and the disagreement (None for a single model).

    Raises:
        ModelFileError: the members do not belong together.
        UnknownSpeciesError, EvaluationError: as ``predict_frames``.
    """
    refuse_strangers([(m.path, m.species, m.cutoff, m.outputs) for m in members])
    each = [predict_frames(member, frames, max_edges) for member in members]
    if len(each) == 1:
        return each[0], None
    first = each[0].reference  # where labels are known up to a quantum, all are on the branch of the first
    values = {
        name: np.stack([c.values[name] + np.nan_to_num(first[name] - c.reference[name]) for c in each])
        for name in first
    }
    means = {name: value.mean(axis=0) for name, value in values.items()}
    mean = replace(each[0], values=means, uncertainty=None)  # that of an ensemble is its disagreement
    if "energy" not in values:
        return mean, None
    per_atom = values["energy"] / mean.num_atoms
    spread = Disagreement(deviation(per_atom), deviation(values["forces"]), mean.offsets)
    return mean, spread


def disagreement_rows(comparison: Comparison, spread: Disagreement) -> list[DisagreementRow]:
    """Rows for the energy per atom, the force on each atom, and the largest force of each frame."""
    return [
        _row(quantity, unit, deviations / MEV, errors / MEV)
        for quantity, unit, deviations, errors in _quantities(comparison, spread)
    ]


def calibration(deviations: NDArray, errors: NDArray) -> tuple[NDArray, NDArray]:
    """RMS disagreement and RMS error of ten groups of equal size, from the least disagreement to the most."""
    order = np.argsort(deviations, kind="stable")
    groups = [group for group in np.array_split(order, _BINS) if len(group)]
    return tuple(np.array([_rms(values[group]) for group in groups]) for values in (deviations, errors))


def print_disagreement(rows: Sequence[DisagreementRow], num_members: int, console: Console) -> None:
    """Print ``disagreement_rows`` as a table."""
    statistics = numeric("rank corr.\nwith error", "error /\ndisagr.", "over")
    columns = "quantity", *numeric("mean", "largest"), "unit", *statistics
    table = Table(*columns, title=f"Disagreement of {num_members} members", title_justify="left")
    for row in rows:
        numbers = ("–" if v is None else f"{v:.2f}" for v in (row.spearman, row.error_ratio))
        amounts = (f"{row.mean:.3g}", f"{row.largest:.3g}")
        table.add_row(row.quantity, *amounts, row.unit, *numbers, str(row.count))
    console.print(table)


def write_disagreement(
    comparison: Comparison, spread: Disagreement, frames: Sequence[Frame], num_members: int, folder: Path
) -> list[Path]:
    """Write the rows, and for each frame its disagreement and errors, and the calibration plot; the files."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "members": num_members,
        "quantities": [asdict(row) for row in disagreement_rows(comparison, spread)],
        "frames": _frame_rows(comparison, spread, frames),
    }
    files = [folder / "disagreement.json"]
    write_json(files[0], content)
    if plot_calibration(comparison, spread, folder / "calibration.png"):
        files.append(folder / "calibration.png")
    return files


def plot_calibration(comparison: Comparison, spread: Disagreement, path: Path) -> bool:
    """Write RMS error against disagreement on logarithmic scales; False, and no file, without labels."""
    panels = [(q, unit, *_labelled(d / MEV, e / MEV)) for q, unit, d, e in _quantities(comparison, spread)]
    panels = [panel for panel in panels if panel[2].size > 1]
    if not panels:
        return False
    figure = Figure(figsize=(3.9 * len(panels), 4.0), layout="constrained", dpi=200)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        draw_calibration(axes, *panel)
    with atomic_write(path) as temporary:
        figure.savefig(temporary)
    return True


def draw_calibration(
    axes: Axes, quantity: str, unit: str, deviations: NDArray, errors: NDArray, called: str = "disagreement"
) -> None:
    """Errors against deviations (n,), and the RMS of tenths."""
    axes.scatter(deviations, errors, s=4, linewidths=0, color="tab:blue", alpha=0.3, rasterized=True)
    x, y = calibration(deviations, errors)
    axes.plot(x, y, "o-", color="tab:orange", label="RMS of tenths")
    positive = np.concatenate([x, y])
    positive = positive[positive > 0]
    if positive.size:
        limits = positive.min() / 3, positive.max() * 3
        axes.plot(limits, limits, color="0.5", linewidth=0.8, label=f"error = {called}")
        axes.set(xscale="log", yscale="log", xlim=limits, ylim=limits, aspect="equal")
    axes.set_title(quantity)
    axes.set_xlabel(f"{called} ({unit})")
    axes.set_ylabel(f"error ({unit})")
    axes.legend(frameon=False, fontsize=8)


def _quantities(comparison: Comparison, spread: Disagreement) -> list[tuple[str, str, NDArray, NDArray]]:
    """Name, unit, disagreement and absolute error of each quantity, in eV and Å; NaN without a label."""
    force_errors = np.linalg.norm(comparison.error("forces"), axis=1)
    return [
        ("energy", "meV/atom", spread.energy, np.abs(comparison.error("energy"))),
        ("force per atom", "meV/Å", spread.forces, force_errors),
        ("largest force", "meV/Å", spread.largest_force, _largest(force_errors, spread.offsets)),
    ]


def _row(quantity: str, unit: str, deviations: NDArray, errors: NDArray) -> DisagreementRow:
    known, error = _labelled(deviations, errors)
    varied = known.size > 2 and np.ptp(known) > 0 and np.ptp(error) > 0
    return DisagreementRow(
        quantity=quantity,
        unit=unit,
        mean=float(deviations.mean()),
        largest=float(deviations.max()),
        spearman=float(spearmanr(known, error).statistic) if varied else None,
        error_ratio=_rms(error) / _rms(known) if known.size and _rms(known) > 0 else None,
        count=known.size,
    )


def _frame_rows(comparison: Comparison, spread: Disagreement, frames: Sequence[Frame]) -> list[dict]:
    (_, _, energy, energy_error), _, (_, _, force, force_error) = _quantities(comparison, spread)
    columns = {
        "energy_std_meV_per_atom": energy,
        "energy_error_meV_per_atom": energy_error,
        "largest_force_std_meV_per_A": force,
        "largest_force_error_meV_per_A": force_error,
    }
    return [
        {
            "file": str(frame.file),
            "index": frame.index,
            **{n: None if np.isnan(c[i]) else float(c[i] / MEV) for n, c in columns.items()},
        }
        for i, frame in enumerate(frames)
    ]


def _labelled(deviations: NDArray, errors: NDArray) -> tuple[NDArray, NDArray]:
    known = ~np.isnan(errors)
    return deviations[known], errors[known]


def _largest(values: NDArray, offsets: NDArray) -> NDArray:
    return np.fmax.reduceat(values, offsets[:-1])  # forces of fixed atoms may be unknown


def _rms(values: NDArray) -> float:
    return float(np.sqrt(np.mean(values**2)))
