"""Checks of the structures: atoms too close or alone, labels copied from another structure."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence

import numpy as np
from ase.data import chemical_symbols, covalent_radii

from equipot.data.edges import MIN_DISTANCE, edge_vectors
from equipot.data.frames import Frame
from equipot.data.neighbors import neighbor_list
from equipot.data.quality.findings import Finding, frame_ids, numbers
from equipot.data.text import counted
from equipot.quantities import BASIC, QUANTITIES

# Shares of the sum of covalent radii. Hot liquids and molecules stay above 0.75, solids at 100 GPa above
# 0.65.
_CLOSE, _ALONE = 0.6, 3.0


def check_copied_labels(frames: Sequence[Frame]) -> list[Finding]:
    """The very same forces or stress in frames with different structures.

    Other labels may be alike: nominal charges, a field, spectra of zeros.
    """
    findings = []
    for kind in (name for name in BASIC if QUANTITIES[name].shape):

        def key(frame: Frame, kind=kind) -> Hashable:
            value = frame.values.get(kind)
            # Zeros by symmetry, and a few equal digits of small cells, are no sign of copying.
            return None if value is None or np.abs(value).max() < 1e-3 else value.round(9).tobytes()

        groups = [g for g in _groups(frames, key) if len({structure_key(frame) for frame in g}) > 1]
        groups = [g for g in groups if len({f.num_atoms for f in g}) == 1 and not _energies_equal(g)]
        if groups:
            findings.append(
                Finding(
                    "error", "copied labels",
                    f"{counted(len(groups), 'group')} of frames with different structures and energies have "
                    f"exactly the same {kind} (first: frames {numbers(groups[0])}).",
                    frame_ids([frame for group in groups for frame in group]), (kind,),
                )
            )  # fmt: skip
    return findings


def check_distances(frames: Sequence[Frame]) -> list[Finding]:
    """Atoms closer than physical, and atoms far from all others, in each frame."""
    close, alone = [], []
    for frame in frames:
        if frame.num_atoms == 1 and not frame.pbc.any():
            continue
        ratio, distance, pair = nearest_pair(frame)
        if ratio.min() < _CLOSE:
            close.append((float(ratio.min()), distance, pair, frame))
        if (ratio > _ALONE).any():
            alone.append(frame)
    findings = []
    if close:
        ratio, distance, pair, frame = min(close, key=lambda item: item[0])
        symbols = "-".join(chemical_symbols[frame.atomic_numbers[i]] for i in pair)
        findings.append(
            Finding(
                "error" if distance < MIN_DISTANCE else "warning", "close atoms",
                f"{counted(len(close), 'frame')} with atoms closer than {_CLOSE} of the sum of their "
                f"covalent radii; the closest are {distance:.3f} Å apart ({symbols}, {ratio:.2f}; frame "
                f"{frame.index}).",
                frame_ids([item[3] for item in close]),
            )
        )  # fmt: skip
    if alone:
        findings.append(
            Finding(
                "warning", "lone atoms",
                f"{counted(len(alone), 'frame')} with an atom whose nearest neighbor is beyond {_ALONE} "
                "times the sum of their covalent radii (a wrong cell, or an atom that left?).",
                frame_ids(alone),
            )
        )  # fmt: skip
    return findings


def nearest_pair(frame: Frame) -> tuple[np.ndarray, float, tuple[int, int]]:
    """Nearest distance of each atom over the sum of covalent radii (inf: none within 3); the closest pair."""
    radii = covalent_radii[frame.atomic_numbers]
    cutoff = 2 * _ALONE * radii.max()
    (center, neighbor), shift = neighbor_list(frame.positions, frame.cell, frame.pbc, 0.5 * cutoff)
    if len(np.unique(center)) < frame.num_atoms:
        (center, neighbor), shift = neighbor_list(frame.positions, frame.cell, frame.pbc, cutoff)
    nearest = np.full(frame.num_atoms, np.inf)
    if not len(center):
        return nearest, np.inf, (0, 0)
    edge_vec = edge_vectors(frame.positions, frame.cell, (center, neighbor), shift)
    length = np.linalg.norm(edge_vec, axis=1)
    ratio = length / (radii[center] + radii[neighbor])
    np.minimum.at(nearest, center, ratio)
    closest = int(ratio.argmin())
    return nearest, float(length[closest]), (int(center[closest]), int(neighbor[closest]))


def structure_key(frame: Frame) -> bytes:
    """Equal for equal elements, positions and cells to 1e-6 Å, less than the strains of elastic constants."""
    rounded = [np.round(array, 6) + 0.0 for array in (frame.positions, frame.cell)]  # + 0.0: no negative zero
    parts = [frame.atomic_numbers, *rounded, frame.pbc]
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).digest()


def _groups(frames: Sequence[Frame], key: Callable[[Frame], Hashable]) -> list[list[Frame]]:
    """Frames with equal keys that are not None, where there is more than one."""
    groups = defaultdict(list)
    for frame in frames:
        value = key(frame)
        if value is not None:
            groups[value].append(frame)
    return [group for group in groups.values() if len(group) > 1]


def _energies_equal(group: Sequence[Frame]) -> bool:
    energies = [frame.energy for frame in group if frame.energy is not None]
    return len(energies) < 2 or max(energies) - min(energies) < 1e-6 * group[0].num_atoms
