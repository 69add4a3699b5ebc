"""From the YAML's data section to data sets."""

import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from ase.data import atomic_numbers, chemical_symbols

from equipot.config.data import DataConfig
from equipot.data.dataset import GraphDataset, LazyDataset
from equipot.data.digests import RememberedDigests, file_digest
from equipot.data.pool import Pool, StorePart
from equipot.data.quality.check import check_sets
from equipot.data.quality.findings import Finding
from equipot.data.quality.units import check_reference_energies
from equipot.data.sources import read_sources
from equipot.data.splits import FrameId, Split, draw_split, follow_files, positions_of
from equipot.data.statistics import Statistics, compute_statistics
from equipot.data.text import counted
from equipot.errors import DataError
from equipot.quantities import LABELS
from equipot.units import energy_factor

logger = logging.getLogger("equipot")


@dataclass(frozen=True)
class Datasets:
    """The data of a run."""

    train: GraphDataset
    validation: GraphDataset
    test: GraphDataset | None
    species: list[str]
    levels: list[str]  # names of the levels of theory; none if they have no names
    statistics: Statistics  # of ``train``
    split: Split
    findings: Sequence[Finding] = ()  # of the checks on the sets, if they were made


def load_datasets(
    data: DataConfig,
    cutoff: float,
    split: Split | None = None,
    trained: Sequence[str] | None = None,
    kept: Collection[str] = (),
) -> Datasets:
    """Read, check, split and prepare everything that ``data`` names.

    Isolated atoms in the training files serve as reference energies and are not trained on.

    Args:
        data: the section ``data`` of a configuration.
        cutoff: Å.
        split: use this split, saved by an earlier run, instead of drawing one; its data were checked then.
        trained: the labels that count in the loss, for the checks of the data; None: no checks.
        kept: elements that the model has beside those of the training structures.

    Raises:
        DataError: what the reading, the checks, the splitting, the graphs or the statistics found wrong.
    """
    cache = None if data.cache is None else RememberedDigests(data.cache)
    digest = file_digest if cache is None else cache

    def read(name: str) -> Pool:
        return read_sources(data.sources(name), cutoff, cache).weighted(data.group_weights or {})

    frames = read("train")
    _check_groups(data.group_weights or {}, frames)
    isolated, pool = (frames.take(rows) for rows in (frames.columns.isolated, ~frames.columns.isolated))
    if not len(pool):
        raise DataError(f"{frames.files[0]}: all training frames are isolated atoms; nothing can be learned.")
    drawn = isinstance(data.validation, int | float)
    validation = pool if drawn else read("validation")
    test = read("test")
    ids = pool.ids()
    validation_ids, test_ids = ids if drawn else validation.ids(), test.ids()
    checked = split is None and trained is not None and data.checks != "off"
    if split is None:
        given = data.validation if drawn else validation_ids
        split = draw_split(ids, given, test_ids, data.train_frames, data.seed, digest)
    else:
        split = follow_files(split, (file for file, _ in (*ids, *validation_ids, *test_ids)), digest)

    place = _places(ids)
    train = pool.take(positions_of(split.train, place))
    held_out = validation.take(positions_of(split.validation, place if drawn else _places(validation_ids)))
    test = test.take(positions_of(split.test, _places(test_ids)))
    _report_isolated(isolated)
    findings: list[Finding] = []
    if checked:
        held = {"validation": held_out, "test": test}
        others = {name: held[name] for name in held if not (drawn and name == "validation")}
        findings = check_sets(pool, others, {"training": train, **held}, trained)
        _report(findings, data.checks)
    found = _prepared(data, cutoff, kept, train, held_out, test, isolated, split)
    if checked:
        _report(check_reference_energies(found.statistics.energy_residual_rms), data.checks)
    return replace(found, findings=findings)


def _prepared(
    data: DataConfig,
    cutoff: float,
    kept: Collection[str],
    train: Pool,
    validation: Pool,
    test: Pool,
    isolated: Pool,
    split: Split,
) -> Datasets:
    """Graphs and statistics of frames that have been split."""
    unseen = set(kept) - set(train.columns.symbols)
    species = sorted([*train.columns.symbols, *unseen], key=atomic_numbers.__getitem__)
    species, levels = list(data.species or species), list(data.levels)
    train_set = _dataset(train, species, cutoff, levels)
    return Datasets(
        train=train_set,
        validation=_dataset(validation, species, cutoff, levels),
        test=_dataset(test, species, cutoff, levels) if len(test) else None,
        species=species,
        levels=levels,
        statistics=compute_statistics(train_set, list(isolated), _mode(data), unseen),
        split=split,
    )


def _check_groups(group_weights: Mapping[str, float], frames: Pool) -> None:
    """Raise DataError if a weight is for a group that no training frame is in, a misspelt one perhaps."""
    if not group_weights:
        return
    found = Counter(group for group in frames.config_types() if group is not None)
    unknown = [group for group in group_weights if group not in found]
    if unknown:
        groups = ", ".join(f"{group} ({counted(number, 'frame')})" for group, number in found.items())
        raise DataError(
            f"data.group_weights names {', '.join(unknown)}, but no training frame has that config_type; "
            f"found: {groups or 'none with a config_type'}."
        )


def _places(ids: Sequence[FrameId]) -> dict[FrameId, int]:
    return {identity: place for place, identity in enumerate(ids)}


def _dataset(pool: Pool, species: Sequence[str], cutoff: float, levels: Sequence[str]) -> GraphDataset:
    """Read from stores as needed if these have the neighbor lists; otherwise kept in memory."""
    num_edges = pool.num_edges(cutoff)
    if num_edges is not None:
        return LazyDataset(pool, pool.columns, num_edges, species, cutoff, levels)
    _report_other_cutoff(pool, cutoff)
    return GraphDataset(pool, species, cutoff, levels)


def _report_other_cutoff(pool: Pool, cutoff: float) -> None:
    for part in pool.parts:
        if isinstance(part, StorePart) and part.store.cutoff != cutoff:
            found = "no neighbor lists" if part.store.cutoff is None else f"those for {part.store.cutoff} Å"
            logger.info(
                "%s has %s, model.cutoff is %s Å: they are searched now, and all graphs are kept in memory. "
                "`equipot data convert --cutoff %s`, or data.cache, avoids both.",
                part.store.path, found, cutoff, cutoff,
            )  # fmt: skip


def _mode(data: DataConfig) -> str | dict[str, float]:
    """The atomic_energies setting; given energies are in the data's unit and become eV."""
    if not isinstance(data.atomic_energies, Mapping):
        return data.atomic_energies
    factor = energy_factor(data.units.energy)
    return {symbol: energy * factor for symbol, energy in data.atomic_energies.items()}


def _report_isolated(isolated: Pool) -> None:
    for frame in [frame for frame in isolated if frame.is_alone_in_box][:10]:
        energy = "without an energy" if frame.energy is None else f"{frame.energy:.6g} eV"
        logger.info(
            "%s is one atom (%s, %s) alone in a box and is taken as an isolated atom.",
            frame.where, chemical_symbols[frame.atomic_numbers[0]], energy,
        )  # fmt: skip
    if len(isolated):
        names = ", ".join(isolated.columns.symbols)
        what = counted(len(isolated), "isolated atom")
        verb = "is" if len(isolated) == 1 else "are"
        logger.info("%s (%s) in the training files %s not trained on.", what, names, verb)


def _report(findings: Sequence[Finding], checks: str) -> None:
    """One line for each finding; errors stop the training unless ``checks`` is ``warn``.

    Raises:
        DataError: with all errors.
    """
    errors = [finding for finding in findings if finding.severity == "error"]
    for finding in findings:
        if checks == "warn" or finding not in errors:
            logger.warning("Data check, %s", finding)
    if errors and checks == "stop":
        raise DataError(
            f"The data would spoil the training ({counted(len(errors), 'error')}):\n  "
            + "\n  ".join(map(str, errors))
            + "\nMend the files or what section data says of them (`equipot data check FILE` shows more), or "
            "set data.checks: warn to train all the same."
        )


def count_labels(dataset: GraphDataset) -> dict[str, int]:
    """How many frames have each label."""
    return dict(zip(LABELS, (dataset.label_counts > 0).sum(axis=0).tolist(), strict=True))
