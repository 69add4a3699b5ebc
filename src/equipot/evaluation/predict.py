"""Predict energies, forces and stress of frames, in batches, and keep them beside their labels."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from ase.data import atomic_numbers as number_of
from numpy.typing import NDArray

from equipot.data.dataset import atom_types, to_graph
from equipot.data.frames import Frame
from equipot.data.progress import track
from equipot.devices import by_halves
from equipot.errors import EvaluationError
from equipot.evaluation.model import LoadedModel
from equipot.graph import AtomicGraph, Label, collate
from equipot.models.potential import Prediction

logger = logging.getLogger("equipot")

# Edges evaluated at once, unless said otherwise: memory is bounded by them, not by the set.
MAX_EDGES = {"cpu": 2**14, "cuda": 2**18}


class Source(NamedTuple):
    """Where a frame comes from."""

    file: str
    index: int  # position in the file, from 0
    config_type: str | None = None

    @property
    def where(self) -> str:
        """How messages name this frame."""
        return f"{self.file}, frame {self.index} (the first is 0)"


@dataclass(frozen=True)
class Comparison:
    """Predictions for S frames with N atoms in all, and their labels: plain arrays, no graphs.

    Missing labels are NaN, and so is the predicted stress of a frame that is not periodic in all directions.
    """

    sources: list[Source]
    num_atoms: NDArray  # (S,) atoms in each frame
    atomic_numbers: NDArray  # (N,)
    energy: NDArray  # (S,) predicted, eV
    forces: NDArray  # (N, 3) predicted, eV/Å
    stress: NDArray  # (S, 3, 3) predicted, eV/Å³, positive under tension
    reference_energy: NDArray  # (S,)
    reference_forces: NDArray  # (N, 3)
    reference_stress: NDArray  # (S, 3, 3)

    @property
    def num_frames(self) -> int:
        return len(self.num_atoms)

    @cached_property
    def offsets(self) -> NDArray:
        """(S + 1,) frame i holds the atoms offsets[i] to offsets[i + 1]."""
        return np.concatenate([[0], np.cumsum(self.num_atoms)])

    @property
    def has_labels(self) -> bool:
        """Whether any frame has any label."""
        references = (self.reference_energy, self.reference_forces, self.reference_stress)
        return any(not np.isnan(reference).all() for reference in references)

    def atoms_of(self, i: int) -> slice:
        """The rows of frame ``i`` in arrays over atoms."""
        return slice(self.offsets[i], self.offsets[i + 1])

    def energy_error_per_atom(self) -> NDArray:
        """(S,) eV/atom, predicted - reference."""
        return (self.energy - self.reference_energy) / self.num_atoms

    def forces_error(self) -> NDArray:
        """(N, 3) eV/Å."""
        return self.forces - self.reference_forces

    def stress_error(self) -> NDArray:
        """(S, 3, 3) eV/Å³."""
        return self.stress - self.reference_stress

    def select(self, chosen: NDArray) -> "Comparison":
        """The same for the frames where ``chosen`` (S,) is true."""
        atoms = np.repeat(chosen, self.num_atoms)
        return Comparison(
            sources=[source for source, wanted in zip(self.sources, chosen, strict=True) if wanted],
            num_atoms=self.num_atoms[chosen],
            atomic_numbers=self.atomic_numbers[atoms],
            energy=self.energy[chosen],
            forces=self.forces[atoms],
            stress=self.stress[chosen],
            reference_energy=self.reference_energy[chosen],
            reference_forces=self.reference_forces[atoms],
            reference_stress=self.reference_stress[chosen],
        )


def predict_frames(model: LoadedModel, frames: Sequence[Frame], max_edges: int | None = None) -> Comparison:
    """Run ``model`` over ``frames``, as ``compare`` does.

    Raises:
        UnknownSpeciesError: a frame holds an element the model does not know; before anything is run.
        EvaluationError: a prediction is not finite.
    """
    for frame in frames:
        atom_types(frame.atomic_numbers, model.species, frame.where)
    return compare(
        model.predict,
        (to_graph(frame, model.species, model.cutoff) for frame in frames),
        [Source(frame.file, frame.index, frame.config_type) for frame in frames],
        model.species,
        model.device,
        max_edges,
    )


def compare(
    predict: Callable[[AtomicGraph], Prediction],
    graphs: Iterable[AtomicGraph],
    sources: Sequence[Source],
    species: Sequence[str],
    device: torch.device,
    max_edges: int | None = None,
) -> Comparison:
    """Predict graphs in batches, with a progress bar when it takes long; no graph is kept.

    Args:
        predict: from a graph on ``device`` to its prediction.
        graphs: one structure each, made or read only when their turn comes.
        sources: where each of them comes from.
        species: chemical symbols of the atom types.
        device: where ``predict`` runs.
        max_edges: in a batch (a frame with more is a batch of its own); None: as suits the device.

    Raises:
        EvaluationError: a prediction is not finite.
    """

    def predicted(graph: AtomicGraph) -> tuple[NDArray, ...]:
        return _columns(predict(graph.to(device)), graph)

    columns: list[tuple[NDArray, ...]] = []
    done = 0
    tracked = track(graphs, "evaluating", len(sources))
    for batch in _batches(tracked, max_edges or MAX_EDGES["cpu" if device.type == "cpu" else "cuda"]):
        for part in by_halves(predicted, collate(batch), _warn_of_halving):
            _refuse_non_finite(part, sources[done:])
            columns.append(part)
            done += len(part[0])
    joined = [np.concatenate(column) for column in zip(*columns, strict=True)]
    num_atoms, types, *values = joined
    numbers = np.array([number_of[symbol] for symbol in species])[types]
    return Comparison(list(sources), num_atoms, numbers, *values)


def _batches(graphs: Iterable[AtomicGraph], max_edges: int) -> Iterator[list[AtomicGraph]]:
    batch: list[AtomicGraph] = []
    edges = 0
    for graph in graphs:
        if batch and edges + graph.num_edges > max_edges:
            yield batch
            batch, edges = [], 0
        batch.append(graph)
        edges += graph.num_edges
    if batch:
        yield batch


def _warn_of_halving(graph: AtomicGraph, error: Exception) -> None:
    if graph.num_structures == 1:
        raise error
    logger.warning(
        "Out of memory with %d edges at once, going on with half; see --max-edges.", graph.num_edges
    )


def _columns(prediction: Prediction, graph: AtomicGraph) -> tuple[NDArray, ...]:
    """The fields of a Comparison after its sources, with types in place of numbers."""
    num_atoms = torch.bincount(graph.structure, minlength=graph.num_structures)
    labels = graph.labels
    predicted = (prediction.energy, prediction.forces, prediction.stress)
    return (
        num_atoms.numpy(),
        graph.atom_types.numpy(),
        *(value.detach().cpu().numpy().astype(float) for value in predicted),
        *(
            _reference(label, value)
            for label, value in zip((labels.energy, labels.forces, labels.stress), predicted, strict=True)
        ),
    )


def _reference(label: Label | None, predicted: torch.Tensor) -> NDArray:
    if label is None:
        return np.full(tuple(predicted.shape), np.nan)
    mask = label.mask.view(-1, *(1,) * (label.value.dim() - 1))
    return torch.where(mask, label.value, torch.nan).numpy().astype(float)


def _refuse_non_finite(columns: tuple[NDArray, ...], sources: Sequence[Source]) -> None:
    """A NaN would otherwise pass for a missing label. The stress of a molecule is one."""
    num_atoms, _, energy, forces, *_ = columns
    of_atom = np.repeat(np.arange(len(num_atoms)), num_atoms)
    wrong = ~np.isfinite(energy)
    wrong[of_atom[~np.isfinite(forces).all(axis=1)]] = True
    if wrong.any():
        raise EvaluationError(
            f"The model's energy or forces are not finite for {sources[int(wrong.argmax())].where}: is it a "
            "structure like those of the training, in the same units? If so, the model is not usable."
        )
