"""Errors in the measures of the Open Catalyst challenge's task S2EF, structure to energy and forces.

The measures of L. Chanussot et al., ACS Catal. 11, 6059 (2021), as the challenge's evaluator has them
(fairchem, `core/modules/evaluator.py`). Energies are totals; forces are those on free atoms, by component.
Force cosine: the mean over atoms of the cosine between predicted and reference force. EFwT, energy and forces
within threshold: the share of frames whose energy is off by less than 0.02 eV, and no component of the force
on a free atom by 0.03 eV/Å or more.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipot.data.frames import FIXED
from equipot.evaluation.predict import Comparison
from equipot.quantities import MEV

ENERGY_THRESHOLD, FORCE_THRESHOLD = 0.02, 0.03  # eV, eV/Å
_SMALLEST = 1e-8  # eV/Å: norm of a force, in cosines, as in torch.cosine_similarity


def s2ef_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """The measures of all frames, then of each set: of the files of one folder, or each file of a single one.

    Empty for data whose atoms have no tags. Keys: ``name``, ``frames``, ``energy_mae`` (meV), ``force_mae``
    (meV/Å), ``force_mae_by_tag`` (the same, by tag), ``force_cosine``, ``efwt``; None without labels.
    """
    tagged = comparison.marks is not None and (comparison.marks % FIXED).any()
    if not tagged or not {"energy", "forces"} <= comparison.values.keys():
        return []
    parts = [("all", comparison), *((name, comparison.select(chosen)) for name, chosen in _sets(comparison))]
    return [{"name": name, **_measures(part)} for name, part in parts]


def _sets(comparison: Comparison) -> Iterator[tuple[str, NDArray]]:
    folders = [str(Path(source.file).parent) for source in comparison.sources]
    names = folders if len(set(folders)) > 1 else [source.file for source in comparison.sources]
    different = dict.fromkeys(names)
    for name in different if len(different) > 1 else ():
        yield name, np.array([own == name for own in names])


def _measures(comparison: Comparison) -> dict[str, Any]:
    tags, free = comparison.marks % FIXED, comparison.marks < FIXED
    energy = np.abs(comparison.energy - comparison.reference["energy"])
    predicted, reference = comparison.forces, comparison.reference["forces"]
    error = np.abs(predicted - reference)
    known = free & ~np.isnan(error).any(axis=1)
    norms = [np.maximum(np.linalg.norm(forces, axis=1), _SMALLEST) for forces in (predicted, reference)]
    cosine = (predicted * reference).sum(axis=1) / (norms[0] * norms[1])
    # Frames without a free atom, or without the labels, cannot be judged.
    worst = np.maximum.reduceat(np.where(known, error.max(axis=1), -1.0), comparison.offsets[:-1])
    judged = (worst >= 0) & ~np.isnan(energy)
    within = (energy < ENERGY_THRESHOLD) & (worst < FORCE_THRESHOLD)
    return {
        "frames": comparison.num_frames,
        "energy_mae": _mean(energy[~np.isnan(energy)] / MEV),
        "force_mae": _mean(error[known] / MEV),
        "force_mae_by_tag": {
            str(tag): _mean(error[known & (tags == tag)] / MEV) for tag in np.unique(tags[known]).tolist()
        },
        "force_cosine": _mean(cosine[known]),
        "efwt": _mean(within[judged]),
    }


def _mean(values: NDArray) -> float | None:
    return float(values.mean()) if values.size else None
