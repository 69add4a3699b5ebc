"""Replace radial networks by tables, as fine as the network's own rounding asks for."""

import copy
import logging
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from equipot.deploy.structure import Structure, evaluate
from equipot.models.potential import Potential
from equipot.ops.build import kernels_available

log = logging.getLogger("equipot")


def tabulate(potential: Potential, structures: Sequence[Structure]) -> dict[str, float]:
    """Give ``potential`` the coarsest tables that change forces by less than single precision does.

    Of a model without energies that is the largest change of an output, relative to its largest number.

    Both are measured on ``structures`` against the network in float64. Nothing is done without kernels, for
    a network in float64 (no table of reasonable size reaches its rounding), and for models without radial
    networks.

    Returns:
        "intervals", "force_error" and "rounding" (largest change of a force component, eV/Å, by the tables
        and by single precision; without energies "output_error"); empty if there are no tables.
    """
    network = potential.network
    choices = network.table_intervals()
    if not choices or potential.dtype != torch.float32 or not kernels_available():
        return {}
    exact = copy.deepcopy(potential).double()
    right = [evaluate(exact, structure).rows for structure in structures]
    what, unit = ("force", " eV/Å") if potential.has_energy else ("output", "")

    def largest_change(candidate: Potential) -> float:
        found = [evaluate(candidate, structure).rows for structure in structures]
        return float(max(_change(*pair) for pair in zip(found, right, strict=True)))

    rounding = largest_change(potential)
    for intervals in choices:
        candidate = copy.deepcopy(exact)
        candidate.network.tabulate(intervals)
        error = largest_change(candidate)
        if error <= rounding:
            network.tabulate(intervals)
            return {"intervals": intervals, f"{what}_error": error, "rounding": rounding}
    log.warning(
        "No tables: with %d intervals %ss would change by %.1e%s, more than by single precision (%.1e)"
        "; the radial networks are kept.",
        *(intervals, what, error, unit, rounding),
    )
    return {}


def _change(found: Mapping[str, NDArray], right: Mapping[str, NDArray]) -> float:
    if "forces" in right:
        return np.abs(found["forces"] - right["forces"]).max()
    return max(np.abs(found[n] - rows).max() / max(np.abs(rows).max(), 1e-9) for n, rows in right.items())
