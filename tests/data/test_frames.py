"""Labels by name, unit conversion, and what makes a structure unusable."""

import ase
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms

from equipot.config.data import LabelsConfig, UnitsConfig
from equipot.data import frame_from_atoms
from equipot.errors import DataError

LABELS = LabelsConfig()
VOIGT = np.array([1.0, 2, 3, 4, 5, 6])  # xx yy zz yz xz xy
FULL = np.array([[1.0, 6, 5], [6, 2, 4], [5, 4, 3]])


@pytest.fixture
def crystal():
    atoms = ase.Atoms("Si2", positions=[[0, 0, 0], [1.4, 1.3, 1.2]], cell=[4, 4, 5], pbc=True)
    atoms.info.update(energy=-8.0, stress=VOIGT.copy())
    atoms.arrays["forces"] = np.array([[1.0, 0, 0], [-1, 0, 0]])
    return atoms


def failing(atoms, labels=LABELS):
    with pytest.raises(DataError) as error:
        frame_from_atoms(atoms, labels, file="data.xyz", index=7)
    message = str(error.value)
    assert message.startswith("data.xyz, frame 7 (the first is 0)")
    return message


def test_structure_and_labels_are_taken_over(crystal):
    frame = frame_from_atoms(crystal, LABELS)
    assert frame.positions.tolist() == crystal.positions.tolist()
    assert frame.cell.tolist() == [[4, 0, 0], [0, 4, 0], [0, 0, 5]]
    assert frame.pbc.tolist() == [True, True, True]
    assert frame.atomic_numbers.tolist() == [14, 14]
    assert frame.energy == -8.0
    assert frame.forces.tolist() == [[1, 0, 0], [-1, 0, 0]]
    assert frame.stress.tolist() == FULL.tolist()


def test_without_label_names_nothing_is_read(crystal):
    frame = frame_from_atoms(crystal)
    assert frame.energy is frame.forces is frame.stress is None


def test_label_name_of_none_is_not_read(crystal):
    frame = frame_from_atoms(crystal, LabelsConfig(stress=None))
    assert frame.stress is None
    assert frame.energy == -8.0


def test_label_whose_value_is_none_counts_as_missing(crystal):
    crystal.info["energy"] = None
    assert frame_from_atoms(crystal, LABELS).energy is None


@pytest.mark.parametrize("value", [VOIGT, FULL, FULL.ravel(), VOIGT.tolist()])
def test_shapes_of_stress(crystal, value):
    crystal.info["stress"] = value
    assert frame_from_atoms(crystal, LABELS).stress.tolist() == FULL.tolist()


def test_labels_in_an_ase_calculator_are_found_despite_constraints(crystal):
    labels = {"energy": -3.0, "forces": np.ones((2, 3)), "stress": VOIGT}
    for key in ("energy", "stress"):
        del crystal.info[key]
    del crystal.arrays["forces"]
    crystal.calc = SinglePointCalculator(crystal, **labels)
    crystal.set_constraint(FixAtoms([0]))  # get_forces() would give zeros for atom 0
    frame = frame_from_atoms(crystal, LABELS)
    assert frame.energy == -3.0
    assert frame.forces.tolist() == np.ones((2, 3)).tolist()
    assert frame.stress.tolist() == FULL.tolist()


def test_frame_does_not_share_memory_with_the_structure(crystal):
    frame = frame_from_atoms(crystal, LABELS)
    crystal.positions += 1
    crystal.arrays["forces"] += 1
    assert frame.positions[0].tolist() == [0, 0, 0]
    assert frame.forces[0].tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("units", "energy", "length"),
    [
        # CODATA: 1 Hartree = 27.211386 eV, 1 Bohr = 0.52917721 Å, 1 kcal/mol = 0.043364104 eV
        (UnitsConfig(energy="kcal/mol", length="Ang"), 0.043364104, 1.0),
        (UnitsConfig(energy="Hartree", length="Bohr"), 27.211386, 0.52917721),
        (UnitsConfig(energy="eV", length="nm"), 1.0, 10.0),
    ],
)
def test_units(crystal, units, energy, length):
    # Tolerance: the constants above have 8 digits, the stress has length³.
    frame = frame_from_atoms(crystal, LABELS, units)
    np.testing.assert_allclose(frame.positions, crystal.positions * length, rtol=3e-8)
    np.testing.assert_allclose(frame.cell, np.diag([4, 4, 5]) * length, rtol=3e-8)
    np.testing.assert_allclose(frame.energy, -8.0 * energy, rtol=3e-8)
    np.testing.assert_allclose(frame.forces[0], [energy / length, 0, 0], rtol=1e-7)
    np.testing.assert_allclose(frame.stress, FULL * energy / length**3, rtol=1e-7)


@pytest.mark.parametrize("pbc", [False, [True, True, False]])
def test_stress_needs_a_full_periodic_cell(crystal, pbc):
    crystal.pbc = pbc
    message = failing(crystal)
    assert "stress 'stress' is given, but pbc is" in message
    assert "data.labels.stress" in message
    assert frame_from_atoms(crystal, LabelsConfig(stress=None)).energy == -8.0


def test_stress_that_is_not_symmetric(crystal):
    crystal.info["stress"] = np.arange(9.0)
    assert "not symmetric" in failing(crystal)


def test_stress_of_wrong_size(crystal):
    crystal.info["stress"] = np.arange(5.0)
    assert "must be 6 numbers (xx yy zz yz xz xy) or 3x3, but has shape (5,)" in failing(crystal)


def test_forces_of_wrong_shape(crystal):
    crystal.arrays["bad"] = np.zeros((2, 2))
    assert "forces 'bad' must have shape (2, 3)" in failing(crystal, LabelsConfig(forces="bad"))


def test_energy_that_is_no_number(crystal):
    crystal.info["energy"] = "unknown"
    assert "'energy' must be one number, but is 'unknown'" in failing(crystal)
    crystal.info["energy"] = [1.0, 2.0]
    assert "energy 'energy' must be one number, but has shape (2,)" in failing(crystal)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_labels_must_be_finite(crystal, value):
    crystal.info["energy"] = value
    assert f"'energy' is {value}" in failing(crystal)
    crystal.info["energy"] = 0.0
    crystal.arrays["forces"][1, 2] = value
    assert f"'forces' is {value} of atom 1" in failing(crystal)
    crystal.arrays["forces"][1, 2] = 0.0
    crystal.info["stress"][3] = value
    assert f"'stress' is {value}" in failing(crystal)


def test_positions_and_cell_must_be_finite(crystal):
    crystal.positions[1, 0] = np.nan
    assert "'positions' is nan of atom 1" in failing(crystal)
    crystal.positions[1, 0] = 0.5
    crystal.cell[0, 0] = np.inf
    assert "'cell' is inf;" in failing(crystal)


@pytest.mark.parametrize("cell", [np.zeros((3, 3)), [[4, 0, 0], [8, 0, 0], [0, 0, 4]]])
def test_periodic_cell_without_volume(crystal, cell):
    crystal.cell[:] = cell
    assert "pbc is T T T" in failing(crystal)


def test_open_directions_need_no_lattice_vector(crystal):
    crystal.cell[2] = 0
    crystal.pbc = [True, True, False]
    assert frame_from_atoms(crystal, LabelsConfig(stress=None)).cell[2].tolist() == [0, 0, 0]


def test_left_handed_cell_is_fine(crystal):
    crystal.cell[:] = np.diag([4, 4, -5.0])
    assert frame_from_atoms(crystal, LABELS).num_atoms == 2


def test_structure_without_atoms():
    assert "no atoms" in failing(ase.Atoms())


def test_dummy_atom():
    assert "atom 1 is not a chemical element" in failing(ase.Atoms("HX", positions=[[0, 0, 0], [1, 0, 0]]))


@pytest.mark.parametrize(
    ("atoms", "isolated"),
    [
        (ase.Atoms("H"), True),
        (ase.Atoms("H", cell=[9, 9, 9], pbc=True, info={"config_type": "IsolatedAtom"}), True),
        (ase.Atoms("H", cell=[9, 9, 9], pbc=True, info={"config_type": "isolated_atom"}), True),
        (ase.Atoms("Cu", cell=[[0, 2, 2], [2, 0, 2], [2, 2, 0]], pbc=True), False),
        (ase.Atoms("Cu", cell=[2, 0, 0], pbc=[True, False, False]), False),
        (ase.Atoms("H2", positions=[[0, 0, 0], [0, 0, 0.7]]), False),
    ],
)
def test_isolated_atoms(atoms, isolated):
    assert frame_from_atoms(atoms).is_isolated_atom is isolated
