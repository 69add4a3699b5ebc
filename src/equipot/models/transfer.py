"""Weights carried over to a model of the same architecture for other elements or levels of theory.

What belongs to an element or to a level is copied, left out, or made for new ones; everything else stays as
it is, so that energies and forces of the elements and levels that are kept stay the same.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from equipot.models.build import NETWORKS
from equipot.models.network import State, rows_of

_PREFIX = "network."


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
    network = {key.removeprefix(_PREFIX): w for key, w in state.items() if key.startswith(_PREFIX)}
    network = NETWORKS[kind].transfer(network, before, species, levels)
    new = dict(state) | {_PREFIX + key: weight for key, weight in network.items()}
    for name in ("outputs.shift", "outputs.of_elements"):
        if name in state:
            new[name] = rows_of(state[name], species)
    new["scale_shift.scale"] = rows_of(state["scale_shift.scale"], species)
    shift = rows_of(state["scale_shift.shift"].reshape(-1, before).T, species).T[list(levels)]
    new["scale_shift.shift"] = shift[0].clone() if len(levels) == 1 else shift.contiguous()
    return new
