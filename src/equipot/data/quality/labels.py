"""Checks of labels one frame at a time: zeros, net forces and torques, huge forces."""

from collections.abc import Sequence

import numpy as np
from ase.data import covalent_radii

from equipot.data.edges import edge_vectors
from equipot.data.found_labels import is_or_are
from equipot.data.frames import Frame
from equipot.data.neighbors import neighbor_list
from equipot.data.quality.findings import Finding, frame_ids, numbers
from equipot.data.text import counted
from equipot.quantities import BASIC, QUANTITIES, given_quantities

_NET_FORCE = 1e-3  # eV/Å per atom: more than rounding and grids of careful calculations leave
_TORQUE = 0.1  # of what is possible; labels of careful calculations stay below 0.01
_LARGE_FORCE = 100.0  # eV/Å


def check_zeros(frames: Sequence[Frame]) -> list[Finding]:
    """Labels that are exactly zero in some frames beside others that are not.

    Of outputs tensors alone: numbers, as band gaps are, may be zero, and so may what is given.
    """
    frames = [frame for frame in frames if frame.num_atoms > 1]
    findings = []
    for kind in (name for name in QUANTITIES if name in BASIC or name in tensors()):
        known = [frame for frame in frames if kind in frame.values]
        zero = [frame for frame in known if not np.any(frame.values[kind])]
        if not zero:
            continue
        if len(zero) == len(known):
            # Crystals at rest, and their equations of state, have no forces by symmetry.
            wrong = kind == "energy" or (kind != "stress" and any(is_no_zero(f, kind) for f in known))
            if wrong and len(known) > 1:
                message = (
                    f"The {kind} of all {counted(len(known), 'frame')} {is_or_are(kind)} zero: "
                    f"set data.labels.{kind}."
                )
                severity = "error" if kind in BASIC else "warning"
                findings.append(Finding(severity, f"zero {kind}", message, (), (kind,)))
            continue
        far = kind == "energy" and _far_from_zero(known)
        placeholders = [frame for frame in zero if far or is_no_zero(frame, kind)]
        if not placeholders:
            continue
        weights = " or, of a ".join(
            (key.weight if key.name == kind else f"{key.name}, {key.weight}") for key in QUANTITIES[kind].keys
        )
        message = (
            f"The {kind} of {counted(len(placeholders), 'frame')} ({numbers(placeholders)}) "
            f"{is_or_are(kind)} exactly zero, of {len(known) - len(zero)} others not: placeholders? Remove "
            f"the label there, or give it the weight 0 ({weights})."
        )
        certain = far or (kind != "energy" and len(placeholders) > 1) or _repeated(placeholders)
        certain = certain and kind in BASIC
        ids = frame_ids(placeholders)
        findings.append(Finding("error" if certain else "warning", f"zero {kind}", message, ids, (kind,)))
    return findings


def tensors() -> set[str]:
    """Names of what is predicted and has directions: zero by symmetry only, but for magnetic moments."""
    directed = (name for name, q in QUANTITIES.items() if q.rows.rank and not q.rows.pseudo)
    return set(directed) - given_quantities()


def is_no_zero(frame: Frame, kind: str) -> bool:
    """Whether what is zero here cannot be so by symmetry, by vacuum, or in a reference of energies."""
    if kind == "stress":
        return abs(np.linalg.det(frame.cell)) < 100 * frame.num_atoms  # Å³
    if kind == "energy":
        return frame.forces is None or bool(frame.forces.any())
    return asymmetry(frame, QUANTITIES[kind].per_atom) > 0.02


def _far_from_zero(frames: Sequence[Frame]) -> bool:
    """Whether energies are such that zero is far from all others."""
    sizes = np.abs([frame.energy / frame.num_atoms for frame in frames if frame.energy])
    return bool(sizes.min() > max(0.5, 0.1 * sizes.max()))


def _repeated(frames: Sequence[Frame]) -> bool:
    """Whether two have the same composition: of relative energies at most one can be exactly zero."""
    return len({tuple(sorted(frame.atomic_numbers)) for frame in frames}) < len(frames)


def asymmetry(frame: Frame, per_atom: bool = True) -> float:
    """How much longer than zero the sum of the directions to an atom's neighbors is, of the worst atom.

    Where forces vanish by symmetry, so do these sums in every shell of distances. ``per_atom=False``: of the
    worst element, all of whose atoms' sums are added up; they vanish where a dipole does.
    """
    radius = 2.5 * 2 * covalent_radii[frame.atomic_numbers].max()
    (center, neighbor), shift = neighbor_list(frame.positions, frame.cell, frame.pbc, radius)
    vector = edge_vectors(frame.positions, frame.cell, (center, neighbor), shift)
    length = np.linalg.norm(vector, axis=1)
    total = np.zeros((frame.num_atoms, 3))
    np.add.at(total, center, vector / length[:, None] * np.exp(-4 * (length / radius)[:, None] ** 2))
    if not per_atom:
        elements = np.unique(frame.atomic_numbers)
        total = np.stack([total[frame.atomic_numbers == element].sum(axis=0) for element in elements])
    return float(np.linalg.norm(total, axis=1).max())


def check_forces(frames: Sequence[Frame]) -> list[Finding]:
    """Forces that do not add up to zero or turn a molecule, and huge ones.

    Of frames whose fixed atoms are left out the sum is not known.
    """
    known = [
        frame
        for frame in frames
        if frame.forces is not None and frame.num_atoms > 1 and frame.forces.any() and frame.free is None
    ]
    if not known:
        return []
    net = np.array([np.linalg.norm(frame.forces.sum(axis=0)) / frame.num_atoms for frame in known])
    size = float(np.sqrt(np.mean(np.concatenate([frame.forces for frame in known]) ** 2)))
    findings = []
    moving = [frame for frame, value in zip(known, net, strict=True) if value > _NET_FORCE]
    if moving:
        worst = int(net.argmax())
        fixed = sum(bool((~frame.forces.any(axis=1)).any()) for frame in moving)
        remark = (
            f" In {fixed} of them some atoms have no force at all: constraints of the calculation?"
            if fixed > 0.5 * len(moving)
            else ""
        )
        findings.append(
            Finding(
                "error" if net[worst] > 0.1 * size else "warning",
                "net force",
                f"{counted(len(moving), 'frame')} whose forces add up to more than {1e3 * _NET_FORCE:g} "
                f"meV/Å per atom; frame {known[worst].index}: {net[worst] * known[worst].num_atoms:.3g} eV/Å "
                f"in all, {1e3 * net[worst]:.3g} meV/Å per atom (RMS force {1e3 * size:.3g} meV/Å). No model "
                f"without an external field can have that.{remark}",
                frame_ids(moving), ("forces",),
            )
        )  # fmt: skip
    findings += _check_torque(known, size)
    largest = np.array([np.abs(frame.forces).max() for frame in known])
    huge = [frame for frame, value in zip(known, largest, strict=True) if value > _LARGE_FORCE]
    if huge:
        findings.append(
            Finding(
                "warning", "large forces",
                f"{counted(len(huge), 'frame')} with forces beyond {_LARGE_FORCE:g} eV/Å, up to "
                f"{largest.max():.3g} eV/Å.", frame_ids(huge), ("forces",),
            )
        )  # fmt: skip
    return findings


def _check_torque(frames: Sequence[Frame], size: float) -> list[Finding]:
    """Structures without a cell whose forces would make them spin: energies depend on no orientation."""
    free = [f for f in frames if not f.pbc.any() and np.sqrt(np.mean(f.forces**2)) > max(0.1 * size, 0.02)]
    turning = [frame for frame in free if _torque(frame) > _TORQUE]
    if not turning:
        return []
    worst = max(turning, key=_torque)
    message = (
        f"{counted(len(turning), 'frame')} without periodic directions ({numbers(turning)}) whose forces "
        f"have a torque (up to {100 * _torque(worst):.0f} % of what their sizes allow, frame {worst.index}); "
        "that of a molecule is zero. A cell or pbc that was lost, or forces of other atoms or frames."
    )
    severity = "error" if len(turning) > 0.5 * len(free) and len(turning) > 2 else "warning"
    return [Finding(severity, "torque", message, frame_ids(turning), ("energy", "forces"))]


def _torque(frame: Frame) -> float:
    """|Σ r×F| over what the sizes of both allow."""
    arms = frame.positions - frame.positions.mean(axis=0)
    forces = frame.forces - frame.forces.mean(axis=0)
    most = np.sqrt(np.sum(arms**2) * np.sum(forces**2))
    return float(np.linalg.norm(np.cross(arms, forces).sum(axis=0)) / max(most, 1e-12))
