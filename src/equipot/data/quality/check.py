"""All checks: on files for `equipot data check`, on the sets of a training before it starts."""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from equipot.config.data import LabelsConfig
from equipot.data.columns import columns_of
from equipot.data.found_labels import found_names, label_name, remarks, unread_labels
from equipot.data.frames import Frame
from equipot.data.pool import Pool
from equipot.data.quality.collect import Collected
from equipot.data.quality.consistency import check_forces_against_energies, check_stress_against_energies
from equipot.data.quality.findings import SEVERITIES, Finding, Findings
from equipot.data.quality.labels import check_forces, check_zeros, is_no_zero, tensors
from equipot.data.quality.model_checks import check_with_pair_model
from equipot.data.quality.sets import (
    check_duplicates,
    check_energies,
    check_energy_levels,
    check_isolated_atoms,
    check_periodicity,
    check_precision,
    check_shared,
)
from equipot.data.quality.structures import check_copied_labels, check_distances
from equipot.data.quality.units import check_units
from equipot.data.text import KEY_ADVICE, counted, naming_options
from equipot.quantities import BASIC, QUANTITIES

# Each is about one file: files may come from different levels of theory.
_OF_FRAMES = (
    check_units,
    check_copied_labels,
    check_distances,
    check_zeros,
    check_forces,
    check_forces_against_energies,
    check_stress_against_energies,
    check_with_pair_model,
)
_IN_A_FIELD = (check_units, check_copied_labels, check_distances, check_zeros)
_OF_FILES = (check_energies, check_precision, check_periodicity)

# What a training looks at: so much takes two or three seconds at most.
_MOST_FRAMES, _MOST_ATOMS = 300, 15_000
_FEWEST_FRAMES = 20  # of a file that is looked at by itself
_MOST_GROUPS = 10
_SHARE = 0.01  # of the frames: errors about fewer do not stop a training
_MOST_SEEN = 20_000  # frames whose outputs are looked at
_MOST_READ = 200  # frames for a comparison that the columns suggest


def check_collected(files: Sequence[Collected], labels: LabelsConfig) -> Findings:
    """Run every check on files that were read with ``labels``."""
    every = [frame for file in files for frame in file.frames]
    findings = []
    for file in files:
        found = [*file.problems, *_missing_labels(file, labels)]
        if file.frames:
            found += _check_file(Pool.of(file.frames), file.frames)
        findings += [_in_file(finding, str(file.path), len(files)) for finding in found]
    pool = Pool.of(every)
    findings += [*check_duplicates(pool), *check_isolated_atoms(every), *check_energy_levels(pool)]
    findings = [replace(finding, message=naming_options(finding.message)) for finding in findings]
    return Findings(_sorted(findings), {str(file.path): len(file.frames) for file in files})


def check_sets(
    train: Pool, others: Mapping[str, Pool], drawn: Mapping[str, Pool], trained: Sequence[str]
) -> list[Finding]:
    """The checks on what a training is about to use, within seconds: of many frames on some, spread evenly.

    Args:
        train: all frames of the training files but isolated atoms.
        others: sets from files of their own, by name.
        drawn: what is trained on, and the sets to hold out, ``training``, ``validation`` and ``test``.
        trained: the labels that count in the loss; what is wrong with others is a warning at most.

    Returns:
        Errors and warnings, errors first; the same in every process.
    """
    groups = [rows for pool in (train, *others.values()) for rows in _groups(pool)]
    step = -(-len(groups) // _MOST_GROUPS) or 1
    chosen = groups[::step]
    findings = []
    for pool in chosen:
        frames = _sample(pool, _MOST_FRAMES // len(chosen), _MOST_ATOMS // len(chosen))
        file = frames[0].file
        found = [_if_many(finding, len(frames)) for finding in _check_file(pool, frames)]
        findings += [_in_file(finding, file, len(chosen)) for finding in found]
    findings += [_if_many(finding, len(train)) for finding in check_duplicates(train, _MOST_READ)]
    findings += check_energy_levels(train)
    for name in ("validation", "test"):
        findings += check_shared(drawn["training"], drawn[name], name)
    findings = [_for_training(finding, trained) for finding in findings if finding.severity != "note"]
    return _sorted(findings)


def _check_file(pool: Pool, frames: Sequence[Frame]) -> list[Finding]:
    """Of all frames of a file what their columns say, of those that are given the rest."""
    found = [finding for check in _OF_FILES for finding in check(pool)]
    for check in _OF_FRAMES:
        # In a field forces may turn a molecule, and do no work between frames of two fields.
        new = check(frames if check in _IN_A_FIELD else [f for f in frames if f.electric_field is None])
        # What pairs of frames say of forces and energies is sharper than what the pair model does, and
        # neither is a measure for stresses where these two disagree.
        said = {finding.check for finding in found}
        wrong = any(f.check == "forces and energies" and f.severity == "error" for f in found + new)
        skipped = ({"forces and energies"} & said) | (
            {"stress and energies", "stress and forces"} if wrong else set()
        )
        found += [finding for finding in new if finding.check not in skipped]
        # Placeholders say nothing of the other labels.
        gone = {i for f in new if f.check.startswith("zero ") and f.severity == "error" for i in f.frames}
        frames = [frame for frame in frames if (frame.file, frame.index) not in gone]
    return found


def _groups(pool: Pool) -> list[Pool]:
    """The frames of each file and level that has enough of them; those of small files together, by level."""
    if not len(pool):
        return []
    rows: dict[tuple[str, str], list[int]] = defaultdict(list)
    for row, ((file, _), level) in enumerate(zip(pool.ids(), pool.columns.level.tolist(), strict=True)):
        rows[file, level].append(row)
    large = [group for group in rows.values() if len(group) >= _FEWEST_FRAMES]
    small: dict[str, list[int]] = defaultdict(list)
    for (_, level), group in rows.items():
        if len(group) < _FEWEST_FRAMES:
            small[level] += group
    return [pool.take(np.array(group)) for group in (*large, *small.values())]


def _sample(pool: Pool, most: int, atoms: int) -> list[Frame]:
    """Frames spread evenly, two that follow one another each, and those whose labels may be placeholders."""
    columns = pool.columns
    most = max(2, min(most, int(atoms / columns.num_atoms.mean())))
    rows = np.arange(len(pool))
    if len(rows) > most:
        starts = np.linspace(0, len(rows) - 2, most // 2).astype(int)
        rows = np.unique(np.concatenate([starts, starts + 1, _zeros(pool)[:_MOST_READ]]))
    return [pool[row] for row in rows]


def _zeros(pool: Pool) -> NDArray[np.int64]:
    """Rows of frames of several atoms that have labels of exactly zero."""
    columns = pool.columns
    zero = columns.known("energy") & (columns.energy == 0)
    zero |= columns.known("forces") & (columns.force_squares == 0)
    outputs = tensors() - set(BASIC)
    known = sum((columns.known(kind) for kind in outputs), start=np.zeros(len(pool), bool))
    frames = ((row, pool[row]) for row in np.flatnonzero(known)[:_MOST_SEEN])
    none = ((row, f, k) for row, f in frames for k in outputs if k in f.values and not f.values[k].any())
    for row, frame, kind in islice(none, 10 * _MOST_READ):
        zero[row] |= is_no_zero(frame, kind)
    return np.flatnonzero(zero & (columns.num_atoms > 1))


def _if_many(finding: Finding, frames: int) -> Finding:
    """An error that is about very few of the frames looked at spoils no training."""
    few = 0 < len(finding.frames) < _SHARE * frames
    return replace(finding, severity="warning") if few and finding.severity == "error" else finding


def _for_training(finding: Finding, trained: Sequence[str]) -> Finding:
    matters = not finding.labels or set(finding.labels) & set(trained)
    return finding if matters else replace(finding, severity="warning")


def _sorted(findings: list[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def _in_file(finding: Finding, file: str, num_files: int) -> Finding:
    if num_files == 1 or file in finding.message:
        return finding
    return replace(finding, message=f"{Path(file).name}: {finding.message}")


def _missing_labels(file: Collected, labels: LabelsConfig) -> list[Finding]:
    """Labels that no frame or only some frames have, and what else could be meant."""
    findings = []
    molecules = [frame for frame in file.frames if not frame.is_isolated_atom]
    for kind, quantity in QUANTITIES.items():
        names = labels.names(kind)
        have = sum(kind in frame.values for frame in molecules)
        unused = sum(frame.label_weights.get(kind) == 0 for frame in molecules)
        possible = not quantity.needs_volume or any(frame.pbc.all() for frame in molecules)
        if not names or have + unused == len(molecules) or not possible:
            continue
        name = label_name(names)
        if have:
            message = f"{have} of {counted(len(molecules), 'frame')} have {kind} ({name})."
        else:
            offered = {key.name: sorted(file.names[key.name]) for key in quantity.keys}
            if not quantity.usual and not any(offered.values()):
                continue
            message = (
                f"No frame has {kind} under the name {name}. {found_names(kind, names, offered, KEY_ADVICE)}"
            )
        severity = "warning" if have == 0 and quantity.usual else "note"
        findings.append(Finding(severity, "labels", message))
    columns = columns_of(file.frames)
    for level, remark in remarks(labels, columns):
        findings.append(Finding("warning" if level > logging.INFO else "note", "labels", remark))
    unread = unread_labels(labels, columns, file.names)
    if unread:
        message = f"Not read, though it looks like a label: {', '.join(unread)}."
        findings.append(Finding("note", "labels", message))
    return findings
