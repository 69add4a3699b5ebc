"""equipot's own store: what goes in comes out, what is damaged is refused, nothing is made twice."""

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from equipot.cli import app
from equipot.config.data import DataConfig, LabelsConfig, UnitsConfig
from equipot.data import GraphDataset, load_datasets, read_frames
from equipot.data import dataset as dataset_module
from equipot.data.convert import convert
from equipot.data.formats.store import read_header, write_store
from equipot.errors import DataError

LABELS = LabelsConfig(energy="my_energy", forces="my_forces")
EV = UnitsConfig()
CUTOFF = 3.0


@pytest.fixture
def mixed(water, crystals, write):
    """Molecules with a weight and a group, and without one label or the other."""
    water[1].info["config_weight"] = 0.25
    water[2].info["config_type"] = "warm"
    del water[3].arrays["my_forces"]
    del water[4].info["my_energy"]
    return write(water)


@pytest.fixture
def store(mixed, tmp_path):
    convert([mixed], tmp_path / "a.equipot", LABELS, EV, CUTOFF)
    return tmp_path / "a.equipot"


def test_frames_come_back_exactly(mixed, store):
    expected, found = read_frames(mixed, LABELS), read_frames(store)
    assert len(found) == len(expected) == 10
    for i, (one, other) in enumerate(zip(expected, found, strict=True)):
        assert (other.file, other.index) == (str(store), i)
        assert (other.energy, other.weight, other.config_type) == (one.energy, one.weight, one.config_type)
        for name in ("positions", "cell", "pbc", "atomic_numbers", "forces", "stress"):
            a, b = getattr(one, name), getattr(other, name)
            assert (a is None and b is None) or (a.dtype == b.dtype and np.array_equal(a, b)), name


def test_stress_and_crystals(crystals, tmp_path, check_same):
    import ase.io

    structures = crystals("OH2", "Si4", "NaCl")
    ase.io.write(tmp_path / "a.traj", structures)
    convert([tmp_path / "a.traj"], tmp_path / "a.equipot", LabelsConfig(), EV, 5.0)
    check_same(read_frames(tmp_path / "a.equipot"), structures)


def test_stored_neighbor_lists_are_used_for_their_cutoff_only(mixed, store, monkeypatch):
    expected = GraphDataset(read_frames(mixed, LABELS), ["H", "O"], CUTOFF)
    other = GraphDataset(read_frames(mixed, LABELS), ["H", "O"], 1.2)
    frames = read_frames(store)
    found = GraphDataset(frames, ["H", "O"], 1.2)  # searched anew
    assert [g.num_edges for g in found.graphs] == [g.num_edges for g in other.graphs]
    monkeypatch.setattr(dataset_module, "neighbor_list", None)  # searching would fail
    for one, two in zip(expected.graphs, GraphDataset(frames, ["H", "O"], CUTOFF).graphs, strict=True):
        for name in ("positions", "cell", "pbc", "atom_types", "structure", "edge_index", "edge_shift"):
            a, b = getattr(one, name), getattr(two, name)
            assert a.dtype == b.dtype and torch.equal(a, b), name


def test_store_is_a_source_of_training_and_is_not_changed_by_it(store):
    before = store.read_bytes()
    data = load_datasets(DataConfig(train=[{"path": str(store), "weight": 2.0}], validation=2), CUTOFF)
    weights = {graph.labels.weight.item() for graph in data.train.graphs + data.validation.graphs}
    assert weights == {2.0, 0.5}
    data.train.graphs[0].positions.add_(1.0)
    assert store.read_bytes() == before


def test_labels_may_be_left_out(store):
    frames = read_frames(store, LabelsConfig(forces=None, weight=None))
    assert all(frame.forces is None and frame.weight == 1 for frame in frames)


def test_other_units_than_its_own(store, failing):
    assert "names eV as its unit of energy" in failing(store, units=UnitsConfig(energy="kcal/mol"))


def test_converted_again_only_if_something_changed(water, mixed, store, write):
    def again(labels=LABELS, units=EV, cutoff=CUTOFF):
        return convert([mixed], store, labels, units, cutoff).written

    time = store.stat().st_mtime_ns
    assert not again() and store.stat().st_mtime_ns == time
    assert again(cutoff=4.0) and read_header(store)["cutoff"] == 4.0
    assert again(units=UnitsConfig(energy="meV")) and again(
        labels=LabelsConfig(energy="my_energy", forces=None)
    )
    assert again() and not again()
    write(water[:5])
    assert again() and len(read_frames(store)) == 5


@pytest.mark.parametrize("place", [3, 20, 60, -1000, -200])
def test_one_changed_byte_is_noticed(store, failing, place):
    content = bytearray(store.read_bytes())
    content[place] ^= 0x10
    store.write_bytes(content)
    message = failing(store)
    assert str(store) in message and any(word in message for word in ("damaged", "cut off", "not recognise"))


@pytest.mark.parametrize("length", [10, 100, 2000, -64])
def test_truncated(store, failing, length):
    store.write_bytes(store.read_bytes()[:length])
    assert "cut off" in failing(store) or "not a store" in failing(store)


def test_store_of_another_version(store, failing):
    content = store.read_bytes()
    store.write_bytes(b"EQUIPOT2" + content[8:])
    assert "begins with b'EQUIPOT2', not b'EQUIPOT1'" in failing(store)


def test_nothing_is_left_where_writing_fails(mixed, tmp_path, monkeypatch):
    frames = read_frames(mixed, LABELS)
    monkeypatch.setattr("equipot.data.formats.store.zlib.crc32", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_store(tmp_path / "b.equipot", frames, "key")
    assert not list(tmp_path.glob("*b.equipot*"))


def test_files_that_are_no_store_are_not_replaced(mixed, tmp_path):
    precious = tmp_path / "precious.equipot"
    precious.write_text("something else")
    for output, words in (
        (precious, "is not a store"),
        (mixed, "ends in .equipot"),
        (tmp_path / "a.npz", "ends in .equipot"),
    ):
        with pytest.raises(DataError, match=words):
            convert([mixed], output, LABELS, EV)
    assert precious.read_text() == "something else"


def test_command(mixed, tmp_path):
    output = str(tmp_path / "a.equipot")
    command = ["data", "convert", str(mixed), "--output", output, "--cutoff", "3.0"]
    command += ["--energy-key", "my_energy", "--forces-key", "my_forces"]
    for answer in ("Wrote", "Up to date:"):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0 and f"{answer} {output} (10 frames)" in result.output
