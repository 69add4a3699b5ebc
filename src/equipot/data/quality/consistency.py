"""Do energies, forces and stresses belong together? Differences of energies between nearby frames decide."""

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from equipot.data.frames import Frame
from equipot.data.quality.findings import Finding, frame_ids
from equipot.data.quality.pairs import DisplacedPair, StrainedPair, displaced_pairs, strained_pairs
from equipot.units import EV_A3_TO_GPA

_FEWEST_PAIRS = 5
_TOLERANCE = 0.5  # GPa; calculations with a plane-wave cutoff that suffices for stress stay below
_SHEAR_NAMES = ("yz", "xz", "xy")
_UNITS = {"eV/Å³": 1.0, "GPa": 1 / EV_A3_TO_GPA, "kbar": 0.1 / EV_A3_TO_GPA}


def check_forces_against_energies(frames: Sequence[Frame]) -> list[Finding]:
    """Energies of frames with slightly displaced atoms must differ by the work of the forces."""
    pairs = displaced_pairs(frames)
    energy = np.array([pair.energy for pair in pairs])
    work = np.array([pair.work for pair in pairs])
    if len(pairs) < _FEWEST_PAIRS or _rms(energy) < 20 * _resolution(pairs) or _rms(work) == 0:
        return []
    slope = float(energy @ work / (work @ work))
    correlation = float(energy @ work / np.sqrt((energy @ energy) * (work @ work)))
    largest = max(pair.displacement for pair in pairs)
    basis = f"{len(pairs)} pairs of frames in the same cell, atoms displaced by up to {largest:.2g} Å"
    if abs(correlation) > 0.9 and abs(slope - 1) < 0.1:
        return [Finding("note", "forces and energies", f"agree ({basis}; slope {slope:.4f}).")]
    ids = frame_ids(list({id(f): f for pair in pairs for f in pair.frames}.values()))
    if correlation < -0.9:
        message = f"The forces have the wrong sign: they look like gradients ({basis}; slope {slope:.3g})."
    elif correlation > 0.9:
        message = (
            f"Energies change by {slope:.3g} times the work of the forces ({basis}): they are in different "
            "units (kcal/mol and eV: 23.06, Hartree and eV: 27.21, Bohr and Å: 1.890), or not of the same "
            "calculation."
        )
    elif largest < 0.1:
        message = f"Energies do not change as the forces say ({basis}; correlation {correlation:.2f})."
    else:
        return []
    return [Finding("error", "forces and energies", message, ids)]


def check_stress_against_energies(frames: Sequence[Frame]) -> list[Finding]:
    """Energies of frames that are strained copies of each other must differ by the work of the stress."""
    if not any(frame.stress is not None for frame in frames):
        return []
    pairs = strained_pairs(frames)
    if len(pairs) < _FEWEST_PAIRS:
        message = "not compared: no frames are small strains of each other (to 5 %, atoms to 0.05 Å)."
        return [Finding("note", "stress and energies", message)]
    gap = _gaps(pairs, 1.0, (3, 4, 5))
    ids = frame_ids(list({id(f): f for pair in pairs for f in pair.frames}.values()))
    excess = np.abs(gap) / _tolerances(pairs)
    basis = f"{len(pairs)} pairs of strained copies"
    # Most of the work of strains that change no volume is small, hence the mean over all pairs.
    if _rms(excess) <= 1:
        return [Finding("note", "stress and energies", f"agree to {_rms(gap):.2g} GPa RMS ({basis}).")]
    better = _better_reading(pairs, gap)
    if better is not None:
        return [Finding("error", "stress and energies", f"{better} ({basis}).", ids)]
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
    return [Finding("warning", "stress and energies", message, ids)]


def _work(pairs: Sequence[StrainedPair], factor: float, shear: tuple[int, ...]) -> NDArray[np.float64]:
    """(P,) eV, if the stress is to be multiplied by ``factor`` and its shear columns are ``shear``."""
    order = [0, 1, 2, *shear]
    return factor * np.array(
        [0.5 * np.sum(p.volumes[:, None] * p.stress[:, order] * p.strain) for p in pairs]
    )  # fmt: skip


def _gaps(pairs: Sequence[StrainedPair], factor: float, shear: tuple[int, ...]) -> NDArray[np.float64]:
    """(P,) GPa: what is missing in the stress along each pair's strain."""
    missing = np.array([p.energy - p.internal for p in pairs]) - _work(pairs, factor, shear)
    return missing / np.array([p.volume * p.size for p in pairs]) * EV_A3_TO_GPA


def _tolerances(pairs: Sequence[StrainedPair]) -> NDArray[np.float64]:
    """(P,) GPa: of the calculation, of the trapezoidal rule (third order), of the digits of the energies."""
    change = np.array([np.linalg.norm(p.stress[1] - p.stress[0]) for p in pairs]) * EV_A3_TO_GPA
    size = np.array([p.size for p in pairs])
    digits = _resolution(pairs) / np.array([p.volume for p in pairs]) / size * EV_A3_TO_GPA
    return _TOLERANCE + size * change + 2 * digits


def _better_reading(pairs: Sequence[StrainedPair], gap: NDArray[np.float64]) -> str | None:
    """Another sign, unit or order of the shear columns that fits the energies clearly better, in words."""
    readings = []
    for (unit, factor), sign, shear in itertools.product(
        _UNITS.items(), (1, -1), itertools.permutations((3, 4, 5))
    ):
        readings.append((_rms(_gaps(pairs, sign * factor, shear)), unit, sign, shear))
    best, unit, sign, shear = min(readings, key=lambda reading: reading[0])
    if best > 0.5 * _rms(gap) or (unit, sign, shear) == ("eV/Å³", 1, (3, 4, 5)):
        return None
    wrong = []
    if unit != "eV/Å³":
        wrong.append(f"in {unit}, not eV/Å³")
    if sign < 0:
        wrong.append("of opposite sign (positive under compression)")
    if shear != (3, 4, 5):
        names = [""] * 3
        for place, column in enumerate(shear):
            names[column - 3] = _SHEAR_NAMES[place]
        wrong.append(f"with shear columns in the order {' '.join(names)}, not yz xz xy")
    meant = ("-" if sign < 0 else "") + unit.replace("Å³", "Ang^3")
    stated = f"; data.units.stress: {meant} (--stress-unit {meant}) says so" if meant != "eV/Ang^3" else ""
    return (
        f"The stress seems to be {' and '.join(wrong)}: read so, it agrees with the energies to {best:.2g} "
        f"GPa, as given only to {_rms(gap):.2g} GPa{stated}"
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
