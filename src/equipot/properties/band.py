"""Minimum-energy paths between two structures, by nudged elastic bands."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.build.rotate import minimize_rotation_and_translation
from ase.geometry import find_mic, get_distances
from ase.mep import NEB
from ase.optimize import FIRE
from ase.utils.forcecurve import ForceFit, fit_images
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from equipot.errors import DataError, SimulationError
from equipot.properties.normal_modes import free_atoms
from equipot.properties.settings import NebSettings
from equipot.properties.strained import with_results

_SAME = 0.1  # Å; ends whose atoms are all closer are one structure
_ROUGH = 5.0  # times fmax: from there on the highest image climbs
_KEEP = 10  # steps between calls of ``keep``


@dataclass(frozen=True)
class Path:
    """K images from the first minimum to the last."""

    images: tuple[Atoms, ...]  # with energies (eV) and forces (eV/Å)
    fit: ForceFit  # path (K,) Å and energies (K,) eV relative to the first; cubic splines through them
    largest_force: float  # eV/Å, of the band: springs along it, forces across
    steps: int
    climbed: bool

    @property
    def energies(self) -> NDArray:
        """(K,) eV, relative to the first."""
        return np.asarray(self.fit.energies)

    @property
    def top(self) -> int:
        """The highest image; an end if the path has no barrier."""
        return int(self.energies.argmax())

    @property
    def has_barrier(self) -> bool:
        return 0 < self.top < len(self.images) - 1

    @property
    def barriers(self) -> tuple[float, float]:
        """eV, forward and backward; 0 where the path goes downhill all the way."""
        return float(self.energies.max()), float(self.energies.max() - self.energies[-1])

    @property
    def force_at_top(self) -> float:
        """eV/Å, the largest on an atom of the highest image: small at a saddle."""
        return float(np.linalg.norm(self.images[self.top].get_forces(), axis=1).max())

    @property
    def minima(self) -> list[int]:
        """Images between the ends that are lower than both neighbors: steps of their own."""
        e = self.energies
        return [k for k in range(1, len(e) - 1) if e[k] < e[k - 1] and e[k] < e[k + 1]]


def minimum_energy_path(
    first: Atoms,
    last: Atoms,
    images: int = 7,
    *,
    interpolation: str = "idpp",
    climb: bool = True,
    method: str = "improvedtangent",
    spring: float = 0.1,
    fmax: float = 0.03,
    steps: int = 500,
    keep_order: bool = False,
    start: list[Atoms] | None = None,
    keep: Callable[[list[Atoms]], None] | None = None,
) -> Path:
    """Relax a band of ``images`` between two minima, the first of which has a calculator.

    The band is relaxed by FIRE; its highest image climbs (Henkelman et al., J. Chem. Phys. 113, 9901 (2000))
    once forces are below 5 ``fmax`` (eV/Å). Constraints are those of the first structure; a molecule without
    any may turn and move. ``method`` is ASE's. The path goes the short way through the cell (minimum image).

    Args:
        interpolation: "idpp" (S. Smidstrup et al., J. Chem. Phys. 140, 214106 (2014)) or "linear".
        spring: eV/Å².
        start: the images of an earlier band, to go on from. keep: given all images every 10 steps.

    Raises ConfigError for settings that make no sense, DataError for ends that do not fit each other,
    SimulationError if the band does not relax.
    """
    NebSettings(images=images, interpolation=interpolation, method=method)  # an error if they make no sense
    last = matched(first, last, keep_order)
    free = not first.pbc.any() and not first.constraints
    band = [first.copy() for _ in range(images + 1)] + [last.copy()]
    for image in band:
        image.set_constraint(copy.deepcopy(first.constraints))
        image.calc = copy.deepcopy(first.calc)  # a neighbor list each; an equipot model is shared
    options = {"k": spring, "method": method, "remove_rotation_and_translation": free}
    neb = NEB(band, **options)
    if start is None:
        neb.interpolate(interpolation, mic=bool(first.pbc.any()), apply_constraint=False)
    else:
        _take(band, start)
    force, done, climbed = _relax(band, climb, fmax, steps, keep, options)
    finished = tuple(with_results(image) for image in band)
    return Path(finished, fit_images(finished), force, done, climbed)


def _relax(
    band: list[Atoms], climb: bool, fmax: float, steps: int, keep: Callable | None, options: dict
) -> tuple[float, int, bool]:
    """In place; the largest force (eV/Å), steps, whether an image climbed. Raises SimulationError."""
    done = 0
    for goal, climbing in ([(_ROUGH * fmax, False)] if climb else []) + [(fmax, climb)]:
        neb = NEB(band, climb=climbing, **options)
        optimizer = FIRE(neb, logfile=None)
        if keep is not None:
            optimizer.attach(keep, interval=_KEEP, images=band)
        converged = optimizer.run(fmax=goal, steps=max(steps - done, 0))
        done += optimizer.nsteps
        if not converged:
            break
    force = float(np.linalg.norm(neb.get_forces(), axis=1).max())
    if keep is not None:
        keep(band)
    if not converged:
        raise SimulationError(
            f"The band did not relax to {fmax:g} eV/Å in {steps} steps; {force:.2g} eV/Å is left. Go on with "
            "--resume and more --steps, or look at the images: is it one step, and does the path make sense?"
        )
    return force, done, climbing


def _take(band: list[Atoms], start: list[Atoms]) -> None:
    """Go on from images of an earlier band. Raises DataError if they are of another one."""
    if len(start) != len(band) or any(not np.array_equal(s.numbers, band[0].numbers) for s in start):
        raise DataError(
            f"The band to go on with has {len(start)} images of {start[0].get_chemical_formula()}; expected "
            f"{len(band)} of {band[0].get_chemical_formula()}, the ends included."
        )
    for end in (0, -1):
        moved = find_mic(start[end].positions - band[end].positions, band[end].cell, band[end].pbc)[1].max()
        if band[end].pbc.any() and moved > _SAME:
            raise DataError(
                f"The band to go on with has another {'first' if end == 0 else 'last'} structure: an atom is "
                f"{moved:.2g} Å away. Begin again, with --overwrite."
            )
    for image, earlier in zip(band[1:-1], start[1:-1], strict=True):
        image.set_positions(earlier.positions, apply_constraint=False)


def matched(first: Atoms, last: Atoms, keep_order: bool = False) -> Atoms:
    """A copy of ``last`` whose atoms are the images that are nearest to those of ``first``.

    Raises DataError if elements, their order, cells or fixed places differ, or both are one structure.
    """
    if first.get_chemical_formula() != last.get_chemical_formula():
        raise DataError(
            f"The first structure is {first.get_chemical_formula()}, the last {last.get_chemical_formula()}: "
            "expected the same atoms."
        )
    if not np.array_equal(first.pbc, last.pbc) or abs(first.cell.array - last.cell.array).max() > 1e-3:
        raise DataError(
            "The cells of the two structures differ: expected one cell for all images, found "
            + " and ".join(
                f"{np.round(a.cell.array, 4).tolist()} Å, pbc {a.pbc.tolist()}" for a in (first, last)
            )
            + "."
        )
    other = np.flatnonzero(first.numbers != last.numbers)
    if len(other):
        raise DataError(
            f"Another order of atoms: number {other[0]} is {first.symbols[other[0]]} in the first structure "
            f"and {last.symbols[other[0]]} in the last. Sort both alike."
        )
    last = last.copy()
    if not first.pbc.any() and not first.constraints:
        minimize_rotation_and_translation(first, last)
    moves, lengths = find_mic(last.positions - first.positions, first.cell, first.pbc)
    last.positions = first.positions + moves
    if lengths.max() < _SAME:
        raise DataError(
            f"First and last structure are the same: no atom moves by more than {lengths.max():.2g} Å. If "
            "they were relaxed, both went into one minimum."
        )
    _check_order(first, last, lengths, keep_order)
    fixed = np.setdiff1d(np.arange(len(first)), free_atoms(first))
    if len(fixed) and lengths[fixed].max() > 0.01:
        atom = fixed[lengths[fixed].argmax()]
        raise DataError(
            f"Atom {atom} is fixed, and {lengths[atom]:.2g} Å away in the last structure. Fixed atoms have "
            "to be in one place in both."
        )
    return last


def _check_order(first: Atoms, last: Atoms, lengths: NDArray, keep_order: bool) -> None:
    """Refuse ends that are much nearer to each other with atoms of an element exchanged."""
    distances = get_distances(first.positions, last.positions, cell=first.cell, pbc=first.pbc)[1] ** 2
    distances[first.numbers[:, None] != first.numbers] = 1e9
    rows, nearest = linear_sum_assignment(distances)
    if keep_order or (lengths**2).sum() - distances[rows, nearest].sum() < 1.0:
        return
    wrong, least = np.flatnonzero(nearest != rows), np.sqrt(distances[rows, nearest].max())
    named = ", ".join(f"{i} → {nearest[i]}" for i in wrong[:5]) + (", ..." if len(wrong) > 5 else "")
    raise DataError(
        f"Atoms of one element seem to be exchanged between the structures ({named}): in that order they "
        f"would move by at most {least:.2g} Å, not {lengths.max():.2g} Å. Sort "
        "the last structure like the first, or give --keep-order if they do change places."
    )
