"""The one place where a configuration and the data's statistics become a model."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import ase.data
import torch

from equipot.config.model import CommonModelConfig
from equipot.models.allegro import Allegro
from equipot.models.allegro_dense import AllegroDense
from equipot.models.nequip import NequIP
from equipot.models.network import Network
from equipot.models.outputs import Outputs, OutputSpec, output_irreps
from equipot.models.potential import OutputsAlone, Potential, PotentialWithOutputs
from equipot.models.terms import ZBL, FieldTerm, SpeciesScaleShift

# By ``type`` of the section ``model``.
NETWORKS: dict[str, type[Network]] = {"nequip": NequIP, "allegro": Allegro, "allegro_dense": AllegroDense}
# Every other key of section ``model`` is an argument of the network.
_OUTSIDE_THE_NETWORK = {
    *(
        "type",
        "auto",
        "dtype",
        "scale",
        "trainable_scale_shift",
        "zbl",
        "pair_cutoffs",
        "energy",
        "outputs",
        "field",
    )
}


def build_potential(
    config: CommonModelConfig,
    species: list[str],
    avg_num_neighbors: float,
    atomic_energies: Sequence[float] | Sequence[Sequence[float]],
    force_rms: float | None,
    levels: Sequence[str] = (),
    outputs: Mapping[str, Any] = MappingProxyType({}),
) -> Potential:
    """An untrained potential; its weights come from torch's global random state.

    ``species``: chemical symbols in the order of the atom types; ``avg_num_neighbors``: mean number of
    neighbors within the cutoff; ``atomic_energies`` (eV): the shift of each species, for each of
    ``levels`` where there are several; ``force_rms`` (eV/Å): becomes the scale, times 1 Å, where the
    configuration asks for ``force_rms``; ``levels``: names of the levels of theory, if they have names;
    ``outputs``: scales and shifts of further outputs, by their names.

    Raises:
        ConfigError: the features of the architecture lack an irrep of an output.
    """
    keys = config.model_dump(exclude=_OUTSIDE_THE_NETWORK)
    pair_cutoffs = config.cutoffs_of_pairs(species)
    specs = [OutputSpec(**facts) for facts in config.output_specs()]
    specs.sort(key=lambda spec: spec.previous)  # the order of a network's rows
    network = NETWORKS[config.type](
        num_species=len(species),
        pair_cutoffs=pair_cutoffs,
        # An average below one neighbor would amplify messages without bound.
        avg_num_neighbors=max(avg_num_neighbors, 1.0),
        num_outputs=max(len(levels), 1) if config.energy else 0,
        further_outputs=output_irreps([spec for spec in specs if not spec.previous], config.parity),
        previous_outputs=output_irreps([spec for spec in specs if spec.previous], config.parity),
        **keys,
    )
    network.to(getattr(torch, config.dtype))
    scale = force_rms if config.scale == "force_rms" else config.scale
    if not config.energy:  # which needs none
        scale = 1.0
    scale_shift = SpeciesScaleShift(
        [scale] * len(species), list(atomic_energies), trainable=config.trainable_scale_shift
    )
    zbl = None
    if config.zbl:
        numbers = [ase.data.atomic_numbers[symbol] for symbol in species]
        everywhere = [[config.cutoff] * len(species)] * len(species)
        zbl = ZBL(numbers, (pair_cutoffs or everywhere) if config.zbl == "cutoff" else None)
    if not specs:
        return Potential(network, species, scale_shift, zbl, levels)
    values = Outputs(specs, outputs, species)
    if not config.energy:
        return OutputsAlone(network, species, scale_shift, zbl, levels, values)
    field = None
    if config.field:
        field = FieldTerm({name: values.column(name) for name in config.field_terms}, config.field_terms)
    return PotentialWithOutputs(network, species, scale_shift, zbl, levels, values, field)
