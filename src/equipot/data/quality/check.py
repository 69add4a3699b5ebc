"""All checks on some files."""

import logging
from collections.abc import Sequence

from equipot.config.data import LabelsConfig
from equipot.data.columns import columns_of
from equipot.data.found_labels import found_names, label_name, remarks, unread_labels
from equipot.data.quality.collect import Collected
from equipot.data.quality.consistency import check_forces_against_energies, check_stress_against_energies
from equipot.data.quality.findings import SEVERITIES, Finding, Findings
from equipot.data.quality.labels import (
    check_energies,
    check_energy_levels,
    check_forces,
    check_isolated_atoms,
    check_precision,
    check_units,
)
from equipot.data.quality.pair_model import check_stress_against_forces
from equipot.data.quality.structures import check_copied_labels, check_distances, check_duplicates
from equipot.data.text import KEY_ADVICE, counted
from equipot.quantities import QUANTITIES

# Each is about one file: files may come from different levels of theory.
_CHECKS = (
    check_units,
    check_copied_labels,
    check_distances,
    check_energies,
    check_precision,
    check_forces,
    check_forces_against_energies,
    check_stress_against_energies,
    check_stress_against_forces,
)


def check_collected(files: Sequence[Collected], labels: LabelsConfig) -> Findings:
    """Run every check on files that were read with ``labels``."""
    every = [frame for file in files for frame in file.frames]
    findings = []
    for file in files:
        found = [*file.problems, *_missing_labels(file, labels)]
        if file.frames:
            found += [finding for check in _CHECKS for finding in check(file.frames)]
        findings += [_in_file(finding, file, len(files)) for finding in found]
    findings += [*check_duplicates(every), *check_isolated_atoms(every), *check_energy_levels(every)]
    findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    return Findings(findings, {str(file.path): len(file.frames) for file in files})


def _in_file(finding: Finding, file: Collected, num_files: int) -> Finding:
    if num_files == 1 or str(file.path) in finding.message:
        return finding
    return Finding(finding.severity, finding.check, f"{file.path.name}: {finding.message}", finding.frames)


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
