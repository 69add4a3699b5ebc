"""The start of a training that goes on from a trained model: architecture, weights, reference energies."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from e3nn import o3
from numpy.typing import NDArray

from equipot.config import Config, ModelConfig
from equipot.config.outputs import OutputConfig
from equipot.data.load import Datasets
from equipot.data.statistics import LevelStatistics, Statistics, fit_atomic_energies, shortest_distances
from equipot.deploy.checkpoint import Checkpoint, built_from_statistics
from equipot.errors import ConfigError
from equipot.graph import edge_vectors
from equipot.models.build import build_potential
from equipot.models.outputs import OutputSpec, output_irreps
from equipot.models.parts import freeze, learning_rate_factors, parts_of
from equipot.models.potential import Potential
from equipot.models.transfer import transfer
from equipot.quantities import QUANTITIES
from equipot.training.outputs import output_statistics
from equipot.training.pretrained import start_with_new_heads, takes_new_heads, with_heads_of
from equipot.training.report import WARNING

# They say how a model is computed or trained, not what its weights mean.
_MAY_DIFFER = {"dtype", "field", "trainable_scale_shift", "radial_intervals"}


@dataclasses.dataclass(frozen=True)
class Start:
    """A potential before the first step, and what is said of it."""

    potential: Potential
    built_from: dict[str, Any]  # arguments of `build_potential` beside the section ``model``
    statistics: Statistics  # of the data, but with the reference energies of the potential
    lines: list[str] = dataclasses.field(default_factory=list)
    factors: dict[str, float] = dataclasses.field(default_factory=dict)  # of the learning rate, by weight
    shortest_distances: dict[str, float] = dataclasses.field(default_factory=dict)  # as in `Checkpoint`
    origin: dict[str, str] = dataclasses.field(default_factory=dict)  # the same
    levels_from: list[int] = dataclasses.field(default_factory=list)  # of each level, that of the source


def begin_training(
    config: Config, datasets: Datasets, source: Checkpoint | None, resumed: Checkpoint | None, device: str
) -> Start:
    """The potential to train: with random weights, or those of ``source``, with parts frozen as configured.

    When a training is ``resumed``, its weights are still to come.

    Raises:
        ConfigError: the section ``fine_tune`` names an unknown part or level.
    """
    statistics, settings = datasets.statistics, config.fine_tune
    if source is not None and config.model.energy > source.config.model.energy:
        potential, built_from, line = start_with_new_heads(source, config, datasets)
        start = Start(potential, built_from, statistics, [line])
    elif source is not None:
        start = start_from(source, config, datasets, device)
    elif resumed is not None:
        if settings is not None:
            statistics = _resumed_statistics(statistics, resumed.built_from)
        start = Start(build_potential(config.model, **resumed.built_from), resumed.built_from, statistics)
    else:
        built_from = facts_of_new(config, datasets)
        start = Start(build_potential(config.model, **built_from), built_from, statistics)
    distances = _shortest_distances(datasets, source, resumed)
    before = source or resumed
    origin = {} if before is None else before.origin
    start = dataclasses.replace(start, shortest_distances=distances, origin=origin)
    if settings is None:
        return start
    freeze(start.potential, settings.freeze)
    factors = learning_rate_factors(start.potential, settings.learning_rate_factors)
    return dataclasses.replace(start, factors=factors)


def facts_of_new(config: Config, datasets: Datasets) -> dict[str, Any]:
    """The arguments of `build_potential` beside the section ``model``, for a model with random weights."""
    facts = built_from_statistics(datasets.statistics, datasets.species, datasets.levels)
    if config.outputs:
        facts["outputs"] = output_statistics(datasets.train, config.outputs)
    return facts


def _shortest_distances(
    datasets: Datasets, source: Checkpoint | None, resumed: Checkpoint | None
) -> dict[str, float]:
    """In all that the model has been trained on; read from the data only if no checkpoint says it."""
    if resumed is not None and resumed.shortest_distances:
        return resumed.shortest_distances
    found = shortest_distances(datasets.train.as_read)
    if source is None:
        return found
    if not source.shortest_distances:
        return {}  # those of the new data alone would be too long
    for pair, distance in source.shortest_distances.items():
        found[pair] = min(distance, found.get(pair, distance))
    return found


def with_architecture(config: Config, known: ModelConfig, source: str) -> Config:
    """``config`` with the section ``model`` of the model to start from; what it says itself must agree.

    Raises:
        ConfigError: names every key that differs, or outputs that the configuration does not name.
    """
    given = config.model
    if takes_new_heads(known, given):
        known = with_heads_of(known, given)
    unnamed = [name for name in known.outputs if name not in config.outputs]
    if unnamed:
        raise ConfigError(
            f"{source}, from which fine_tune.model starts, also predicts {', '.join(unnamed)}: repeat its "
            "model.type and model.outputs, so that their labels are read and trained on (weight 0: not)."
        )
    if given is None:
        return config.model_copy(update={"model": known})
    given = given.model_copy(update={"outputs": _with_places(known, given)})
    written = {key: getattr(given, key) for key in given.model_fields_set}
    added = {name: output for name, output in written.get("outputs", {}).items() if name not in known.outputs}
    written["outputs"] = {name: output for name, output in given.outputs.items() if name not in added}
    changes = {"outputs": {**known.outputs, **added}}
    if known.energy and not given.energy:
        changes["energy"] = written.pop("energy")
    elif not known.energy and config.training.loss.of_energies:
        raise ConfigError(
            f"{source}, from which fine_tune.model starts, has no energies: repeat its model.energy: false, "
            "or write model.energy: true for a new readout of them."
        )
    differing = [
        f"model.{key}: {getattr(known, key, 'not there')} there, {value} in the configuration"
        for key, value in sorted(written.items())
        if key not in _MAY_DIFFER and getattr(known, key, None) != value
    ]
    if differing:
        raise ConfigError(
            f"The architecture is not that of {source}, from which fine_tune.model starts: "
            f"{'; '.join(differing)}. Leave these keys out, or train from scratch."
        )
    changes |= {key: value for key, value in written.items() if key in _MAY_DIFFER}
    return config.model_copy(update={"model": known.model_copy(update=changes)})


def _with_places(known: ModelConfig, given: ModelConfig) -> dict[str, OutputConfig]:
    """The outputs ``given``, each with the layer that it is read from.

    Those that the model to start from has stay where they are. Its last layer has scalars, and what is read
    from it already: other irreps of added ones are those of the layer before.

    Raises:
        ConfigError: an added output shall be read from the last layer, which lacks its irreps.
    """

    def irreps(*names: str) -> set[o3.Irrep]:
        specs = [OutputSpec(**facts) for facts in given.output_specs() if facts["name"] in names]
        return {ir for _, ir in output_irreps(specs, known.parity)}

    there = {o3.Irrep("0e")} | irreps(*(n for n, output in known.outputs.items() if output.layer == "last"))
    found = {}
    for name, output in given.outputs.items():
        layer = known.outputs[name].layer if name in known.outputs else output.layer
        missing = sorted(irreps(name) - there) if name not in known.outputs else []
        if missing and "layer" in output.model_fields_set and layer == "last":
            raise ConfigError(
                f"model.outputs.{name} shall be read from the last layer of the model that fine_tune.model "
                f"starts from, which has no {', '.join(map(str, missing))}: leave its `layer` out."
            )
        found[name] = output.model_copy(update={"layer": "previous" if missing else layer})
    return found


def start_from(source: Checkpoint, config: Config, datasets: Datasets, device: str) -> Start:
    """The weights of ``source`` for the elements and levels of theory of ``datasets``.

    The average number of neighbors and the scale, with which the weights were trained, stay those of
    ``source``: with those of the new data the same weights would be another function.

    Raises:
        ConfigError: the section ``fine_tune`` names no level, or the wrong one, to start new levels from.
    """
    names = datasets.levels or [None]
    origins = _origins(source, config, names)
    before, now = source.built_from["species"], list(datasets.species)
    species = [before.index(symbol) if symbol in before else None for symbol in now]
    state = transfer(source.potential.state_dict(), config.model.type, species, origins)
    shift = state["scale_shift.shift"]
    built_from = {**source.built_from, "species": now, "levels": list(datasets.levels)}
    built_from["atomic_energies"] = shift.tolist()
    added = {name: o for name, o in config.outputs.items() if name not in source.config.outputs}
    if config.outputs:
        old = {} if source.potential.outputs is None else source.potential.outputs.statistics(species)
        built_from["outputs"] = old | output_statistics(datasets.train, added)
    potential = build_potential(config.model, **built_from)
    _load(potential, state)
    potential.to(device).eval()
    is_new = np.array([row is None for row in species])
    energies = [_adapt(potential, source, config, datasets, is_new, k) for k in range(len(names))]
    with torch.no_grad():
        adapted = torch.tensor([level.atomic_energies for level in energies], dtype=torch.float64)
        potential.scale_shift.shift.copy_(adapted.reshape(shift.shape))
    built_from["atomic_energies"] = potential.scale_shift.shift.tolist()
    several = len(names) > 1
    statistics = dataclasses.replace(
        datasets.statistics,
        **vars(energies[0]),
        levels=dict(zip(names, energies, strict=True)) if several else {},
    )
    lines = [
        f"Starting from {source.path}: its scale and what sums over neighbors are divided by "
        f"({built_from['avg_num_neighbors'] ** 0.5:.2f}) are kept."
    ]
    lines += _what_changes(source, now, names, origins, config.fine_tune.freeze)
    lines += _what_is_added(config, source)
    return Start(potential.train(), built_from, statistics, lines, levels_from=origins)


def _load(potential: Potential, state: Mapping[str, torch.Tensor]) -> None:
    """The weights of ``state``, but what outputs have of statistics; added outputs begin at these."""
    new, of_outputs = potential.state_dict(), parts_of(potential).get("outputs", ())
    kept = {name: state[name] for name in new if name in state and not name.startswith("outputs.")}
    for name in new.keys() - kept.keys():
        if name not in of_outputs:
            raise KeyError(name)  # of another architecture, which was refused
        if ".weights." in name:
            new[name] = torch.zeros_like(new[name])
    potential.load_state_dict(new | kept)


def _resumed_statistics(statistics: Statistics, built_from: dict[str, Any]) -> Statistics:
    """``statistics`` of the data with the reference energies that a fine-tuning started with."""
    names = built_from["levels"] if len(built_from["levels"]) > 1 else [""]
    rows = np.reshape(built_from["atomic_energies"], (len(names), -1)).tolist()
    energies = [LevelStatistics(row, "as at the start", None) for row in rows]
    levels = dict(zip(names, energies, strict=True))
    return dataclasses.replace(statistics, **vars(energies[0]), levels=levels if len(names) > 1 else {})


def _origins(source: Checkpoint, config: Config, names: Sequence[str | None]) -> list[int]:
    """For each level of the new model, the level of the source that it starts from."""
    wanted = config.fine_tune.level
    unknown = [name for name in names if name not in source.levels]
    if wanted is not None and (not unknown or wanted not in source.levels):
        reason = (
            "the model to start from knows all levels of the data"
            if not unknown
            else "the model to start from has no such level"
        )
        raise ConfigError(f"fine_tune.level is '{wanted}', but {reason}. {_levels_of(source)}")
    if unknown and wanted is None and len(source.levels) > 1:
        what = f"the level '{unknown[0]}'" if unknown[0] is not None else "data without a level"
        raise ConfigError(
            f"{source.path} has several levels of theory: say in fine_tune.level from which one {what} "
            f"starts. {_levels_of(source)}"
        )
    default = source.level_index(wanted) if unknown else 0
    return [source.levels.index(name) if name in source.levels else default for name in names]


def _levels_of(source: Checkpoint) -> str:
    return f"Levels of {source.path}: {', '.join(source.levels) or 'one without a name'}."


def _adapt(
    potential: Potential, source: Checkpoint, config: Config, datasets: Datasets, is_new: NDArray, k: int
) -> LevelStatistics:
    """Reference energies for level ``k``: kept, from the data, or fitted to what ``potential`` leaves."""
    name = datasets.levels[k] if datasets.levels else None
    statistics = datasets.statistics
    found = statistics.levels[name] if statistics.levels else statistics
    shift = potential.scale_shift.shift.detach().cpu().reshape(-1, len(is_new))[k].numpy()
    counts, residuals = _residuals(potential, datasets, name)
    wanted = "keep" if "potential" in config.fine_tune.freeze else config.fine_tune.atomic_energies
    if wanted == "keep" or (wanted == "auto" and name is not None and name in source.levels):
        correction = np.zeros(len(is_new))
        concerned = counts[:, is_new].sum(axis=1) > 0
        if concerned.any():
            correction[is_new] = fit_atomic_energies(counts[concerned][:, is_new], residuals[concerned])
        how = "kept, new elements fitted" if is_new.any() else "kept"
    elif _takes_those_of_the_data(found, source, config):
        correction, how = np.array(found.atomic_energies) - shift, found.atomic_energies_source
    else:
        correction = fit_atomic_energies(counts, residuals) if len(residuals) else np.zeros(len(is_new))
        how = "least squares of what the model leaves" if len(residuals) else "kept, as there are no energies"
    correction[np.array(statistics.atoms_per_species) == 0] = 0.0  # known from the replay alone
    left = (residuals - counts @ correction) / counts.sum(axis=1)
    rms = float(np.sqrt(np.mean(left**2))) if len(left) else None
    return LevelStatistics([float(energy) for energy in shift + correction], how, rms)


def _takes_those_of_the_data(found: Any, source: Checkpoint, config: Config) -> bool:
    """Whether reference energies come from isolated atoms, or are given, and not fitted.

    ``auto`` takes isolated atoms only if the source did: other reference energies than the weights were
    trained with would shift each composition by its energy of atomization.
    """
    of_source = source.statistics.atomic_energies_source
    if found.atomic_energies_source == "least squares":
        return False
    return config.data.atomic_energies != "auto" or of_source == found.atomic_energies_source


def _residuals(potential: Potential, datasets: Datasets, level: str | None) -> tuple[NDArray, NDArray]:
    """Composition (S, T) and energy − prediction (S,), eV, of a level's training frames with an energy."""
    device = potential.scale_shift.shift.device
    counts, residuals = [], []
    train = datasets.train.as_read
    for index in range(len(train)):
        graph = train[index]
        of_level = graph.level is None or datasets.levels[int(graph.level)] == level
        if not of_level or graph.labels.energy is None or not graph.labels.energy.mask.all():
            continue
        counts.append(np.bincount(graph.atom_types.numpy(), minlength=len(datasets.species)))
        graph = graph.to(device)
        levels = None if graph.level is None else graph.level[graph.structure]
        with torch.no_grad():
            energies = potential.atom_energies(
                edge_vectors(graph), graph.edge_index, graph.atom_types, levels
            )
        residuals.append(float(graph.labels.energy.value.sum() - energies.sum()))
    return np.array(counts).reshape(-1, len(datasets.species)), np.array(residuals)


def _what_is_added(config: Config, source: Checkpoint) -> list[str]:
    """Outputs that the model to start from does not have, and what becomes of its energies."""
    lines, before = [], source.config.model
    for name in (name for name in config.outputs if name not in before.outputs):
        output, added = config.outputs[name], f"Added: {name} ({QUANTITIES[name].described}), "
        if output.derivative_of:
            lines.append(f"{added}the derivative of {output.derivative_of} by the positions.")
            continue
        where = "the last layer" if output.layer == "last" else "the last layer but one"
        lines.append(f"{added}read from {where}; it begins at the fit of its labels to the composition.")
    frozen = "potential" in config.fine_tune.freeze
    if before.energy and not config.model.energy:
        lines.append("Left out: energies, forces and stress (model.energy: false).")
    elif before.energy and frozen:
        lines.append(
            "Energies, forces and stress stay as they are, bit by bit (fine_tune.freeze: potential)."
        )
    elif before.energy and not config.training.loss.of_energies:
        lines.append(
            f"{WARNING}energies and forces are not trained on, but what they depend on is: they get worse. "
            "Freeze it (fine_tune.freeze: [potential]), leave energies out (model.energy: false), train them."
        )
    return lines


def _what_changes(
    source: Checkpoint,
    species: Sequence[str],
    names: Sequence[str | None],
    origins: Sequence[int],
    frozen: Sequence[str],
) -> list[str]:
    before, lines = source.built_from["species"], []
    new = [symbol for symbol in species if symbol not in before]
    gone = [symbol for symbol in before if symbol not in species]
    if new:
        lines.append(f"New elements: {', '.join(new)}; their weights start as the mean of the others'.")
    for part in ("embedding", "potential") if new else ():
        if part in frozen:
            lines.append(
                f"{WARNING}what the model sees of {', '.join(new)} stays that mean: take {part} out of "
                "fine_tune.freeze."
            )
    if gone:
        lines.append(f"Elements without training data are left out: {', '.join(gone)}.")
    lost = [level for level in source.levels if level not in names and len(source.levels) > 1]
    for name, origin in zip(names, origins, strict=True):
        if source.levels and source.levels[origin] != name:
            lines.append(f"Level {name or 'of the data'} starts from {source.levels[origin]}.")
        elif not source.levels and name is not None:
            lines.append(f"Level {name} starts from the model's only one.")
    if lost:
        lines.append(f"Levels without training data are left out: {', '.join(lost)}.")
    return lines
