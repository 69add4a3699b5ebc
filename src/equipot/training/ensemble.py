"""Ensembles: the same training several times, with another seed for each member."""

from functools import partial
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only

from equipot.config import Config
from equipot.data.text import counted
from equipot.deploy.ensemble import find_members, member_name
from equipot.errors import TrainingError
from equipot.run_directory import RunDirectory
from equipot.training import auto, stopping
from equipot.training.checkpoints import check_same_training, describe_changes
from equipot.training.devices import adopt_launcher, find_launcher
from equipot.training.results import is_finished
from equipot.training.run import AUTO, train

_say = rank_zero_only(partial(print, flush=True))


def train_any(
    config: Config, members: int | None = None, resume: Path | None = None, overwrite: bool = False
) -> str:
    """Train a potential, or an ensemble of ``members``; the reason why it ended, of those in ``stopping``."""
    if members is None:
        return train(config, resume=resume, overwrite=overwrite).stopped
    return train_ensemble(config, members, resume=resume, overwrite=overwrite)


def train_ensemble(config: Config, members: int, resume: Path | None = None, overwrite: bool = False) -> str:
    """Train ``RUN/member_0``, ``RUN/member_1``, ... one after the other.

    Member i has the seed ``run.seed`` + i, for its initial weights and the order of its batches; the split is
    the same for all. A member is a run directory like any other, and is resumed like one.

    Args:
        config: the whole configuration; ``run.directory`` is the folder of the ensemble.
        members: how many; more than the folder to resume has adds some.
        resume: the folder of an ensemble, or ``auto`` for ``run.directory``: finished members are left alone,
            an interrupted one goes on exactly, the others are trained.
        overwrite: replace what earlier trainings left.

    Returns:
        ``finished``, or ``interrupted``.

    Raises:
        TrainingError: fewer than two members; the folder is occupied or holds another ensemble; several
            devices; or as `train`.
    """
    root = config.run.directory if resume in (None, AUTO) else Path(resume)
    _check_count(root, members, resume)
    run = adopt_launcher(config.run, find_launcher())
    if run.devices * run.nodes > 1:
        raise TrainingError(
            "An ensemble is trained on one device. On several, train its members one by one: equipot train "
            f"CONFIG run.directory={root}/{member_name(0)} run.seed={run.seed}, and so on."
        )
    directories = [RunDirectory(root / member_name(index)) for index in range(members)]
    if RunDirectory(root).holds_training():
        raise TrainingError(
            f"Run directory '{root}' holds a single training, not an ensemble: choose another run.directory."
        )
    if resume is None:
        _refuse_if_occupied(root, directories, overwrite)
    for directory in directories:  # all of them now, so that an unfinished ensemble is seen to be one
        directory.root.mkdir(parents=True, exist_ok=True)
    return _train_members(config, directories, resume is not None, overwrite)


def _train_members(config: Config, directories: list[RunDirectory], resume: bool, overwrite: bool) -> str:
    for index, directory in enumerate(directories):
        if index or resume:  # members differ by their seeds alone
            config = auto.as_before(config, directories[0])
        seed = config.run.seed + index
        changes = {"directory": directory.root, "seed": seed}
        member = config.model_copy(update={"run": config.run.model_copy(update=changes)})
        _say(f"{directory.root.name} of {len(directories)} members, seed {seed}")
        if resume and is_finished(directory, config.training):
            # That it is a member of this ensemble: the mean of different models' errors says nothing.
            before = check_same_training(directory.best, member).config
            _say("Finished before.")
            for change in describe_changes(before, member):
                _say(f"Changed since then, for members to come: {change}")
            continue
        result = train(member, resume=AUTO if resume else None, overwrite=overwrite)
        if result.stopped == stopping.INTERRUPTED:
            return stopping.INTERRUPTED
    _say(f"Ensemble: {directories[0].root.parent}")
    return stopping.FINISHED


def _check_count(root: Path, members: int, resume: Path | None) -> None:
    present = 0 if resume is None else len(find_members(root))
    if resume not in (None, AUTO) and not present:
        raise TrainingError(f"Nothing to resume: '{root}' holds no ensemble (member_0, member_1, ...).")
    if members < max(2, present):
        least = f"'{root}' already holds {present}" if present else "it has two at least"
        raise TrainingError(f"An ensemble of {counted(members, 'member')} is not possible: {least}.")


def _refuse_if_occupied(root: Path, directories: list[RunDirectory], overwrite: bool) -> None:
    expected = {directory.root.name for directory in directories}
    foreign = sorted(p.name for p in root.iterdir() if p.name not in expected) if root.is_dir() else []
    if foreign:
        names = ", ".join(foreign[:3]) + ", ..." * (len(foreign) > 3)
        raise TrainingError(
            f"Run directory '{root}' holds {names}, which is no member of an ensemble of {len(directories)}: "
            "choose another run.directory."
        )
    for directory in directories:
        directory.refuse_if_occupied(overwrite)
