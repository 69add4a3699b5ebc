"""Sign and order of the stress columns, from a pair potential that is fitted to the forces alone."""

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from equipot.data.edges import edge_vectors
from equipot.data.frames import Frame
from equipot.data.neighbors import neighbor_list
from equipot.data.quality.findings import Finding, frame_ids
from equipot.units import stress_to_voigt

_CUTOFF = 6.0  # Å
_CENTERS = 16  # basis functions for each pair of elements
_MAX_FRAMES = 60
_MAX_EDGES = 400_000  # in all
_SHEAR_NAMES = ("yz", "xz", "xy")


def check_stress_against_forces(frames: Sequence[Frame]) -> list[Finding]:
    """Compare the stress with that of the pair potential which gives the forces best.

    Crude in size, it is clear about the sign of the shear and about which column is which, also where no
    frames are strained copies of each other.
    """
    usable = [
        f for f in frames if f.stress is not None and f.forces is not None and np.abs(f.forces).max() > 0.05
    ]
    usable = usable[:: -(-len(usable) // _MAX_FRAMES) or 1]
    if len(usable) < 10:
        return []
    fitted = _predicted_stress(usable)
    if fitted is None:
        return []
    predicted, explained = fitted
    given = np.array([stress_to_voigt(frame.stress) for frame in usable])
    orders = {
        shear: _correlation(given[:, shear], predicted[:, 3:]) for shear in itertools.permutations((3, 4, 5))
    }
    best = max(orders, key=lambda shear: abs(orders[shear]))
    found = orders[3, 4, 5]
    basis = f"pair potential fitted to the forces of {len(usable)} frames, explains {100 * explained:.0f} %"
    if abs(orders[best]) < 0.7:
        return []  # no say: too little shear, or a material that no pair potential describes
    if orders[best] > abs(found) + 0.3:
        names = [""] * 3
        for place, column in enumerate(best):
            names[column - 3] = _SHEAR_NAMES[place]
        message = (
            f"The shear columns of the stress seem to be {' '.join(names)}, not yz xz xy (correlation "
            f"{orders[best]:.2f} against {found:.2f}; {basis})."
        )
        return [Finding("error", "stress and forces", message, frame_ids(usable))]
    if found < -0.7:
        message = (
            f"The stress seems to have the opposite sign (shear correlation {found:.2f}; {basis}). A minus "
            "before its unit says so: data.units.stress: -eV/Ang^3 (--stress-unit -eV/Ang^3); or of a virial "
            "data.units.virial: -eV (--virial-unit -eV)."
        )
        return [Finding("error", "stress and forces", message, frame_ids(usable))]
    message = f"sign and order of the shear columns agree (correlation {found:.2f}; {basis})."
    return [Finding("note", "stress and forces", message)]


def _correlation(one: NDArray, other: NDArray) -> float:
    one, other = one - one.mean(axis=0), other - other.mean(axis=0)
    norm = np.sqrt(np.sum(one**2) * np.sum(other**2))
    return float(np.sum(one * other) / norm) if norm > 1e-12 else 0.0


def _predicted_stress(frames: Sequence[Frame]) -> tuple[NDArray, float] | None:
    """(F, 6) stress of the fitted potential, and which share of the forces' variance it explains."""
    elements = np.unique(np.concatenate([frame.atomic_numbers for frame in frames]))
    if len(elements) > 5:
        return None
    normal, right, columns, edges = 0.0, 0.0, [], 0
    for frame in frames:
        force, stress, num_edges = _basis(frame, elements)
        normal, right = normal + force.T @ force, right + force.T @ frame.forces.ravel()
        columns.append(stress)
        edges += num_edges
        if edges > _MAX_EDGES:
            return None
    ridge = 1e-6 * np.trace(normal) / len(normal) * np.eye(len(normal))
    weights = np.linalg.solve(normal + ridge, right)
    total = sum(np.sum(frame.forces**2) for frame in frames)
    return np.array([stress @ weights for stress in columns]), float(weights @ right / total)


def _basis(frame: Frame, elements: NDArray) -> tuple[NDArray, NDArray, int]:
    """Forces (3N, B) and stress (6, B) of each basis function: dE/dr of a pair is a bump at some distance."""
    (center, neighbor), shift = neighbor_list(frame.positions, frame.cell, frame.pbc, _CUTOFF)
    vector = edge_vectors(frame.positions, frame.cell, (center, neighbor), shift)
    length = np.linalg.norm(vector, axis=1)
    centers = np.linspace(0.8, _CUTOFF, _CENTERS)
    width = 1.2 * (centers[1] - centers[0])
    slope = np.exp(-(((length[:, None] - centers) / width) ** 2)) * (1 - (length[:, None] / _CUTOFF) ** 2)
    index = np.searchsorted(elements, frame.atomic_numbers)
    low, high = np.minimum(index[center], index[neighbor]), np.maximum(index[center], index[neighbor])
    kind = high * (high + 1) // 2 + low
    kinds = len(elements) * (len(elements) + 1) // 2
    unit = vector / length[:, None]
    force = np.zeros((frame.num_atoms, 3, kinds, _CENTERS))
    stress = np.zeros((3, 3, kinds, _CENTERS))
    volume = abs(np.linalg.det(frame.cell))
    for k in range(kinds):
        of_kind = kind == k
        # dE/dr > 0 pulls the center towards the neighbor.
        pull = unit[of_kind][:, :, None] * slope[of_kind][:, None, :]
        np.add.at(force[:, :, k], center[of_kind], pull)
        stress[:, :, k] = np.einsum("ea,ebk->abk", vector[of_kind], pull) / (2 * volume)
    voigt = np.moveaxis(stress_to_voigt(np.moveaxis(stress, (0, 1), (-2, -1))), -1, 0)
    return force.reshape(3 * frame.num_atoms, -1), voigt.reshape(6, -1), len(length)
