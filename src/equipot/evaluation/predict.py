"""Predict energies, forces and stress of frames, in batches, and keep them beside their labels."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from equipot.data.dataset import atom_types, to_graph
from equipot.data.frames import Frame
from equipot.data.progress import track
from equipot.evaluation.model import LoadedModel
from equipot.graph import collate


@dataclass(frozen=True)
class Comparison:
    """Predictions for S frames with N atoms in all, and the labels the frames carry.

    Missing labels are NaN, and so is the predicted stress of a frame that is not periodic in all directions.
    """

    frames: list[Frame]
    energy: NDArray  # (S,) predicted, eV
    forces: NDArray  # (N, 3) predicted, eV/Å
    stress: NDArray  # (S, 3, 3) predicted, eV/Å³, positive under tension

    @cached_property
    def num_atoms(self) -> NDArray:
        """(S,) atoms in each frame."""
        return np.array([frame.num_atoms for frame in self.frames])

    @cached_property
    def offsets(self) -> NDArray:
        """(S + 1,) frame i holds the atoms offsets[i] to offsets[i + 1]."""
        return np.concatenate([[0], np.cumsum(self.num_atoms)])

    @cached_property
    def atomic_numbers(self) -> NDArray:
        return np.concatenate([frame.atomic_numbers for frame in self.frames])

    @cached_property
    def reference_energy(self) -> NDArray:
        return np.array([np.nan if f.energy is None else f.energy for f in self.frames], dtype=float)

    @cached_property
    def reference_forces(self) -> NDArray:
        rows = [np.full(f.positions.shape, np.nan) if f.forces is None else f.forces for f in self.frames]
        return np.concatenate(rows)

    @cached_property
    def reference_stress(self) -> NDArray:
        return np.array([np.full((3, 3), np.nan) if f.stress is None else f.stress for f in self.frames])

    @property
    def has_labels(self) -> bool:
        """Whether any frame has any label."""
        return any(v is not None for f in self.frames for v in (f.energy, f.forces, f.stress))

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

    def select(self, indices: Sequence[int]) -> "Comparison":
        """The same for some of the frames."""
        return Comparison(
            frames=[self.frames[i] for i in indices],
            energy=self.energy[indices],
            forces=np.concatenate([self.forces[self.atoms_of(i)] for i in indices]),
            stress=self.stress[indices],
        )


def predict_frames(model: LoadedModel, frames: Sequence[Frame], batch_size: int = 16) -> Comparison:
    """Run ``model`` over ``frames``, ``batch_size`` at a time, with a progress bar when it takes long.

    Raises:
        UnknownSpeciesError: a frame holds an element the model does not know; before anything is run.
    """
    for frame in frames:
        atom_types(frame.atomic_numbers, model.species, frame.where)
    energy, forces, stress = [], [], []
    for batch in track(_batches(frames, batch_size), "evaluating", -(-len(frames) // batch_size)):
        graph = collate([to_graph(frame, model.species, model.cutoff) for frame in batch])
        prediction = model.predict(graph.to(model.device))
        energy.append(_to_numpy(prediction.energy))
        forces.append(_to_numpy(prediction.forces))
        stress.append(_to_numpy(prediction.stress))
    return Comparison(list(frames), np.concatenate(energy), np.concatenate(forces), np.concatenate(stress))


def _batches(frames: Sequence[Frame], size: int) -> Iterator[Sequence[Frame]]:
    for start in range(0, len(frames), size):
        yield frames[start : start + size]


def _to_numpy(tensor: torch.Tensor) -> NDArray:
    return tensor.detach().cpu().numpy().astype(float)
