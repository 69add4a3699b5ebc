"""Graphs of frames: types, edges, labels with masks, and what is refused."""

import ase
import numpy as np
import pytest
import torch
from ase.build import bulk, molecule

from equipot.data import GraphDataset, atom_types, graph_from_atoms, species_of, to_graph
from equipot.errors import DataError, UnknownSpeciesError
from equipot.graph import edge_vectors

METHANE = [[0, 0, 0], [0.63, 0.63, 0.63], [-0.63, -0.63, 0.63], [0.63, -0.63, -0.63], [-0.63, 0.63, -0.63]]


def test_graph_of_a_molecule(make_frame):
    forces = np.arange(15.0).reshape(5, 3)
    graph = to_graph(make_frame("CH4", METHANE, energy=-24.0, forces=forces), ["H", "C"], 1.5)
    assert graph.atom_types.tolist() == [1, 0, 0, 0, 0]
    assert graph.edge_index.tolist() == [[0, 0, 0, 0, 1, 2, 3, 4], [1, 2, 3, 4, 0, 0, 0, 0]]
    assert graph.structure.tolist() == [0] * 5
    assert graph.labels.energy.value.tolist() == [-24.0]
    assert graph.labels.energy.mask.tolist() == [True]
    assert graph.labels.forces.value.tolist() == forces.tolist()
    assert graph.labels.forces.mask.tolist() == [True] * 5
    assert graph.labels.stress is None
    dtypes = [graph.positions.dtype, graph.cell.dtype, graph.labels.energy.value.dtype]
    assert dtypes == [torch.float64] * 3


def test_graph_of_a_crystal_smaller_than_the_cutoff(make_frame):
    atoms = bulk("Cu", "fcc", a=3.6)
    stress = np.diag([0.1, 0.2, 0.3])
    graph = to_graph(make_frame("Cu", atoms.positions, atoms.cell, True, stress=stress), ["Cu"], 3.0)
    assert graph.num_edges == 12  # nearest neighbors at a/√2
    lengths = torch.linalg.norm(edge_vectors(graph), dim=1).numpy()
    np.testing.assert_allclose(lengths, 3.6 / np.sqrt(2), rtol=1e-14)  # rounding of a few operations
    assert graph.labels.stress.value.tolist() == [stress.tolist()]
    assert graph.labels.stress.mask.tolist() == [True]
    assert graph.labels.energy is None


def test_graph_from_atoms():
    graph = graph_from_atoms(molecule("CH3CH2OH"), ["H", "C", "O"], 5.0)
    assert graph.num_atoms == 9
    assert graph.num_edges == 72  # every pair of ethanol is within 5 Å
    assert graph.labels.energy is graph.labels.forces is graph.labels.stress is None


def test_dataset_keeps_order_and_graphs(make_frame):
    frames = [make_frame("H2", [[0, 0, 0], [0, 0, 0.7 + 0.1 * i]], energy=float(i)) for i in range(4)]
    dataset = GraphDataset(frames, ["H"], 3.0)
    assert len(dataset) == 4
    assert [dataset[i].labels.energy.value.item() for i in range(4)] == [0.0, 1.0, 2.0, 3.0]
    assert dataset[2] is dataset[2]


def test_dataset_knows_sizes_and_labels_of_its_frames(make_frame):
    near, far = [[0, 0, 0], [0, 0, 0.8]], [[0, 0, 0], [0, 0, 9.0]]
    frames = [
        make_frame("H2", near, energy=1.0, forces=np.ones((2, 3))),
        make_frame("H2", far, 20 * np.eye(3), True, stress=np.eye(3)),
        make_frame("H", [[0, 0, 0]]),
    ]
    dataset = GraphDataset(frames, ["H"], 3.0)
    assert dataset.num_atoms.tolist() == [2, 2, 1]
    assert dataset.num_edges.tolist() == [2, 0, 0]
    assert dataset.label_counts.tolist() == [[1, 6, 0], [0, 0, 9], [0, 0, 0]]
    empty = GraphDataset([], ["H"], 3.0)
    assert empty.num_atoms.shape == empty.num_edges.shape == (0,) and empty.label_counts.shape == (0, 3)


def test_unknown_species_is_named_with_its_place(make_frame):
    frames = [
        make_frame("H2", [[0, 0, 0], [0, 0, 0.7]]),
        make_frame("CO", [[0, 0, 0], [0, 0, 1.1]], file="a.xyz"),
    ]
    with pytest.raises(UnknownSpeciesError) as error:
        GraphDataset(frames, ["H", "C"], 3.0)
    assert str(error.value).startswith(
        "a.xyz, frame 0 (the first is 0) contains O, but the known species are H, C."
    )


def test_unknown_species_of_an_ase_structure():
    with pytest.raises(UnknownSpeciesError, match=r"The structure contains C, O"):
        graph_from_atoms(molecule("CO2"), ["H"], 3.0)


@pytest.mark.parametrize(
    ("species", "message"), [(["H", "Hx"], "'Hx'"), (["H", "C", "H"], "'H' is more than once")]
)
def test_species_list_is_checked(make_frame, species, message):
    with pytest.raises(UnknownSpeciesError, match=message):
        GraphDataset([], species, 3.0)


def test_atom_types():
    assert atom_types(np.array([8, 1, 1, 6]), ["C", "H", "O"]).tolist() == [2, 1, 1, 0]


def test_species_are_sorted_by_atomic_number(make_frame):
    frames = [make_frame("OH", [[0, 0, 0], [1, 0, 0]]), make_frame("CuC", [[0, 0, 0], [2, 0, 0]])]
    assert species_of(frames) == ["H", "C", "O", "Cu"]


def test_coinciding_atoms(make_frame):
    frame = make_frame("H3", [[0, 0, 0], [0, 0, 1], [0, 0, 1.01]], file="a.xyz", index=4)
    with pytest.raises(DataError, match=r"a.xyz, frame 4 .*: atoms 1 and 2 are 0.0100 Å apart\."):
        to_graph(frame, ["H"], 3.0)


def test_atoms_that_coincide_through_the_boundary(make_frame):
    frame = make_frame("H2", [[0, 0, 0.0], [0, 0, 4.95]], 5 * np.eye(3), True)
    with pytest.raises(DataError, match=r"0.0500 Å apart .across the cell boundary"):
        to_graph(frame, ["H"], 3.0)


def test_exactly_coinciding_atoms():
    with pytest.raises(DataError, match=r"0\.0000 Å apart"):
        graph_from_atoms(ase.Atoms("H2", positions=np.ones((2, 3))), ["H"], 3.0)
