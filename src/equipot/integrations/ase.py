"""The ASE calculator."""

from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes

from equipot.deploy.load import DeployedModel, load_deployed
from equipot.errors import DataError
from equipot.integrations.verlet import VerletList
from equipot.units import stress_to_voigt

_STRESSES = {"stress", "stresses"}


class EquipotCalculator(Calculator):
    """Energies (eV), forces (eV/Å) and stress (eV/Å³, ASE's sign and order) from a deployed model.

    ::

        from equipot import EquipotCalculator
        atoms.calc = EquipotCalculator("model.pt")

    Args:
        model: a file written by ``equipot deploy``, or a model from `load_deployed`.
        device: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1"; not used for a loaded model.
        skin: the neighbor list reaches this far (Å) beyond the cutoff and is reused until atoms have moved
            by half of it; 0 rebuilds it at every step.
        check: re-evaluate the reference structures in the file once, before the first use.

    Raises:
        ModelFileError, DeviceError: as `load_deployed`; or the file fails its check on this machine.
        UnknownSpeciesError: at the first use, for an element the model does not know.

    Stress exists only for structures that are periodic in all three directions. ``stresses`` are per atom
    and sum up to ``stress``.
    """

    name = "equipot"
    implemented_properties: ClassVar[list[str]] = [
        "energy", "free_energy", "energies", "forces", "stress", "stresses",
    ]  # fmt: skip

    def __init__(
        self,
        model: str | Path | DeployedModel,
        device: str | torch.device = "auto",
        skin: float = 0.5,
        check: bool = True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if skin < 0:
            raise ValueError(f"skin must not be negative, found {skin}")
        self.model = model if isinstance(model, DeployedModel) else load_deployed(model, device)
        if check:
            self.model.require_capsule()
        self.neighbors = VerletList(self.model.metadata.cutoff, skin, self.model.device)

    def calculate(
        self, atoms: Atoms | None = None, properties=("energy",), system_changes=all_changes
    ) -> None:
        """Fill `results`; everything is computed at once, whatever is asked."""
        super().calculate(atoms, properties, system_changes)
        atoms = self.atoms
        periodic = bool(atoms.pbc.all()) and atoms.cell.rank == 3
        if not periodic and _STRESSES & set(properties):
            raise PropertyNotImplementedError(
                "Stress needs a structure that is periodic in all three directions; "
                f"found pbc {atoms.pbc.tolist()} and a cell of rank {atoms.cell.rank}."
            )
        if not np.isfinite(atoms.positions).all():
            raise DataError("Positions are not finite; the run has diverged, or the structure is damaged.")
        types = torch.as_tensor(self.model.atom_types(atoms.numbers), device=self.model.device)
        edge_vec, edge_index = self.neighbors.edges(atoms.positions, atoms.cell.array, atoms.pbc)
        owned = torch.ones_like(types, dtype=torch.bool)
        results = self.model(edge_vec, edge_index, types, owned)
        energies, forces, virials = (result.detach().cpu().numpy() for result in results)
        energy = float(energies.sum())
        self.results = {"energy": energy, "free_energy": energy, "energies": energies, "forces": forces}
        if periodic:
            stresses = stress_to_voigt(-virials / atoms.get_volume())
            self.results |= {"stress": stresses.sum(axis=0), "stresses": stresses}
