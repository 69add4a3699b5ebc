"""The ASE calculator."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes

from equipot.deploy.ensemble import deviation, load_members
from equipot.deploy.load import DeployedModel
from equipot.errors import ConfigError, DataError, SimulationError
from equipot.integrations.distances import DistanceWatch, TooClose
from equipot.integrations.verlet import VerletList
from equipot.quantities import QUANTITIES
from equipot.units import stress_to_voigt

_STRESSES = {"stress", "stresses"}

log = logging.getLogger("equipot")


class EquipotCalculator(Calculator):
    """Energies (eV), forces (eV/Å) and stress (eV/Å³, ASE's sign and order) from a deployed model.

    ::

        from equipot import EquipotCalculator
        atoms.calc = EquipotCalculator("model.pt")

    Args:
        model: a file written by ``equipot deploy``, or a model from `load_deployed`; or an ensemble: a list
            of these, or the folder that ``equipot deploy`` has written.
        device: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1"; not used for a loaded model.
        skin: the neighbor list reaches this far (Å) beyond the cutoff and is reused until atoms have moved
            by half of it; 0 rebuilds it at every step.
        check: re-evaluate the reference structures in the file once, before the first use.
        engine: "auto": equipot's own on a CPU; "torch": TorchScript. Not used for a loaded model.
        label, atoms, directory: as for every ASE calculator.

    Raises:
        ConfigError: the skin is negative or not finite, or there is no such engine.
        ModelFileError, DeviceError: as `load_deployed`; or the file fails its check on this machine.
        UnknownSpeciesError: at the first use, for an element the model does not know.
        DataError: at a use, for no atoms, positions that are not finite, and atoms closer than 0.1 Å.
        SimulationError: at a use, if the model's results are not finite.

    It can be pickled and copied, with its model, for processes (on a GPU started by ``spawn``) and threads.
    Each thread needs a calculator of its own; copies share the model.

    An ensemble gives the mean of its members, and in `results` their standard deviations: ``energy_std``
    (eV) and ``forces_std`` (eV/Å, one number for each atom: of vectors).

    Stress exists only for structures that are periodic in all three directions. ``stresses`` are per atom
    and sum up to ``stress``.
    """

    name = "equipot"
    implemented_properties: ClassVar[list[str]] = [
        "energy", "free_energy", "energies", "forces", "stress", "stresses",
    ]  # fmt: skip

    def __init__(
        self,
        model: str | Path | DeployedModel | Sequence[str | Path | DeployedModel],
        device: str | torch.device = "auto",
        skin: float = 0.5,
        check: bool = True,
        *,
        engine: str = "auto",
        label: str | None = None,
        atoms: Atoms | None = None,
        directory: str | Path = ".",
    ):
        if not (math.isfinite(skin) and skin >= 0):
            raise ConfigError(f"skin must be a length of at least 0 Å, found {skin}.")
        super().__init__(label=label, atoms=atoms, directory=directory)
        self.members = load_members(model, device, engine)
        self.model = self.members[0]
        if check:
            for member in self.members:
                member.require_capsule()
        self.neighbors = VerletList(self.model.metadata.cutoff, skin, self.model.device)
        self.distances = DistanceWatch([member.metadata for member in self.members])
        self._types: tuple[np.ndarray, torch.Tensor] | None = None

    def calculate(
        self, atoms: Atoms | None = None, properties=("energy",), system_changes=all_changes
    ) -> None:
        """Fill `results`; everything is computed at once, whatever is asked."""
        super().calculate(atoms, properties, system_changes)
        atoms = self.atoms
        if len(atoms) == 0:
            raise DataError("The structure has no atoms.")
        periodic = bool(atoms.pbc.all()) and atoms.cell.rank == 3
        if not periodic and _STRESSES & set(properties):
            raise PropertyNotImplementedError(
                "Stress needs a structure that is periodic in all three directions; "
                f"found pbc {atoms.pbc.tolist()} and a cell of rank {atoms.cell.rank}."
            )
        if not np.isfinite(atoms.positions).all():
            raise DataError("Positions are not finite; the run has diverged, or the structure is damaged.")
        atom_types = self.model.atom_types(atoms.numbers)
        edge_vec, edge_index, order = self.neighbors.edges(atoms.positions, atoms.cell.array, atoms.pbc)
        types = self._types_on_device(atom_types[order])
        for found in self.distances.find(edge_vec, edge_index, types, order):
            self.report_distance(found)
        owned = torch.ones_like(types, dtype=torch.bool)
        each = [member(edge_vec, edge_index, types, owned) for member in self.members]
        of_members = [_per_atom(torch.stack(column), order) for column in zip(*each, strict=True)]
        energies, forces, virials, *others = (values.mean(axis=0) for values in of_members)
        _check_finite(energies, forces, virials, *others)
        energy = float(energies.sum())
        self.results = {"energy": energy, "free_energy": energy, "energies": energies, "forces": forces}
        for quantity, rows in zip(list(QUANTITIES.values())[3:], others, strict=False):
            self.results[quantity.name] = quantity.choose(rows.sum(axis=0), rows)
        if len(self.members) > 1:
            total = of_members[0].sum(axis=1, keepdims=True)
            self.results |= {"energy_std": float(deviation(total)[0]), "forces_std": deviation(of_members[1])}
        if periodic:
            stresses = stress_to_voigt(-virials / atoms.get_volume())
            self.results |= {"stress": stresses.sum(axis=0), "stresses": stresses}

    def __getstate__(self) -> dict:
        return vars(self) | {"_types": None}  # which may be on a GPU

    def report_distance(self, found: TooClose) -> None:
        """Told of atoms that are closer than any in the training set, once for each pair of elements."""
        log.warning("Closer than anything the model was trained on: %s.", found)

    def _types_on_device(self, types: np.ndarray) -> torch.Tensor:
        """(N,) → the same tensor as long as they stay the same: what follows from it is kept with it."""
        if self._types is None or not np.array_equal(self._types[0], types):
            self._types = types, torch.as_tensor(types, device=self.model.device)
        return self._types[1]


def _per_atom(rows: torch.Tensor, order: np.ndarray) -> np.ndarray:
    """(members, N, ...): row n of each goes to atom order[n]."""
    rows = rows.detach().cpu().numpy()
    values = np.empty_like(rows)
    values[:, order] = rows
    return values


def _check_finite(*rows: np.ndarray) -> None:
    finite = np.isfinite(np.column_stack([values.reshape(len(values), -1) for values in rows])).all(axis=1)
    if not finite.all():
        wrong = np.flatnonzero(~finite)
        named = ", ".join(map(str, wrong[:5])) + (", ..." if len(wrong) > 5 else "")
        raise SimulationError(
            f"The model's results are not finite for {len(wrong)} of {len(finite)} atoms (indices {named}). "
            "The structure is far from what the model was trained on, or the model is broken: "
            "run 'equipot check' on its file."
        )
