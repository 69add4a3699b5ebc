"""What a pair potential fitted to the forces says of signs, units, orders and single frames."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from equipot.data.frames import Frame
from equipot.data.quality.findings import Finding, frame_ids, numbers
from equipot.data.quality.pair_model import (
    PairModel,
    correlation,
    correlations,
    fit_pair_model,
    force_sizes,
    make_basis,
)
from equipot.data.quality.ratios import ratio_words
from equipot.data.text import counted
from equipot.units import EV_A3_TO_GPA, stress_to_voigt

GRADIENTS = (
    "put a minus sign before the unit in data.units.forces, as in -eV/Ang, or take it off if there is one"
)
_SHEAR_NAMES = ("yz", "xz", "xy")
_GOOD = 0.7  # share of the forces that a model explains which may speak of single frames
_NEARLY_ALL = 0.97  # of forces and energies: then their units can be compared where volumes differ, too
_FEWEST = 10


def check_with_pair_model(frames: Sequence[Frame]) -> list[Finding]:
    """Compare labels with those of the pair potential that gives the forces best."""
    frames = [frame for frame in frames if frame.num_atoms > 1]
    model = fit_pair_model(frames)
    if model is None:
        return []
    return [
        *_check_sign(model),
        *_check_shift(frames, model),
        *_check_cells(model),
        *_check_energies(model),
        *_check_single_forces(model),
        *_check_stress(model),
    ]


def _check_sign(model: PairModel) -> Iterator[Finding]:
    """Forces that pull bonds apart which are longer than usual."""
    if model.stiffness < -0.5 and model.explained > 0.5:
        yield Finding(
            "error", "forces and structures",
            f"The forces have the wrong sign: they drive longer bonds apart (correlation of stretch and "
            f"restoring force {model.stiffness:.2f}). They look like gradients: {GRADIENTS}.",
            frame_ids(model.frames), ("forces",),
        )  # fmt: skip


def _check_shift(frames: Sequence[Frame], model: PairModel) -> Iterator[Finding]:
    """Forces or energies that fit the structure before or after their own better than it."""
    place = {(frame.file, frame.index): frame for frame in frames}
    for step, where in ((1, "after"), (-1, "before")):
        others = [place.get((frame.file, frame.index + step)) for frame in model.frames]
        rows = [
            i for i, (frame, other) in enumerate(zip(model.frames, others, strict=True))
            if other is not None and other.num_atoms == frame.num_atoms and other.forces is not None
        ]  # fmt: skip
        if len(rows) < max(_FEWEST, 0.5 * len(model.frames)):
            continue
        part = PairModel([model.frames[i] for i in rows], [model.basis[i] for i in rows])
        own = part.fit([frame.forces for frame in part.frames])[1]
        shifted = part.fit([others[i].forces for i in rows])[1]
        what = "forces" if shifted > 0.6 and shifted > own + 0.3 else None
        shares = f"a pair potential explains {100 * shifted:.0f} % of those and {100 * own:.0f} % of its own"
        alike = all(
            others[i].energy is not None
            and sorted(others[i].atomic_numbers) == sorted(model.frames[i].atomic_numbers)
            for i in rows
        )
        if what is None and own > 0.6 and alike:
            fits = [_agreement(part, source) for source in (part.frames, [others[i] for i in rows])]
            what = "energies" if fits[1] > 0.8 and fits[1] > fits[0] + 0.4 else None
            shares = f"correlation with a pair potential {fits[1]:.2f} there and {fits[0]:.2f} as it is"
        if what:
            yield Finding(
                "error", "shifted labels",
                f"The {what} of each structure seem to be those of the frame {where} it: {shares}. Write the "
                "file anew.", frame_ids(part.frames), ("energy", "forces"),
            )  # fmt: skip


def _agreement(model: PairModel, source: Sequence[Frame]) -> float:
    """Correlation of the energies of ``source`` with the potential, beyond composition and volume."""
    energies = np.array([np.nan if frame.energy is None else frame.energy for frame in source])
    if np.isnan(energies).any():
        return 0.0
    atoms = np.array([frame.num_atoms for frame in model.frames])
    others = _other_terms(model.frames)
    return correlation(_without(energies / atoms, others), _without(model.energies / atoms, others))


def _check_cells(model: PairModel) -> Iterator[Finding]:
    """Cells or periodic directions with which the forces can be explained much better."""
    if model.explained > 0.99:
        return
    frames = [f for f in model.frames if abs(np.linalg.det(f.cell)) > 1e-3][:20]
    if len(frames) < _FEWEST:
        return
    elements = np.unique(np.concatenate([frame.atomic_numbers for frame in frames]))
    readings = {}
    if any(not np.allclose(f.cell @ f.cell.T, f.cell.T @ f.cell, atol=1e-3) for f in frames):
        readings["with its lattice transposed (vectors as columns)"] = [
            replace(f, cell=f.cell.T) for f in frames
        ]
    if not all(frame.pbc.all() for frame in frames):
        readings["periodic in all directions (pbc T T T)"] = [
            replace(f, pbc=np.array([True] * 3)) for f in frames
        ]

    def explained(read: list[Frame]) -> float:
        return PairModel(read, [make_basis(frame, elements) for frame in read]).fit(
            [frame.forces for frame in read]
        )[1]

    own = explained(frames) if readings else 0.0
    for words, read in readings.items():
        found = explained(read)
        if 1 - found < 0.3 * (1 - own) and found > 0.6:
            yield Finding(
                "error", "cells",
                f"The cell seems wrong: a pair potential explains {100 * found:.0f} % of the forces if each "
                f"frame is read {words}, {100 * own:.0f} % as it is. Write the file anew.",
                frame_ids(frames), ("energy", "forces", "stress"),
            )  # fmt: skip


def _check_energies(model: PairModel) -> Iterator[Finding]:
    """Energies against those of the potential: the sign, very wrong units, single frames."""
    chosen = [i for i, frame in enumerate(model.frames) if frame.energy is not None]
    frames = [model.frames[i] for i in chosen]
    if len(frames) < 2 * _FEWEST or model.explained < 0.5:
        return
    atoms = np.array([frame.num_atoms for frame in frames])
    given = np.array([frame.energy for frame in frames]) / atoms
    predicted = model.energies[chosen] / atoms
    others = _other_terms(frames)
    kept = np.ones(len(frames), dtype=bool)
    for _ in range(5):
        columns = np.column_stack([others, predicted])
        coefficients = np.linalg.lstsq(columns[kept], given[kept] - given[kept].mean(), rcond=1e-9)[0]
        left = given - given[kept].mean() - columns @ coefficients
        left -= np.median(left)
        sigma = 1.4826 * np.median(np.abs(left))
        kept = np.abs(left) <= max(5 * sigma, 1e-9)
    own = [_without(x[kept], others[kept]) for x in (given, predicted)]
    agreement, slope = correlation(*own), float(own[0] @ own[1] / max(own[1] @ own[1], 1e-30))
    alike = others.shape[1] == len(np.unique(frames[0].atomic_numbers))
    if (agreement < -0.9 and model.stiffness < 0) or (agreement < -0.3 and model.stiffness < -0.3):
        message = (
            "The forces have the wrong sign: they look like gradients "
            f"({_basis(model, agreement)}): {GRADIENTS}."
        )
        yield Finding("error", "forces and energies", message, frame_ids(frames), ("energy", "forces"))
    # With volumes or compositions that differ, the pairs' share in the energy is uncertain, unless they
    # describe both.
    elif (alike and agreement > 0.85 and not 0.1 < slope < 10) or (
        _same_composition(frames)
        and model.explained > _NEARLY_ALL
        and agreement > _NEARLY_ALL
        and not 0.6 < slope < 1.6
    ):
        per_atom = atoms[0] > 2 and len(set(atoms)) == 1 and abs(slope * atoms[0] - 1) < 0.1
        words = (
            "they seem to be per atom: multiply them by the number of atoms"
            if per_atom
            else ratio_words(slope)
        )
        yield Finding(
            "error", "forces and energies",
            f"Energies change by about {slope:.2g} times the work of the forces "
            f"({_basis(model, agreement)}): {words}.", frame_ids(frames), ("energy", "forces"),
        )  # fmt: skip
    far = np.abs(left) > max(10 * sigma, 0.1)
    if agreement > 0.9 and far.any() and far.mean() < 0.5:
        outliers = [frame for frame, is_far in zip(frames, far, strict=True) if is_far]
        worst = int(np.abs(left).argmax())
        yield Finding(
            "warning", "energies of single frames",
            f"The energies of {counted(len(outliers), 'frame')} do not fit those of the others: frame "
            f"{frames[worst].index} is {left[worst]:+.3g} eV/atom off, where {sigma:.2g} is usual "
            f"({_basis(model, agreement)}). Another level of theory, an unconverged calculation?",
            frame_ids(outliers), ("energy",),
        )  # fmt: skip


def _same_composition(frames: Sequence[Frame]) -> bool:
    shares = [np.bincount(frame.atomic_numbers, minlength=119) / frame.num_atoms for frame in frames]
    return bool(np.ptp(shares, axis=0).max() < 1e-6)


def _other_terms(frames: Sequence[Frame]) -> NDArray[np.float64]:
    """(F, T) what energies per atom depend on beside the pairs: composition, and volume where it varies."""
    elements = np.unique(np.concatenate([frame.atomic_numbers for frame in frames]))
    shares = np.array([[(frame.atomic_numbers == z).mean() for z in elements] for frame in frames])
    columns = [*shares.T]
    if all(frame.pbc.all() for frame in frames):
        volume = np.array([abs(np.linalg.det(frame.cell)) / frame.num_atoms for frame in frames])
        _, kind = np.unique(shares.round(6), axis=0, return_inverse=True)
        kind = kind.ravel() if kind.max() < len(frames) / 10 else np.zeros(len(frames), dtype=int)
        for one in range(kind.max() + 1):
            relative = np.where(kind == one, volume / volume[kind == one].mean() - 1, 0.0)
            columns += [relative, relative**2] if relative.std() > 1e-4 else []
    return np.array(columns).T


def _without(values: NDArray, terms: NDArray) -> NDArray:
    values = values - values.mean()
    return values - terms @ np.linalg.lstsq(terms, values, rcond=1e-9)[0]


def _basis(model: PairModel, agreement: float) -> str:
    return f"correlation {agreement:.2f}; {model.basis_text}"


def _check_single_forces(model: PairModel) -> Iterator[Finding]:
    """Frames whose forces the potential that suits the others contradicts, in direction or size."""
    if model.explained < _GOOD:
        return
    predicted = model.forces
    sizes = force_sizes(model.frames)
    expected = np.array([np.sqrt(np.mean(p**2)) for p in predicted])
    corr = correlations(model.frames, predicted)
    usual = np.median(corr)
    large = (sizes > 0.3 * np.median(sizes)) & (expected > 0.3 * np.median(sizes))
    opposite = large & (corr < -0.5)
    unlike = large & (corr < 0.3) & ~opposite
    ratio = np.log(np.maximum(sizes, 1e-12) / np.maximum(expected, 1e-12))
    alike = large & (corr > 0.9)
    scaled = np.zeros(len(sizes), dtype=bool)
    if usual > 0.9 and alike.sum() > 0.5 * len(sizes):
        ratio -= np.median(ratio[alike])
        spread = 1.4826 * np.median(np.abs(ratio[alike]))
        scaled = alike & (np.abs(ratio) > max(0.5, 10 * spread))
    basis = f"{model.basis_text}; correlation {usual:.2f} in the other frames"
    for rows, severity, what in (
        (opposite, "error", "point the other way than those of the other frames"),
        (unlike, "warning", "do not fit the structure: forces, elements or positions of another one?"),
        (scaled, "warning", "are larger or smaller than those of the other frames by a factor"),
    ):
        if rows.any():
            found = [frame for frame, row in zip(model.frames, rows, strict=True) if row]
            words = f"The forces of {counted(len(found), 'frame')} ({numbers(found)}) {what} ({basis})."
            yield Finding(severity, "forces of single frames", words, frame_ids(found), ("forces",))


def _check_stress(model: PairModel) -> Iterator[Finding]:
    """Sign, order of the shear columns, and size of the stress, where no frames are strained copies."""
    chosen = [i for i, frame in enumerate(model.frames) if frame.stress is not None and frame.pbc.all()]
    if len(chosen) < _FEWEST:
        return
    frames = [model.frames[i] for i in chosen]
    predicted = model.stresses[chosen]
    given = np.array([stress_to_voigt(frame.stress) for frame in frames])
    orders = {
        shear: correlation(given[:, shear], predicted[:, 3:]) for shear in itertools.permutations((3, 4, 5))
    }
    best = max(orders, key=lambda shear: abs(orders[shear]))
    found = orders[3, 4, 5]
    if abs(orders[best]) < 0.7:
        return  # no say: too little shear, or a material that no pair potential describes
    ids = frame_ids(frames)
    if orders[best] > abs(found) + 0.3:
        names = [""] * 3
        for place, column in enumerate(best):
            names[column - 3] = _SHEAR_NAMES[place]
        message = (
            f"The shear columns of the stress seem to be {' '.join(names)}, not yz xz xy (correlation "
            f"{orders[best]:.2f} against {found:.2f}; {model.basis_text}). Write it anew, as 3x3 or in this "
            "order."
        )
        yield Finding("error", "stress and forces", message, ids, ("stress",))
        return
    shear = np.linalg.norm(given[:, 3:]) / max(np.linalg.norm(predicted[:, 3:]), 1e-30)
    volume = np.mean([abs(np.linalg.det(frame.cell)) for frame in frames])
    sizes = {"GPa": EV_A3_TO_GPA, "kbar": 10 * EV_A3_TO_GPA, "a virial in eV": volume}
    unit = min(sizes, key=lambda name: abs(np.log(shear / sizes[name])))
    if abs(np.log(shear / sizes[unit])) < np.log(2.5) and shear > 10 and abs(found) > 0.8:
        sign = "-" if found < 0 and unit in ("GPa", "kbar") else ""
        key = f"data.units.stress: {sign}{unit}"
        if unit not in ("GPa", "kbar"):
            key = "data.labels.virial instead of stress" + ", data.units.virial: -eV" * (found > 0)
        what = unit if unit not in ("GPa", "kbar") else f"in {sign}{unit}"
        message = (
            f"The stress is {shear:.3g} times what the forces suggest: it seems to be {what}. Set "
            f"{key} (shear correlation {found:.2f}; {model.basis_text})."
        )
        yield Finding("error", "stress and forces", message, ids, ("stress",))
    elif found < -0.7:
        message = (
            f"The stress seems to have the opposite sign (shear correlation {found:.2f}; "
            f"{model.basis_text}): put a minus sign before its unit, as in data.units.stress: -GPa, or of a "
            "virial data.units.virial: -eV; or take it off if there is one."
        )
        yield Finding("error", "stress and forces", message, ids, ("stress",))
    else:
        message = f"sign and order of the shear columns agree (correlation {found:.2f}; {model.basis_text})."
        yield Finding("note", "stress and forces", message)
