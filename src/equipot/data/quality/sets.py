"""Checks of whole sets by what is known of every frame: energies, levels of theory, repeated structures."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from equipot.data.frames import Frame
from equipot.data.pool import Pool
from equipot.data.quality.findings import Finding, frame_ids, numbers
from equipot.data.quality.structures import structure_key
from equipot.data.species import species_of
from equipot.data.statistics import fit_atomic_energies
from equipot.data.text import counted

_OUTLIER_SIGMAS, _OUTLIER_ENERGY = 10.0, 1.0  # robust standard deviations, eV/atom: both must be exceeded
_LEVEL_ENERGY = 0.2  # eV/atom
_SAME_ENERGY = 1e-3  # eV/atom; two calculations of one structure agree better
_COARSE_STEP = 1e-5  # eV
_COARSE = 1e-4  # eV/atom
_MOST_FRAMES = 20_000  # of which compositions are compared


def check_energies(pool: Pool) -> list[Finding]:
    """Energies far from what the composition gives, by a fit that leaves them out."""
    columns = pool.columns
    rows = np.flatnonzero(columns.known("energy") & ~columns.isolated)
    if len(rows) < 5:
        return []
    energies, counts = columns.energy[rows], columns.composition[rows].astype(np.float64)
    residual = energy_residuals(counts, energies)
    findings = _check_totals(counts, energies, residual)
    center = np.median(residual)
    sigma = 1.4826 * np.median(np.abs(residual - center))
    far = np.abs(residual - center)
    outliers = rows[far > max(_OUTLIER_SIGMAS * sigma, _OUTLIER_ENERGY)]
    if len(outliers):
        ids = tuple(pool.take(outliers).ids())
        worst = pool.take(rows[[far.argmax()]]).ids()[0][1]
        message = (
            f"{counted(len(outliers), 'frame')} more than {_OUTLIER_ENERGY:g} eV/atom and "
            f"{_OUTLIER_SIGMAS:g} robust standard deviations ({sigma:.3g} eV/atom) from the fit to the "
            f"composition; the farthest, frame {worst}, is {residual[far.argmax()] - center:+.3g} "
            "eV/atom off."
        )
        findings.append(Finding("warning", "energy outliers", message, ids, ("energy",)))
    return findings


def _check_totals(counts: NDArray, energies: NDArray, residual: NDArray) -> list[Finding]:
    """Energies that compositions explain only if they are taken as energies per atom."""
    atoms = counts.sum(axis=1)
    if atoms.std() < 0.1 * atoms.mean():
        return []
    other = energy_residuals(counts, energies * atoms)
    size = np.abs(np.median(energies))
    as_given, per_atom = (np.median(np.abs(x - np.median(x))) for x in (residual * atoms, other))
    if size > 1 and per_atom < 0.05 * size and per_atom < 0.2 * as_given and as_given > 0.05 * size:
        message = (
            "The energies seem to be per atom: they do not grow with the number of atoms. "
            "Multiply them by it."
        )
        return [Finding("error", "energies per atom", message, labels=("energy",))]
    return []


def energy_residuals(counts: NDArray, energies: NDArray) -> NDArray[np.float64]:
    """(F,) eV/atom: energy minus a fit to the composition (F, K), in which outliers do not take part."""
    kept = np.ones(len(energies), dtype=bool)
    for _ in range(5):
        fit = fit_atomic_energies(counts[kept], energies[kept])
        residual = (energies - counts @ fit) / counts.sum(axis=1)
        far = np.abs(residual - np.median(residual))
        kept = far <= max(_OUTLIER_SIGMAS * np.median(far), 1e-9)
    return residual


def check_precision(pool: Pool) -> list[Finding]:
    """Total energies that were stored in single precision."""
    known = pool.columns.known("energy")
    energies = pool.columns.energy[known]
    if len(energies) < 10:
        return []
    single = energies.astype(np.float32)
    step = float(np.median(np.spacing(np.abs(single))))
    if step < _COARSE_STEP or np.abs(energies - single).max() > 1e-3 * step:
        return []
    message = (
        f"All energies are numbers of single precision: they are rounded to {1e3 * step:.2g} meV. Subtract "
        "reference energies before storing them."
    )
    coarse = step / np.median(pool.columns.num_atoms[known]) > _COARSE
    return [Finding("warning" if coarse else "note", "precision", message, labels=("energy",))]


def check_energy_levels(pool: Pool) -> list[Finding]:
    """Files whose energies of one composition are too far apart for one level of theory."""
    columns = pool.columns
    rows = np.flatnonzero(columns.known("energy") & ~columns.isolated)
    rows = rows[:: -(-len(rows) // _MOST_FRAMES) or 1]
    chosen = pool.take(rows)
    columns = chosen.columns
    shares = np.round(columns.composition / columns.num_atoms[:, None], 6)
    per_atom = columns.energy / columns.num_atoms
    levels: dict[tuple, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for (file, _), share, level, energy in zip(
        chosen.ids(), shares.tolist(), columns.level.tolist(), per_atom.tolist(), strict=True
    ):
        levels[(level, *share)][file].append(energy)
    for files in levels.values():
        medians = {file: float(np.median(found)) for file, found in files.items()}
        low, high = min(medians, key=medians.get), max(medians, key=medians.get)
        spread = max(1.4826 * np.median(np.abs(np.array(files[f]) - medians[f])) for f in (low, high))
        if (
            medians[high] - medians[low] > max(_LEVEL_ENERGY, 5 * spread)
            and min(map(len, files.values())) > 2
        ):
            message = (
                f"Energies of the same composition differ between files: {medians[low]:.5g} eV/atom in "
                f"{low}, {medians[high]:.5g} eV/atom in {high} (medians). Another level of theory "
                "(data.level), other reference energies, another unit?"
            )
            return [Finding("warning", "energy levels", message, labels=("energy",))]
    return []


def check_periodicity(pool: Pool) -> list[Finding]:
    """Frames without a cell among others of the same composition that have one."""
    columns = pool.columns
    rows = np.flatnonzero(~columns.isolated & (columns.num_atoms > 1))
    groups: dict[bytes, list[int]] = defaultdict(list)
    for row, counts in zip(rows.tolist(), columns.composition[rows], strict=True):
        groups[counts.tobytes()].append(row)
    lost = []
    for group in groups.values():
        without = [row for row in group if not columns.periodic[row]]
        if 0 < len(without) < 0.5 * len(group):
            lost += without
    frames = [pool[row] for row in lost[:200]]
    frames = [frame for frame in frames if not frame.pbc.any()]
    if not frames:
        return []
    message = (
        f"{counted(len(frames), 'frame')} ({numbers(frames)}) without periodic directions, while most frames "
        "of the same atoms have three: a cell or pbc that was lost?"
    )
    return [Finding("warning", "cells", message, frame_ids(frames))]


def check_duplicates(pool: Pool, most: int | None = None) -> list[Finding]:
    """Structures that occur more than once, with equal or with different energies.

    ``most`` frames that could be such are read; None: all.
    """
    repeated, contradicting = [], []
    for group in _repeated(pool, most):
        energies = [f.energy / f.num_atoms for f in group if f.energy is not None]
        different = energies and max(energies) - min(energies) > _SAME_ENERGY
        (contradicting if different else repeated).append(group)
    findings = []
    if contradicting:
        worst = max(contradicting, key=_energy_range)
        message = (
            f"{counted(len(contradicting), 'structure')} with different energies in different frames, by up "
            f"to {1e3 * _energy_range(worst):.3g} meV/atom ({_names(worst)}). Several levels of theory need "
            "a data.level each."
        )
        ids = frame_ids([frame for group in contradicting for frame in group])
        findings.append(Finding("error", "contradiction", message, ids, ("energy",)))
    if repeated:
        extra = sum(len(group) - 1 for group in repeated)
        verb = "repeats" if extra == 1 else "repeat"
        message = f"{counted(extra, 'frame')} {verb} an earlier structure (first: {_names(repeated[0])})."
        ids = frame_ids([frame for group in repeated for frame in group])
        findings.append(Finding("warning", "duplicates", message, ids))
    return findings


def _repeated(pool: Pool, most: int | None) -> list[list[Frame]]:
    """Groups of frames with the same structure at the same level of theory, in the same field."""
    columns = pool.columns
    rows: dict[tuple[int, str], list[int]] = defaultdict(list)
    _, inverse, counts = np.unique(columns.fingerprint, return_inverse=True, return_counts=True)
    for row in np.flatnonzero(counts[inverse] > 1)[:most].tolist():
        rows[(int(columns.fingerprint[row]), str(columns.level[row]))].append(row)
    groups: dict[tuple, list[Frame]] = defaultdict(list)
    for (_, level), alike in rows.items():
        for row in alike if len(alike) > 1 else ():
            frame = pool[row]
            field = () if frame.electric_field is None else tuple(frame.electric_field)
            groups[(level, structure_key(frame), field)].append(frame)
    return [group for group in groups.values() if len(group) > 1]


def check_shared(train: Pool, other: Pool, name: str) -> list[Finding]:
    """Structures of the ``name`` set that are trained on, too."""
    shared = np.isin(other.columns.fingerprint, train.columns.fingerprint)
    if not shared.any():
        return []
    message = (
        f"{shared.sum()} of {len(other)} {name} frames are also in the training set (first: "
        f"{other[int(shared.argmax())].where}); the {name} error will look too good."
    )
    return [Finding("warning", "shared frames", message, tuple(other.take(shared).ids()))]


def check_isolated_atoms(frames: Sequence[Frame]) -> list[Finding]:
    """Which isolated atoms there are, whether every element has one, whether they agree."""
    isolated = [frame for frame in frames if frame.is_isolated_atom]
    if not isolated:
        return []
    energies = defaultdict(list)
    for frame in isolated:
        if frame.energy is not None:
            energies[chemical_symbols[frame.atomic_numbers[0]]].append(frame.energy)
    contradicting = [symbol for symbol, found in energies.items() if max(found) - min(found) > 1e-4]
    if contradicting:
        message = f"Isolated atoms of {', '.join(contradicting)} have several different energies."
        return [Finding("error", "isolated atoms", message, frame_ids(isolated))]
    missing = [symbol for symbol in species_of(frames) if symbol not in energies]
    found = ", ".join(f"{symbol} {found[0]:.6g} eV" for symbol, found in energies.items())
    message = f"{counted(len(isolated), 'isolated atom')}: {found or 'without energies'}."
    if missing:
        message += f" None for {', '.join(missing)}, so reference energies are fitted."
    return [Finding("note", "isolated atoms", message, frame_ids(isolated))]


def _energy_range(group: Sequence[Frame]) -> float:
    energies = [frame.energy / frame.num_atoms for frame in group if frame.energy is not None]
    return max(energies) - min(energies)


def _names(group: Sequence[Frame]) -> str:
    if len({frame.file for frame in group}) == 1:
        return "frames " + ", ".join(str(frame.index) for frame in group[:4])
    return ", ".join(f"{frame.file} frame {frame.index}" for frame in group[:2])
