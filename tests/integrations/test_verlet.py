"""The list with a skin gives the edges of a list built afresh, and is rebuilt no more than needed."""

import numpy as np
import pytest

from equipot.data.neighbors import neighbor_list
from equipot.errors import DataError
from equipot.integrations.verlet import VerletList, spatial_order

CUTOFF = 3.0


def fresh(positions, cell, pbc):
    edge_index, edge_shift = neighbor_list(positions, cell, pbc, CUTOFF)
    return edge_index, positions[edge_index[1]] + edge_shift @ cell - positions[edge_index[0]]


def canonical(edge_index, edge_vec):
    """Rows (center, neighbor, vector), in an order that does not depend on how images are named."""
    rows = np.column_stack([np.asarray(edge_index).T, np.round(np.asarray(edge_vec), 8)])
    return rows[np.lexsort(rows.T[::-1])]


def assert_right(verlet, positions, cell, pbc):
    edge_vec, edge_index, squared, order, place = verlet.edges(positions, cell, pbc)
    assert (order[place] == np.arange(len(positions))).all()
    np.testing.assert_allclose(squared, np.linalg.norm(edge_vec, axis=1) ** 2, rtol=1e-12)
    assert (np.diff(edge_index[0]) >= 0).all(), "not sorted by center"
    expected = canonical(*fresh(positions, cell, pbc))
    np.testing.assert_allclose(canonical(order[edge_index], edge_vec), expected, atol=1e-8)


def random_crystal(seed, pbc):
    rng = np.random.default_rng(seed)
    cell = np.diag([4.1, 5.2, 6.3]) + rng.uniform(-0.5, 0.5, (3, 3))
    return rng, rng.random((20, 3)) @ cell, cell, np.array(pbc)


@pytest.mark.parametrize("pbc", [[True] * 3, [True, False, True], [False] * 3])
def test_small_steps_reuse_the_list(pbc):
    rng, positions, cell, pbc = random_crystal(0, pbc)
    verlet = VerletList(CUTOFF, 0.6)
    for _ in range(40):
        assert_right(verlet, positions, cell, pbc)
        positions = positions + rng.normal(scale=0.03, size=positions.shape)
    assert 1 < verlet.builds < 20


def test_straight_approach_is_not_missed():
    """The worst case: two atoms outside the skin run toward each other."""
    positions = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, CUTOFF + 0.501]])
    verlet, cell, pbc = VerletList(CUTOFF, 0.5), np.zeros((3, 3)), np.zeros(3, dtype=bool)
    for _ in range(40):
        assert_right(verlet, positions, cell, pbc)
        positions = positions + np.array([[0.0, 0.0, 0.01], [0.0, 0.0, -0.01]])
    assert verlet.builds == 2


def test_wrapping_rebuilds():
    _, positions, cell, pbc = random_crystal(1, [True] * 3)
    verlet = VerletList(CUTOFF, 0.6)
    assert_right(verlet, positions, cell, pbc)
    assert_right(verlet, positions + cell[0], cell, pbc)
    wrapped = positions.copy()
    wrapped[3] += 2 * cell[1]
    assert_right(verlet, wrapped, cell, pbc)
    assert verlet.builds == 3


def test_slow_strain_reuses_the_list():
    rng, positions, cell, pbc = random_crystal(2, [True] * 3)
    verlet = VerletList(CUTOFF, 0.6)
    for _ in range(60):
        assert_right(verlet, positions, cell, pbc)
        strain = 0.995 * np.eye(3) + rng.normal(scale=0.003, size=(3, 3))
        positions, cell = positions @ strain, cell @ strain
    assert 1 < verlet.builds < 30


def test_cell_change_at_fixed_positions():
    """Atoms stay where they are in space: relative to the cell they move."""
    _, positions, cell, pbc = random_crystal(3, [True] * 3)
    verlet = VerletList(CUTOFF, 0.6)
    for scale in (1.0, 0.99, 0.9, 1.05):
        assert_right(verlet, positions, scale * cell, pbc)


def test_other_structures_in_between():
    verlet = VerletList(CUTOFF, 0.6)
    _, positions, cell, pbc = random_crystal(4, [True] * 3)
    for seed, count in ((5, 20), (6, 7), (7, 20)):
        assert_right(verlet, positions, cell, pbc)
        other = np.random.default_rng(seed).random((count, 3)) * 6.0
        assert_right(verlet, other, np.zeros((3, 3)), np.zeros(3, dtype=bool))
    assert_right(verlet, positions, cell, np.array([True, True, False]))


def test_no_skin_rebuilds_always():
    _, positions, cell, pbc = random_crystal(8, [True] * 3)
    verlet = VerletList(CUTOFF, 0.0)
    for _ in range(3):
        assert_right(verlet, positions, cell, pbc)
    assert verlet.builds == 3


def test_the_list_keeps_its_own_copy():
    """ASE changes positions in place; a list that kept a reference would never see them move."""
    _, positions, cell, pbc = random_crystal(9, [True] * 3)
    verlet = VerletList(CUTOFF, 0.6)
    for _ in range(3):
        assert_right(verlet, positions, cell, pbc)
        positions += 0.4
        positions[0] += 0.4
    assert verlet.builds == 3


def test_order_puts_neighbors_in_space_side_by_side():
    """4,096 atoms on a grid, mixed up: then most of an atom's neighbors are within 100 rows."""
    rng = np.random.default_rng(0)
    places = np.stack(np.meshgrid(*[np.arange(16.0)] * 3), axis=-1).reshape(-1, 3)
    cell, pbc = 16.0 * np.eye(3), np.ones(3, dtype=bool)
    positions = (rng.permutation(places) + 0.5) + rng.integers(-2, 3, (4096, 1)) * cell[0]  # in other images
    order = spatial_order(positions, cell, pbc, spacing=1.0)
    assert sorted(order) == list(range(4096))

    def near(positions):
        center, neighbor = neighbor_list(positions, cell, pbc, 1.8)[0]
        return np.mean(np.abs(center - neighbor) <= 100)

    assert near(positions) < 0.1
    assert near(positions[order]) > 0.5


@pytest.mark.parametrize("pbc", [[True] * 3, [False, True, False], [False] * 3])
def test_order_of_few_and_far_atoms(pbc):
    cell = np.diag([0.0, 4.0, 0.0]) if pbc == [False, True, False] else 4.0 * np.eye(3)
    for positions in (np.zeros((0, 3)), np.zeros((3, 3)), np.array([[1e9, 0.0, 0.0], [0.0, 0.0, 0.0]])):
        order = spatial_order(positions, cell, np.array(pbc), 1.0)
        assert sorted(order) == list(range(len(positions)))


def test_cells_without_a_neighbor_list():
    verlet, positions = VerletList(CUTOFF, 0.5), np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    parallel = np.array([[5.0, 0, 0], [5, 0, 0], [0, 0, 5]])
    for cell in (np.zeros((3, 3)), np.diag([5.0, 5.0, 0.0]), parallel, np.full((3, 3), np.nan)):
        with pytest.raises(DataError, match="pbc is T T T, but the lattice vectors"):
            verlet.edges(positions, cell, np.ones(3, bool))


def test_vectors_of_open_directions_do_not_matter():
    _, positions, cell, pbc = random_crystal(3, [True, True, False])
    for vector in ([0, 0, 0], cell[0], [0, 0, 1e-9]):
        other = np.array([cell[0], cell[1], vector])
        assert_right(VerletList(CUTOFF, 0.5), positions, other, pbc)
