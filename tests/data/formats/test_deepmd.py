"""DeePMD-kit folders, written by dpdata."""

import numpy as np
import pytest

from equipot.config.data import Parsing
from equipot.data import expand_paths, read_frames
from equipot.data.splits import file_digest

dpdata = pytest.importorskip("dpdata", reason="dpdata writes the folders these tests read")

# dpdata stores the virial, -stress * volume, so the stress has the rounding of a product and a quotient.
ROUNDING = 1e-12


def write(folder, structures, kind="deepmd/npy", **options):
    systems = dpdata.MultiSystems() if kind.endswith("mixed") else dpdata.LabeledSystem()
    for atoms in structures:
        systems.append(dpdata.LabeledSystem(atoms, fmt="ase/structure"))
    systems.to(kind, str(folder), **options)
    return folder


def test_sets_of_one_system(tmp_path, crystals, check_same):
    structures = crystals(*["OH2"] * 5)
    folder = write(tmp_path / "water", structures, set_size=2, comp_prec=np.float64)
    assert len(list(folder.glob("set.*"))) == 3
    frames = read_frames(folder)
    check_same(frames, structures, ROUNDING)
    assert {frame.file for frame in frames} == {str(folder)}


def test_mixed_types(tmp_path, crystals, check_same):
    structures = crystals("OH2", "O2H", "CO2", "Si5")
    folder = write(tmp_path / "mixed", structures, "deepmd/npy/mixed", comp_prec=np.float64)
    frames = read_frames([folder / "*"])
    order = sorted(structures, key=len)
    check_same(frames, order, ROUNDING)


def test_virtual_atoms_that_fill_up_are_left_out(tmp_path, crystals, check_same):
    structures = crystals("OH2", "Si5", "CO2")
    folder = write(tmp_path / "mixed", structures, "deepmd/npy/mixed", atom_numb_pad=8, comp_prec=np.float64)
    [system] = folder.iterdir()
    assert np.load(system / "set.000" / "real_atom_types.npy").min() == -1
    check_same(sorted(read_frames(system), key=lambda f: f.energy),
               sorted(structures, key=lambda a: a.get_potential_energy()), ROUNDING)  # fmt: skip


def test_molecule_without_cell(tmp_path, crystals):
    folder = write(tmp_path / "a", crystals("OH2"))
    (folder / "nopbc").touch()
    for name in ("box", "virial"):
        (folder / "set.000" / f"{name}.npy").unlink()
    [frame] = read_frames(folder)
    assert not frame.pbc.any() and frame.stress is None


def _remove(name):
    return lambda folder: (folder / name).unlink()


def _save(name, array):
    return lambda folder: np.save(folder / "set.000" / name, array)


def _cut(folder):
    file = folder / "set.000" / "force.npy"
    file.write_bytes(file.read_bytes()[:-9])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_remove("type_map.raw"), "no type_map.raw, so it is not known which element each type is"),
        (_remove("set.000/box.npy"), "no box.npy, and no file 'nopbc'"),
        (_remove("set.000/coord.npy"), "no coord.npy"),
        (_save("force.npy", np.zeros((2, 6))), "force.npy has shape (2, 6); expected (2, 9)"),
        (
            _save("energy.npy", np.array([print, 1.0], dtype=object)),
            "energy.npy: not a complete array",
        ),
        (_cut, "force.npy: not a complete array of numbers"),
        (
            lambda folder: (folder / "type_map.raw").write_text("O"),
            "atom types from 0 to 1, but type_map",
        ),
        (lambda folder: (folder / "type_map.raw").write_text("O Hx"), "'Hx' is not a chemical element"),
        (_remove("set.000/energy.npy"), "no frame has a label 'energy'"),
    ],
)
def test_damage(tmp_path, crystals, failing, damage, words):
    folder = write(tmp_path / "a", crystals("OH2", "OH2"))
    damage(folder)
    message = failing(folder)
    assert str(folder) in message and words in message


def test_folder_of_systems_is_not_read_by_itself(tmp_path, crystals, failing):
    write(tmp_path / "all", crystals("OH2", "CO2"), "deepmd/npy/mixed")
    assert f"for DeePMD systems in it, {tmp_path / 'all'}/*" in failing(tmp_path / "all")
    assert len(expand_paths(str(tmp_path / "all" / "*"))) == 1


def test_digest_of_a_folder_sees_its_files(tmp_path, crystals):
    folder = write(tmp_path / "a", crystals("OH2"))
    before = file_digest(folder)
    (folder / "type_map.raw").write_text("S\nH\n")
    assert file_digest(folder) != before


def test_raw_files_alone(tmp_path, crystals, check_same):
    structures = crystals(*["OH2"] * 3)
    folder = write(tmp_path / "a", structures, "deepmd/raw")
    assert not list(folder.glob("set.*"))
    check_same(read_frames(folder), structures, 1e-12)  # 18 digits of text, and rounding


def test_raw_files_that_do_not_fit(tmp_path, crystals, failing):
    folder = write(tmp_path / "a", crystals("OH2", "OH2"), "deepmd/raw")
    (folder / "force.raw").write_text("0 0 0\n")
    assert "force.raw has shape (1, 3); expected (2, 9)" in failing(folder)
    (folder / "force.raw").write_text("0 0 zero\n")
    assert "force.raw: not a table of numbers" in failing(folder)


def test_one_frame_without_its_axis(tmp_path, crystals, check_same):
    structures = crystals("OH2")
    folder = write(tmp_path / "a", structures, comp_prec=np.float64)
    for file in (folder / "set.000").glob("*.npy"):
        np.save(file, np.load(file)[0])
    check_same(read_frames(folder), structures, ROUNDING)


def test_labels_of_types(tmp_path, crystals, failing):
    folder = write(tmp_path / "a", crystals("OH2"))
    (folder / "type_map.raw").write_text("OW\nHW\n")
    message = failing(folder)
    assert "'OW' is not a chemical element" in message and "species_map: {OW: O}" in message
    [frame] = read_frames(folder, parsing=Parsing({"OW": "O", "HW": "H"}))
    assert sorted(frame.atomic_numbers) == [1, 1, 8]
    (folder / "type_map.raw").write_text("O\nD\n")
    assert sorted(read_frames(folder)[0].atomic_numbers) == [1, 1, 8]


def test_lmdb(tmp_path, crystals, check_same):
    pytest.importorskip("lmdb")
    structures = crystals("OH2", "Si5", "OH2")
    systems = dpdata.MultiSystems()
    for atoms in structures:
        systems.append(dpdata.LabeledSystem(atoms, fmt="ase/structure"))
    systems.to("deepmd/lmdb", str(tmp_path / "a.lmdb"))
    frames = sorted(read_frames(tmp_path / "a.lmdb"), key=lambda frame: frame.energy)
    check_same(frames, sorted(structures, key=lambda a: a.get_potential_energy()), ROUNDING)


def encoded(array) -> dict:
    return {"type": str(array.dtype), "shape": list(array.shape), "data": array.tobytes()}


@pytest.mark.parametrize(
    ("metadata", "frames", "words"),
    [
        ({"type_map": ["O"]}, {}, "its metadata have no nframes"),
        ({"nframes": 1}, {}, "its metadata have no type_map"),
        ({"nframes": 1, "type_map": ["Ow"]}, {}, "'Ow' is not a chemical element"),
        ({"nframes": 2, "type_map": ["O"]}, {}, "frame 0 (the first is 0) is missing"),
        ({"nframes": 1, "type_map": ["O"]}, {0: {"coords": [0]}}, "no atom_types or no coords; found coord"),
        (
            {"nframes": 1, "type_map": ["O"]},
            {0: {"coords": encoded(np.zeros((2, 3))), "atom_types": encoded(np.zeros(1, int))}},
            "1 atom_types from 0 to 0 and coords of shape (2, 3) do not fit each other",
        ),
    ],
)
def test_damaged_lmdb(tmp_path, failing, metadata, frames, words):
    lmdb, msgpack = pytest.importorskip("lmdb"), pytest.importorskip("msgpack")
    with lmdb.open(str(tmp_path / "a.lmdb")) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"__metadata__", msgpack.packb(metadata))
        for number, frame in frames.items():
            transaction.put(f"{number:012d}".encode(), msgpack.packb(frame))
    message = failing(tmp_path / "a.lmdb")
    assert str(tmp_path / "a.lmdb") in message and words in message
