"""Numbers that no usual material has: the mark of data read in the wrong units."""

from collections.abc import Sequence

import numpy as np
from ase.data import covalent_radii
from numpy.typing import NDArray

from equipot.data.edges import edge_vectors
from equipot.data.frames import Frame
from equipot.data.neighbors import neighbor_list
from equipot.data.quality.findings import Finding, frame_ids
from equipot.data.text import counted
from equipot.units import EV_A3_TO_GPA

# Molecules, metals, salts and oxides have medians of 0.9 to 1.2; Bohr read as Å gives about 1.9, Å read as
# Bohr about 0.55, nm read as Å 0.1.
_DISTANCE_RANGE = (0.6, 1.6)
# Thermal and strained structures have 0.2 to 3 eV/Å, displacements of 0.03 Å for phonons 0.05. kcal/mol read
# as eV multiplies by 23, Hartree and Bohr read as eV and Å divides by 51.
_FORCE_RANGE = (0.03, 10.0)  # eV/Å
_NO_FORCE = 1e-4  # eV/Å; perfect crystals
# The largest cohesive energies are about 9 eV/atom (W).
_LARGEST_RESIDUAL = 10.0  # eV/atom
_LARGE_PRESSURE = 1000.0  # GPa

_MAX_FRAMES = 50  # for distances: a look at some frames, spread evenly, is enough
_FIRST_RADIUS, _LAST_RADIUS = 0.25, 8.0  # Å
_RARE_GASES = (2, 10, 18, 36, 54, 86)


def check_units(frames: Sequence[Frame]) -> list[Finding]:
    """Distances, forces and pressures that no usual material has."""
    findings = [Finding("warning", "units", message) for message in implausibilities(frames)]
    stressed = [frame for frame in frames if frame.stress is not None]
    pressures = np.array([pressure(frame) for frame in stressed])
    extreme = [f for f, value in zip(stressed, pressures, strict=True) if abs(value) > _LARGE_PRESSURE]
    if extreme:
        message = (
            f"{counted(len(extreme), 'frame')} beyond {_LARGE_PRESSURE:g} GPa (up to "
            f"{np.abs(pressures).max():.4g} GPa): a wrong data.units.stress, or extreme compression."
        )
        findings.append(Finding("warning", "pressure", message, frame_ids(extreme), ("stress",)))
    return findings


def check_reference_energies(residual_rms: float | None) -> list[Finding]:
    """Reference energies that leave more (eV/atom, RMS) than any cohesive energy."""
    if residual_rms is None or residual_rms <= _LARGEST_RESIDUAL:
        return []
    message = (
        f"The reference energies leave {residual_rms:.3g} eV/atom (RMS) of the energies: reference energies "
        "and energies do not belong together; check data.atomic_energies and data.units.energy."
    )
    return [Finding("warning", "reference energies", message, labels=("energy",))]


def pressure(frame: Frame) -> float:
    """GPa, positive under compression."""
    return float(-np.trace(frame.stress) / 3 * EV_A3_TO_GPA)


def implausibilities(frames: Sequence[Frame]) -> list[str]:
    """What about the interatomic distances and the forces suggests wrong units; empty if they look right."""
    found = []
    distance = median_relative_distance(frames)
    low, high = _DISTANCE_RANGE
    if distance is not None and not low <= distance <= high:
        found.append(
            f"The median distance to the nearest atom is {distance:.2f} times the sum of the covalent radii; "
            f"{low} to {high} is usual. Check data.units.length."
        )
    forces = [frame.forces.ravel() for frame in frames if frame.forces is not None]
    rms = float(np.sqrt(np.mean(np.concatenate(forces) ** 2))) if forces else 0.0
    low, high = _FORCE_RANGE
    if rms > _NO_FORCE and not low <= rms <= high:
        found.append(
            f"The forces have an RMS of {rms:.3g} eV/Å; {low} to {high} is usual, less only near "
            "equilibrium. Check data.units.energy and data.units.forces."
        )
    return found


def median_relative_distance(frames: Sequence[Frame]) -> float | None:
    """Median over atoms of the nearest-neighbour distance / sum of the two covalent radii.

    Over at most 50 of the frames. Rare gases, which do not bond, and lone atoms do not count; None without
    any other atom, or when most atoms have nothing within 8 Å.
    """
    step = -(-len(frames) // _MAX_FRAMES) or 1
    chosen = (frames[i] for i in range(0, len(frames), step))
    ratios = [_relative_distances(frame) for frame in chosen if frame.num_atoms > 1 or frame.pbc.any()]
    values = np.concatenate(ratios) if ratios else np.empty(0)
    median = float(np.median(values)) if values.size else np.inf
    return median if np.isfinite(median) else None


def _relative_distances(frame: Frame) -> NDArray[np.float64]:
    """(n,) one per atom that is no rare gas; inf where the search found nothing.

    The radius grows until most atoms have a neighbor, so that positions in nm do not give millions of edges.
    """
    bonding = ~np.isin(frame.atomic_numbers, _RARE_GASES)
    nearest = np.full(frame.num_atoms, np.inf)
    radius = _FIRST_RADIUS
    while radius <= _LAST_RADIUS and np.isinf(nearest[bonding]).sum() > 0.1 * bonding.sum():
        (center, neighbor), shift = neighbor_list(frame.positions, frame.cell, frame.pbc, radius)
        edge_vec = edge_vectors(frame.positions, frame.cell, (center, neighbor), shift)
        length = np.linalg.norm(edge_vec, axis=1)
        radii = covalent_radii[frame.atomic_numbers]
        np.minimum.at(nearest, center, length / (radii[center] + radii[neighbor]))
        radius *= 2
    return nearest[bonding]
