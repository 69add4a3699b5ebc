"""Structures from noise: small steps along the displacements that a model has learnt."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ase.io
import numpy as np
import yaml
from ase import Atoms
from ase.build import minimize_rotation_and_translation
from numpy.typing import NDArray
from rich.table import Table

from equipot.data.frames import frame_from_atoms
from equipot.data.structures import read_structure
from equipot.deploy.load import DeployedModel, load_deployed
from equipot.errors import ModelFileError, SimulationError
from equipot.files import atomic_write
from equipot.integrations.denoise_settings import DenoiseSettings
from equipot.integrations.distances import DistanceWatch
from equipot.integrations.verlet import Edges, VerletList, as_array

_DIVERGED = 3.0  # times the largest displacement that can be meant
_NAMED = 3  # distances in a message

log = logging.getLogger("equipot")


@dataclass(frozen=True)
class Denoised:
    """One structure, and how it came about."""

    atoms: Atoms
    rms: list[float]  # Å, of the components of the displacements before each step, and at the end
    largest: list[float]  # Å, the longest displacement of an atom, the same
    moved: float  # Å, RMSD from the structure that was given, superposed if it is not periodic
    converged: bool


def denoise(
    structure: str | Path | Atoms,
    model: str | Path | DeployedModel,
    settings: DenoiseSettings | None = None,
    *,
    species_map: str | None = None,
    device: str = "auto",
) -> list[Denoised]:
    """Put noise on a structure, if wanted, and undo it step by step.

    x ← x + step · D(x) + γ z with γ² = ((1 − βh)² − (1 − h)²) σ², h = step, β = 1 − noise, and σ the RMS of
    D(x), which says how much noise is left: it falls as the structure forms, and what is added with it.
    Source: Kadkhodaie and Simoncelli, NeurIPS 2021, algorithm 1. Constrained atoms stay.

    Args:
        structure: a file that trainings read (its last frame; of ``FILE@N`` one), or Atoms.
        model: a deployed file of a training with ``training.denoise``.
        settings: None: the defaults.
        species_map: elements of labels in the file, as ``HW=H,OW=O``.
        device: as of `EquipotCalculator`.

    Raises:
        ModelFileError: the model has not learnt to denoise, or the file is damaged.
        SimulationError: it diverges, or an atom has left the others.
        ConfigError, DataError, UnknownSpeciesError, DeviceError: what cannot be used.
    """
    settings = settings or DenoiseSettings()
    if not isinstance(model, DeployedModel):
        model = load_deployed(model, device)
    field = Displacements(model)
    model.require_capsule()
    atoms = read_structure(structure, species_map)
    frame_from_atoms(atoms, file=str(structure))
    low, high = field.sigma
    if settings.sigma > high:
        log.warning(
            "--sigma %g Å is more than the model has seen in its training (at most %g Å).",
            settings.sigma,
            high,
        )
    tolerance = settings.tolerance or 0.1 * low
    limit = _DIVERGED * max(high, settings.sigma)
    return [
        _one(atoms, field, settings, np.random.default_rng([settings.seed, copy]), tolerance, limit)
        for copy in range(settings.copies)
    ]


class Displacements:
    """What a model says undoes the noise on a structure.

    Raises:
        ModelFileError: its training had no ``training.denoise``.
    """

    def __init__(self, model: DeployedModel):
        training = (yaml.safe_load(model.metadata.config) or {}).get("training") or {}
        noise = training.get("denoise")
        if not noise or noise["output"] not in model.output_names:
            raise ModelFileError(
                f"{model.path} has not learnt to undo noise. It takes a training with training.denoise "
                "(docs/denoising.md)."
            )
        sigma = noise["sigma"]
        self.sigma: tuple[float, float] = tuple(sigma) if isinstance(sigma, list) else (sigma, sigma)
        self.model, self.output = model, noise["output"]
        self._neighbors = VerletList(model.metadata.cutoff, 0.5, model.takes_from)

    def of(self, atoms: Atoms) -> NDArray:
        """(N, 3) Å. Raises SimulationError if they are not finite, or an atom has no neighbor any more."""
        edges, types = self._edges(atoms)
        rows = self.model.rows(edges.vec, edges.index, types, types >= 0)
        found = as_array(rows[self.output]).take(edges.place, axis=0)
        if not np.isfinite(found).all():
            raise SimulationError("The displacements are not finite: it has diverged.")
        alone = np.bincount(as_array(edges.index)[0], minlength=len(atoms)) == 0
        if len(atoms) > 1 and alone.any():
            atom = int(alone[edges.place].argmax())
            raise SimulationError(
                f"Atom {atom} ({atoms.symbols[atom]}; the first is 0) has no neighbor within "
                f"{self.model.metadata.cutoff:g} Å, the model's cutoff: it has left the others. Use less."
            )
        return found

    def warn_of_short_distances(self, atoms: Atoms) -> None:
        """Those that the training structures do not have."""
        found = DistanceWatch([self.model.metadata]).find(*self._edges(atoms))
        if found:
            named = "; ".join(map(str, found[:_NAMED])) + ("; and others" if len(found) > _NAMED else "")
            log.warning("This is no structure like those of the training: %s.", named)

    def _edges(self, atoms: Atoms) -> tuple[Edges, NDArray]:
        edges = self._neighbors.edges(atoms.positions, atoms.cell.array, atoms.pbc)
        return edges, self._neighbors.there(self.model.atom_types(atoms.numbers)[edges.order])


def _one(
    given: Atoms,
    field: Displacements,
    settings: DenoiseSettings,
    generator: np.random.Generator,
    tolerance: float,
    limit: float,
) -> Denoised:
    atoms, shape = given.copy(), given.positions.shape
    atoms.set_positions(atoms.positions + settings.sigma * generator.standard_normal(shape))
    h = settings.step
    again = np.sqrt((1 - (1 - settings.noise) * h) ** 2 - (1 - h) ** 2)
    rms, largest = [], []
    for step in range(settings.steps + 1):
        displacement = field.of(atoms)
        rms.append(float(np.sqrt((displacement**2).mean())))
        largest.append(float(np.linalg.norm(displacement, axis=1).max()))
        if rms[-1] > limit:
            raise SimulationError(
                f"It has diverged: after {step} steps the displacements are {rms[-1]:.3g} Å (RMS), and "
                f"{limit / _DIVERGED:g} Å of noise at most were to be undone. Use less, or a smaller --step."
            )
        if rms[-1] <= tolerance or step == settings.steps:
            break
        fresh = again * rms[-1] * generator.standard_normal(shape)
        atoms.set_positions(atoms.positions + h * displacement + fresh)
    field.warn_of_short_distances(atoms)
    atoms.info |= {"denoise_steps": len(rms) - 1, "denoise_rms": rms[-1], "converged": rms[-1] <= tolerance}
    return Denoised(atoms, rms, largest, _moved(given, atoms), rms[-1] <= tolerance)


def _moved(before: Atoms, after: Atoms) -> float:
    """Å, RMSD."""
    periodic = before.pbc.any()
    before, after = (Atoms(of.numbers, of.positions) for of in (before, after))
    if not periodic:
        minimize_rotation_and_translation(before, after)
    return float(np.sqrt(((after.positions - before.positions) ** 2).sum(axis=1).mean()))


def write_denoised(path: str | Path, found: Sequence[Denoised]) -> None:
    """All structures as extended XYZ."""
    with atomic_write(path) as temporary:
        ase.io.write(temporary, [one.atoms for one in found], format="extxyz")


def denoising_table(found: Sequence[Denoised], rows: int = 8) -> Table:
    """Steps of the first structure, about ``rows`` of them, and the end of each."""
    table = Table(title="Displacements, Å", title_justify="left")
    for name in ("copy", "step", "RMS", "largest", "RMSD from the start"):
        table.add_column(name, justify="right")
    for number, one in enumerate(found):
        last = len(one.rms) - 1
        shown = np.unique(np.linspace(0, last, rows).astype(int)) if number == 0 else [last]
        for step in shown:
            moved = f"{one.moved:.3f}" if step == last else ""
            values = f"{one.rms[step]:.4f}", f"{one.largest[step]:.4f}", moved
            table.add_row(str(number), str(step), *values, end_section=step == last and number == 0)
    return table
