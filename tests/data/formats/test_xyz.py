"""Extended XYZ as programs write it: headers in any spelling, encodings, and numbers of every kind."""

import bz2
import gzip
import lzma

import ase.io
import numpy as np
import pytest

from equipot.config.data import LabelsConfig, Parsing
from equipot.data import read_frames
from equipot.data.formats import open_contents

CELL = [[3.65, 0.1, 0], [0, 3.65, 0], [0.2, 0, 3.7]]
LATTICE = "3.65 0.1 0 0 3.65 0 0.2 0 3.7"
COLUMNS = "Properties=species:S:1:pos:R:3:forces:R:3 energy=-7.0"
ATOMS = "Cu 0 0 0 0 0 0.1\nCu 1.8 1.8 0 0 0 -0.1\n"
PLAIN = "2\nenergy=-1.5\nCu 0 0 0\nCu 0 0 2\n"
FULL = np.array([[1.0, 6, 5], [6, 2, 4], [5, 4, 3]])


@pytest.fixture
def written(tmp_path):
    """Function (header, rows) -> the path of a frame of two atoms."""

    def make(header: str, rows: str = ATOMS):
        (tmp_path / "a.xyz").write_text(f"2\n{header}\n{rows}")
        return tmp_path / "a.xyz"

    return make


@pytest.mark.parametrize("key", ["Lattice", "lattice", "LATTICE", "lAttice"])
@pytest.mark.parametrize(
    "value",
    [
        f'="{LATTICE}"',
        f"={{{LATTICE}}}",
        f' = "{LATTICE}"',
        '="[[3.65, 0.1, 0], [0, 3.65, 0], [0.2, 0, 3.7]]"',
        "=[[3.65,0.1,0],[0,3.65,0],[0.2,0,3.7]]",
        '="3.65D+00 1.0d-01 0 0 .365E+01 0 2D-1 0 3.7"',
    ],
)
def test_a_cell_counts_in_any_spelling(written, key, value):
    [frame] = read_frames(written(f"{key}{value} {COLUMNS}"))
    assert frame.cell.tolist() == CELL and frame.pbc.all()
    assert frame.energy == -7 and frame.forces.tolist() == [[0, 0, 0.1], [0, 0, -0.1]]


@pytest.mark.parametrize(
    "remark",
    [
        "from the cell: 1234 atoms",
        "cell=none",
        "lattice_type=fcc",
        'reciprocal_lattice="1 0 0 0 1 0 0 0 1"',
        "box",
    ],
)
def test_remarks_are_no_cells(written, remark):
    [frame] = read_frames(written(f"{COLUMNS} {remark}"))
    assert not frame.pbc.any() and frame.energy == -7


def test_three_edges_are_a_rectangular_cell(written):
    [frame] = read_frames(written(f'Lattice="3 4 5" {COLUMNS}'))
    assert frame.cell.tolist() == [[3, 0, 0], [0, 4, 0], [0, 0, 5]]


@pytest.mark.parametrize(
    "key",
    [
        "cell",
        "Cell",
        "unit_cell",
        "box",
        "latt",
        "Latice",
        "lattices",
        "lattice_vectors",
        "cell-vectors",
        "hmat",
        "H",
    ],
)
def test_a_key_that_looks_like_a_cell_is_named(written, failing, key):
    message = failing(written(f'{key}="{LATTICE}" {COLUMNS}'))
    assert "frame 0 (the first is 0), line 2" in message and f"'{key}' looks like a cell" in message
    [frame] = read_frames(written(f'Lattice="{LATTICE}" {key}="{LATTICE}" {COLUMNS}'))
    assert frame.cell.tolist() == CELL
    message = failing(written(f'Lattice="{LATTICE}" {key}="3 0 0 0 3 0 0 0 3" {COLUMNS}'))
    assert f"'{key}' and Lattice are different cells" in message


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ('Lattice="3 4 5 90 90 90"', "Lattice must be 9 numbers"),
        ("Lattice=fcc", "Lattice must be 9 numbers"),
        ("# CELL(abcABC): 35.2 35.2 35.2 90.0 90.0 90.0 Step: 0", "'CELL(abcABC):' looks like a cell"),
        ("unit cell: 3.65 3.65 3.7", "'cell:' looks like a cell"),
        ('lattice_constants="3.6 3.6 3.7"', "'lattice_constants' looks like a cell"),
        ('a1="3 0 0" a2="0 3 0" A3="0 0 3"', "a1, a2, a3 look like a cell"),
        ('stress="1 2 3 4 5 6"', "there is a 'stress', but no cell"),
        ('REF_virial="1 2 3 4 5 6 7 8 9" pbc="T T T"', "there is a 'REF_virial', but no cell"),
        ('pbc="T T T"', "pbc is T T T, but the lattice vectors"),
        (f'Lattice="{LATTICE}" lattice="3 0 0 0 3 0 0 0 3"', "Lattice and lattice are both there and differ"),
        (f'Lattice="{LATTICE}" pbc="T T"', "pbc must be three times T or F"),
        (
            f'Lattice="{LATTICE}" periodic="T T F"',
            """'periodic' means periodic directions, but is not read""",
        ),
        ("Periodicity=[T,T,T]", "write it as pbc=[T,T,T]"),
        ("energy=-1 energy=-2", "the key 'energy' is there twice, as -1 and as -2"),
        ("Properties=species:S:1:xyz:R:3", "no column of positions (pos:R:3)"),
        ("Properties=pos:R:3:forces:R:3", "no column of elements"),
        ("Properties=species:S:1:pos:R", "Properties must be NAME:TYPE:NUMBER"),
        ("Properties=species:S:1:pos:R:3:forces:R:1:forces:R:2", "the column 'forces' twice"),
    ],
)
def test_headers_that_would_be_misread(written, failing, header, words):
    message = failing(written(header), required=())
    assert "frame 0 (the first is 0)" in message and words in message


@pytest.mark.parametrize(
    ("text", "pbc"),
    [
        ("", "TTT"),
        ("pbc=TTT", "TTT"),
        ('pbc="1 1 0"', "TTF"),
        ("pbc=[T,F,T]", "TFT"),
        ('PBC="T T F"', "TTF"),
        ("Pbc=True", "TTT"),
        ('pbc="true FALSE true"', "TFT"),
        ('pbc="F F F"', "FFF"),
    ],
)
def test_periodic_directions(written, text, pbc):
    [frame] = read_frames(written(f'Lattice="{LATTICE}" {text} {COLUMNS}'))
    assert frame.pbc.tolist() == [flag == "T" for flag in pbc]


@pytest.mark.parametrize(
    ("text", "periodic"),
    [(f'Lattice="{LATTICE}" periodic=True', True), ("periodic=F", False), ("periodic=yearly", False),
     (f'Lattice="{LATTICE}" pbc="F F F" periodic="T T T"', False)],
)  # fmt: skip
def test_other_words_for_periodic_directions_that_change_nothing(written, text, periodic):
    [frame] = read_frames(written(f"{text} {COLUMNS}"))
    assert frame.pbc.all() == periodic


@pytest.mark.parametrize(
    ("names", "elements"),
    [
        ("Species:S:1:POS:R:3", "Cu"),
        ("pos:R:3:Z:I:1", "29"),
        ("z:I:1:Positions:R:3", "29"),
        ("element:S:1:coords:R:3", "Cu"),
    ],
)
@pytest.mark.parametrize("key", ["Properties", "properties", "PROPERTIES"])
def test_standard_columns_in_any_case(written, names, elements, key):
    rows = [[elements, "0 0 0"], [elements, "1 2 3"]]
    rows = [row[::-1] if names.startswith("pos") else row for row in rows]
    text = "".join(" ".join([*row, "0 0 0.5"]) + "\n" for row in rows)
    [frame] = read_frames(written(f"{key}={names}:forces:R:3 energy=-7", text))
    assert frame.atomic_numbers.tolist() == [29, 29] and frame.positions[1].tolist() == [1, 2, 3]
    assert frame.forces.tolist() == [[0, 0, 0.5]] * 2


def test_columns_without_a_name_are_said(written, caplog):
    read_frames(written("energy=-7"), required=())
    assert "line 2: columns 5 to 7 of the atoms are not read: no Properties=" in caplog.text


@pytest.mark.parametrize("key", ["stress", "REF_stress"])
@pytest.mark.parametrize(
    "value",
    [
        '"1 2 3 4 5 6"',  # ASE's order: xx yy zz yz xz xy
        '"1,2,3,4,5,6"',
        '"[1, 2, 3, 4, 5, 6]"',
        '"1 6 5 6 2 4 5 4 3"',
        '"[[1, 6, 5], [6, 2, 4], [5, 4, 3]]"',
        "[[1,6,5],[6,2,4],[5,4,3]]",
        '"_JSON [[1, 6, 5], [6, 2, 4], [5, 4, 3]]"',
        '"1.0D0 6 5 6 2 4 5 4 3"',
    ],
)
def test_stress_of_six_and_nine_numbers(written, key, value):
    path = written(f'Lattice="{LATTICE}" {key}={value} {COLUMNS}')
    [frame] = read_frames(path, LabelsConfig(stress=key))
    assert frame.stress.tolist() == FULL.tolist()


def test_stress_as_ase_writes_it(crystals, write):
    [atoms] = crystals("Si2")
    [frame] = read_frames(write([atoms]))
    np.testing.assert_allclose(frame.stress, atoms.get_stress(voigt=False), rtol=1e-12)


@pytest.mark.parametrize("key", ["stress", "my_stress"])
def test_stress_that_is_not_symmetric(written, failing, key):
    path = written(f'Lattice="{LATTICE}" {key}="1 9 5 6 2 4 5 4 3" {COLUMNS}')
    assert "not symmetric" in failing(path, LabelsConfig(stress=key))


def test_labels_of_atoms(written, failing):
    path = written("energy=-1", "HW 0 0 0\nOW 0 0 1\n")
    message = failing(path, required=())
    assert message.startswith(f"{path}, frame 0 (the first is 0), line 3: 'HW' is not a chemical element")
    assert "species_map: {HW: H}" in message and "--species-map HW=H" in message
    [frame] = read_frames(path, required=(), parsing=Parsing({"HW": "H", "OW": "O"}))
    assert frame.atomic_numbers.tolist() == [1, 8]


@pytest.mark.parametrize(("labels", "numbers"), [("D T", [1, 1]), ("29 8", [29, 8]), ("CU cl", [29, 17])])
def test_elements_that_need_no_map(written, labels, numbers):
    rows = "".join(f"{label} 0 0 {i}\n" for i, label in enumerate(labels.split()))
    [frame] = read_frames(written("energy=-1", rows), required=())
    assert frame.atomic_numbers.tolist() == numbers


def test_symbol_and_number_disagree(written, failing):
    path = written("Properties=species:S:1:Z:I:1:pos:R:3 energy=-1", "Cu 29 0 0 0\nCu 28 0 0 2\n")
    assert "line 4: atom 1 is Cu by its symbol, but has the atomic number 28" in failing(path, required=())


def test_numbers_as_fortran_writes_them(written, failing):
    [frame] = read_frames(written("energy=-1.25D+02", "Cu 0 0 0\nCu\t1.0D+00\t0\t-2.5d-1\n"), required=())
    assert frame.energy == -125 and frame.positions[1].tolist() == [1, 0, -0.25]
    path = written("energy=-1", "Cu 0 0 0\nCu 1.0 ******** 2\n")
    assert "line 4: expected a number, found '********'" in failing(path, required=())


@pytest.mark.parametrize(
    "content",
    [
        PLAIN.encode("utf-8-sig"),
        PLAIN.encode("utf-16"),
        PLAIN.replace("\n", "\r\n").encode(),
        PLAIN.replace("-1.5", "-1.5 unit=Å").encode("latin-1"),
        ("\n\n" + PLAIN).encode(),
        (PLAIN + "# the end\n").encode(),
        (PLAIN + "\n\n# the end\n\n").encode(),
    ],
)
def test_encodings_line_ends_and_remarks(tmp_path, content):
    (tmp_path / "a.xyz").write_bytes(content)
    [frame] = read_frames(tmp_path / "a.xyz", required=())
    assert frame.energy == -1.5 and frame.positions[1].tolist() == [0, 0, 2]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (PLAIN.encode("utf-16-le"), "is not text in UTF-8: there are zero bytes"),
        (b"hello\nworld\n", "line 1: expected the number of atoms, found 'hello'. This is not extended XYZ"),
        (b"PK\x03\x04aaaa", "is packed with zip"),
        (bz2.compress(PLAIN.encode())[:30], "cannot be unpacked"),
        ((PLAIN + "the end\n").encode(), "line 5: expected the number of atoms of the next frame"),
    ],
)
def test_what_is_no_such_text(tmp_path, failing, content, words):
    (tmp_path / "a.xyz").write_bytes(content)
    assert words in failing(tmp_path / "a.xyz")


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("A.XYZ.GZ", gzip.compress),
        ("a.xyz.bz2", bz2.compress),
        ("a.extxyz.xz", lzma.compress),
        ("a.xyz", gzip.compress),
    ],
)
def test_packed(tmp_path, name, pack):
    (tmp_path / name).write_bytes(pack(PLAIN.encode()))
    assert [frame.energy for frame in read_frames(tmp_path / name, required=())] == [-1.5]


def test_truncated_xz_says_where(tmp_path, failing):
    packed = lzma.compress((PLAIN * 2000).encode())
    (tmp_path / "a.xyz.xz").write_bytes(packed[: len(packed) // 2])
    assert "cannot be read after line" in failing(tmp_path / "a.xyz.xz")


def test_energy_and_free_energy_that_differ_are_said(written, caplog):
    caplog.set_level("INFO", logger="equipot")
    [frame] = read_frames(written(f'Lattice="{LATTICE}" free_energy=-7.4 {COLUMNS}'))
    assert frame.energy == -7
    assert "in 1 of 1 frames `free_energy` differs from `energy`, by up to 200 meV/atom" in caplog.text


def test_same_as_ase_in_everything_ase_reads(tmp_path, crystals):
    """Arrays, info, constraints and results; ASE has its own parser for the same lines."""
    structures = crystals("Si2", "OH2", "Cu3")
    for i, atoms in enumerate(structures):
        atoms.info |= {
            "config_type": "a b",
            "flag": True,
            "list": np.arange(4),
            "nested": {"a": [1, 2]},
            "n": i,
        }
        atoms.arrays["tags"], atoms.arrays["momenta"] = np.arange(len(atoms)), np.ones((len(atoms), 3))
        atoms.set_constraint(ase.constraints.FixAtoms([0]))
    path = tmp_path / "a.xyz"
    ase.io.write(path, structures, columns=["symbols", "positions", "tags", "momenta", "move_mask"])
    with path.open("a") as stream:
        stream.write(
            '1\nLattice="3 0 0 0 3 0 0 0 3" Properties=species:S:1:pos:R:3 pbc="T T T"\nH 0 0 0\n'
            "1\n\nH 0 0 0\n"
        )
    for found, expected in zip(open_contents(path).structures, ase.io.read(path, ":"), strict=True):
        assert found.info.keys() == expected.info.keys() and found.arrays.keys() == expected.arrays.keys()
        assert str(found.info) == str(expected.info) and str(found.constraints) == str(expected.constraints)
        for name, array in expected.arrays.items():
            np.testing.assert_array_equal(found.arrays[name], array)
        if expected.calc is not None:
            np.testing.assert_array_equal(found.get_stress(), expected.get_stress())
            assert found.get_potential_energy() == expected.get_potential_energy()
