"""The uncertainty in a deployed file: what is said of it, and whether it is right here.

`equipot.deploy.rigidity` makes it, `equipot.engine` evaluates it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from equipot.data.text import counted
from equipot.deploy.capsule import RELATIVE_TOLERANCE, Deviation
from equipot.deploy.structure import Structure
from equipot.engine.library import Engine


def describe_uncertainty(figures: dict[str, Any]) -> str:
    """One line about `Metadata.uncertainty`."""
    if not figures:
        return "none"
    return (
        f"from {figures['features']} features of {counted(figures['training_frames'], 'frame')}, calibrated "
        f"on {figures['validation_frames']}: predicted {1e3 * figures['predicted_rms']:.3g}, found "
        f"{1e3 * figures['error_rms']:.3g} meV/atom rms, miscalibration {figures['miscalibration']:.2f}"
    )


def uncertainties(engine: Engine, structures: Sequence[Structure]) -> list[float]:
    """Standard deviations (eV) of the energies of structures."""
    each = [engine.evaluate_edges(s.edge_vec, s.edge_index, s.atom_types) for s in structures]
    return engine.uncertainty(np.array([found.features.sum(axis=0) for found in each])).tolist()


def compare_uncertainties(
    engine: Engine, structures: Sequence[Structure], references: Sequence[float], dtype: str
) -> Deviation:
    """How far the uncertainties are off from the ``references`` in the file, relative, at most."""
    right = np.asarray(references)
    off = np.abs(uncertainties(engine, structures) - right) / np.maximum(right, 1e-9)
    worst = float(np.max(off, initial=0.0))
    # What is rare in the training set counts most, and so does its rounding.
    return Deviation("uncertainty", "relative", worst, 100 * RELATIVE_TOLERANCE[dtype])
