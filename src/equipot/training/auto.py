"""Settings chosen from the data and from the time there is: `auto` in sections ``model`` and ``training``.

How the rules were found: docs/accuracy.md. What a configuration gives stays as it is; every choice is said
with its reason, and config.yaml in the run directory has all of them, written out.
"""

import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from pydantic import ValidationError
from scipy.optimize import nnls

from equipot.config import Config, load_config
from equipot.config.section import Section
from equipot.data.batching import StepSampler
from equipot.data.load import Datasets
from equipot.data.text import counted
from equipot.errors import ConfigError, TrainingError
from equipot.models.build import build_potential
from equipot.quantities import LABELS
from equipot.run_directory import RunDirectory
from equipot.training.batches import budget_of
from equipot.training.fine_tune import facts_of_new
from equipot.training.trial import Trial

MINUTES = 60.0  # unless training.max_minutes says otherwise
# Of one frame if it has more. More of crystals, whose frames differ and have energies and stresses to learn,
# and on a GPU, where nothing was measured.
_ATOMS_IN_STEP, _ATOMS_OF_MOLECULES_IN_STEP = 135, 40
_ATOMS_IN_VALIDATION = 540  # together
_STEPS_IN_EPOCH = 20  # at least, where there are few frames
_NEIGHBORS = (24, 80)  # of an atom in bulk: fewer do not describe a crystal, more are paid for without gain
_LONGEST = 7.0  # Å
_WARMUP_STEPS = 100
_MOST_STEPS = 400_000
_ENERGIES_LATE = (0.7, 0.9)  # of the epochs: their weight rises between
_SPARE = 0.95  # of the time is planned for; the rest is for checkpoints and the evaluation
_VALIDATION = 0.35  # of a training step's time, for the same frames
_BETWEEN_EPOCHS = 0.1  # s, for checkpoints and metrics
_TIMED_STEPS, _TIMED_SECONDS = 12, 10.0


class Size(NamedTuple):
    """A size of model, and how many atoms a training must see until it is better than the one before.

    An atom counts once for each epoch: steps may be of one molecule or of many.
    """

    settings: dict[str, int]
    worth_from: int


class Choice(NamedTuple):
    """Values for keys of the configuration, and the reason."""

    values: dict[str, Any]
    reason: str

    def __str__(self) -> str:
        return f"Auto: {_in_words(self.values)}: {self.reason}"


_SIZES = {
    "nequip": (
        Size({"l_max": 1, "channels": 32, "layers": 3}, 0),
        Size({"l_max": 2, "channels": 32, "layers": 4}, 135_000),
        Size({"l_max": 3, "channels": 32, "layers": 4}, 540_000),
        Size({"l_max": 3, "channels": 64, "layers": 4}, 5_400_000),
    ),
    "allegro": (
        Size({"l_max": 1, "channels": 16, "scalar_channels": 32, "layers": 2}, 0),
        Size({"l_max": 2, "channels": 32, "scalar_channels": 64, "layers": 2}, 675_000),
    ),
}
_SIZES["allegro_dense"] = _SIZES["allegro"]


def is_open(config: Config) -> bool:
    """Whether anything is left to be chosen."""
    return config.training.auto or (config.model is not None and config.model.auto)


def refuse_without_ground(config: Config) -> None:
    """Raise ConfigError where choices have nothing to go by."""
    if config.fine_tune is not None:
        raise ConfigError(
            "`auto` is for trainings from random weights: with `fine_tune` the model is the one to start "
            "from, and configs/fine_tune.yaml has what section `training` should say."
        )
    if config.run.devices * config.run.nodes > 1:
        raise ConfigError(
            "`auto` measures how long a step takes, which it does on one device only: train on one for a "
            "minute (run.devices=1 training.max_minutes=1), and go on with config.yaml of its run directory."
        )


def as_before(config: Config, directory: RunDirectory) -> Config:
    """``config`` with what was chosen for the training in ``directory``, if there is one."""
    if not is_open(config) or not directory.last.is_file():
        return config
    before, changes = load_config(directory.config), {}
    for name in ("model", "training"):
        section = getattr(config, name)
        if section is not None and section.auto:
            given = section.model_dump(exclude_unset=True)
            values = _merged(getattr(before, name).model_dump(), given | {"auto": False})
            changes[name] = _section(type(section), values, f"was chosen for {directory.root}")
    return config.model_copy(update=changes)


def choose_cutoff(config: Config, datasets: Datasets) -> tuple[Config, list[str]]:
    """A configuration whose cutoff is no longer open, and what is said of it.

    Args:
        config: in which section ``model`` or ``training`` or both are `auto`.
        datasets: with the cutoff that ``config`` has.
    """
    cutoff, neighbors = config.model.cutoff, datasets.statistics.avg_num_neighbors
    some = [datasets.train[index] for index in range(0, len(datasets.train), -(-len(datasets.train) // 20))]
    volume = sum(float(graph.cell.det().abs().sum()) for graph in some)  # Å³; means nothing of molecules
    in_full_cells = 4 / 3 * math.pi * cutoff**3 * sum(len(graph.positions) for graph in some) / (volume or 1)
    found, (least, most) = f"{neighbors:.0f} neighbors within {cutoff:g} Å", _NEIGHBORS
    reason = f"{found}, and {least} to {most} of an atom in bulk describe what is around it"
    if not datasets.train.columns.periodic.all() or neighbors > 2 * in_full_cells:
        reason = f"{found}, which in molecules and at surfaces reach over three bonds and more"
    elif neighbors < least:
        cutoff = min(math.ceil(2 * cutoff * (least / neighbors) ** (1 / 3)) / 2, _LONGEST)
    elif neighbors > most:
        cutoff = math.floor(2 * cutoff * (most / neighbors) ** (1 / 3)) / 2
    return _settle(config, [Choice({"model.cutoff": cutoff}, reason)])


def choose(config: Config, datasets: Datasets, device: str) -> tuple[Config, list[str]]:
    """A configuration that leaves nothing open, and a line for each choice.

    Args:
        config: after `choose_cutoff`.
        datasets: with its cutoff.
        device: cpu or cuda, on which steps are timed.

    Raises:
        ConfigError: what is given does not go with what is chosen.
        TrainingError: the time does not suffice for two epochs of the smallest model.
    """
    lines: list[str] = []
    for rule in (_implied, _steps, _size_and_epochs, _stages):
        config, said = _settle(config, rule(config, datasets, device))
        lines += said
    return _with(config, {"model.auto": False, "training.auto": False}), lines


def _settle(config: Config, choices: Iterable[Choice]) -> tuple[Config, list[str]]:
    """``config`` with ``choices`` where it is open, and those in words."""
    lines = []
    for values, reason in choices:
        values = {key: value for key, value in values.items() if _is_open(config, key)}
        if values:
            config = _with(config, values)
            lines.append(str(Choice(values, reason)))
    return config, lines


def _implied(config: Config, datasets: Datasets, device: str) -> Iterator[Choice]:
    """What follows from lists of channels that are given."""
    channels, by_layer = (getattr(config.model, key, None) for key in ("channels", "layer_channels"))
    if by_layer is not None:
        sizes = {"model.layers": len(by_layer), "model.l_max": max(map(len, by_layer)) - 1}
        yield Choice(sizes, "layer_channels are given for so many")
    elif isinstance(channels, tuple):
        yield Choice({"model.l_max": len(channels) - 1}, "channels are given for so many")


def _steps(config: Config, datasets: Datasets, device: str) -> Iterator[Choice]:
    """What one step is, and how it goes."""
    frames = len(datasets.train)
    atoms = datasets.statistics.num_atoms / frames
    molecules = device == "cpu" and not datasets.train.columns.periodic.any()
    wanted = _ATOMS_OF_MOLECULES_IN_STEP if molecules else _ATOMS_IN_STEP
    size = max(1, min(round(wanted / atoms), frames // _STEPS_IN_EPOCH))
    limit = f"{_STEPS_IN_EPOCH} steps in an epoch"
    if size * atoms > wanted / 2:
        limit = "one frame each" if size == 1 else f"about {wanted} atoms each"
    together = max(size, round(_ATOMS_IN_VALIDATION / atoms))
    yield Choice(
        {"training.batch_size": size, "training.validation_batch_size": together},
        f"frames have {atoms:.0f} atoms, and many small steps teach more than few large ones: {limit}",
    )
    kept = {"training.optimizer": "muon", "training.schedule.kind": "cosine"}
    yield Choice(kept, "the smallest errors for the time")
    reason = f"a rate that {config.training.optimizer} does well with"
    yield Choice({"training.learning_rate": config.training.learning_rate}, reason)


def _size_and_epochs(config: Config, datasets: Datasets, device: str) -> Iterator[Choice]:
    """The largest model that sees as many atoms as it needs, and how often it sees each."""
    best, missed, atoms = None, "", datasets.statistics.num_atoms
    for size in _SIZES[config.model.type] if config.model.auto else [Size({}, 0)]:
        settings = {f"model.{key}": value for key, value in size.settings.items()}
        tried = _with(config, {key: value for key, value in settings.items() if _is_open(config, key)})
        steps, seconds = _epoch(tried, datasets, device)
        epochs = _epochs(tried, steps, seconds)
        if best is not None and epochs * atoms < size.worth_from:
            missed = f"; the next size is better from {size.worth_from:,} on, and gets {epochs * atoms:,}"
            break
        if best is not None and config.training.max_minutes and epochs * seconds > 60 * _minutes(config):
            missed = f"; the next size takes more than {_minutes(config):g} minutes for them"
            break
        if epochs < 2 and _is_open(config, "training.epochs"):
            raise TrainingError(
                f"An epoch takes {seconds / 60:.3g} minutes, and training.max_minutes is "
                f"{_minutes(config):g}: `auto` needs two at least. Give it more time, fewer frames "
                "(data.train_frames), or training.epochs."
            )
        best = settings, epochs, steps, seconds
    settings, epochs, steps, seconds = best
    yield Choice(
        settings, f"the largest that {epochs * atoms:,} atoms, all epochs together, suffice for{missed}"
    )
    yield Choice({"training.max_minutes": _minutes(config)}, "give it to have a shorter or longer training")
    yield Choice({"training.epochs": epochs}, f"of {counted(steps, 'step')}, in {seconds:.2g} s each")


def _epoch(config: Config, datasets: Datasets, device: str) -> tuple[int, float]:
    """Steps of an epoch, and the seconds it takes with its validation."""
    potential = build_potential(config.model, **facts_of_new(config, datasets))
    trial = Trial(config, datasets.train, potential, device)
    begin, edges, taken = time.perf_counter(), [], []
    for step in trial.steps(_TIMED_STEPS + 1):
        start = time.perf_counter()
        trial.train(step, config.training.learning_rate / _WARMUP_STEPS)
        taken.append(time.perf_counter() - start)
        edges.append(sum(part.num_edges for part in step.parts))
        if len(taken) > 1 and time.perf_counter() - begin > _TIMED_SECONDS:
            break
    steps, of_all = len(trial.sampler), int(datasets.train.num_edges.sum())
    seconds = _whole(edges[1:], taken[1:], steps, of_all)  # not of the first, which compiles
    share = 1 + _VALIDATION * len(datasets.validation) / len(datasets.train)
    return steps, seconds * share + _BETWEEN_EPOCHS


def _whole(edges: Sequence[int], seconds: Sequence[float], steps: int, of_all: int) -> float:
    """Seconds of all ``steps``, of ``of_all`` edges together, from those of some of them.

    Frames of one set may have a pair of atoms or a hundred: a step takes a time, and each edge its own.
    """
    scale = max(of_all / steps, 1.0)
    terms = np.column_stack([np.ones(len(edges)), np.array(edges) / scale])
    return float(nnls(terms, np.array(seconds))[0].sum()) * steps


def _epochs(config: Config, steps: int, seconds: float) -> int:
    """Those that are given, or as many as the time suffices for."""
    if not _is_open(config, "training.epochs"):
        return config.training.epochs
    return min(int(_SPARE * 60 * _minutes(config) / seconds), max(2, _MOST_STEPS // steps))


def _minutes(config: Config) -> float:
    return config.training.max_minutes or MINUTES


def _stages(config: Config, datasets: Datasets, device: str) -> Iterator[Choice]:
    """What follows from the number of epochs, and the weights of the loss."""
    training = config.training
    steps = len(StepSampler(datasets.train, budget_of(training.batch_size), config.run.seed))
    warmup = min(math.ceil(_WARMUP_STEPS / steps), training.epochs // 10)
    yield Choice(
        {"training.schedule.warmup_epochs": warmup},
        f"{counted(warmup * steps, 'step')}: {_WARMUP_STEPS} or more, but a tenth of all at most",
    )
    if config.model.energy:
        labels = dict(zip(LABELS, datasets.train.label_counts.sum(axis=0), strict=True))
        begin, end = (int(share * training.epochs) for share in _ENERGIES_LATE)
        if labels["energy"] and labels["forces"] and end > begin:
            late = {"start": 1.0, "end": 100.0, "from_epoch": begin, "to_epoch": end}
            yield Choice({"training.loss.energy": late}, "forces teach most; energies come in at the end")
        if labels["stress"]:
            yield Choice(
                {"training.loss.stress": 100.0}, "there are labels of it; (eV/Å³)² are small numbers"
            )


def _is_open(config: Config, key: str) -> bool:
    """Whether the section of ``key`` is `auto` and does not give a value for it."""
    name, *place = key.split(".")
    section = getattr(config, name)
    is_open = section.auto
    for part in place:
        if part not in section.model_fields_set:
            return is_open
        section = getattr(section, part)
    return False


def _with(config: Config, values: Mapping[str, Any]) -> Config:
    """``config`` with ``values`` by their keys."""
    raw = {name: getattr(config, name).model_dump(exclude_unset=True) for name in ("model", "training")}
    for key, value in values.items():
        *place, last = key.split(".")
        section = raw
        for part in place:
            section = section.setdefault(part, {})
        section[last] = value
    chosen = f"`auto` chose, {_in_words(values)},"
    return config.model_copy(
        update={name: _section(type(getattr(config, name)), raw[name], chosen) for name in raw}
    )


def _section(kind: type[Section], values: Mapping[str, Any], chosen: str) -> Section:
    """A section of the configuration. Raises ConfigError if given and ``chosen`` values do not agree."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        reason = " ".join(part for part in (place, first["msg"].removeprefix("Value error, ")) if part)
        raise ConfigError(f"What {chosen} does not go with what is given: {reason}") from None


def _in_words(values: Mapping[str, Any]) -> str:
    """As in YAML, on one line."""
    texts = {
        key: json.dumps(value).replace('"', "") if isinstance(value, dict) else str(value).lower()
        for key, value in values.items()
    }
    return ", ".join(f"{key} {text}" for key, text in texts.items())


def _merged(before: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """``before`` with all that is ``given``, in inner sections, too."""
    return before | {
        key: _merged(before[key], value)
        if isinstance(value, Mapping) and isinstance(before.get(key), Mapping) and key in ("loss", "schedule")
        else value
        for key, value in given.items()
    }
