"""One structure of any file that trainings read: which frame, with what of it."""

import ase.db
import ase.io
import numpy as np
import pytest
from ase.build import bulk, fcc111, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixCartesian, FixScaled

from equipot.config import LabelsConfig, UnitsConfig
from equipot.data.convert import convert
from equipot.data.structures import read_structure, repeated
from equipot.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def frames():
    """Five of copper, told apart by their cells."""
    structures = [bulk("Cu", a=3.6 + 0.1 * n, cubic=True) for n in range(5)]
    for atoms in structures:
        atoms.calc = SinglePointCalculator(atoms, energy=-1.0)
    return structures


@pytest.fixture(scope="module")
def folder(frames, tmp_path_factory):
    """The same frames in several formats."""
    path = tmp_path_factory.mktemp("formats")
    for name in ("f.xyz", "f.extxyz.gz", "f.traj", "f.db", "with@1.xyz"):
        ase.io.write(path / name, frames)
    convert([path / "f.xyz"], path / "f.equipot", LabelsConfig(), UnitsConfig(), cutoff=4.0)
    system = path / "deepmd" / "set.000"
    system.mkdir(parents=True)
    (system.parent / "type.raw").write_text("0 0 0 0\n")
    (system.parent / "type_map.raw").write_text("Cu\n")
    np.save(system / "coord.npy", [atoms.positions.ravel() for atoms in frames])
    np.save(system / "box.npy", [atoms.cell.array.ravel() for atoms in frames])
    return path


@pytest.mark.parametrize(
    "name", ["f.xyz", "f.extxyz.gz", "f.traj", "f.db", "f.equipot", "deepmd", "with@1.xyz"]
)
def test_frames_of_every_format(name, folder, frames):
    for suffix, number in (("", 4), ("@0", 0), ("@3", 3), ("@-1", 4), ("@-5", 0)):
        atoms = read_structure(f"{folder / name}{suffix}")
        np.testing.assert_allclose(atoms.cell.array, frames[number].cell.array, rtol=1e-7)
        np.testing.assert_allclose(atoms.positions, frames[number].positions, rtol=1e-7)
        assert (atoms.symbols == "Cu").all() and atoms.pbc.all() and atoms.calc is None
    for suffix in ("@5", "@-6"):
        with pytest.raises(DataError, match=f"{name} has no such frame. FILE@0 is the first"):
            read_structure(f"{folder / name}{suffix}")


def test_what_names_no_frame(folder):
    for suffix in ("@:", "@1:3", "@last", "@"):
        with pytest.raises(DataError, match=f"'{suffix}' does not name one frame"):
            read_structure(f"{folder / 'f.xyz'}{suffix}")
    with pytest.raises(DataError, match=r"There is no file .*g\.xyz\. Did you mean"):
        read_structure(folder / "g.xyz@0")
    with pytest.raises(DataError, match="2 files match"):
        read_structure(folder / "*.xyz")


def test_unusable_frames(tmp_path):
    atoms = molecule("H2O")
    atoms.positions[1, 2] = np.nan
    ase.io.write(tmp_path / "nan.xyz", atoms)
    with pytest.raises(DataError, match=r"nan\.xyz.*'positions' is nan of atom 1"):
        read_structure(tmp_path / "nan.xyz")


def test_lengths_in_other_units(tmp_path):
    """Of a database that names its unit, as SchNetPack's do."""
    with ase.db.connect(tmp_path / "bohr.db") as database:
        database.write(bulk("Cu", a=3.6, cubic=True))
        database.metadata = {"_distance_unit": "Bohr", "_property_unit_dict": {"energy": "Hartree"}}
    atoms = read_structure(tmp_path / "bohr.db")
    assert atoms.cell.lengths() == pytest.approx(3.6 * 0.529177, rel=1e-6)
    assert atoms.get_distance(0, 1) == pytest.approx(3.6 * 0.529177 / np.sqrt(2), rel=1e-6)


@pytest.mark.parametrize(
    ("said", "size"), [({"r_unit": "Angstrom"}, 1), ({"r_unit": "bohr"}, 0.529177), ({}, 1)]
)
def test_lengths_as_a_file_calls_them(tmp_path, said, size):
    water = molecule("H2O")
    labels = {"E": np.zeros(1), "F": np.zeros((1, 3, 3))}
    np.savez(tmp_path / "a.npz", z=water.numbers, R=water.positions[None], **labels, **said)
    expected = size * water.get_distance(0, 1)
    assert read_structure(tmp_path / "a.npz").get_distance(0, 1) == pytest.approx(expected, rel=1e-6)
    water.info |= {"pos_unit": said["r_unit"]} if said else {}
    ase.io.write(tmp_path / "a.xyz", water)
    assert read_structure(tmp_path / "a.xyz").get_distance(0, 1) == pytest.approx(expected, rel=1e-6)


def test_a_unit_of_length_that_is_not_known(tmp_path):
    water = molecule("H2O")
    water.info["pos_unit"] = "ell"
    ase.io.write(tmp_path / "a.xyz", water)
    with pytest.raises(DataError, match="names 'ell' as its unit of length, which is not known"):
        read_structure(tmp_path / "a.xyz")


def test_labels_that_are_no_symbols(tmp_path):
    (tmp_path / "a.xyz").write_text("2\n\nHW 0 0 0\nCl1 0 0 1.3\n")
    assert read_structure(tmp_path / "a.xyz", "HW=H,Cl1=Cl").symbols.get_chemical_formula() == "HCl"
    with pytest.raises(DataError, match=r"'HW' is not a chemical element.*--species-map HW=H"):
        read_structure(tmp_path / "a.xyz")


def test_momenta_and_constraints_stay(tmp_path, caplog):
    slab = fcc111("Cu", (1, 1, 4), vacuum=5.0, periodic=True)
    slab.set_momenta(np.arange(12.0).reshape(4, 3))
    slab.set_constraint(FixAtoms([0, 2]))
    for name, format in (("a.xyz", "extxyz"), ("POSCAR", "vasp"), ("a.traj", "traj")):
        ase.io.write(tmp_path / name, slab, format=format)
        atoms = read_structure(tmp_path / name)
        assert atoms.constraints[0].index.tolist() == [0, 2]
        free = [1, 3] if format == "vasp" else [0, 1, 2, 3]
        np.testing.assert_allclose(atoms.get_momenta()[free], slab.get_momenta()[free], atol=1e-5)
    slab.set_constraint(FixCartesian([1], (True, False, True)))
    ase.io.write(tmp_path / "b.xyz", slab, columns=["symbols", "positions", "move_mask"])
    kept = read_structure(tmp_path / "b.xyz").constraints
    assert [(type(c), c.index.tolist(), c.mask.tolist()) for c in kept] == [
        (FixCartesian, [1], [True, False, True])
    ]
    (tmp_path / "POSCAR").write_text(
        "Cu\n1.0\n3.6 0 0\n0 3.6 0\n0 0 3.6\nCu\n2\nSelective dynamics\nDirect\n"
        "0 0 0 F F F\n0.5 0.5 0 T T F\n"
    )
    kinds = {type(c): c.index.tolist() for c in read_structure(tmp_path / "POSCAR").constraints}
    assert kinds == {FixAtoms: [0], FixScaled: [1]}
    assert not caplog.records


def test_velocities_of_an_unknown_unit_are_named(tmp_path, caplog):
    atoms = molecule("H2O")
    atoms.new_array("velocities", np.ones((3, 3)))
    ase.io.write(tmp_path / "a.xyz", atoms)
    assert not read_structure(tmp_path / "a.xyz").has("momenta")
    assert "the column 'velocities' is not used" in caplog.text


def test_repeated():
    atoms = bulk("Cu", cubic=True)
    atoms.set_constraint(FixAtoms([1]))
    assert repeated(atoms, (1, 1, 1)) is atoms
    assert repeated(atoms, (1, 2, 1)).constraints[0].index.tolist() == [1, 5]
    with pytest.raises(ConfigError, match="numbers of at least 1"):
        repeated(atoms, (1, 0, 1))
    atoms.pbc = (True, True, False)
    with pytest.raises(ConfigError, match="not periodic in direction 2"):
        repeated(atoms, (1, 1, 2))


def test_labels_are_not_taken_along(tmp_path):
    """What starts from a structure writes its positions anew: labels beside them would be those of others."""
    atoms = molecule("H2O")
    atoms.info |= {"REF_energy": -14.0, "dft_stress": np.arange(9.0), "name": "water", "gap": 0.3}
    atoms.info["electric_field"] = np.array([0.0, 0.0, 0.1])
    atoms.arrays["REF_forces"] = np.ones((3, 3))
    ase.io.write(tmp_path / "a.xyz", atoms)
    found = read_structure(tmp_path / "a.xyz")
    assert set(found.info) == {"name", "gap", "electric_field"} and "REF_forces" not in found.arrays
