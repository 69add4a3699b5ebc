"""What comes before the first step: device, data and potential."""

import dataclasses
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from ase import Atoms
from lightning.pytorch.utilities import rank_zero_only

from equipot.config import Config, RunConfig
from equipot.data.dataset import GraphDataset, ReplayingDataset
from equipot.data.load import Datasets, count_labels, load_datasets
from equipot.data.noise import NoisyDataset
from equipot.data.splits import Split
from equipot.data.text import WITHOUT_ENERGIES
from equipot.deploy.checkpoint import Checkpoint, load_training_state
from equipot.errors import TrainingError
from equipot.quantities import LABELS, QUANTITIES, USUAL
from equipot.run_directory import RunDirectory
from equipot.training import auto
from equipot.training.checkpoints import check_same_statistics, check_same_training
from equipot.training.devices import choose_device
from equipot.training.fine_tune import Start, begin_training, with_architecture
from equipot.training.replay import Replay, label_replay, read_replay


@dataclass(frozen=True)
class Preparation:
    """What a training goes through its steps with."""

    config: Config  # complete: with the section ``model`` of the model it starts from
    device: str  # cpu or cuda
    datasets: Datasets
    start: Start
    resumed: Checkpoint | None  # whose weights and optimizer are still to come
    replay: Replay | None = None
    choices: list[str] = dataclasses.field(default_factory=list)  # of what was `auto`, a line each

    @property
    def training_set(self) -> GraphDataset | ReplayingDataset:
        """What the steps take their frames from."""
        if self.replay is None or self.replay.trained is None:
            return self.datasets.train
        return ReplayingDataset(self.datasets.train, self.replay.trained)


def prepare(
    config: Config, checkpoint: Path | None = None, directory: RunDirectory | None = None
) -> Preparation:
    """Read the data and make the potential; writes no file but a cache of the data.

    Args:
        config: the whole configuration.
        checkpoint: of the training to go on with; None: a new one.
        directory: which holds its split and replay frames; only read with ``checkpoint``.

    Raises:
        TrainingError: no usable data, or another training than that of ``checkpoint``.
        ConfigError: the section ``fine_tune``, or an architecture that is not that of its model.
        DataError, DeviceError, ModelFileError: what cannot be read or is not there.
    """
    if rank_zero_only.rank:
        logging.getLogger("equipot").setLevel(logging.ERROR)  # every process reads the same data
    device = _set_up_device(config.run)
    if auto.is_open(config):
        auto.refuse_without_ground(config)
    resumed = source = None
    if checkpoint is not None:
        resumed = check_same_training(checkpoint, config)
        config = config.model_copy(update={"model": resumed.config.model})  # the same, written out
    elif config.fine_tune is not None:
        source = load_training_state(config.fine_tune.model)
        config = with_architecture(config, source.config.model, str(source.path))
    drawn = None if resumed is None else Split.load(directory.split)
    trained = trained_labels(config)
    replayed = read_replay(config, source, directory)
    kept = {symbol for atoms in replayed for symbol in atoms.symbols}
    if config.fine_tune is not None and "potential" in config.fine_tune.freeze:
        kept |= set((source or resumed).built_from["species"])
    datasets = load_datasets(config.data, config.model.cutoff, drawn, trained, kept)
    choices: list[str] = []
    if auto.is_open(config):
        config, choices = auto.choose_for_labels(config, datasets)
        if config.model.cutoff != datasets.train.cutoff:
            with quiet("equipot"):  # which has said everything about these files
                again = load_datasets(config.data, config.model.cutoff, datasets.split)
            datasets = dataclasses.replace(again, findings=datasets.findings)
    if config.training.denoise is not None:
        datasets = displaced(datasets, config)
    check_labels(datasets, config, replayed)
    if resumed is not None:
        check_same_statistics(checkpoint, resumed.statistics, datasets.statistics)
    torch.manual_seed(config.run.seed)
    if auto.is_open(config):
        config, said = auto.choose(config, datasets, device)
        choices += said
        torch.manual_seed(config.run.seed)
    start = begin_training(config, datasets, source, resumed, device)
    replay = label_replay(replayed, config, datasets, start, source) if replayed else None
    return Preparation(config, device, datasets, start, resumed, replay, choices)


@contextmanager
def quiet(*names: str) -> Iterator[None]:
    """Inside the block these loggers say errors only."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _set_up_device(run: RunConfig) -> str:
    device = choose_device(run)
    if run.threads is not None:
        torch.set_num_threads(run.threads)
    if device == "cuda":  # of several processes each works on its own from the start
        rank = int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", 0)))
        torch.cuda.set_device(rank % torch.cuda.device_count())
    torch.set_float32_matmul_precision(run.matmul_precision)
    return device


def check_labels(datasets: Datasets, config: Config, replayed: Sequence[Atoms] = ()) -> None:
    """Refuse to train on nothing; frames to be ``replayed`` have labels, too, if they are in the loss.

    Raises:
        TrainingError: too few frames for training or validation; a label with a weight that no training frame
            has; no label with a weight in the validation set; no forces to take the model's scale from.
    """
    processes = config.run.devices * config.run.nodes
    for name in ("train", "validation"):
        frames = len(getattr(datasets, name))
        if frames < processes:
            raise TrainingError(
                f"The {name} set has {frames} frames; it needs one for each of {processes} devices at least."
            )
    loss = config.training.loss
    trained = count_labels(datasets.train)
    in_loss = replayed if config.fine_tune is not None and config.fine_tune.replay_weight > 0 else ()
    # Those without a calculator will be labelled with everything.
    known = {name for atoms in in_loss for name in (atoms.calc.results if atoms.calc else LABELS)}
    for name in LABELS:
        if loss.trains(name) and trained[name] == 0 and name not in known:
            names, keys = config.data.labels.names(name).values(), (k.name for k in QUANTITIES[name].keys)
            raise TrainingError(
                f"training.loss.{name} is above 0, but none of the {len(datasets.train)} training frames "
                f"has {name} (looked for under the name {' or '.join(map(repr, names))}). "
                f"Correct data.labels.{' or data.labels.'.join(keys)}, or set training.loss.{name} to 0."
                + (WITHOUT_ENERGIES if name in USUAL else "")
            )
    of_forces = config.fine_tune is None and config.model.energy and config.model.scale == "force_rms"
    if of_forces and not datasets.statistics.force_rms:
        raise TrainingError(
            "model.scale is force_rms, but the training frames have no forces, or only zeros. "
            f"Set model.scale to a number (eV), such as 1.0.{WITHOUT_ENERGIES}"
        )
    validated = count_labels(datasets.validation)
    judged = [name for name in LABELS if loss.final_weight(name) > 0]
    if not any(validated[name] for name in judged):
        raise TrainingError(
            f"None of the {len(datasets.validation)} validation frames has a label to train on "
            f"({', '.join(judged)})."
        )


def trained_labels(config: Config) -> list[str]:
    """Names of labels of the files that have a weight in the loss."""
    denoise = config.training.denoise
    made = None if denoise is None else denoise.output
    return [name for name in LABELS if config.training.loss.trains(name) and name != made]


def displaced(datasets: Datasets, config: Config) -> Datasets:
    """With noise on the positions, beside the frames as they are if their labels are trained on, too."""
    denoise, paired = config.training.denoise, bool(trained_labels(config))
    noisy = {
        name: NoisyDataset(known, denoise.output, denoise.range, config.run.seed, paired)
        for name in ("train", "validation", "test")
        if (known := getattr(datasets, name)) is not None
    }
    return dataclasses.replace(datasets, **noisy)
