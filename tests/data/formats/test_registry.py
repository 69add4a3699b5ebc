"""Which format reads which path, and sources with settings of their own."""

import typing

import ase
import ase.io
import numpy as np
import pytest

from equipot.config.data import FORMATS as NAMES
from equipot.config.data import DataConfig, LabelsConfig, Parsing, Source, UnitsConfig
from equipot.data import load_datasets, read_frame, read_sources
from equipot.data.formats import _FOUND, FORMATS, base, find_format, open_contents
from equipot.data.readers import named_parsing
from equipot.errors import DataError


def test_configuration_offers_the_formats_there_are():
    """Every module with a format is named there; one that is not would never be tried."""
    assert {format.name for format in _FOUND.values()} == set(NAMES)
    assert [format.name for format in FORMATS] == list(NAMES)
    assert NAMES[-1] == "ase"  # which takes every file


@pytest.mark.parametrize(
    ("name", "content", "format"),
    [
        ("a.xyz", b"1\n\nH 0 0 0\n", "xyz"),
        ("a.extxyz.gz", b"", "xyz"),
        ("a.db", b"SQLite format 3\0", "ase_db"),
        ("a.aselmdb", b"x", "ase_db"),
        ("a.lmdb", b"x", "lmdb_pickle"),
        ("a.h5", b"x", "hdf5"),
        ("data", b"\x89HDF\r\n\x1a\n", "hdf5"),
        ("a.npz", b"x", "npz"),
        ("OUTCAR.3", b"x", "vasp"),
        ("OUTCAR.bz2", b"x", "vasp"),
        ("run/vasprun.xml.xz", b"x", "vasp"),
        ("A.XYZ.GZ", b"x", "xyz"),
        ("a.xyz.xz", b"x", "xyz"),
        ("vasprun_2.xml", b"x", "vasp"),
        ("dp/type.raw", b"0", "deepmd"),
        ("run/OUTCAR", b"x", "vasp"),
        ("oc20/data.mdb", b"x", "lmdb_pickle"),
        ("a.equipot", b"EQUIPOT1", "store"),
        ("a.traj", b"x", "ase"),
        ("a.json", b"{}", "ase"),
        ("other/file", b"x", None),
    ],
)
def test_format_of_a_path(tmp_path, name, content, format):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    found = find_format(path.parent if "/" in name else path)
    assert (None if found is None else found.name) == format


def test_structures_are_read_one_at_a_time(water, write):
    structures = open_contents(write(water, "a.traj")).structures
    assert isinstance(structures, typing.Iterator)
    assert len(next(structures)) == 3


def test_named_format_reads_a_file_of_another_name(water, tmp_path):
    ase.io.write(tmp_path / "frames.data", water, format="extxyz")
    labels = LabelsConfig(energy="my_energy", forces="my_forces")
    assert len(read_sources([Source((tmp_path / "frames.data",), labels, format="xyz")])) == 10


def test_missing_library_names_the_extra(tmp_path):
    with pytest.raises(DataError, match=r"a.x: .* package no_such_lib.* pip install 'equipot\[formats\]'"):
        base.optional_module("no_such_lib", tmp_path / "a.x")


def data_config(train, **fields):
    return DataConfig(train=train, **fields)


def test_sources_have_names_units_and_weights_of_their_own(water, write):
    for i, atoms in enumerate(water):
        atoms.info["E"], atoms.arrays["F"] = 2 * atoms.info["my_energy"], 2 * atoms.arrays["my_forces"]
        atoms.info["w"] = 0.5 * i
    a, b = str(write(water[:4], "a.xyz")), str(write(water[4:], "b.xyz"))
    data = data_config(
        [
            {"path": a, "labels": {"energy": "E", "forces": "F"}, "units": {"energy": "meV"}, "weight": 3.0},
            {"path": b, "labels": {"weight": "w"}},
        ],
        labels={"energy": "my_energy", "forces": "my_forces"},
    )
    frames = read_sources(data.sources("train"))
    for i, (frame, atoms) in enumerate(zip(frames, water, strict=True)):
        factor = 2e-3 if i < 4 else 1.0
        # 1e-8: digits in extended XYZ
        assert frame.energy == pytest.approx(factor * atoms.info["my_energy"], abs=1e-8)
        np.testing.assert_allclose(frame.forces, factor * atoms.arrays["my_forces"], atol=2e-8)
        assert frame.weight == (3.0 if i < 4 else 0.5 * i)


def test_one_frame_in_the_units_of_its_entry(water, write):
    path = str(write(water))
    data = data_config([{"path": path, "units": {"length": "Bohr"}}])
    frame = read_frame(data, path, 7)
    # 8 digits of Bohr and of extended XYZ
    np.testing.assert_allclose(frame.positions, water[7].positions * 0.52917721, atol=3e-8)
    assert (frame.index, frame.energy) == (7, None)
    for file, index, words in ((path, 10, "has no frame 10"), ("other.xyz", 0, "does not name other.xyz")):
        with pytest.raises(DataError, match=words):
            read_frame(data, file, index)


def test_weights_reach_the_graphs_and_are_announced(water, write, caplog):
    for atoms in water[:2]:
        atoms.info["config_weight"] = 4.0
    labels = {"energy": "my_energy", "forces": "my_forces"}
    caplog.set_level("INFO", logger="equipot")
    data = load_datasets(data_config([str(write(water))], labels=labels, validation=1), 3.0)
    weights = [g.labels.weight for g in [*data.train.graphs, *data.validation.graphs]]
    assert sorted(1.0 if w is None else w.item() for w in weights) == [1.0] * 8 + [4.0] * 2
    assert "2 of 10 frames have a weight 'config_weight' of their own in the loss (1 to 4)" in caplog.text


@pytest.mark.parametrize("value", [-1.0, float("nan"), "heavy"])
def test_bad_weight(water, write, value):
    water[3].info["config_weight"] = value
    with pytest.raises(DataError, match=r"frame 3 .*config_weight"):
        read_sources([Source((write(water),), LabelsConfig(energy="my_energy", forces=None))])


def test_isolated_atoms_may_be_an_entry_of_their_own(water, write):
    atoms = [ase.Atoms("H", info={"my_energy": -3.0}), ase.Atoms("O", info={"my_energy": -7.0})]
    train = [{"path": str(write(atoms, "atoms.xyz")), "weight": 2.0}, str(write(water))]
    data = load_datasets(data_config(train, labels={"energy": "my_energy", "forces": "my_forces"}), 3.0)
    assert data.statistics.atomic_energies == [-3.0, -7.0]


def test_file_in_two_entries(water, write):
    path = write(water)
    with pytest.raises(DataError, match="is listed more than once"):
        read_sources([Source((path,)), Source((path,), weight=2.0)])


def test_units_that_the_file_names_must_be_the_ones_given(tmp_path):
    np.savez(tmp_path / "a.npz", z=[1], R=np.zeros((2, 1, 3)), E=[[1.0], [2.0]], F=np.zeros((2, 1, 3)),
             e_unit="kcal/mol", r_unit="Ang")  # fmt: skip
    with pytest.raises(DataError, match=r"names kcal/mol as its unit of energy, but data.units.energy is eV"):
        read_sources([Source((tmp_path / "a.npz",))])
    frames = read_sources([Source((tmp_path / "a.npz",), units=UnitsConfig(energy="kcal/mol"))])
    assert frames[1].energy == pytest.approx(2 * 0.043364104, rel=1e-7)  # 8 digits of the constant


def test_labels_of_atoms_and_convergence_by_entry(tmp_path):
    (tmp_path / "a.xyz").write_text("1\nenergy=-1\nHW 0 0 0\n")
    entries = [{"path": "a", "species_map": {"A": "Au"}}, {"path": "b", "keep_unconverged": False}, "c"]
    data = data_config(entries, species_map={"HW": "H"}, keep_unconverged=True)
    assert [source.parsing for source in data.sources("train")] == [
        Parsing({"A": "Au"}, True), Parsing({"HW": "H"}, False), Parsing({"HW": "H"}, True)
    ]  # fmt: skip
    with pytest.raises(ValueError, match="'Hh' is not a chemical symbol"):
        data_config("a.xyz", species_map={"HW": "Hh"})
    data = data_config(str(tmp_path / "a.xyz"), species_map={"HW": "H"})
    assert read_frame(data, str(tmp_path / "a.xyz"), 0).atomic_numbers.tolist() == [1]


@pytest.mark.parametrize("text", ["HW", "HW=Hh", "=H", "HW=H,"])
def test_species_map_as_words(text):
    assert named_parsing("HW=H,OW=O", True) == Parsing({"HW": "H", "OW": "O"}, True)
    with pytest.raises(DataError, match="--species-map must be as HW=H,OW=O"):
        named_parsing(text, False)
