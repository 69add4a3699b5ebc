"""Frames that a fine-tuned model shall not forget: consistent energies, errors before and after."""

import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import ase.io
import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from numpy.typing import NDArray
from rich.table import Table

from equipot.config import Config
from equipot.config.data import LabelsConfig
from equipot.data.dataset import GraphDataset
from equipot.data.frames import Frame, frame_from_atoms
from equipot.data.load import Datasets
from equipot.data.readers import read_frames
from equipot.data.text import counted
from equipot.deploy.checkpoint import Checkpoint
from equipot.deploy.replay import labelled, predict_replay, replay_structures, replay_text
from equipot.errors import ConfigError, DataError, TrainingError
from equipot.evaluation.metrics import summary
from equipot.evaluation.predict import FrameOrigin, compare
from equipot.evaluation.report import number, numeric
from equipot.files import read_json, write_json, write_text
from equipot.models.potential import Potential
from equipot.models.predict import predict
from equipot.quantities import QUANTITIES
from equipot.run_directory import RunDirectory
from equipot.training.fine_tune import Start

_HELD_OUT = 0.2  # the share of frames that is never trained on
COLUMNS = ("energy", "forces")


@dataclass(frozen=True)
class Replay:
    """Replay frames with the reference energies that a fine-tuning starts with."""

    text: str  # as in the run directory
    dataset: GraphDataset
    trained: GraphDataset | None  # those in the loss, weighted; None: they only measure
    before: dict[str, Any]  # `errors` of the model before its first step; {} of a training that is resumed

    def describe(self) -> str:
        """One line for the log."""
        used = (
            "none of them in the loss" if self.trained is None else f"{len(self.trained)} of them in the loss"
        )
        elements = counted(len(self.dataset.columns.symbols), "element")
        return f"Replay: {counted(len(self.dataset), 'frame')} of {elements}, {used}"

    def save(self, directory: RunDirectory) -> None:
        """Write what a resumed training, and the report, need."""
        directory.forgetting.parent.mkdir(exist_ok=True)
        write_text(directory.replay, self.text)
        write_json(directory.forgetting, {"before": self.before})

    def finish(self, potential: Potential, directory: RunDirectory) -> dict[str, Any]:
        """Add the errors of the trained ``potential`` to what `save` wrote: ``before``, ``after``."""
        found = {**read_json(directory.forgetting), "after": self.errors(potential)}
        write_json(directory.forgetting, found)
        return found

    def errors(self, potential: Potential) -> dict[str, Any]:
        """``groups``: number of ``frames`` and `summary` of each; ``elements``: MAE of their forces, eV/Å.

        The groups are all frames; where some are trained on, these and the others; and those of each
        ``config_type``.
        """
        kinds = self.dataset.config_types
        sources = [FrameOrigin("replay.xyz", i, kind) for i, kind in enumerate(kinds)]
        device = potential.scale_shift.shift.device
        graphs = (self.dataset[i] for i in range(len(self.dataset)))
        comparison = compare(partial(predict, potential.eval()), graphs, sources, potential.species, device)
        groups = {"all": np.full(len(kinds), True)}
        if self.trained is not None:
            in_loss = _in_loss(len(kinds))
            groups |= {"in the loss": in_loss, "not in the loss": ~in_loss}
        groups |= {kind: np.array(kinds) == kind for kind in dict.fromkeys(kinds) if kind is not None}
        forces = np.abs(comparison.error("forces")).mean(axis=1)
        symbols = np.array(chemical_symbols)[comparison.atomic_numbers]
        return {
            "groups": {
                name: {"frames": int(chosen.sum()), **summary(comparison.select(chosen))}
                for name, chosen in groups.items()
                if chosen.any()
            },
            "elements": {
                symbol: float(np.nanmean(forces[symbols == symbol])) for symbol in sorted(set(symbols))
            },
        }


def read_replay(config: Config, source: Checkpoint | None, directory: RunDirectory | None) -> list[Atoms]:
    """The structures of ``fine_tune.replay``, with labels if they come from a file; none if there are none.

    Of a resumed training, which has no ``source``, those that it left in its ``directory``.

    Raises:
        ConfigError: none of the frames consists of elements of the model and of ``data.species``.
        DataError: a file that cannot be read, or without energies or forces.
        TrainingError: a training to resume has lost its frames.
    """
    wanted = None if config.fine_tune is None else config.fine_tune.replay
    if wanted is None:
        return []
    if source is None:
        if not directory.replay.is_file():
            raise TrainingError(
                f"{directory.replay} is missing: without the replay frames that it began with, the training "
                "cannot be resumed. Restore it, or start a new training."
            )
        return ase.io.read(directory.replay, ":", format="extxyz")
    known = source.potential.species
    allowed = [symbol for symbol in config.data.species or known if symbol in known]
    if isinstance(wanted, int):
        return replay_structures(allowed, wanted)
    if len(source.levels) > 1:
        raise ConfigError(
            f"fine_tune.replay: {source.path} has the levels {', '.join(source.levels)}, and {wanted} does "
            "not say of which its labels are. Give a number of frames instead of a file."
        )
    try:
        frames = [_atoms_of(frame) for frame in read_frames(wanted)]
    except DataError as error:
        raise DataError(f"fine_tune.replay: {error}") from None
    foreign = sorted({symbol for atoms in frames for symbol in atoms.symbols if symbol not in known})
    if foreign:
        raise ConfigError(
            f"fine_tune.replay: {wanted} contains {', '.join(foreign)}, which {source.path} does not know; "
            "expected frames that this model can predict, as those of `equipot import --replay` or of its "
            "own training."
        )
    kept = [atoms for atoms in frames if set(atoms.symbols) <= set(allowed)]
    if not kept:
        raise ConfigError(
            f"fine_tune.replay: no frame of {wanted} consists of {', '.join(allowed)}, the elements of "
            "data.species: add elements there, or leave it out to keep all those of the replay."
        )
    return kept


def _atoms_of(frame) -> Atoms:
    atoms = Atoms(frame.atomic_numbers, frame.positions, cell=frame.cell, pbc=frame.pbc)
    atoms.info = {} if frame.config_type is None else {"config_type": frame.config_type}
    return labelled(atoms, frame.values)


def label_replay(
    structures: Sequence[Atoms], config: Config, datasets: Datasets, start: Start, source: Checkpoint | None
) -> Replay:
    """Labels for ``structures``: what ``source`` predicts, unless they have some; with the energies shifted.

    Fine-tuning begins with other reference energies than those of ``source``. An energy of the replay changes
    by as much as these do for its composition, so that replay asks for nothing but what the model knew. The
    frames belong to the first level of theory that ``source`` knows by name, else to the first one.

    Args:
        structures: from `read_replay`.
        config, datasets, start: of the training.
        source: what it starts from; None: it is resumed, and the structures have their final labels.
    """
    frames = list(structures)
    if source is not None:
        level = next((k for k, name in enumerate(datasets.levels) if name in source.levels), 0)
        origin = start.levels_from[level]
        if not structures[0].calc:
            at = source.at_level(source.levels[origin]) if len(source.levels) > 1 else source
            frames = predict_replay(at.potential, frames)
        before, now = (_reference_energies(model) for model in (source.potential, start.potential))
        change = {symbol: now[level][symbol] - energy for symbol, energy in before[origin].items()}
        name = datasets.levels[level] if datasets.levels else None
        frames = [_shifted(atoms, change, name) for atoms in frames]
    text = replay_text(frames)
    frames = [
        _frame(atoms, i) for i, atoms in enumerate(ase.io.read(io.StringIO(text), ":", format="extxyz"))
    ]
    how = datasets.species, config.model.cutoff, datasets.levels
    dataset, trained, weight = GraphDataset(frames, *how), None, config.fine_tune.replay_weight
    if weight > 0:
        taken = [frames[i] for i in np.flatnonzero(_in_loss(len(frames)))]
        trained = GraphDataset([replace(frame, weight=weight) for frame in taken], *how)
    replay = Replay(text, dataset, trained, {})
    if source is None:
        return replay
    found = replay.errors(start.potential)
    start.potential.train()
    return replace(replay, before=found)


def _reference_energies(potential: Potential) -> list[dict[str, float]]:
    """By element, for each level."""
    rows = potential.scale_shift.shift.detach().cpu().reshape(-1, len(potential.species)).tolist()
    return [defaultdict(float, zip(potential.species, row, strict=True)) for row in rows]


def _shifted(atoms: Atoms, change: dict[str, float], level: str | None) -> Atoms:
    labels = dict(atoms.calc.results)
    if "energy" in labels:
        labels["energy"] += sum(change[symbol] for symbol in atoms.symbols)
    atoms = labelled(atoms, labels)
    atoms.info |= {} if level is None else {"level": level}
    return atoms


def _frame(atoms: Atoms, index: int) -> Frame:
    frame = frame_from_atoms(atoms, LabelsConfig(), file="replay.xyz", index=index)
    return replace(frame, level=atoms.info.get("level"))


def _in_loss(number: int) -> NDArray[np.bool_]:
    """(number,) which frames are trained on: the others are drawn at random, the same each time."""
    order = np.random.default_rng(0).permutation(number)
    return order >= int(_HELD_OUT * number)


def forgetting_table(found: dict[str, Any]) -> Table:
    """Of what `Replay.finish` gives: a row for each group, errors before → after."""
    units = [QUANTITIES[name].reported[0].unit for name in COLUMNS]
    columns = [f"{name}\n{unit}" for name, unit in zip(COLUMNS, units, strict=True)]
    title = "Did it forget? MAE on the replay frames, before → after"
    table = Table("replay frames", *numeric("number", *columns), title=title, title_justify="left")
    for row in forgetting_rows(found):
        cells = [f"{number(before)} → {number(after)}" for before, after in row["errors"]]
        table.add_row(row["name"], str(row["frames"]), *cells)
    return table


def forgetting_rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The name and number of frames of each group, and (before, after) MAE of `COLUMNS` in meV units."""
    rows = []
    for name, after in found["after"]["groups"].items():
        before = found["before"]["groups"][name]
        sizes = [(f"{column}_mae", QUANTITIES[column].reported[0].size) for column in COLUMNS]
        errors = [tuple(g[key] / size if key in g else None for g in (before, after)) for key, size in sizes]
        rows.append({"name": name, "frames": after["frames"], "errors": errors})
    return rows
