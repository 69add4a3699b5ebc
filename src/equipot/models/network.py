"""What a potential is built on, and all that the rest of equipot asks of an architecture."""

from collections.abc import Mapping, Sequence

import torch
from e3nn import o3
from torch import Tensor, nn

from equipot.engine.program import Program
from equipot.errors import ConfigError

State = dict[str, Tensor]
NO_OUTPUTS = o3.Irreps()


class Network(nn.Module):
    """A map from geometry and species to one equivariant row per atom; column k is the energy of level k.

    Irreps of further outputs follow the energies, those of the last layer first.

    An architecture is a subclass in a file of its own, a class in config/model.py whose keys are arguments of
    its constructor, and a line in `NETWORKS` (models/build.py). The constructor also takes ``num_species``,
    ``avg_num_neighbors``, ``pair_cutoffs`` (Å, by center and neighbor, or None), ``num_outputs`` (levels; 0:
    no energies), ``further_outputs`` and ``previous_outputs`` (irreps, of the last layer and of the one
    before); it sets

        cutoff             Å; there are no longer edges
        irreps_out         of the rows
        layers             a ModuleList, whose members can be frozen one by one
        num_exchanges      how often atoms need rows of features of their neighbors before they can go on,
                           each a step "exchange" in `steps`; 0: strictly local, evaluated in parts
        widest_exchange    numbers per atom in the widest of these rows
    """

    takes_level = False  # whether `forward` has a fourth argument: the level of each atom, (N,) int64 or None

    def forward(self, edge_vec: Tensor, edge_index: Tensor, atom_types: Tensor) -> Tensor:
        """(E, 3) float64 Å, (2, E), (N,) → (N, irreps_out.dim) in the network's dtype, unscaled."""
        raise NotImplementedError

    @torch.jit.unused
    def steps(self, program: Program) -> str | None:
        """Add what `forward` does to a program, and name the array of energies, of computed atoms.

        ``program.ends_with`` says what the last linear map is given, for uncertainties;
        ``program.output_rows`` is the array with the irreps of further outputs.
        None: it cannot be written as the engine's steps; deployed files then run by TorchScript only.
        """
        return None

    @staticmethod
    def parts() -> dict[str, tuple[str, ...]]:
        """Weights by readable names: patterns as in a shell. `layers` and `readout` need none."""
        return {}

    @staticmethod
    def transfer(
        state: State, num_species: int, species: Sequence[int | None], levels: Sequence[int]
    ) -> State:
        """The state dict of a network of ``num_species`` elements for others; see models/transfer.py."""
        raise NotImplementedError

    @torch.jit.unused
    def table_intervals(self) -> Sequence[int]:
        """With how many intervals `tabulate` may be called, the coarsest first; none: nothing to tabulate."""
        return ()

    @torch.jit.unused
    def tabulate(self, intervals: int) -> None:
        """Replace functions of the distance by tables, for inference."""
        raise NotImplementedError


def require_irreps(outputs: o3.Irreps, features: o3.Irreps) -> None:
    """Raises ConfigError for an irrep of further outputs that is none of the features they are read from."""
    missing = [str(ir) for ir in dict.fromkeys(ir for _, ir in outputs) if ir not in features]
    if missing:
        raise ConfigError(
            f"model.outputs need the irreps {', '.join(missing)}, but the features they are read from are "
            f"{features or 'none'}. It takes an l_max as high, `parity: true` for what is not (-1)^l under "
            "inversion, and more than one layer for pseudoscalars."
        )


def rows_of(weight: Tensor, species: Sequence[int | None]) -> Tensor:
    """One row for each element; the mean of all rows for a new one (None)."""
    return torch.stack([weight.mean(dim=0) if row is None else weight[row] for row in species])


def columns_of(state: Mapping[str, Tensor], name: str, levels: Sequence[int]) -> Tensor:
    """Of a readout's weights, those of the levels."""
    return state[name][:, list(levels)].contiguous()
