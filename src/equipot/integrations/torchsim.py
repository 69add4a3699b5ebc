"""A model of TorchSim: ``pip install 'equipot[torchsim]'``."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from equipot.deploy.ensemble import load_members
from equipot.deploy.load import DeployedModel
from equipot.errors import SimulationError
from equipot.integrations.packed import Pack, PackedModel

try:
    from torch_sim.models.interface import ModelInterface
    from torch_sim.state import SimState
except ModuleNotFoundError as error:
    if error.name != "torch_sim":
        raise
    hint = "TorchSim is not installed: pip install 'equipot[torchsim]'"
    raise ModuleNotFoundError(hint, name=error.name) from None


class EquipotModel(ModelInterface):
    """A deployed model for TorchSim, which evaluates all systems of a state at once.

    Args:
        model: a file written by ``equipot deploy``, or a model from `load_deployed`; or an ensemble, whose
            mean counts: a list of these, or a folder.
        device: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1"; not used for a loaded model. Neighbor
            lists are made on the CPU.
        dtype: of what it gives. The model computes in its own.
        compute_forces, compute_stress: whether they are in the results.
        skin: Å that neighbor lists reach beyond the cutoff.
        check: re-evaluate the reference structures in the file once, before the first use.
        engine: "auto", or "torch" for TorchScript on a CPU too.

    Raises:
        ModelFileError, DeviceError, ConfigError: as `load_deployed`; or the file fails its check here.
    """

    def __init__(
        self,
        model: str | Path | DeployedModel | Sequence[str | Path | DeployedModel],
        device: str | torch.device = "auto",
        dtype: torch.dtype = torch.float64,
        *,
        compute_forces: bool = True,
        compute_stress: bool = True,
        skin: float = 0.5,
        check: bool = True,
        engine: str = "auto",
    ):
        super().__init__()
        members = load_members(model, device, engine)
        members[0].require_energy("TorchSim")
        if check:
            for member in members:
                member.require_capsule()
        self._model = PackedModel(members, skin)
        self._device, self._dtype = torch.device(members[0].device), dtype
        self._compute_forces, self._compute_stress = compute_forces, compute_stress
        self._memory_scales_with = "n_atoms_x_density"

    def forward(self, state: SimState | dict, **_) -> dict[str, Tensor]:
        """energy (S,) eV, forces (N, 3) eV/Å, stress (S, 3, 3) eV/Å³ (NaN unless periodic in all directions).

        Raises:
            UnknownSpeciesError: an element that the model does not know.
            DataError: positions or a cell without a neighbor list.
            SimulationError: atoms of a system coincide, or the results are not finite.
        """
        if isinstance(state, dict):
            state = SimState(**({"masses": torch.ones_like(state["positions"][:, 0])} | state))
        counts = state.system_idx.bincount().cpu().numpy()
        pack = Pack(
            _array(state.positions),
            _array(state.row_vector_cell),
            np.broadcast_to(np.asarray(state.pbc, bool), (len(counts), 3)),
            self._model.members[0].atom_types(state.atomic_numbers.cpu().numpy()),
            counts,
        )
        found = self._model.evaluate(pack)
        if found.problems:
            number, problem = min(found.problems.items())
            raise SimulationError(f"System {number} of {len(counts)}: {problem}.")
        results = {"energy": found.energies}
        if self.compute_forces:
            results["forces"] = found.forces
        if self.compute_stress:
            volumes = np.where(pack.pbc.all(axis=1), abs(np.linalg.det(pack.cells)), np.nan)
            stress = -found.virials / volumes[:, None, None]
            results["stress"] = 0.5 * (stress + stress.transpose(0, 2, 1))
        where = {"device": state.positions.device, "dtype": self._dtype}
        return {name: torch.as_tensor(values, **where) for name, values in results.items()}


def _array(values: Tensor) -> np.ndarray:
    return values.detach().cpu().numpy().astype(np.float64)
