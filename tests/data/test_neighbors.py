"""Neighbor lists against a brute-force search over images."""

import itertools

import numpy as np
import pytest

from equipot.data.neighbors import METHODS, neighbor_list, torch_neighbor_list
from equipot.errors import DataError


def brute_force(positions, cell, pbc, cutoff):
    """Sorted (i, j, shift) with r < cutoff, by trying every image that could matter."""
    positions, cell, pbc = np.asarray(positions), np.asarray(cell), np.asarray(pbc, dtype=bool)
    reach = cutoff + np.linalg.norm(np.ptp(positions, axis=0))
    images = np.zeros(3, dtype=int)
    if pbc.any():
        # |component of a vector along lattice vector k| <= |vector| |k-th reciprocal vector|
        images[pbc] = np.ceil(reach * np.linalg.norm(np.linalg.pinv(cell[pbc]), axis=0)) + 1
    shifts = np.array(list(itertools.product(*[range(-n, n + 1) for n in images])))
    vectors = positions[None, :, None] - positions[:, None, None] + shifts @ cell
    inside = np.linalg.norm(vectors, axis=-1) < cutoff
    for atom in range(len(positions)):
        inside[atom, atom, (shifts == 0).all(axis=1)] = False
    i, j, s = np.nonzero(inside)
    return sorted(zip(i.tolist(), j.tolist(), map(tuple, shifts[s].tolist()), strict=True))


def as_tuples(edge_index, edge_shift):
    return list(zip(*edge_index.tolist(), map(tuple, edge_shift.tolist()), strict=True))


def random_structure(random, pbc):
    """Few atoms, partly outside a triclinic cell that is often smaller than the cutoff."""
    while True:
        cell = random.normal(size=(3, 3)) * random.uniform(1.5, 5)
        heights = 1 / np.linalg.norm(np.linalg.pinv(cell[pbc]), axis=0) if pbc.any() else np.full(1, np.inf)
        if heights.min() > 1.2:
            return random.normal(size=(random.integers(1, 9), 3)) * random.uniform(1, 3), cell


@pytest.mark.parametrize("pbc", list(itertools.product([False, True], repeat=3)))
def test_random_triclinic_cells(pbc, method):
    pbc = np.array(pbc)
    random = np.random.default_rng(int(pbc @ [1, 2, 4]))
    edges = self_images = 0
    for _ in range(20):
        positions, cell = random_structure(random, pbc)
        if random.random() < 0.5:
            cell[~pbc] = 0  # open directions need no lattice vector
        cutoff = random.uniform(1.5, 4.5)
        edge_index, edge_shift = neighbor_list(positions, cell, pbc, cutoff, method)
        assert as_tuples(edge_index, edge_shift) == brute_force(positions, cell, pbc, cutoff)
        edges += edge_index.shape[1]
        self_images += int((edge_index[0] == edge_index[1]).sum())
    assert edges > 100  # the comparison above was not of empty lists
    assert (self_images > 0) == pbc.any()


@pytest.fixture(params=METHODS)
def method(request):
    if request.param == "vesin":
        pytest.importorskip("vesin")
    return request.param


def test_cell_smaller_than_the_cutoff(method):
    # A simple cubic lattice of one atom: 6 neighbors at 1, 12 at √2, 8 at √3, 6 at 2.
    edge_index, edge_shift = neighbor_list([[0.3, 0.2, 7.1]], np.eye(3), [True] * 3, 2.1, method)
    assert edge_index.shape == (2, 32)
    assert (edge_index == 0).all()
    assert edge_index.dtype == edge_shift.dtype == np.int64
    assert not (edge_shift == 0).all(axis=1).any()


def test_slab_has_no_edges_across_the_open_direction():
    positions = [[0, 0, 0.0], [0, 0, 9.5]]  # 0.5 apart if z were periodic
    edge_index, _ = neighbor_list(positions, 10 * np.eye(3), [True, True, False], 3.0)
    assert edge_index.shape == (2, 0)
    edge_index, edge_shift = neighbor_list(positions, 10 * np.eye(3), [True, True, True], 3.0)
    assert as_tuples(edge_index, edge_shift) == [(0, 1, (0, 0, -1)), (1, 0, (0, 0, 1))]


@pytest.mark.parametrize("shift", [[1, 0, 0], [-2, 3, 1]])
def test_atom_moved_by_lattice_vectors_keeps_its_neighbors(shift):
    random = np.random.default_rng(0)
    cell = 4 * np.eye(3) + 0.3 * random.normal(size=(3, 3))
    positions = random.uniform(0, 4, size=(5, 3))
    moved = positions.copy()
    moved[2] += np.array(shift) @ cell

    def vectors(points):
        (i, j), s = neighbor_list(points, cell, [True] * 3, 3.0)
        return sorted(zip(i, j, map(tuple, np.round(points[j] + s @ cell - points[i], 9) + 0.0), strict=True))

    assert vectors(moved) == vectors(positions)


def test_cutoff_is_exclusive():
    positions = [[0, 0, 0], [2.0, 0, 0]]
    assert neighbor_list(positions, np.zeros((3, 3)), [False] * 3, 2.0)[0].shape == (2, 0)
    assert neighbor_list(positions, np.zeros((3, 3)), [False] * 3, np.nextafter(2.0, 3))[0].shape == (2, 2)


@pytest.mark.parametrize("distance", [1e3, 1e6])
@pytest.mark.parametrize("pbc", [[False] * 3, [True, False, False]])
def test_far_fragments_are_found_and_cost_no_memory(distance, pbc, method):
    positions = [[0, 0, 0], [1, 0, 0], [distance] * 3, [distance, distance, distance - 1]]
    if method == "vesin":
        positions += np.arange(300.0).reshape(100, 3).tolist()  # otherwise all pairs are compared
        with pytest.raises(DataError, match="wider than 250 Å"):
            neighbor_list(positions, np.diag([7.0, 0, 0]), pbc, 5.0, method)
        return
    edge_index, _ = neighbor_list(positions, np.diag([7.0, 0, 0]), pbc, 5.0, method)
    assert edge_index.tolist() == [[0, 1, 2, 3], [1, 0, 3, 2]]


@pytest.mark.parametrize("pbc", [[False] * 3, [True, True, False], [False, True, False], [True] * 3])
def test_many_atoms_in_many_bins(pbc, method):
    """Molecule, slab, wire and crystal of 80 atoms, a third of them outside the cell."""
    random = np.random.default_rng(3)
    cell = np.diag([12.0, 9.0, 14.0]) + random.normal(size=(3, 3))
    positions = random.uniform(-0.1, 1.1, size=(80, 3)) @ cell
    found = as_tuples(*neighbor_list(positions, cell, pbc, 2.5, method))
    assert found == brute_force(positions, cell, pbc, 2.5) and len(found) > 60


def test_torch_leaves_the_edges_on_the_device():
    pytest.importorskip("torch")
    edge_index, edge_shift = torch_neighbor_list(np.zeros((1, 3)), np.eye(3), np.ones(3, bool), 1.5, "cpu")
    assert edge_index.shape == (2, 18) and edge_shift.shape == (18, 3)
    assert str(edge_index.dtype) == str(edge_shift.dtype) == "torch.int64"


def test_unknown_method():
    with pytest.raises(ValueError, match=r"matscipy, vesin, torch, not 'ase'"):
        neighbor_list([[0, 0, 0]], np.eye(3), [True] * 3, 1.0, "ase")


@pytest.mark.parametrize("num_atoms", [0, 1])
def test_no_edges(num_atoms):
    edge_index, edge_shift = neighbor_list(np.zeros((num_atoms, 3)), np.zeros((3, 3)), [False] * 3, 5.0)
    assert edge_index.shape == (2, 0)
    assert edge_shift.shape == (0, 3)


def test_periodic_direction_without_lattice_vector():
    with pytest.raises(DataError, match=r"pbc is T F F.*zero, parallel"):
        neighbor_list([[0, 0, 0]], np.diag([0.0, 5, 5]), [True, False, False], 3.0)


def test_positions_that_are_not_finite():
    with pytest.raises(DataError, match="not finite"):
        neighbor_list([[0, 0, np.nan]], np.eye(3), [True] * 3, 3.0)


@pytest.mark.parametrize("pbc", [[True] * 3, [False] * 3])
def test_positions_too_far_for_exact_distances(pbc):
    # A second atom of 1e12 Å would be counted as 2e11 lattice vectors away, which overflows.
    with pytest.raises(DataError, match=r"1e\+12 Å, too large"):
        neighbor_list([[0, 0, 0], [0, 0, 1e12]], 5.0 * np.eye(3), pbc, 3.0)


def test_cutoff_must_be_positive():
    with pytest.raises(ValueError, match="positive"):
        neighbor_list([[0, 0, 0]], np.eye(3), [True] * 3, 0.0)
