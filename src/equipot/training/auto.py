"""Settings chosen from the data and from the time there is: `auto` in sections ``model`` and ``training``.

How the rules were found: docs/accuracy.md. What a configuration gives stays as it is; every choice is said
with its reason, and config.yaml in the run directory has all of them, written out.
"""

import math
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import nnls

from equipot.config import Config, load_config
from equipot.data.batching import StepSampler
from equipot.data.columns import Columns
from equipot.data.load import Datasets, count_labels
from equipot.data.text import counted, duration
from equipot.errors import ConfigError, TrainingError
from equipot.models.build import build_potential
from equipot.run_directory import RunDirectory
from equipot.training.batches import budget_of
from equipot.training.fine_tune import facts_of_new
from equipot.training.open_settings import Choice, is_key_open, merged, section_of, settle, with_values
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
_ENERGIES_THROUGHOUT = 30.0  # their weight where most frames have no forces to teach by
_VANISHING = 0.01  # of the RMS of all forces
_STRESS_DOUBTED = 0.2  # of how much the labels vary: with less they teach more than they mislead
_SPARE = 0.95  # of the time is what a size must do with
_MORE_EPOCHS = 1.25  # than are timed: steps may be faster than that, and the schedule ends with the time
_VALIDATION = 0.35  # of a training step's time, for the same frames
_BETWEEN_EPOCHS = 0.1  # s, for checkpoints and metrics
_TIMED_STEPS, _TIMED_SECONDS = 12, 10.0


class Size(NamedTuple):
    """A size of model, and after how many steps (`_full_steps`) it is better than the one before.

    If it takes as long; in equal time the one before makes more of them, and it needs more by the third
    power of that.
    """

    settings: dict[str, int]
    worth_from: int


_SIZES = {
    "nequip": (
        Size({"l_max": 1, "channels": 32, "layers": 3}, 0),
        Size({"l_max": 2, "channels": 32, "layers": 3}, 120),
        Size({"l_max": 2, "channels": 32, "layers": 4}, 1_000),
        Size({"l_max": 3, "channels": 32, "layers": 4}, 530),
        Size({"l_max": 3, "channels": 64, "layers": 4}, 3_050),
    ),
    "allegro": (
        Size({"l_max": 1, "channels": 16, "scalar_channels": 32, "layers": 2}, 0),
        Size({"l_max": 2, "channels": 32, "scalar_channels": 64, "layers": 2}, 250),
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
            values = merged(getattr(before, name).model_dump(), given | {"auto": False})
            where = f"was chosen for {directory.root}, see its {directory.config.name},"
            changes[name] = section_of(type(section), values, where)
    return config.model_copy(update=changes)


def choose_for_labels(config: Config, datasets: Datasets) -> tuple[Config, list[str]]:
    """A configuration whose cutoff is no longer open, nor what asks for labels that there are none of.

    Args:
        config: in which section ``model`` or ``training`` or both are `auto`.
        datasets: with the cutoff that ``config`` has.

    Returns:
        It, and what is said of it.
    """
    return settle(config, [_cutoff(config, datasets), *_without_labels(config, datasets)])


def _cutoff(config: Config, datasets: Datasets) -> Choice:
    cutoff, neighbors = config.model.cutoff, datasets.statistics.avg_num_neighbors
    some = [datasets.train[index] for index in range(0, len(datasets.train), -(-len(datasets.train) // 20))]
    volume = sum(float(graph.cell.det().abs().sum()) for graph in some)  # Å³; means nothing of molecules
    in_full_cells = 4 / 3 * math.pi * cutoff**3 * sum(len(graph.positions) for graph in some) / (volume or 1)
    found, (least, most) = f"{counted(round(neighbors), 'neighbor')} within {cutoff:g} Å", _NEIGHBORS
    if datasets.train.columns.periodic.mean() < 0.5 or neighbors > 2 * in_full_cells:
        return Choice({"model.cutoff": cutoff}, f"{found}; what does for molecules and surfaces")
    chosen = cutoff
    if neighbors < least:
        chosen = min(math.ceil(2 * cutoff * (least / max(neighbors, 0.1)) ** (1 / 3)) / 2, _LONGEST)
    elif neighbors > most:
        chosen = math.floor(2 * cutoff * (most / neighbors) ** (1 / 3)) / 2
    if chosen != cutoff:
        found += f", about {neighbors * (chosen / cutoff) ** 3:.0f} within {chosen:g} Å"
    return Choice({"model.cutoff": chosen}, f"{found}; {least} to {most} of an atom describe a crystal")


def _without_labels(config: Config, datasets: Datasets) -> Iterator[Choice]:
    """What has a default that asks for energies and forces."""
    if config.model.energy and not datasets.statistics.force_rms:
        yield Choice({"model.scale": 1.0}, "eV; there are no forces to take it from")
    labels = count_labels(datasets.train)
    for name in ("energy", "forces"):
        if config.model.energy and not labels[name] and any(labels.values()):
            yield Choice({f"training.loss.{name}": 0.0}, f"no training frame has {name}")


def choose(config: Config, datasets: Datasets, device: str) -> tuple[Config, list[str]]:
    """A configuration that leaves nothing open, and a line for each choice.

    Args:
        config: after `choose_for_labels`.
        datasets: with its cutoff.
        device: cpu or cuda, on which steps are timed.

    Raises:
        ConfigError: what is given does not go with what is chosen.
        TrainingError: the time does not suffice for two epochs of the smallest model, or for those given.
    """
    lines: list[str] = []
    for rule in (_implied, _steps, _size_and_epochs, _stages):
        config, said = settle(config, rule(config, datasets, device))
        lines += said
    return with_values(config, {"model.auto": False, "training.auto": False}), lines


def _implied(config: Config, datasets: Datasets, device: str) -> Iterator[Choice]:
    """What follows from lists of channels that are given, and which irreps there are."""
    if config.model.type == "nequip" and not config.model.outputs:  # which may be of any parity
        yield Choice({"model.parity": False}, "one irrep for each l is cheaper, and was as good")
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
    most = max(1, frames // _STEPS_IN_EPOCH)
    size = max(1, min(int(wanted / atoms) if molecules else round(wanted / atoms), most))
    limit = f"{'at most' if molecules else 'about'} {wanted} atoms each"
    if size == 1:
        limit = "one frame each"
    elif size == most and size * atoms < wanted / 2:
        limit = f"at least {_STEPS_IN_EPOCH} in an epoch"
    reason = f"frames have {atoms:.0f} atoms, and many small steps teach more than few large ones: {limit}"
    yield Choice({"training.batch_size": size}, reason)
    together = max(1, round(_ATOMS_IN_VALIDATION / datasets.validation.num_atoms.mean()))
    reason = "one frame" if together == 1 else f"about {_ATOMS_IN_VALIDATION} atoms at once"
    yield Choice({"training.validation_batch_size": together}, reason)
    kept = {"training.optimizer": "muon", "training.schedule.kind": "cosine"}
    yield Choice(kept, "the smallest errors for the time")
    reason = f"a rate that {config.training.optimizer} does well with"
    yield Choice({"training.learning_rate": config.training.learning_rate}, reason)


def _size_and_epochs(config: Config, datasets: Datasets, device: str) -> Iterator[Choice]:
    """The largest model that makes as many steps as it needs, and how often it sees each frame."""
    chosen, missed, given = None, "", not is_key_open(config, "training.epochs")
    available = 60 * _minutes(config) if config.training.max_minutes or not given else math.inf
    for worth_from, settings, tried in _distinct_sizes(config):
        steps, seconds = _epoch(tried, datasets, device)
        epochs = config.training.epochs if given else _epochs(steps, seconds, available)
        full_steps = _full_steps(epochs, steps, datasets)
        if chosen is not None and not given:
            worth_from = round(worth_from * (seconds / chosen[3]) ** 3)
        if chosen is None:
            _refuse_too_little_time(config, epochs, seconds, available)
        elif epochs * seconds > available or epochs == 0:
            some = max(epochs, 1)
            missed = f"; {counted(some, 'epoch')} of the next size would take {duration(some * seconds)}"
            break
        elif full_steps < worth_from:
            missed = f"; the next size is better from {worth_from:,} on, and gets {full_steps:,}"
            break
        chosen = settings, epochs, steps, seconds, full_steps
    settings, epochs, steps, seconds, full_steps = chosen
    reason = f"{full_steps:,} steps, counted as of {_ATOMS_IN_STEP} atoms, suffice for it{missed}"
    taken, together = f"{counted(steps, 'step')}, in {duration(seconds)} each", duration(epochs * seconds)
    if given:
        yield Choice(settings, f"{reason}; {counted(epochs, 'epoch')} of {taken}, take {together}")
        return
    yield Choice(settings, reason)
    yield Choice({"training.max_minutes": _minutes(config)}, "give it to have a shorter or longer training")
    most = max(2, _MOST_STEPS // steps)
    if epochs == most:
        taken += f"; {_MOST_STEPS:,} steps at most, which take {together}"
    elif _goes_by_time(config):
        taken += f": there is time for {epochs}, and for more if they are faster than that"
        epochs = min(math.ceil(_MORE_EPOCHS * epochs), most)
    yield Choice({"training.epochs": epochs}, f"of {taken}")


def _goes_by_time(config: Config) -> bool:
    return is_key_open(config, "training.schedule.in_time") or config.training.schedule.in_time


def _distinct_sizes(config: Config) -> Iterator[tuple[int, dict[str, int], Config]]:
    """Of those that differ in what is open: ``worth_from``, settings, and ``config`` with them."""
    before = None
    for size in _SIZES[config.model.type] if config.model.auto else [Size({}, 0)]:
        settings = {f"model.{key}": value for key, value in size.settings.items()}
        tried = with_values(
            config, {key: value for key, value in settings.items() if is_key_open(config, key)}
        )
        if tried.model != before:
            yield size.worth_from, settings, tried
        before = tried.model


def _full_steps(epochs: int, steps: int, datasets: Datasets) -> int:
    """Steps of _ATOMS_IN_STEP atoms that teach as much: those of a quarter of these atoms count half."""
    return int(epochs * math.sqrt(steps * datasets.statistics.num_atoms / _ATOMS_IN_STEP))


def _refuse_too_little_time(config: Config, epochs: int, seconds: float, available: float) -> None:
    """Raise TrainingError if ``epochs`` of the smallest model do not fit."""
    which = "with the smallest model, " if config.model.auto else ""
    limit = f"training.max_minutes is {_minutes(config):g}"
    if not is_key_open(config, "training.epochs") and epochs * seconds > available:
        raise TrainingError(
            f"{counted(epochs, 'epoch')} take about {duration(epochs * seconds)}, {which}and {limit}: "
            f"{counted(int(available / seconds), 'epoch')} would fit. Leave out training.epochs, and `auto` "
            "plans as many as fit, or training.max_minutes."
        )
    if epochs < 2 and is_key_open(config, "training.epochs"):
        raise TrainingError(
            f"An epoch takes {duration(seconds)}, {which}and {limit}: `auto` needs two at least. Give it "
            "more time, fewer frames (data.train_frames), or training.epochs."
        )


def _epoch(config: Config, datasets: Datasets, device: str) -> tuple[int, float]:
    """Steps of an epoch, and the seconds it takes with its validation."""
    potential = build_potential(config.model, **facts_of_new(config, datasets))
    trial = Trial(config, datasets.train, potential, device)
    edges, taken = [], []
    for step in trial.steps(_TIMED_STEPS + 1):
        start = time.perf_counter()
        trial.train(step, config.training.learning_rate / _WARMUP_STEPS)
        taken.append(time.perf_counter() - start)
        edges.append(sum(part.num_edges for part in step.parts))
        if len(taken) == 1:  # which compiles
            begin = time.perf_counter()
        elif time.perf_counter() - begin > _TIMED_SECONDS:
            break
    steps, of_all = len(trial.sampler), int(datasets.train.num_edges.sum())
    seconds = _whole(edges[1:], taken[1:], steps, of_all)
    share = 1 + _VALIDATION * int(datasets.validation.num_edges.sum()) / max(of_all, 1)
    return steps, seconds * share + _BETWEEN_EPOCHS


def _whole(edges: Sequence[int], seconds: Sequence[float], steps: int, of_all: int) -> float:
    """Seconds of all ``steps``, of ``of_all`` edges together, from those of some of them.

    Frames of one set may have a pair of atoms or a hundred: a step takes a time, and each edge its own.
    """
    scale = max(of_all / steps, 1.0)
    terms = np.column_stack([np.ones(len(edges)), np.array(edges) / scale])
    return float(nnls(terms, np.array(seconds))[0].sum()) * steps


def _epochs(steps: int, seconds: float, available: float) -> int:
    """As many as the time suffices for."""
    return min(int(_SPARE * available / seconds), max(2, _MOST_STEPS // steps))


def _minutes(config: Config) -> float:
    return config.training.max_minutes or MINUTES


def _stages(config: Config, datasets: Datasets, device: str) -> Iterator[Choice]:
    """What follows from the number of epochs, and the weights of the loss."""
    training = config.training
    steps = len(StepSampler(datasets.train, budget_of(training.batch_size), config.run.seed))
    warmup = float(f"{min(_WARMUP_STEPS / steps, training.epochs / 10):.2g}")
    reason = f"{_WARMUP_STEPS} steps" if warmup < training.epochs / 10 else "a tenth of all steps"
    yield Choice({"training.schedule.warmup_epochs": warmup}, reason)
    if training.max_minutes is not None:
        reason = "it is at its end when the time is up, however fast steps are"
        yield Choice({"training.schedule.in_time": True}, reason)
    if config.model.energy:
        labels = count_labels(datasets.train)
        begin, end = (int(share * training.epochs) for share in _ENERGIES_LATE)
        if labels["energy"] and labels["forces"]:
            late = {"start": 1.0, "end": 100.0, "from_epoch": begin, "to_epoch": end}
            reason = "forces teach most; energies come in at the end"
            if begin == end:
                late, reason = 1.0, "forces teach most; so few epochs leave energies no end to come in at"
            silent = _share_with_vanishing_forces(datasets.train.columns)
            if silent > 0.5:
                late = _ENERGIES_THROUGHOUT
                reason = f"forces vanish in {silent:.0%} of the frames: energies teach those"
            yield Choice({"training.loss.energy": late}, reason)
        doubts = [f for f in datasets.findings if f.labels == ("stress",) and f.severity != "note"]
        if labels["stress"] and any(doubt.share > _STRESS_DOUBTED for doubt in doubts):
            check = doubts[0].check
            reason = f"the data check doubts its labels ({check}); energies and forces imply it"
            yield Choice({"training.loss.stress": 0.0}, reason)
        elif labels["stress"]:
            yield Choice({"training.loss.stress": 100.0}, "it has labels; (eV/Å³)² are small numbers")


def _share_with_vanishing_forces(columns: Columns) -> float:
    """Of the frames that have forces: crystals at rest, or whose symmetry leaves none."""
    components = 3 * columns.free_atoms[columns.known("forces")]
    squares = columns.force_squares[columns.known("forces")]
    return float(np.mean(squares <= components * (_VANISHING * columns.force_rms) ** 2))
