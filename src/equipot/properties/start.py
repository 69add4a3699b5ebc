"""From a structure file and a model to atoms at a minimum, with their calculator."""

import importlib
import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS
from ase.units import GPa
from rich.console import Console
from rich.progress import track

from equipot import __version__
from equipot.data.structures import read_structure
from equipot.errors import ConfigError, DataError, SimulationError
from equipot.integrations.ase import EquipotCalculator
from equipot.properties.settings import Common

log = logging.getLogger("equipot")

_RELAXED = 1e-4  # eV/Å; also of what the cell is given as a force, virial per atom (eV)
_STEPS = 500
_LOOSER = 10.0  # times --symprec; another symmetry found by that is worth a word

Model = str | Path | BaseCalculator | Sequence[str | Path]


@dataclass(frozen=True)
class Start:
    """A structure to begin with."""

    atoms: Atoms  # with its calculator
    described: dict[str, Any]  # for the output: where it is from, symmetry, forces, what relaxing has changed

    @property
    def reach(self) -> float | None:
        """Å over which atoms act on each other (cutoff × layers); None where the calculator does not say."""
        calculator = self.atoms.calc
        return (
            calculator.model.metadata.interaction_range if isinstance(calculator, EquipotCalculator) else None
        )


def need(*modules: str, extra: str = "properties") -> None:
    """Raises ConfigError, which names the extra, if one of these libraries is not installed."""
    for name in modules:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ConfigError(
                f"This needs the Python package {name}, which is not installed ({error}). "
                f"Run: pip install 'equipot[{extra}]'"
            ) from error


def prepare(
    structure: str | Path | Atoms,
    model: Model,
    common: Common | None = None,
    *,
    periodic: bool | None = None,
    keep_constraints: bool = False,
    needs: Callable[[BaseCalculator], None] | None = None,
) -> Start:
    """Read, relax if wanted, and check that it is a minimum.

    Args:
        structure: any file that trainings read (its last frame; ``file@0`` the first), or Atoms.
        model: a deployed file or the folder of an ensemble; or an ASE calculator.
        periodic: True: it must be so in all three directions; False: in none; None: either.
        keep_constraints: those of the file, else they are taken off and a line says so.
        needs: raises, before anything is computed, where the calculator lacks what comes later.

    Raises:
        ConfigError: a symprec for what is no crystal.
        DataError: an unusable structure, not periodic as it has to be.
        UnknownSpeciesError, ModelFileError, DeviceError: as `EquipotCalculator`.
        SimulationError: forces or stress are larger than the settings allow.
    """
    common = common or Common()
    atoms = read_structure(structure, common.species_map)
    name = atoms.get_chemical_formula() if isinstance(structure, Atoms) else str(structure)
    _require_periodic(atoms, periodic, name)
    _require_crystal_for_symprec(atoms, common.symprec, name)
    atoms.set_momenta(None)
    if atoms.constraints and not keep_constraints:
        log.warning("%s: its constraints are taken off.", name)
        atoms.set_constraint()
    calculator = (
        model
        if isinstance(model, BaseCalculator)
        else EquipotCalculator(model, device=common.device, derivatives=False)
    )
    if isinstance(calculator, EquipotCalculator):
        calculator.model.require_energy("this command")
        calculator.model.atom_types(atoms.numbers)
    if needs is not None:
        needs(calculator)
    atoms.calc = calculator
    described = {"structure": name, "formula": atoms.get_chemical_formula(), "atoms": len(atoms)}
    described |= describe_model(calculator, model) | {"equipot_version": __version__}
    if atoms.pbc.all():
        described |= {"space_group": space_group(atoms, common.symprec)}
        loose = described["space_group"]
        with suppress(ConfigError):
            loose = space_group(atoms, _LOOSER * common.symprec)
        if loose != described["space_group"]:
            log.warning(
                "%s: space group %s; with --symprec %g it would be %s.",
                name, described["space_group"], _LOOSER * common.symprec, loose,
            )  # fmt: skip
    if common.relax:
        described["relaxation"] = relax(atoms, common)
        if atoms.pbc.all():
            described["space_group_relaxed"] = space_group(atoms, common.symprec)
    return Start(atoms, described | require_minimum(atoms, common, name))


def describe_model(calculator: BaseCalculator, model: Model) -> dict[str, Any]:
    """Name, dtype, range: what numbers are worth nothing without."""
    if not isinstance(calculator, EquipotCalculator):
        return {"model": calculator.name if hasattr(calculator, "name") else type(calculator).__name__}
    metadata = calculator.model.metadata
    file = str(model if isinstance(model, str | Path) else calculator.model.path)
    found = {"model": file, "members": len(calculator.members), "model_dtype": metadata.dtype}
    return found | {
        "weights_sha256": metadata.weights_sha256,
        "interaction_range_A": metadata.interaction_range,
    }


def _require_periodic(atoms: Atoms, periodic: bool | None, name: str) -> None:
    if periodic is True and not (atoms.pbc.all() and atoms.cell.rank == 3):
        raise DataError(
            f"{name}: expected a crystal, periodic in all three directions, found pbc {atoms.pbc.tolist()} "
            f"and a cell of rank {atoms.cell.rank}."
        )
    if periodic is False and atoms.pbc.any():
        raise DataError(f"{name}: expected a molecule, not periodic, found pbc {atoms.pbc.tolist()}.")


def _require_crystal_for_symprec(atoms: Atoms, symprec: float, name: str) -> None:
    if not atoms.pbc.all() and symprec != Common.symprec:
        raise ConfigError(
            f"--symprec {symprec:g} is of a crystal's symmetry; {name} is not periodic in all directions: "
            "leave it out."
        )


def symmetry_dataset(atoms: Atoms, symprec: float) -> Any:
    """spglib's, within ``symprec`` (Å); None where it finds nothing. ConfigError where that is too far."""
    need("spglib")
    import spglib

    cell = (atoms.cell.array, atoms.get_scaled_positions(), atoms.numbers)
    try:
        return spglib.get_symmetry_dataset(cell, symprec=symprec)
    except Exception as error:  # of a class that not every version has
        raise ConfigError(
            f"spglib cannot use --symprec {symprec:g} Å ({error}): take another one, as 0.001."
        ) from None


def space_group(atoms: Atoms, symprec: float) -> str:
    """Such as ``Fd-3m (227)``; P1 where spglib finds nothing."""
    found = symmetry_dataset(atoms, symprec)
    return "P1 (1)" if found is None else f"{found.international} ({found.number})"


def relax(atoms: Atoms, common: Common) -> dict[str, Any]:
    """In place, to 1e-4 eV/Å, by BFGS; of a crystal with the cell, and its symmetry kept."""
    crystal = atoms.pbc.all()
    before = atoms.get_potential_energy(), atoms.positions.copy(), atoms.cell.copy()
    kept = list(atoms.constraints)
    if crystal:
        from ase.constraints import FixSymmetry

        atoms.set_constraint([*kept, FixSymmetry(atoms, symprec=common.symprec)])
    cell = crystal and not common.keep_cell
    optimizer = BFGS(FrechetCellFilter(atoms) if cell else atoms, logfile=None)
    converged = bool(optimizer.run(fmax=_RELAXED, steps=_STEPS))
    atoms.set_constraint(kept)
    if not converged:
        log.warning("Relaxing did not get below %g eV/Å in %d steps.", _RELAXED, _STEPS)
    found = {"steps": optimizer.nsteps, "converged": converged, "cell": bool(cell)}
    found["energy_change_eV"] = float(atoms.get_potential_energy() - before[0])
    if cell:
        found["volume_change_percent"] = float(100.0 * (atoms.get_volume() / before[2].volume - 1.0))
    moved = atoms.get_scaled_positions(wrap=False) @ before[2].array if crystal else atoms.positions
    found["largest_displacement_A"] = float(np.linalg.norm(moved - before[1], axis=1).max())
    return found


def require_minimum(atoms: Atoms, common: Common, name: str) -> dict[str, float]:
    """Largest force (eV/Å) and stress (GPa). Raises SimulationError if they are larger than allowed."""
    forces = np.linalg.norm(atoms.get_forces(), axis=1)
    found = {"energy_eV": float(atoms.get_potential_energy()), "largest_force_eV_per_A": float(forces.max())}
    advice = "--relax relaxes it first" if not common.relax else "It was relaxed; look at the structure"
    if forces.max() > common.max_force:
        raise SimulationError(
            f"{name} is no minimum of this model: the force on atom {forces.argmax()} "
            f"({atoms.symbols[forces.argmax()]}) is {forces.max():.3g} eV/Å, more than --max-force "
            f"{common.max_force:g}. {advice}, or accept it with --max-force {_above(forces.max()):g}."
        )
    if not atoms.pbc.all():
        return found
    stress = atoms.get_stress(voigt=False) / GPa
    largest = np.abs(stress).max()
    found |= {"volume_A3": float(atoms.get_volume()), "pressure_GPa": float(-np.trace(stress) / 3.0)}
    found["largest_stress_GPa"] = float(largest)
    if largest > common.max_stress and not common.keep_cell:
        raise SimulationError(
            f"The cell of {name} is no minimum of this model: a component of the stress is {largest:.3g} GPa "
            f"(pressure {found['pressure_GPa']:.3g} GPa), more than --max-stress {common.max_stress:g}. "
            f"{advice}, or accept it, as under pressure, with --max-stress {_above(largest):g}."
        )
    return found


def _above(value: float) -> float:
    """The next number of two digits."""
    return float(f"{1.05 * value:.1e}")


def evaluate(
    calculator: BaseCalculator, structures: Iterable[Atoms], text: str, console: Console | None = None
) -> list[dict[str, Any]]:
    """ASE's results (energy, forces, of crystals stress) of each in turn, with a progress bar."""
    structures = list(structures)
    console = console or Console(stderr=True)
    found = []
    for atoms in track(structures, text, console=console, transient=True, disable=len(structures) < 2):
        atoms = atoms.copy()
        atoms.calc = calculator
        asked = ["energy", "forces", *(["stress"] if atoms.pbc.all() else [])]
        found.append({name: np.copy(calculator.get_property(name, atoms)) for name in asked})
    return found
