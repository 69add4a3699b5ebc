"""Predict frames in batches, and keep the predictions beside the labels."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from ase.data import atomic_numbers as number_of
from numpy.typing import NDArray

from equipot.data.dataset import to_graph
from equipot.data.frames import Frame
from equipot.data.progress import track
from equipot.data.species import atom_types
from equipot.devices import by_halves, most_edges
from equipot.errors import EvaluationError
from equipot.evaluation.model import LoadedModel
from equipot.graph import AtomicGraph, collate, nearest_branch
from equipot.models.predict import Prediction
from equipot.quantities import QUANTITIES, Named

logger = logging.getLogger("equipot")


class FrameOrigin(NamedTuple):
    """Where a frame comes from."""

    file: str
    index: int  # position in the file, from 0
    config_type: str | None = None


@dataclass(frozen=True)
class Comparison(Named):
    """Predictions for S frames with N atoms in all, and their labels: plain arrays, no graphs.

    Missing labels are NaN, and so is a predicted stress of a frame that is not periodic in all directions.
    """

    sources: list[FrameOrigin]
    num_atoms: NDArray  # (S,) atoms in each frame
    atomic_numbers: NDArray  # (N,)
    values: dict[str, NDArray]  # predicted, of each quantity that the model has: (S, ...) or (N, ...)
    reference: dict[str, NDArray]  # labels of the same quantities
    uncertainty: NDArray | None = None  # (S,) eV/atom, of the energies, if the model knows it
    marks: NDArray | None = None  # (N,) uint8, as those of frames; None: all zero

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
        return any(not np.isnan(reference).all() for reference in self.reference.values())

    def atoms_of(self, i: int) -> slice:
        """The rows of frame ``i`` in arrays over atoms."""
        return slice(self.offsets[i], self.offsets[i + 1])

    def error(self, name: str) -> NDArray:
        """(S, ...) or (N, ...), predicted − reference; of energies per atom."""
        return QUANTITIES[name].error(self.values[name], self.reference[name], self.num_atoms)

    def select(self, chosen: NDArray) -> "Comparison":
        """The same for the frames where ``chosen`` (S,) is true."""
        atoms = np.repeat(chosen, self.num_atoms)

        def rows(values: dict[str, NDArray]) -> dict[str, NDArray]:
            return {name: value[QUANTITIES[name].choose(chosen, atoms)] for name, value in values.items()}

        sources = [source for source, wanted in zip(self.sources, chosen, strict=True) if wanted]
        own = self.num_atoms[chosen], self.atomic_numbers[atoms]
        uncertainty = None if self.uncertainty is None else self.uncertainty[chosen]
        marks = None if self.marks is None else self.marks[atoms]
        return Comparison(sources, *own, rows(self.values), rows(self.reference), uncertainty, marks)


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
        [FrameOrigin(frame.file, frame.index, frame.config_type) for frame in frames],
        model.species,
        model.device,
        max_edges or most_edges(model.runs_on),
    )


def compare(
    predict: Callable[[AtomicGraph], Prediction],
    graphs: Iterable[AtomicGraph],
    sources: Sequence[FrameOrigin],
    species: Sequence[str],
    device: torch.device | str,
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
    numbers = np.array([number_of[symbol] for symbol in species])
    parts: list[Comparison] = []
    done = 0

    def compared(graph: AtomicGraph) -> Comparison:
        origins = list(sources[done : done + graph.num_structures])
        return _compared(predict(graph.to(device)), graph, origins, numbers)

    tracked = track(graphs, "evaluating", len(sources))
    for batch in _batches(tracked, max_edges or most_edges(device)):
        for part in by_halves(compared, collate(batch), _warn_of_halving):
            _refuse_non_finite(part)
            parts.append(part)
            done += len(part.num_atoms)

    def joined(field: str) -> dict[str, NDArray]:
        columns = [getattr(part, field) for part in parts]
        return {name: np.concatenate([column[name] for column in columns]) for name in columns[0]}

    num_atoms = np.concatenate([part.num_atoms for part in parts])
    atomic_numbers = np.concatenate([part.atomic_numbers for part in parts])
    columns = joined("values"), joined("reference")
    known = [part.uncertainty for part in parts if part.uncertainty is not None]
    uncertainty = np.concatenate(known) if known else None
    marks = None
    if any(part.marks is not None for part in parts):
        zeros = (np.zeros(len(part.atomic_numbers), np.uint8) for part in parts)
        marks = np.concatenate([o if p.marks is None else p.marks for p, o in zip(parts, zeros, strict=True)])
    return Comparison(list(sources), num_atoms, atomic_numbers, *columns, uncertainty, marks)


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


def _compared(
    prediction: Prediction, graph: AtomicGraph, sources: list[FrameOrigin], numbers: NDArray
) -> Comparison:
    num_atoms = torch.bincount(graph.structure, minlength=graph.num_structures).numpy()
    predicted = {name: prediction.of(name) for name in QUANTITIES}
    known = {name: value for name, value in predicted.items() if value is not None}
    values = {name: value.detach().cpu().numpy().astype(float) for name, value in known.items()}
    reference = {name: _reference(name, graph, value) for name, value in values.items()}
    sigma = prediction.energy_uncertainty
    uncertainty = None if sigma is None else sigma.numpy() / num_atoms
    marks = None if graph.marks is None else graph.marks.numpy()
    of_atoms = numbers[graph.atom_types.numpy()]
    return Comparison(sources, num_atoms, of_atoms, values, reference, uncertainty, marks)


def _reference(name: str, graph: AtomicGraph, predicted: NDArray) -> NDArray:
    label, quantum = graph.labels.values.get(name), QUANTITIES[name].quantum
    if label is None:
        return np.full(predicted.shape, np.nan)
    value = label.value
    if quantum:
        value = nearest_branch(value, torch.from_numpy(predicted), graph, quantum)
    mask = label.mask.view(-1, *(1,) * (value.dim() - 1))
    return torch.where(mask, value, torch.nan).numpy().astype(float)


def _refuse_non_finite(part: Comparison) -> None:
    """A NaN would otherwise pass for a missing label. The stress of a molecule is one."""
    frames = np.arange(part.num_frames)
    wrong = np.zeros(part.num_frames, dtype=bool)
    for name, value in part.values.items():
        quantity = QUANTITIES[name]
        if not quantity.needs_volume:
            rows = ~np.isfinite(value.reshape(len(value), -1)).all(axis=1)
            wrong[quantity.choose(frames, np.repeat(frames, part.num_atoms))[rows]] = True
    if wrong.any():
        file, index, _ = part.sources[int(wrong.argmax())]
        raise EvaluationError(
            f"The model's results are not finite for {file}, frame {index} (the first is 0): is it a "
            "structure like those of the training, in the same units? If so, the model is not usable."
        )
