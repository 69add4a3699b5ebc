"""Second derivatives of a model's energy by automatic differentiation: no displacements, no tables."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray

from equipot.data.neighbors import neighbor_list
from equipot.deploy.checkpoint import load_training_state
from equipot.models.potential import Potential


def hessian_rows(files: Sequence[str | Path], atoms: Atoms, rows: Sequence[int]) -> NDArray:
    """(R, N, 3, 3) eV/Å², ∂²E/∂r_i∂r_j of the atoms i in ``rows``; of several deployed files the mean.

    The model is built anew from the weights in its file, in torch and double precision, with the radial
    networks that the file's tables stand for: an independent route to what displacements give.

    Raises:
        ModelFileError: a file has no weights to build it from.
    """
    return np.mean([_of_one(load_training_state(file).potential, atoms, rows) for file in files], axis=0)


def _of_one(potential: Potential, atoms: Atoms, rows: Sequence[int]) -> NDArray:
    potential = potential.double().train()  # where second derivatives exist
    index, shift = neighbor_list(atoms.positions, atoms.cell, atoms.pbc, potential.cutoff)
    center, neighbor = (torch.as_tensor(of) for of in index)
    positions = torch.tensor(atoms.positions, requires_grad=True)
    offset = torch.as_tensor(shift @ atoms.cell.array)
    types = torch.tensor([potential.species.index(symbol) for symbol in atoms.symbols])
    vectors = positions[neighbor] + offset - positions[center]
    energy = potential.atom_energies(vectors, torch.stack([center, neighbor]), types).sum()
    [gradient] = torch.autograd.grad(energy, positions, create_graph=True)
    found = np.zeros((len(rows), len(atoms), 3, 3))
    for place, row in enumerate(rows):
        for axis in range(3):
            [second] = torch.autograd.grad(gradient[row, axis], positions, retain_graph=True)
            found[place, :, axis] = second.numpy()
    return found
