"""A potential that starts from a network trained without energies: its body, and heads of its own."""

from typing import Any

from torch import Tensor

from equipot.config import Config, ModelConfig
from equipot.data.load import Datasets
from equipot.deploy.checkpoint import Checkpoint, built_from_statistics
from equipot.models.build import NETWORKS, build_potential
from equipot.models.network import State
from equipot.models.potential import Potential
from equipot.training.outputs import output_statistics

_PREFIX = "network."
_OF_HEADS = ("energy", "outputs", "scale", "trainable_scale_shift", "zbl")


def takes_new_heads(source: ModelConfig, given: ModelConfig | None) -> bool:
    """Whether a configuration says ``energy: true`` where the model to start from has none."""
    return not source.energy and given is not None and given.energy and "energy" in given.model_fields_set


def with_heads_of(known: ModelConfig, given: ModelConfig) -> ModelConfig:
    """The architecture of ``known``, but energies and outputs as in ``given``."""
    return known.model_copy(update={key: getattr(given, key) for key in _OF_HEADS})


def start_with_new_heads(
    source: Checkpoint, config: Config, datasets: Datasets
) -> tuple[Potential, dict[str, Any], str]:
    """A potential with the weights of ``source`` where it has the like, what it was built from, and a line.

    Fresh are readouts, and of the last layer what only other readouts take; weights of elements that
    ``source`` did not know are the mean of the others'. Scale and reference energies are those of the data;
    the average number of neighbors, which weights were trained with, is that of ``source``.
    """
    built = built_from_statistics(datasets.statistics, datasets.species, datasets.levels)
    built["avg_num_neighbors"] = source.built_from["avg_num_neighbors"]
    if config.outputs:
        built["outputs"] = output_statistics(datasets.train, config.outputs)
    potential = build_potential(config.model, **built)
    fresh, known = _network(potential.state_dict()), _carried(source, config, datasets)
    kept = {name: w for name, w in known.items() if name in fresh and fresh[name].shape == w.shape}
    potential.load_state_dict(
        potential.state_dict() | {_PREFIX + name: weight for name, weight in kept.items()}
    )
    old, new = (sum(w.numel() for name, w in fresh.items() if (name in kept) == is_old) for is_old in (1, 0))
    line = (
        f"Starting from {source.path}, which has no energies: {old:,} weights are those of its body, "
        f"{new:,} of readouts and the last layer begin anew."
    )
    return potential, built, line


def _carried(source: Checkpoint, config: Config, datasets: Datasets) -> State:
    """Weights of the network of ``source`` for the elements of the data."""
    before = source.built_from["species"]
    species = [before.index(symbol) if symbol in before else None for symbol in datasets.species]
    state = _network(source.potential.state_dict())
    heads = ("readout.", "further.", "previous.")
    body = {name: weight for name, weight in state.items() if not name.startswith(heads)}
    return NETWORKS[config.model.type].transfer(body, len(before), species, [0])


def _network(state: dict[str, Tensor]) -> State:
    return {name.removeprefix(_PREFIX): w for name, w in state.items() if name.startswith(_PREFIX)}
