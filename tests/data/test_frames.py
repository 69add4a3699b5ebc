"""Labels by name, unit conversion, and what makes a structure unusable."""

import ase
import numpy as np
import pytest
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms

from equipot.config.data import LabelsConfig, Source, UnitsConfig
from equipot.data import frame_from_atoms
from equipot.data.frames import NO_LABELS, frame_of
from equipot.data.stated_units import check_units
from equipot.errors import DataError
from equipot.quantities import FIELD, declare

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
    for name, labels in (("stress", LABELS), ("virial", LabelsConfig(virial="virial"))):
        crystal.info[name] = crystal.info.pop("stress", VOIGT)
        frame = frame_from_atoms(crystal, labels)
        assert frame.stress is None and frame.label_weights == {"stress": 0.0}
        assert frame.energy == -8.0 and frame.forces is not None


@pytest.mark.parametrize(("key", "labels"), [("stress", LABELS), ("virial", LabelsConfig(virial="virial"))])
def test_stress_without_any_cell_means_that_the_cell_was_lost(crystal, key, labels):
    crystal.cell[:] = 0
    crystal.pbc = False
    crystal.info[key] = crystal.info.pop("stress")
    message = failing(crystal, labels)
    assert (
        f"{key} '{key}' is given, but the structure has no cell" in message and f"--{key}-key none" in message
    )
    crystal.info[key][:] = 0  # what calculators put there for molecules
    assert frame_from_atoms(crystal, labels).stress is None


@pytest.mark.parametrize("shape", [(6,), (9,), (3, 3)])
@pytest.mark.parametrize("unit", [None, "-eV", "kcal/mol"])
def test_virial_is_minus_volume_times_stress(crystal, shape, unit):
    """The stress of Lennard-Jones by ASE, whose virial Σ r F over pairs has the sign of −V · stress."""
    crystal.calc = LennardJones(sigma=2.0, epsilon=0.5, rc=6.0)
    stress = crystal.get_stress(voigt=False)
    scale = {None: 1, "-eV": -1, "kcal/mol": 1 / 0.0433641043}[unit]
    virial = -crystal.get_volume() * stress * scale
    crystal.calc = None
    crystal.info["dft_virial"] = (
        virial.reshape(shape) if shape != (6,) else virial[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
    )
    del crystal.info["stress"]
    frame = frame_from_atoms(crystal, LabelsConfig(virial="dft_virial"), UnitsConfig(virial=unit))
    np.testing.assert_allclose(frame.stress, stress, rtol=1e-8, atol=1e-14)  # digits of the constant


def test_virial_in_units_of_the_file(crystal):
    """The volume is that of the cell in Å, whatever the unit of length."""
    crystal.info["virial"] = -VOIGT
    del crystal.info["stress"]
    frame = frame_from_atoms(
        crystal, LabelsConfig(virial="virial"), UnitsConfig(energy="Hartree", length="Bohr")
    )
    np.testing.assert_allclose(frame.stress, FULL * 27.211386 / (80 * 0.52917721**3), rtol=1e-7)


def test_units_of_forces_and_stress_apart(crystal):
    units = UnitsConfig(forces="-Hartree/Bohr", stress="-kbar")
    frame = frame_from_atoms(crystal, LABELS, units)
    assert frame.energy == -8.0 and frame.positions.tolist() == crystal.positions.tolist()
    np.testing.assert_allclose(frame.forces[0], [-27.211386 / 0.52917721, 0, 0], rtol=1e-7)
    np.testing.assert_allclose(frame.stress, -FULL * 0.1 / 160.21766, rtol=1e-7)


def test_stress_and_virial_must_agree(crystal):
    labels = LabelsConfig(virial="virial")
    crystal.info["virial"] = -80.0 * VOIGT * 1.001  # rounded in the file
    assert frame_from_atoms(crystal, labels).stress.tolist() == FULL.tolist()
    crystal.info["virial"] = 80.0 * VOIGT
    message = failing(crystal, labels)
    assert (
        "stress 'stress' and virial 'virial' contradict each other" in message and "6 and -6 eV/Å³" in message
    )
    assert "data.labels.virial: null (--virial-key none)" in message
    assert frame_from_atoms(crystal, labels, UnitsConfig(virial="-eV")).stress.tolist() == FULL.tolist()


def test_weights_of_labels(crystal):
    crystal.info |= {"config_energy_weight": 0, "config_forces_weight": 2.5, "config_stress_weight": 0.0}
    crystal.info |= {"energy": np.nan, "stress": np.zeros(5)}  # what stands there does not matter
    frame = frame_from_atoms(crystal, LABELS)
    assert set(frame.values) == {"forces"} and frame.weight == 1
    assert frame.label_weights == {"energy": 0, "forces": 2.5, "stress": 0}
    crystal.info["config_forces_weight"] = -1
    assert "the weight 'config_forces_weight' must be one number ≥ 0, but is -1" in failing(crystal)
    crystal.info |= {"energy": 1.0, "stress": VOIGT}
    frame = frame_from_atoms(crystal, LabelsConfig(weight=None))
    assert set(frame.values) == {"energy", "forces", "stress"} and not frame.label_weights


def test_a_virial_has_its_own_weight(crystal):
    labels = LabelsConfig(virial="virial")
    crystal.info |= {"virial": -80.0 * VOIGT, "config_virials_weight": 3.0, "config_stress_weight": 0.0}
    crystal.info["stress"] = np.zeros(6)
    frame = frame_from_atoms(crystal, labels)
    np.testing.assert_allclose(frame.stress, FULL, rtol=1e-14)  # rounding of the volume
    assert frame.label_weights == {"stress": 3.0}


def test_nan_as_not_known(crystal):
    crystal.info |= {"energy": np.nan, "stress": np.full(6, np.nan)}
    assert "set `missing: nan` in the section `data` or in the entry (--missing nan)" in failing(crystal)
    frame = frame_from_atoms(crystal, LABELS, missing="nan")
    assert set(frame.values) == {"forces"} and not frame.label_weights
    crystal.arrays["forces"][0] = np.nan
    with pytest.raises(DataError, match=r"'forces' is nan of atom 0.*only where all of its numbers are NaN"):
        frame_from_atoms(crystal, LABELS, missing="nan")
    crystal.arrays["forces"][1] = np.nan
    assert not frame_from_atoms(crystal, LABELS, missing="nan").values
    crystal.arrays["forces"][1] = np.inf
    with pytest.raises(DataError, match="'forces' is"):
        frame_from_atoms(crystal, LABELS, missing="nan")


@pytest.mark.parametrize(
    ("info", "units", "expected"),
    [
        ({"energy-unit": "hartree"}, {}, "names Hartree as its unit of energy, but data.units.energy is eV."),
        ({"energy_units": "eV", "pos_unit": "angstrom"}, {}, None),
        ({"pos_unit": "Bohr"}, {}, "names Bohr as its unit of length, but data.units.length is Ang."),
        ({"force_unit": "Ha/Bohr"}, {}, "Set it to Hartree/Bohr (--forces-unit Hartree/Bohr)"),
        ({"force_unit": "Ha/Bohr"}, {"forces": "-Hartree/Bohr"}, None),
        ({"force_unit": "Ha/Bohr"}, {"energy": "Hartree", "length": "Bohr"}, None),
        ({"stress_units": "kbar"}, {"stress": "-kbar"}, None),
        ({"stress_units": "kbar"}, {"stress": "GPa"}, "data.units.stress is GPa"),
        ({"virial_unit": "Hartree"}, {}, None),  # no virial is read
        ({"units": "Hartree, Bohr"}, {"energy": "Hartree"}, "names Bohr as its unit of length"),
        ({"units": "metal"}, {}, None),
        ({"units": "real"}, {}, "names kcal/mol as its unit of energy"),
        ({"energy_unit": "furlong"}, {}, "names 'furlong' as its unit of energy, which is not known"),
        ({"formula_units": 4, "dipole_unit": "Debye", "unit_cell": "cubic"}, {}, None),
    ],
)
def test_units_stated_in_a_frame(crystal, info, units, expected):
    crystal.info |= info
    if expected is None:
        assert frame_from_atoms(crystal, LABELS, UnitsConfig(**units)).num_atoms == 2
        return
    with pytest.raises(DataError) as error:
        frame_from_atoms(crystal, LABELS, UnitsConfig(**units), file="data.xyz", index=7)
    assert expected in str(error.value) and str(error.value).startswith("data.xyz, frame 7 (the first is 0)")


def test_units_stated_by_the_name_of_a_label():
    """As in SchNetPack's databases, which may hold several energies."""
    stated = {"energy": "eV", "energy_U0": "Ha"}
    check_units("a.db", stated, LABELS, UnitsConfig(), "a.db")
    with pytest.raises(DataError, match=r"a.db names Hartree as its unit of energy"):
        check_units("a.db", stated, LabelsConfig(energy="energy_U0"), UnitsConfig(), "a.db")


def test_stress_that_is_not_symmetric(crystal):
    crystal.info["stress"] = np.arange(9.0)
    message = failing(crystal)
    assert "not symmetric" in message and "data.labels.stress: null (--stress-key none)" in message


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


@pytest.mark.parametrize(
    ("cell", "force", "alone"),
    [
        ([10, 10, 10], 0.0, True),
        ([[10, 10, 0], [10, 0, 10], [0, 10, 10]], 0.0, True),  # 11.5 Å between planes
        ([7.9, 12, 12], 0.0, False),
        ([3.6, 3.6, 12], 0.0, False),  # a layer
        ([[0, 5.6, 5.6], [5.6, 0, 5.6], [5.6, 5.6, 0]], 0.0, False),  # fcc with neighbors 7.9 Å apart
        ([10, 10, 10], 0.3, False),
    ],
)
def test_one_atom_alone_in_a_box_is_isolated(cell, force, alone):
    atoms = ase.Atoms("Cu", cell=cell, pbc=True, info={"energy": -0.2})
    atoms.arrays["forces"] = np.full((1, 3), force)
    frame = frame_from_atoms(atoms, LabelsConfig())
    assert frame.is_isolated_atom == frame.is_alone_in_box == alone
    assert not frame_from_atoms(atoms * (1, 1, 2), LabelsConfig(energy=None)).is_isolated_atom


def test_labels_in_a_field_that_is_not_read():
    """They are those of other energies."""
    atoms = ase.Atoms("H2", [[0, 0, 0], [0, 0, 0.7]], info={"energy": -1.0, "electric_field": [0, 0, 0.1]})
    message = (
        r"'electric_field' is .* 0\.1\], an .* not read.*model\.field: true.*-field-key electric_field.*none"
    )
    with pytest.raises(DataError, match=message):
        frame_from_atoms(atoms, LabelsConfig())
    assert frame_from_atoms(atoms).energy is None  # its labels are not read either
    assert frame_from_atoms(atoms, NO_LABELS).energy is None
    assert frame_from_atoms(atoms, LabelsConfig(electric_field=None)).energy == -1.0
    declare(FIELD)
    read = frame_from_atoms(atoms, LabelsConfig(electric_field="electric_field"))
    np.testing.assert_allclose(read.electric_field, [0, 0, 0.1])
    with pytest.raises(DataError, match="an electric field that is not read"):  # as of a store
        frame_of(read, Source((), LabelsConfig()), "a.equipot", 0)
    atoms.info["efield"] = atoms.info.pop("electric_field")
    with pytest.raises(DataError, match=r"'efield' is .*data\.labels\.electric_field: efield"):
        frame_from_atoms(atoms, LabelsConfig(electric_field="electric_field"))
    for other in ([0.0, 0.0, 0.0], "off"):
        atoms.info["efield"] = other
        assert frame_from_atoms(atoms, LabelsConfig()).electric_field is None
