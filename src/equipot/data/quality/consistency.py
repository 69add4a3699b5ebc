"""Do energies, forces and stresses belong together? Differences of energies between nearby frames decide."""

import itertools
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from equipot.data.frames import Frame
from equipot.data.quality.findings import Finding, frame_ids, numbers
from equipot.data.quality.model_checks import GRADIENTS
from equipot.data.quality.pairs import DisplacedPair, StrainedPair, displaced_pairs, strained_pairs
from equipot.data.quality.ratios import ratio_words
from equipot.data.text import counted
from equipot.units import EV_A3_TO_GPA

_FEWEST_PAIRS = 5
_TOLERANCE = 0.5  # GPa; calculations with a plane-wave cutoff that suffices for stress stay below
_SHEAR_NAMES = ("yz", "xz", "xy")
_UNITS = {"eV/Å³": 1.0, "GPa": 1 / EV_A3_TO_GPA, "kbar": 0.1 / EV_A3_TO_GPA, "virial": -1.0}


def check_forces_against_energies(frames: Sequence[Frame]) -> list[Finding]:
    """Energies of frames with slightly displaced atoms must differ by the work of the forces."""
    pairs = displaced_pairs(frames)
    energy = np.array([pair.energy for pair in pairs])
    work = np.array([pair.work for pair in pairs])
    if len(pairs) < _FEWEST_PAIRS or _rms(energy) < 20 * _resolution(pairs) or _rms(work) == 0:
        return []
    agreement, slope, far = _line(work, energy)
    near = np.argsort([pair.displacement for pair in pairs])[: max(20, len(pairs) // 4)]
    best = _line(work[near], energy[near])  # where the work is known best
    slope = best[1] if best[0] > 0.9 else slope
    largest = max(pair.displacement for pair in pairs)
    basis = f"{len(pairs)} pairs of frames in the same cell, atoms displaced by up to {largest:.2g} Å"
    labels = ("energy", "forces")
    # The work is known to 10 or 20 % where atoms are displaced by 0.3 Å; no wrong unit is so small a factor.
    if agreement > 0.9 and abs(np.log(max(slope, 1e-9))) < 0.3:
        agree = Finding("note", "forces and energies", f"agree ({basis}; slope {slope:.4f}).")
        alone = _contradicted(pairs, far)
        if not alone:
            return [agree]
        message = (
            f"The energies and forces of {counted(len(alone), 'frame')} ({numbers(alone)}) contradict those "
            f"of the frames near them ({basis}): labels, elements or a unit of their own?"
        )
        return [agree, Finding("warning", "labels of single frames", message, frame_ids(alone), labels)]
    atoms = np.array([pair.frames[0].num_atoms for pair in pairs])
    total = _line(work, energy * atoms)
    if slope < 0.7 and total[0] > 0.9 and abs(total[1] - 1) < 0.1:
        message = f"The energies seem to be per atom ({basis}): multiply them by the number of atoms."
    elif agreement < -0.9:
        message = (
            f"The forces have the wrong sign: they look like gradients ({basis}; slope {slope:.3g}): "
            f"{GRADIENTS}."
        )
    elif agreement > 0.9:
        message = (
            f"Energies change by {slope:.3g} times the work of the forces ({basis}): {ratio_words(slope)}."
        )
    elif largest < 0.1 or (agreement < 0.5 and len(pairs) >= 20):
        message = f"Energies do not change as the forces say ({basis}; correlation {agreement:.2f})."
    else:
        return []
    return [Finding("error", "forces and energies", message, _frames_of(pairs), labels)]


def _line(work: NDArray, energy: NDArray) -> tuple[float, float, NDArray[np.bool_]]:
    """Correlation and slope of a line through the origin; which pairs are too far from it to count."""
    large = np.abs(work) >= np.median(np.abs(work))
    slope = float(np.median(energy[large] / np.where(work == 0, 1e-30, work)[large]))
    for _ in range(5):
        left = np.abs(energy - slope * work)
        far = left > np.maximum(8 * np.median(left), 0.3 * np.abs(slope * work))
        if far.mean() > 0.4:
            far[:] = False
        x, y = work[~far], energy[~far]
        slope = float(x @ y) / max(float(x @ x), 1e-30)
    return float(x @ y) / max(float(np.sqrt((x @ x) * (y @ y))), 1e-30), slope, far


def _contradicted(pairs: Sequence[DisplacedPair], far: NDArray[np.bool_]) -> list[Frame]:
    """Frames that fit none of those they are compared with, while these fit others."""
    of_frame: dict[int, list[int]] = defaultdict(list)
    for i, pair in enumerate(pairs):
        for frame in pair.frames:
            of_frame[id(frame)].append(i)
    bad = {frame for frame, rows in of_frame.items() if len(rows) > 2 and far[rows].mean() > 0.8}
    frames = {id(frame): frame for pair in pairs for frame in pair.frames}
    return [frames[key] for key in frames if key in bad]


def _frames_of(pairs: Sequence[StrainedPair | DisplacedPair]) -> tuple[tuple[str, int], ...]:
    return frame_ids(list({id(frame): frame for pair in pairs for frame in pair.frames}.values()))


def check_stress_against_energies(frames: Sequence[Frame]) -> list[Finding]:
    """Energies of frames that are strained copies of each other must differ by the work of the stress."""
    if not any(frame.stress is not None for frame in frames):
        return []
    pairs = strained_pairs(frames)
    if len(pairs) < _FEWEST_PAIRS:
        message = "not compared: no frames are small strains of each other (to 5 %, atoms to 0.05 Å)."
        return [Finding("note", "stress and energies", message)]
    gap = _gaps(pairs)
    ids = _frames_of(pairs)
    excess = np.abs(gap) / _tolerances(pairs)
    basis = f"{len(pairs)} pairs of strained copies"
    # Most of the work of strains that change no volume is small, hence the mean over all pairs.
    if _rms(excess) <= 1:
        return [Finding("note", "stress and energies", f"agree to {_rms(gap):.2g} GPa RMS ({basis}).")]
    better = _better_reading(pairs, gap)
    if better is not None:
        return [Finding("error", "stress and energies", f"{better} ({basis}).", ids, ("stress",))]
    worst = int(excess.argmax())
    message = (
        f"The stress contradicts the energies by {_rms(gap):.2g} GPa RMS and up to {np.abs(gap).max():.2g} "
        f"GPa ({basis}; worst: frames {pairs[worst].frames[0].index} and {pairs[worst].frames[1].index}, "
        f"strain {pairs[worst].size:.2g})."
    )
    offset, left = _constant_offset(pairs, gap)
    if left < 0.6 * _rms(gap):
        message += (
            f" With {offset:+.1f} GPa added to xx, yy and zz of every stress, {left:.2g} GPa would be left: "
            "typical of a basis set that is too small for stress (Pulay stress). Train on energies and "
            "forces alone, or recalculate."
        )
    varying = np.std([frame.stress for frame in frames if frame.stress is not None], axis=0)
    share = _rms(gap) / max(_rms(varying) * EV_A3_TO_GPA, 1e-6)
    return [Finding("warning", "stress and energies", message, ids, ("stress",), share)]


def _work(pairs: Sequence[StrainedPair], unit: str, sign: int, shear: tuple[int, ...]) -> NDArray[np.float64]:
    """(P,) eV, if the stress is in ``unit``, of another ``sign``, and its shear columns are ``shear``."""
    order = [0, 1, 2, *shear]
    stress = np.array([p.stress[:, order] for p in pairs])
    volumes = np.array([p.volumes for p in pairs])
    factor = sign * _UNITS[unit] / (volumes if unit == "virial" else np.ones_like(volumes))
    return 0.5 * np.sum((volumes * factor)[..., None] * stress * [p.strain for p in pairs], axis=(1, 2))


def _gaps(
    pairs: Sequence[StrainedPair], unit: str = "eV/Å³", sign: int = 1, shear: tuple[int, ...] = (3, 4, 5)
) -> NDArray[np.float64]:
    """(P,) GPa: what is missing in the stress along each pair's strain."""
    missing = np.array([p.energy - p.internal for p in pairs]) - _work(pairs, unit, sign, shear)
    return missing / np.array([p.volume * p.size for p in pairs]) * EV_A3_TO_GPA


def _tolerances(pairs: Sequence[StrainedPair]) -> NDArray[np.float64]:
    """(P,) GPa: of the calculation, of the trapezoidal rule (third order), of the digits of the energies."""
    change = np.array([np.linalg.norm(p.stress[1] - p.stress[0]) for p in pairs]) * EV_A3_TO_GPA
    size = np.array([p.size for p in pairs])
    digits = _resolution(pairs) / np.array([p.volume for p in pairs]) / size * EV_A3_TO_GPA
    inner = np.array([p.internal_change / (p.volume * p.size) for p in pairs]) * EV_A3_TO_GPA
    return _TOLERANCE + size * change + 2 * digits + 0.2 * inner


def _better_reading(pairs: Sequence[StrainedPair], gap: NDArray[np.float64]) -> str | None:
    """Another sign, unit or order of the shear columns that fits the energies clearly better, in words."""
    choices = itertools.product(_UNITS, (1, -1), itertools.permutations((3, 4, 5)))
    best, (unit, sign, shear) = min((_rms(_gaps(pairs, *choice)), choice) for choice in choices)
    if best > 0.5 * _rms(gap) or (unit, sign, shear) == ("eV/Å³", 1, (3, 4, 5)):
        return None
    wrong, key = [], f"data.units.stress: {'-' * (sign < 0)}{unit.replace('Å³', 'Ang^3')}"
    if unit == "virial":
        wrong.append(f"a virial, {'−' * (sign > 0)}volume times the stress")
        key = "data.labels.virial instead of stress" + ", data.units.virial: -eV" * (sign < 0)
    else:
        wrong += [f"in {unit}, not eV/Å³"] * (unit != "eV/Å³")
        wrong += ["of opposite sign (positive under compression)"] * (sign < 0)
    if shear != (3, 4, 5):
        names = [""] * 3
        for place, column in enumerate(shear):
            names[column - 3] = _SHEAR_NAMES[place]
        wrong.append(f"with shear columns in the order {' '.join(names)}, not yz xz xy")
    remedy = f"; set {key}" if (unit, sign) != ("eV/Å³", 1) else ""
    remedy += " (or take off the minus sign if it has one)" * (sign < 0)
    return (
        f"The stress seems to be {' and '.join(wrong)}: read so, it agrees with the energies to {best:.2g} "
        f"GPa, as given only to {_rms(gap):.2g} GPa{remedy}"
    )


def _constant_offset(pairs: Sequence[StrainedPair], gap: NDArray) -> tuple[float, float]:
    """GPa on the diagonal of every stress that would close most gaps, and what RMS it leaves in them.

    The few pairs it leaves far away, which may join calculations of different settings, do not take part.
    """
    dilation = np.array([p.strain[:, :3].sum(axis=1).mean() / p.size for p in pairs])
    kept = np.ones(len(gap), dtype=bool)
    offset = 0.0
    for _ in range(4):
        offset = float(dilation[kept] @ gap[kept] / max(dilation[kept] @ dilation[kept], 1e-12))
        left = np.abs(gap - offset * dilation)
        kept = left <= 5 * np.median(left)
    return offset, _rms(left[kept])


def _resolution(pairs: Sequence[StrainedPair | DisplacedPair]) -> float:
    """eV: the last digits of energies, which are often written with five or stored in single precision."""
    return max(2e-5, 1.2e-7 * max(abs(pair.frames[0].energy) for pair in pairs))


def _rms(values: NDArray) -> float:
    return float(np.sqrt(np.mean(np.square(values)))) if len(values) else 0.0
