"""Sizes of the outputs beside the energy, from the training labels."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from e3nn import o3
from numpy.typing import NDArray
from torch import Tensor

from equipot.config.outputs import OutputConfig
from equipot.data.dataset import GraphDataset
from equipot.data.progress import track
from equipot.data.statistics import fit_atomic_energies
from equipot.errors import DataError
from equipot.graph import AtomicGraph, Labels, nearest_branch
from equipot.models.outputs import OutputSpec, basis_change, present
from equipot.models.predict import refuse_periodic
from equipot.nn.gaussians import GaussianBasis
from equipot.quantities import ASYMMETRY_TOLERANCE, QUANTITIES
from equipot.units import BOHR

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
    graphs: dict[str, list[AtomicGraph]] = {spec.name: [] for spec in specs}
    charged = [name for name, output in outputs.items() if output.charges]
    changes = {spec.name: basis_change(spec).T for spec in specs}
    in_cells = {name: 0 for name, output in outputs.items() if output.is_dipole and output.modulo is None}
    tracked = track(range(len(dataset) if specs else 0), "sizes of the outputs", len(dataset))
    for graph in (graph for index in tracked for graph in dataset.structures(index)):
        for name in charged:
            refuse_periodic(name, graph.pbc)
        one_hot = np.eye(len(dataset.species))[graph.atom_types.numpy()]
        for spec in specs:
            label = graph.labels.values.get(spec.name)
            if label is not None:
                if spec.name in in_cells:
                    in_cells[spec.name] += int(graph.pbc.any())
                value, quantum = label.value, QUANTITIES[spec.name].quantum
                if quantum:  # the branch next to zero, whichever the label is on
                    value = nearest_branch(value, torch.zeros_like(value), graph, quantum)
                rows[spec.name].append(_in_irreps(spec, value.numpy(), changes[spec.name]))
                counts[spec.name].append(one_hot if spec.per_atom else one_hot.sum(axis=0, keepdims=True))
                if QUANTITIES[spec.name].basis:
                    graphs[spec.name].append(replace(graph, labels=Labels()))
    found = {}
    for name, total in ((name, output.sum) for name, output in outputs.items() if output.sum):
        lacking = len(dataset) - int(dataset.columns.known(total).sum())
        if lacking:
            log.warning(
                "%s add up to '%s', which %d of %d training frames do not have: they count as 0.",
                name, total, lacking, len(dataset),
            )  # fmt: skip
    for name in (name for name, count in in_cells.items() if count):
        log.warning(
            "%s of %d training frames is that of a periodic cell, known up to e times lattice vectors: "
            "labels are taken as they are, as if they were continuous from frame to frame. If they jump, say "
            "model.outputs.%s.modulo: cell.",
            name, in_cells[name], name,
        )  # fmt: skip
    for spec in (spec for spec in specs if rows[spec.name]):
        known, of_what = np.concatenate(rows[spec.name]), np.concatenate(counts[spec.name])
        found[spec.name] = _sizes(spec, known, of_what, present(spec, dataset.species))
        if graphs[spec.name]:
            left = (known - of_what @ found[spec.name]["shift"]) @ changes[spec.name].T
            square = _square(spec.name, dataset.species, left, graphs[spec.name])
            found[spec.name]["spread"] = float(np.sqrt(square / left.size))
    return found


def density_basis(name: str, species: Sequence[str], device: torch.device | str = "cpu") -> GaussianBasis:
    """The functions of an output that is a density."""
    quantity = QUANTITIES[name]
    return GaussianBasis(quantity.basis, quantity.rows.irreps, species, device)


def times_overlap(basis: GaussianBasis, rows: Tensor, graph: AtomicGraph) -> Tensor:
    """S @ rows (N, K), S = ∫ χ χ' dV of a structure's functions. Raises DataError where it is periodic."""
    if graph.pbc.any():
        raise DataError(
            "A structure with a label of a density is periodic, but only those of molecules can be trained "
            "on: no images overlap. If it is a molecule, set its pbc to F F F; else leave this label out."
        )
    return basis.times_overlap(rows, graph.positions / BOHR, graph.atom_types, graph.structure)


def _square(name: str, species: Sequence[str], rows: NDArray, graphs: Sequence[AtomicGraph]) -> float:
    """Σ cᵀ S c of all structures, whose rows lie one below the other."""
    basis, start, total = density_basis(name, species), 0, 0.0
    for graph in graphs:
        part = torch.from_numpy(rows[start : start + graph.num_atoms])
        total += float((part * times_overlap(basis, part, graph)).sum())
        start += graph.num_atoms
    return total


def _in_irreps(spec: OutputSpec, label: NDArray, change: NDArray) -> NDArray:
    """Rows of irreps. Raises DataError for what no prediction can be, as a trace where there is none."""
    values = label.reshape(-1, spec.size)
    rows = values @ change
    lost = np.abs(values - rows @ change.T).max(initial=0)
    if lost > ASYMMETRY_TOLERANCE * np.abs(values).max(initial=0):
        raise DataError(
            f"model.outputs.{spec.name}: a label has a part that is none of its irreps {spec.irreps}, up to "
            f"{lost:.4g}, as a trace where the tensor is `traceless`: {label.tolist()}. Correct the "
            "labels, or say `tensor: symmetric`."
        )
    return rows


def _sizes(spec: OutputSpec, rows: NDArray, counts: NDArray, has: NDArray[np.bool_]) -> dict[str, Any]:
    """From rows (F, K) of irreps, compositions (F, T) of what each is of, and columns (T, K) there are."""
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
    if spec.of_elements:
        wrong = np.abs(rows[~has[counts.argmax(axis=1)]]).max(initial=0)
        if wrong > 0:
            raise DataError(
                f"{spec.name}: a label is {wrong:.4g} where model.outputs.{spec.name} has nothing of its "
                "element. Rows have the irreps of the element with most, by degree, and else 0."
            )
        shift *= has
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
    found = {"scale": scale.tolist(), "shift": shift.tolist(), "spread": float(spread)}
    if spec.of_elements:  # whose columns are of different sizes, as those of core and valence functions are
        found |= {
            "scale": np.ones_like(scale).tolist(),
            "of_elements": _sizes_of_elements(spec, left, counts, has),
        }
    return found


def _sizes_of_elements(spec: OutputSpec, left: NDArray, counts: NDArray, has: NDArray) -> list[list[float]]:
    """(T, K) RMS of each channel on each element; 0 where it has none."""
    found = np.zeros(has.shape)
    for kind in np.flatnonzero(counts.sum(axis=0)):
        mean_square = (left[counts[:, kind] > 0] ** 2).mean(axis=0)
        for part, (mul, ir) in zip(o3.Irreps(spec.irreps).slices(), o3.Irreps(spec.irreps), strict=True):
            of_channels = np.sqrt(mean_square[part].reshape(ir.dim, mul).mean(axis=0))
            found[kind, part] = np.tile(of_channels, ir.dim)
    return np.where(has & (found == 0), 1.0, found * has).tolist()
