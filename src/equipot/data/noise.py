"""Frames displaced by Gaussian noise, labelled with the displacement that undoes it."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import torch

from equipot.data.dataset import GraphDataset
from equipot.data.neighbors import neighbor_list
from equipot.graph import AtomicGraph, Label, Labels, collate
from equipot.quantities import LABELS, QUANTITIES

_STREAM = 2  # of the seed and the epoch, beside those of the order of frames and of replayed ones


class NoisyDataset(GraphDataset):
    """``clean`` with noise on its positions, and neighbor lists of these; no other label is theirs.

    The noise follows from ``seed``, the epoch and the number of the frame alone; ``self[i]`` is that of
    epoch 0. It has no mean over the atoms, as no translation can be seen. Its standard deviation is
    log-uniform in ``sigma`` (Å); rows of the label are weighted by E[sigma²] / sigma², so that all frames
    count alike. ``paired``: an item holds the frame as it is, too, for its own labels.

    Source: Zaidi et al., Pre-training via Denoising for Molecular Property Prediction (ICLR 2023).
    """

    def __init__(self, clean: GraphDataset, output: str, sigma: tuple[float, float], seed: int, paired: bool):
        self.clean, self.output, self.sigma, self.seed, self.paired = clean, output, sigma, seed, paired
        self._describe(clean.frames, clean.columns, clean.species, clean.cutoff, clean.levels)
        copies = 2 if paired else 1
        self.num_atoms, self.num_edges = copies * clean.num_atoms, copies * clean.num_edges
        self.label_counts = clean.label_counts.copy() if paired else np.zeros_like(clean.label_counts)
        self.label_counts[:, LABELS.index(output)] = QUANTITIES[output].components * clean.num_atoms

    def __getitem__(self, index: int) -> AtomicGraph:
        return self.at(index, 0)

    def at(self, index: int, epoch: int) -> AtomicGraph:
        return collate(self._structures(index, epoch))

    def structures(self, index: int) -> list[AtomicGraph]:
        return self._structures(index, 0)

    def _structures(self, index: int, epoch: int) -> list[AtomicGraph]:
        clean = self.clean[index]
        noisy = self._displaced(clean, np.random.default_rng([self.seed, epoch, index, _STREAM]))
        return [clean, noisy] if self.paired else [noisy]

    @property
    def as_read(self) -> GraphDataset:
        return self.clean

    @property
    def config_types(self) -> list[str | None]:
        return self.clean.config_types

    def _displaced(self, graph: AtomicGraph, generator: np.random.Generator) -> AtomicGraph:
        low, high = self.sigma
        sigma = low * (high / low) ** generator.random()
        noise = sigma * generator.standard_normal((graph.num_atoms, 3))
        noise -= noise.mean(axis=0)
        positions = graph.positions.numpy() + noise
        edges = neighbor_list(positions, graph.cell[0].numpy(), graph.pbc[0].numpy(), self.cutoff)
        known = torch.ones(graph.num_atoms, dtype=torch.bool)
        weight = None
        if low < high:
            weight = known.double() * (mean_square(self.sigma) / sigma**2)
        return dataclasses.replace(
            graph,
            positions=torch.from_numpy(positions),
            edge_index=torch.from_numpy(edges[0]),
            edge_shift=torch.from_numpy(edges[1]),
            labels=Labels({self.output: Label(torch.from_numpy(-noise), known, weight)}, graph.labels.weight),
        )


def mean_square(sigma: Sequence[float]) -> float:
    """Å², of standard deviations that are log-uniform in the range ``sigma``."""
    low, high = sigma
    return low**2 if low == high else (high**2 - low**2) / (2 * math.log(high / low))
