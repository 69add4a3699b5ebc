"""Predictions of structures, without attaching a calculator to them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ase import Atoms

from equipot.deploy.load import DeployedModel
from equipot.integrations.ase import EquipotCalculator

if TYPE_CHECKING:
    import torch


class EquipotPredictor:
    """What a deployed model says of a structure: its outputs, and energies if it has them.

        from equipot import EquipotPredictor
        predict = EquipotPredictor("model.pt")
        predict(atoms)["phonon_dos"]

    Args:
        model, device, check, engine: as of `EquipotCalculator`; `model` may be an ensemble.

    Raises:
        ModelFileError, DeviceError, ConfigError: as `EquipotCalculator`.
    """

    def __init__(
        self,
        model: str | Path | DeployedModel | Sequence[str | Path | DeployedModel],
        device: "str | torch.device" = "auto",
        check: bool = True,
        *,
        engine: str = "auto",
    ):
        self._calculator = EquipotCalculator(model, device, skin=0.0, check=check, engine=engine)

    @property
    def names(self) -> list[str]:
        """Of the outputs, in the order of the configuration."""
        return self._calculator.model.output_names

    def __call__(self, atoms: Atoms) -> dict[str, Any]:
        """By name, in the units of the outputs: (...) of a structure, (N, ...) of atoms.

        With ``energy`` (eV), ``forces`` (N, 3) eV/Å and, of periodic structures, ``stress`` (6,) eV/Å³ in
        ASE's order, and whatever else the calculator has, if the model has energies.

        Raises:
            UnknownSpeciesError, DataError, SimulationError: as `EquipotCalculator`.
        """
        self._calculator.calculate(atoms)
        found = dict(self._calculator.results)
        if "dipole" in found:
            found["dipole"] = found["dipole"] / self._calculator.dipole_factor
        return found
