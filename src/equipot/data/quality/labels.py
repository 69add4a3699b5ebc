"""Checks of energies and forces one frame at a time: units, outliers, net force, isolated atoms."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from ase.data import chemical_symbols

from equipot.data.dataset import species_of
from equipot.data.frames import Frame
from equipot.data.plausibility import implausibilities
from equipot.data.quality.findings import Finding, frame_ids
from equipot.data.statistics import fit_atomic_energies
from equipot.data.text import counted
from equipot.units import EV_A3_TO_GPA

_OUTLIER_SIGMAS, _OUTLIER_ENERGY = 10.0, 1.0  # robust standard deviations, eV/atom: both must be exceeded
_NET_FORCE = 1e-3  # eV/Å per atom: more than rounding and grids of careful calculations leave
_LARGE_FORCE = 100.0  # eV/Å
_LEVEL_ENERGY = 0.2  # eV/atom
_COARSE_STEP = 1e-5  # eV
_LARGE_PRESSURE = 1000.0  # GPa


def check_units(frames: Sequence[Frame]) -> list[Finding]:
    """Distances, forces and pressures that no usual material has."""
    findings = [Finding("warning", "units", message) for message in implausibilities(frames)]
    stressed = [frame for frame in frames if frame.stress is not None]
    pressures = np.array([pressure(frame) for frame in stressed])
    extreme = [
        frame for frame, value in zip(stressed, pressures, strict=True) if abs(value) > _LARGE_PRESSURE
    ]
    if extreme:
        findings.append(
            Finding(
                "warning", "pressure",
                f"{counted(len(extreme), 'frame')} beyond {_LARGE_PRESSURE:g} GPa (up to "
                f"{np.abs(pressures).max():.4g} GPa): a wrong unit of stress, or extreme compression.",
                frame_ids(extreme),
            )
        )  # fmt: skip
    return findings


def pressure(frame: Frame) -> float:
    """GPa, positive under compression."""
    return float(-np.trace(frame.stress) / 3 * EV_A3_TO_GPA)


def check_energies(frames: Sequence[Frame]) -> list[Finding]:
    """Energies far from what the composition gives, by a fit that leaves them out."""
    known = [frame for frame in frames if frame.energy is not None and not frame.is_isolated_atom]
    if len(known) < 5:
        return []
    residual = energy_residuals(known)
    center = np.median(residual)
    sigma = 1.4826 * np.median(np.abs(residual - center))
    far = np.abs(residual - center)
    outliers = [
        f for f, d in zip(known, far, strict=True) if d > max(_OUTLIER_SIGMAS * sigma, _OUTLIER_ENERGY)
    ]
    if not outliers:
        return []
    worst = known[int(far.argmax())]
    return [
        Finding(
            "warning", "energy outliers",
            f"{counted(len(outliers), 'frame')} more than {_OUTLIER_ENERGY:g} eV/atom and "
            f"{_OUTLIER_SIGMAS:g} robust standard deviations ({sigma:.3g} eV/atom) from the fit to the "
            f"composition; the farthest, frame {worst.index}, is {residual[far.argmax()] - center:+.3g} "
            "eV/atom off.",
            frame_ids(outliers),
        )
    ]  # fmt: skip


def check_energy_levels(frames: Sequence[Frame]) -> list[Finding]:
    """Files whose energies of one composition are too far apart for one level of theory."""
    levels: dict[tuple, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for frame in frames:
        if frame.energy is not None and not frame.is_isolated_atom:
            counts = np.unique(frame.atomic_numbers, return_counts=True)
            shares = tuple(np.round(counts[1] / frame.num_atoms, 6).tolist())
            levels[(tuple(counts[0].tolist()), shares)][frame.file].append(frame.energy / frame.num_atoms)
    for files in levels.values():
        medians = {file: float(np.median(found)) for file, found in files.items()}
        low, high = min(medians, key=medians.get), max(medians, key=medians.get)
        spread = max(1.4826 * np.median(np.abs(np.array(files[f]) - medians[f])) for f in (low, high))
        if medians[high] - medians[low] > max(_LEVEL_ENERGY, 5 * spread):
            message = (
                f"Energies of the same composition differ between files: {medians[low]:.5g} eV/atom in "
                f"{low}, {medians[high]:.5g} eV/atom in {high} (medians). Another level of theory, other "
                "reference energies, another unit?"
            )
            return [Finding("warning", "energy levels", message)]
    return []


def check_precision(frames: Sequence[Frame]) -> list[Finding]:
    """Total energies that were stored in single precision."""
    energies = np.array([frame.energy for frame in frames if frame.energy is not None])
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
    return [Finding("note", "precision", message)]


def energy_residuals(frames: Sequence[Frame]) -> np.ndarray:
    """(F,) eV/atom: energy minus a fit to the composition, in which outliers do not take part."""
    numbers = [int(z) for z in np.unique(np.concatenate([frame.atomic_numbers for frame in frames]))]
    counts = np.array([[(frame.atomic_numbers == z).sum() for z in numbers] for frame in frames], dtype=float)
    energies = np.array([frame.energy for frame in frames])
    kept = np.ones(len(frames), dtype=bool)
    for _ in range(5):
        fit = fit_atomic_energies(counts[kept], energies[kept])
        residual = (energies - counts @ fit) / counts.sum(axis=1)
        far = np.abs(residual - np.median(residual))
        kept = far <= max(_OUTLIER_SIGMAS * np.median(far), 1e-9)
    return residual


def check_forces(frames: Sequence[Frame]) -> list[Finding]:
    """Forces that do not add up to zero, huge ones, and sets of nothing but zeros."""
    known = [frame for frame in frames if frame.forces is not None and frame.num_atoms > 1]
    if not known:
        return []
    if all(not frame.forces.any() for frame in known):
        return [
            Finding("error", "zero forces", f"All forces of all {counted(len(known), 'frame')} are zero.")
        ]
    net = np.array([np.linalg.norm(frame.forces.sum(axis=0)) / frame.num_atoms for frame in known])
    size = float(np.sqrt(np.mean(np.concatenate([frame.forces for frame in known]) ** 2)))
    findings = []
    moving = [frame for frame, value in zip(known, net, strict=True) if value > _NET_FORCE]
    if moving:
        worst = int(net.argmax())
        findings.append(
            Finding(
                "error" if net[worst] > 0.1 * size else "warning", "net force",
                f"{counted(len(moving), 'frame')} whose forces add up to more than {1e3 * _NET_FORCE:g} "
                f"meV/Å per atom; frame {known[worst].index}: {net[worst] * known[worst].num_atoms:.3g} eV/Å "
                f"in all, {1e3 * net[worst]:.3g} meV/Å per atom (RMS force {1e3 * size:.3g} meV/Å). No model "
                "without an external field can have that.",
                frame_ids(moving),
            )
        )  # fmt: skip
    largest = np.array([np.abs(frame.forces).max() for frame in known])
    huge = [frame for frame, value in zip(known, largest, strict=True) if value > _LARGE_FORCE]
    if huge:
        findings.append(
            Finding(
                "warning", "large forces",
                f"{counted(len(huge), 'frame')} with forces beyond {_LARGE_FORCE:g} eV/Å, up to "
                f"{largest.max():.3g} eV/Å.", frame_ids(huge),
            )
        )  # fmt: skip
    return findings


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
