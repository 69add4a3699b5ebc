"""Sizes of the outputs beside the energy, from the training labels."""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from e3nn import o3
from numpy.typing import NDArray

from equipot.config.outputs import OutputConfig
from equipot.data.dataset import GraphDataset
from equipot.data.progress import track
from equipot.data.statistics import fit_atomic_energies
from equipot.models.outputs import OutputSpec, basis_change

log = logging.getLogger("equipot")

_LEAST = 1e-3  # of a positive mean, where its softplus is still a number to start from


def output_statistics(
    dataset: GraphDataset, outputs: Mapping[str, OutputConfig]
) -> dict[str, dict[str, Any]]:
    """What `equipot.models.outputs.Outputs` takes of each output; reads every frame once.

    ``shift`` (T, K), of scalars: fitted to the composition, as reference energies are. ``scale`` (K,): such
    that rows of unit variance, independent in all atoms, have the variance of what is left of an irrep.
    ``spread``: RMS over the components of what is left, in the unit of the output.
    """
    specs = [OutputSpec(**output.spec(name)) for name, output in outputs.items()]
    rows: dict[str, list[NDArray]] = {spec.name: [] for spec in specs}
    counts: dict[str, list[NDArray]] = {spec.name: [] for spec in specs}
    changes = {spec.name: basis_change(spec).T for spec in specs}
    for index in track(range(len(dataset) if specs else 0), "sizes of the outputs", len(dataset)):
        graph = dataset[index]
        one_hot = np.eye(len(dataset.species))[graph.atom_types.numpy()]
        for spec in specs:
            label = graph.labels.values.get(spec.name)
            if label is not None:
                known, value = label.mask.numpy(), label.value.numpy().reshape(-1, spec.size)
                rows[spec.name].append(value[known] @ changes[spec.name])
                of = one_hot if spec.per_atom else np.eye(graph.num_structures)[graph.structure].T @ one_hot
                counts[spec.name].append(of[known])
    found = {}
    for spec in specs:
        if rows[spec.name]:
            found[spec.name] = _sizes(
                spec, np.concatenate(rows[spec.name]), np.concatenate(counts[spec.name])
            )
    return found


def _sizes(spec: OutputSpec, rows: NDArray, counts: NDArray) -> dict[str, Any]:
    """From rows (F, K) of irreps and compositions (F, T) of what each is of."""
    num_atoms = counts.sum(axis=1, keepdims=True)
    shares = counts / num_atoms if spec.mean else counts
    shift = np.zeros((counts.shape[1], rows.shape[1]))
    scalars, blocks, start = np.zeros(rows.shape[1], dtype=bool), [], 0
    for mul, ir in o3.Irreps(spec.irreps):
        blocks.append(slice(start, start + mul * ir.dim))
        scalars[blocks[-1]] = (ir.l, ir.p) == (0, 1)
        start = blocks[-1].stop
    for column in np.flatnonzero(scalars):
        shift[:, column] = fit_atomic_energies(shares, rows[:, column])
    left = rows - shares @ shift
    spread = np.sqrt((left**2).sum(axis=1).mean() / spec.size) or np.sqrt((rows**2).mean()) or 1.0
    scale = np.ones(rows.shape[1])
    if spec.positive:
        if (rows < 0).any():
            log.warning(
                "%s: %d of %d labels are below 0 (the smallest %.4g), which model.outputs.%s.positive does "
                "not allow: take it out, or correct them.",
                spec.name, (rows < 0).sum(), rows.size, rows.min(), spec.name,
            )  # fmt: skip
        mean = np.maximum((shares @ shift / shares.sum(axis=1, keepdims=True)).mean(axis=0), _LEAST)
        shift = np.tile(mean + np.log(-np.expm1(-mean)), (len(shift), 1))  # whose softplus it is
    else:
        weights = num_atoms if spec.mean else 1 / num_atoms
        for block in blocks:
            scale[block] = np.sqrt((weights * left[:, block] ** 2).mean()) or spread
    return {"scale": scale.tolist(), "shift": shift.tolist(), "spread": float(spread)}
