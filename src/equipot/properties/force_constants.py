"""Force constants from displacements in a supercell, and what shows that they are right."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator
from numpy.typing import NDArray
from phonopy import Phonopy
from phonopy.structure.cells import guess_primitive_matrix

from equipot.errors import ConfigError
from equipot.integrations.ase import EquipotCalculator
from equipot.properties import supercells
from equipot.properties.born import born_of
from equipot.properties.phonon_bands import special_points
from equipot.properties.settings import Common, PhononSettings
from equipot.properties.start import evaluate

_LARGER_DISPLACEMENT = 3.0  # times the displacement, in its check
_EXACT = 1e-5  # Å, of a structure that is refined already


@dataclass
class Supercell:
    """Force constants from displacements in one supercell."""

    phonon: Phonopy
    copies: NDArray  # (3,) of the cell it is made of
    sum_rule: float  # eV/Å², the largest sum of force constants over atoms, before it was made zero
    frequencies: NDArray | None = None  # (Q, 3n) THz at the points of the checks


@dataclass
class Displacer:
    """What is displaced, by which forces."""

    unitcell: Atoms
    calculator: BaseCalculator
    common: Common
    settings: PhononSettings

    def converge(self) -> tuple[list[Supercell], list[dict[str, Any]]]:
        """Supercells, the first as given or chosen, each larger one compared with the one before."""
        settings, found, checks = self.settings, [], []
        base = supercells.base_cell(self.unitcell, self.common.symprec)
        cell = base.T @ self.unitcell.cell.array
        copies = supercells.first_supercell(cell, cutoff_of(self.calculator))
        if settings.supercell is not None:
            base, cell = np.eye(3, dtype=int), self.unitcell.cell.array
            copies = np.array(settings.supercell)
        while True:
            found.append(self.displace(base, copies, settings.displacement))
            if len(found) > 1:
                checks.append(_compare("supercell", found[-2], found[-1]))
            converged = bool(checks) and checks[-1]["largest_change_THz"] < settings.tolerance
            given = settings.supercell is not None and len(found) > 1
            copies = supercells.larger(cell, copies)
            atoms = supercells.num_atoms(self.unitcell, base, copies)
            if not settings.checks or converged or given or atoms > settings.max_atoms:
                return found, checks

    def displace(self, base: NDArray, copies: NDArray, distance: float) -> Supercell:
        """Force constants in a supercell; what acts on atoms that are not displaced is taken off."""
        supercells.require_size(self.unitcell, base, copies)
        unitcell = supercells.to_phonopy(self.unitcell)
        primitive = guess_primitive_matrix(unitcell, symprec=_EXACT)  # "auto" is the same, with a warning
        phonon = Phonopy(unitcell, base @ np.diag(copies), primitive, symprec=_EXACT)
        phonon.generate_displacements(distance=distance, is_plusminus=True)
        cells = [phonon.supercell, *phonon.supercells_with_displacements]
        text = f"{len(cells) - 1} displacements of {len(phonon.supercell)} atoms"
        results = evaluate(self.calculator, map(supercells.from_phonopy, cells), text)
        phonon.forces = np.array([of["forces"] - results[0]["forces"] for of in results[1:]])
        phonon.produce_force_constants(calculate_full_force_constants=False, show_drift=False)
        sum_rule = float(np.abs(phonon.force_constants.sum(axis=1)).max())
        phonon.symmetrize_force_constants(show_drift=False)
        if self.settings.born is not None:
            phonon.nac_params = born_of(self.settings.born, phonon, self.common.symprec, self.calculator)
        return self.measured(Supercell(phonon, copies, sum_rule))

    def measured(self, supercell: Supercell) -> Supercell:
        """With frequencies at points that are the same in each supercell."""
        _, segments = special_points(supercell.phonon.primitive, self.common.symprec)
        points = {tuple(np.round(q, 9)) for ends in segments for q in (*ends, np.mean(ends, axis=0))}
        supercell.frequencies = supercell.phonon.run_qpoints(sorted(points)).frequencies
        return supercell

    def check_displacement(self, supercell: Supercell) -> dict[str, Any]:
        distance = _LARGER_DISPLACEMENT * self.settings.displacement
        matrix = supercell.phonon.supercell_matrix
        other = self.displace(matrix, np.ones(3, dtype=int), distance)
        found = _compare("displacement", supercell, other)
        return found | {"from": f"{self.settings.displacement:g} Å", "to": f"{distance:g} Å"}

    def check_hessian(self, supercell: Supercell) -> dict[str, Any]:
        """Force constants of the same supercell by automatic differentiation."""
        if not isinstance(self.calculator, EquipotCalculator):
            raise ConfigError("--hessian needs a model file of equipot.")
        from equipot.properties.hessian import hessian_rows

        phonon = supercell.phonon
        atoms = supercells.from_phonopy(phonon.supercell)
        files = [member.path for member in self.calculator.members]
        rows = hessian_rows(files, atoms, phonon.primitive.p2s_map)
        other = phonon.replicate()
        other.nac_params = phonon.nac_params
        other.force_constants = rows
        compared = self.measured(Supercell(other, supercell.copies, 0.0))
        found = _compare("hessian", supercell, compared) | {"from": "displacements", "to": "derivatives"}
        difference = float(np.abs(rows - phonon.force_constants).max())
        return found | {"largest_difference_eV_per_A2": difference}


def cutoff_of(calculator: BaseCalculator) -> float | None:
    return calculator.model.metadata.cutoff if isinstance(calculator, EquipotCalculator) else None


def _compare(what: str, one: Supercell, other: Supercell) -> dict[str, Any]:
    change = np.abs(other.frequencies - one.frequencies)
    found = {"check": what, "from": size_of(one), "to": size_of(other)}
    found |= {"mean_change_THz": float(change.mean()), "largest_change_THz": float(change.max())}
    return found


def size_of(supercell: Supercell) -> str:
    cell = supercell.phonon.supercell
    return supercells.describe(cell.cell, len(cell))
