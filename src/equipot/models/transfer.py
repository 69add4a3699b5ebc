"""Weights carried over to a model of the same architecture for other elements or levels of theory.

What belongs to an element or to a level is copied, left out, or made for new ones; everything else stays as
it is, so that energies and forces of the elements and levels that are kept stay the same.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

State = dict[str, Tensor]


def transfer(
    state: Mapping[str, Tensor], kind: str, species: Sequence[int | None], levels: Sequence[int]
) -> State:
    """The state dict of a Potential for other elements and levels.

    Args:
        state: of a potential of T elements and K levels.
        kind: ``type`` of the section ``model``.
        species: for each element of the new model, which of the T it is; None for a new one, whose weights
            become the mean of the T: a random start would meet layers that never saw its like.
        levels: for each level of the new model, which of the K its readout and reference energies start from.
    """
    before = state["scale_shift.scale"].shape[0]
    new = dict(state)
    new["scale_shift.scale"] = _rows(state["scale_shift.scale"], species)
    shift = _rows(state["scale_shift.shift"].reshape(-1, before).T, species).T[list(levels)]
    new["scale_shift.shift"] = shift[0].clone() if len(levels) == 1 else shift.contiguous()
    return _NETWORKS[kind](new, species, before, list(levels))


def _nequip(state: State, species: Sequence[int | None], before: int, levels: list[int]) -> State:
    for name, weight in state.items():
        if name == "network.embedding" or ".self_connection." in name:
            state[name] = _rows(weight, species)
    state["network.readout.weights.0"] = state["network.readout.weights.0"][:, levels].contiguous()
    return state


def _allegro(state: State, species: Sequence[int | None], before: int, levels: list[int]) -> State:
    name = "network.two_body.layers.0.weight"  # its inputs: one-hot center, one-hot neighbor, radial basis
    center, neighbor, basis = state[name].split([before, before, state[name].shape[0] - 2 * before])
    weight = torch.cat([_rows(center, species), _rows(neighbor, species), basis])
    # The layer divides by the root of the number of its inputs.
    state[name] = weight * (weight.shape[0] / state[name].shape[0]) ** 0.5
    last = max(int(key.split(".")[3]) for key in state if key.startswith("network.readout.layers."))
    name = f"network.readout.layers.{last}.weight"
    state[name] = state[name][:, levels].contiguous()
    return state


_NETWORKS = {"nequip": _nequip, "allegro": _allegro}


def _rows(weight: Tensor, species: Sequence[int | None]) -> Tensor:
    """One row for each element; the mean of all rows for a new one."""
    return torch.stack([weight.mean(dim=0) if row is None else weight[row] for row in species])
