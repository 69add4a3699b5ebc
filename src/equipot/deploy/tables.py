"""Replace radial networks by tables, as fine as the network's own rounding asks for."""

import copy
import logging
from collections.abc import Sequence

import numpy as np
import torch

from equipot.deploy.structure import Structure, evaluate
from equipot.models.potential import Potential
from equipot.ops.build import kernels_available

log = logging.getLogger("equipot")


def tabulate(potential: Potential, structures: Sequence[Structure]) -> dict[str, float]:
    """Give ``potential`` the coarsest tables that change forces by less than single precision does.

    Both are measured on ``structures`` against the network in float64. Nothing is done without kernels, for
    a network in float64 (no table of reasonable size reaches its rounding), and for models without radial
    networks.

    Returns:
        "intervals", "force_error" and "rounding" (largest change of a force component, eV/Å, by the tables
        and by single precision); empty if there are no tables.
    """
    network = potential.network
    choices = network.table_intervals()
    if not choices or potential.dtype != torch.float32 or not kernels_available():
        return {}
    exact = copy.deepcopy(potential).double()
    right = [evaluate(exact, structure).forces for structure in structures]

    def force_error(candidate: Potential) -> float:
        found = [evaluate(candidate, structure).forces for structure in structures]
        return float(max(np.abs(a - b).max() for a, b in zip(found, right, strict=True)))

    rounding = force_error(potential)
    for intervals in choices:
        candidate = copy.deepcopy(exact)
        candidate.network.tabulate(intervals)
        error = force_error(candidate)
        if error <= rounding:
            network.tabulate(intervals)
            return {"intervals": intervals, "force_error": error, "rounding": rounding}
    log.warning(
        "No tables: with %d intervals forces would change by %.1e eV/Å, more than by single precision (%.1e)"
        "; the radial networks are kept.",
        *(intervals, error, rounding),
    )
    return {}
