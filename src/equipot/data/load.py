"""From the YAML's data section to data sets."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from equipot.config.data import DataConfig
from equipot.data.dataset import GraphDataset, species_of
from equipot.data.frames import Frame
from equipot.data.plausibility import warn_if_implausible, warn_if_unrelated
from equipot.data.readers import read_sources
from equipot.data.splits import Split, check_unchanged, select, shared_structures, split_frames
from equipot.data.statistics import Statistics, compute_statistics
from equipot.data.text import counted
from equipot.errors import DataError
from equipot.units import energy_factor

logger = logging.getLogger("equipot")


@dataclass(frozen=True)
class Datasets:
    """The data of a run."""

    train: GraphDataset
    validation: GraphDataset
    test: GraphDataset | None
    species: list[str]
    statistics: Statistics  # of ``train``
    split: Split


def load_datasets(data: DataConfig, cutoff: float, split: Split | None = None) -> Datasets:
    """Read, check, split and prepare everything that ``data`` names.

    Isolated atoms in the training files serve as reference energies and are not trained on.

    Args:
        data: the section ``data`` of a configuration.
        cutoff: Å.
        split: use this split, saved by an earlier run, instead of drawing one.

    Raises:
        DataError: what the reading, the splitting, the graphs or the statistics found wrong.
    """
    frames = read_sources(data.sources("train"))
    isolated = [frame for frame in frames if frame.is_isolated_atom]
    pool = [frame for frame in frames if not frame.is_isolated_atom]
    if not pool:
        raise DataError(f"{frames[0].file}: all training frames are isolated atoms; nothing can be learned.")
    drawn = isinstance(data.validation, int | float)
    validation = data.validation if drawn else read_sources(data.sources("validation"))
    test = read_sources(data.sources("test"))
    if split is None:
        split = split_frames(pool, validation, test, data.train_frames, data.seed)
    else:
        check_unchanged(split)

    train = select(pool, split.train)
    held_out = select(pool if drawn else validation, split.validation)
    test = select(test, split.test)
    for name, chosen in (("training", train), ("validation", [] if drawn else held_out), ("test", test)):
        warn_if_implausible(chosen, name)
    _report_isolated(isolated)
    _report_shared(train, held_out, "validation")
    _report_shared(train, test, "test")
    species = list(data.species) if data.species else species_of(train)
    train_set = GraphDataset(train, species, cutoff)
    statistics = compute_statistics(train_set, isolated, _mode(data))
    warn_if_unrelated(statistics.energy_residual_rms)
    return Datasets(
        train=train_set,
        validation=GraphDataset(held_out, species, cutoff),
        test=GraphDataset(test, species, cutoff) if test else None,
        species=species,
        statistics=statistics,
        split=split,
    )


def _mode(data: DataConfig) -> str | dict[str, float]:
    """The atomic_energies setting; given energies are in the data's unit and become eV."""
    if not isinstance(data.atomic_energies, Mapping):
        return data.atomic_energies
    factor = energy_factor(data.units.energy)
    return {symbol: energy * factor for symbol, energy in data.atomic_energies.items()}


def _report_isolated(isolated: Sequence[Frame]) -> None:
    if isolated:
        names = ", ".join(species_of(isolated))
        what = counted(len(isolated), "isolated atom")
        verb = "is" if len(isolated) == 1 else "are"
        logger.info("%s (%s) in the training files %s not trained on.", what, names, verb)


def _report_shared(train: Sequence[Frame], other: Sequence[Frame], name: str) -> None:
    shared = shared_structures(train, other)
    if shared:
        logger.warning(
            "%d of %d %s frames are also in the training set (first: %s); the %s error will look too good.",
            len(shared), len(other), name, shared[0].where, name,
        )  # fmt: skip
