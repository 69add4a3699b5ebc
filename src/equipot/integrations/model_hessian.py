"""A guess of the second derivatives of the energy by positions and strain, from bond lengths alone."""

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array, eye_array

_HALF = np.sqrt(0.5)
# (6, 3, 3), orthonormal: xx yy zz yz xz xy.
STRAINS = np.zeros((6, 3, 3))
STRAINS[[0, 1, 2], [0, 1, 2], [0, 1, 2]] = 1.0
STRAINS[[3, 4, 5], [1, 0, 0], [2, 2, 1]] = STRAINS[[3, 4, 5], [2, 2, 1], [1, 0, 0]] = _HALF

# eV/Å² of a bond as long as the covalent radii together; how it falls off with the length in such units; how
# much of it acts across the bond; of each atom, so that none is free.
_STIFFNESS, _DECAY, _ACROSS, _GROUND = 6.0, 3.0, 0.1, 0.3
_LEAST = 0.02  # of the stiffness; weaker bonds are left out


def model_hessian(edge_vec: NDArray, edge_index: NDArray, radii: NDArray, strain_length: float) -> csr_array:
    """(3N + 6, 3N + 6) eV/Å², positive definite, by positions and `STRAINS` times ``strain_length`` (Å).

    Springs k = k₀ exp(−A (r / r₀ − 1)) between atoms, along the bond and, weaker, across it: positions and
    cell are coupled as they are in the crystal. edge_vec (E, 3) Å, both directions; radii (N,) Å, covalent.
    Sources: Packwood et al., J. Chem. Phys. 144, 164109 (2016), the springs; Fernández-Serra et al., Phys.
    Rev. B 68, 100101 (2003), those of a cell.
    """
    size, (center, neighbor) = len(radii), edge_index
    length = np.sqrt(np.einsum("ea,ea->e", edge_vec, edge_vec))
    strength = np.exp(-_DECAY * (length / (radii[center] + radii[neighbor]) - 1.0))
    bonds = np.flatnonzero(strength > _LEAST)
    center, neighbor, vec = center[bonds], neighbor[bonds], edge_vec[bonds]
    unit = vec / length[bonds, None]
    spring = (1.0 - _ACROSS) * unit[:, :, None] * unit[:, None, :] + _ACROSS * np.eye(3)
    spring *= _STIFFNESS * np.minimum(strength[bonds], 3.0)[:, None, None]
    stretch = np.einsum("mab,eb->eam", STRAINS, vec) / strain_length
    pulled = spring @ stretch

    # A pair is there twice: half its energy is at each edge.
    axes = np.arange(3)
    row, column = np.broadcast_arrays(3 * center[:, None, None] + axes[:, None], axes)
    blocks = [
        (row, 3 * center[:, None, None] + column, spring),
        (row, 3 * neighbor[:, None, None] + column, -spring),
    ]
    strains = 3 * size + np.arange(6)
    row, column = np.broadcast_arrays(3 * center[:, None, None] + axes[:, None], strains)
    blocks += [(row, column, -pulled), (column, row, -pulled)]
    row, column = np.meshgrid(strains, strains, indexing="ij")
    blocks.append((row, column, 0.5 * np.einsum("eam,ean->mn", stretch, pulled)))
    row, column, value = (np.concatenate([block[n].ravel() for block in blocks]) for n in range(3))
    length = 3 * size + 6
    return coo_array((value, (row, column)), (length, length)).tocsr() + _GROUND * eye_array(
        length, format="csr"
    )
