"""equipot's own store: what goes in comes out, what is damaged is refused, nothing is made twice."""

import base64
import pickle
import zlib

import ase
import ase.io
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from equipot.cli import app
from equipot.config.data import DataConfig, LabelsConfig, UnitsConfig
from equipot.data import GraphDataset, LazyDataset, load_datasets, read_frames
from equipot.data import dataset as dataset_module
from equipot.data.convert import convert
from equipot.data.partition import split_files
from equipot.data.store import file
from equipot.data.store.file import Store, read_header
from equipot.errors import DataError, UnknownSpeciesError
from equipot.quantities import CONTRACT, FIELD, FORCES, KEYS, QUANTITIES, declare
from equipot.quantities import output as make_output

# Of H2 and of a Cu atom in its cell, in the layout before the weights of labels, as it was written then.
SECOND_VERSION = (
    "c-nIf4D}4~4>1a0W&ndyMhLyZMt=?i5x{{7LZ58V6k7<StCi9+b5fP86qNFFQuHb+tCVyUl+ub4b5o0ff<{12YEEiyYF-J58*Q"
    "kgU}PB!6ihG5FD(EIfp~dP<<&~5d8tL|l^}7Y<ovv}%=Gy3)XemZ5|F7-Igp05{Gw#Aj%XMYBwAcjlv)fCg)(DnYf)U^V0Qq*5"
    "ORRf5A4O(n?~PQx%I-@Jt==cegonEKmZCKP}roQ7{GM^H8?)lS9{)7x}Eq$s=s#qH)vRb^}mJcXF^iV$UrK1VUJz>2QKmb42+B"
    "*gcnSJ>fQmRx1jMCK<N!=@-Y4iblV+p&;;dWNez%jM#`e|IU{wWvsx)T6_j3;QVmQj43dq_l9CP5(o9TEERqwGl8sGMlM)lnQq"
    "odWEKHM=lM*eAl9SU?O^g#wQd3P$43d*flZ-8sjf@NvK`A`Bv?M<*4U}*63_#hUG&de4D}k~aIDJPW<u;?(SmJV7W?o8a1vr-#"
    "<(EUU8_>4m)Dj@m+`t56e^Iir5s+tSWNBt>X=r9-SPK%(&n?I=&Me8y&qLK@VQhq?$=KA?z|z>##N4#Dmd1G+0C`35Py"
)
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


def test_stored_neighbor_lists_are_used_for_their_cutoff_only(mixed, store, monkeypatch, caplog):
    caplog.set_level("INFO", logger="equipot")
    settings = DataConfig(train=[str(store)], validation=2)
    frames = {(frame.file, frame.index): frame for frame in read_frames(mixed, LABELS)}
    other = load_datasets(settings, 1.2).train  # searched anew
    assert isinstance(other, GraphDataset) and "has those for 3.0 Å, model.cutoff is 1.2 Å" in caplog.text
    monkeypatch.setattr(dataset_module, "neighbor_list", None)  # searching would fail
    found = load_datasets(settings, CUTOFF).train
    monkeypatch.undo()
    assert isinstance(found, LazyDataset) and len(found) == 8
    for data, cutoff in ((found, CUTOFF), (other, 1.2)):
        expected = GraphDataset([frames[str(mixed), f.index] for f in data.frames], ["H", "O"], cutoff)
        assert data.num_edges.tolist() == expected.num_edges.tolist()
        for name in ("num_atoms", "label_counts"):
            assert np.array_equal(getattr(data, name), getattr(expected, name))
        for one, two in zip(expected, (data[i] for i in range(8)), strict=True):
            check_same_graph(one, two)


def check_same_graph(one, two):
    for name in ("positions", "cell", "pbc", "atom_types", "structure", "edge_index", "edge_shift"):
        a, b = getattr(one, name), getattr(two, name)
        assert a.dtype == b.dtype and torch.equal(a, b), name
    for name in ("energy", "forces", "stress"):
        a, b = getattr(one.labels, name), getattr(two.labels, name)
        assert (a is None and b is None) or (torch.equal(a.value, b.value) and torch.equal(a.mask, b.mask))
    assert one.labels.weight == two.labels.weight


def test_statistics_from_the_index_are_those_of_the_frames(mixed, store):
    lazy = load_datasets(DataConfig(train=[str(store)], validation=2), CUTOFF)
    labels = {"energy": "my_energy", "forces": "my_forces"}
    eager = load_datasets(DataConfig(train=[str(mixed)], validation=2, labels=labels), CUTOFF)
    assert lazy.statistics == eager.statistics
    assert [i for _, i in lazy.split.train] == [i for _, i in eager.split.train]


def test_store_is_a_source_of_training_and_is_not_changed_by_it(store):
    before = store.read_bytes()
    data = load_datasets(DataConfig(train=[{"path": str(store), "weight": 2.0}], validation=2), CUTOFF)
    graphs = [dataset[i] for dataset in (data.train, data.validation) for i in range(len(dataset))]
    assert sorted(graph.labels.weight.item() for graph in graphs) == [0.5] + 9 * [2.0]
    graphs[0].positions.add_(1.0)
    graphs[0].edge_index.add_(1)
    assert store.read_bytes() == before
    assert not torch.equal(data.train[0].positions, graphs[0].positions)


def test_several_stores_and_a_data_set_in_another_process(mixed, store, water, write, tmp_path):
    convert([write(water[5:], "b.xyz")], tmp_path / "b.equipot", LABELS, EV, CUTOFF)
    data = load_datasets(DataConfig(train=[str(store), str(tmp_path / "b.equipot")], validation=5), CUTOFF)
    again = pickle.loads(pickle.dumps(data.train))
    for i in range(len(data.train)):
        check_same_graph(data.train[i], again[i])
    assert {frame.file for frame in again.frames} == {str(store), str(tmp_path / "b.equipot")}
    state = pickle.dumps(data.train)
    convert([mixed], store, LABELS, EV, 2.0)
    with pytest.raises(DataError, match="was replaced while it was in use"):
        pickle.loads(state)


def test_species_that_the_model_lacks(store):
    with pytest.raises(UnknownSpeciesError, match=r"a.equipot, frame 0 .* contains O"):
        load_datasets(DataConfig(train=[str(store)], validation=2, species=["H"]), CUTOFF)


def test_coinciding_atoms_do_not_get_into_a_store(water, write, tmp_path):
    water[6].positions[2] = water[6].positions[1] + 0.01
    path = write(water)
    with pytest.raises(DataError, match=r"frames.xyz, frame 6 .* 1 and 2 are 0.0173 Å apart"):
        convert([path], tmp_path / "b.equipot", LABELS, EV, CUTOFF)
    assert not list(tmp_path.glob(".b*"))


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
    without_forces = LabelsConfig(energy="my_energy", forces=None)
    for change in (
        {"cutoff": 4.0},
        {"units": UnitsConfig(energy="meV")},
        {"units": UnitsConfig(length="Bohr")},
        {"labels": without_forces},
    ):
        assert again(**change) and not again(**change), change
        assert read_header(store)["cutoff"] == change.get("cutoff", CUTOFF)
        assert again()  # back to what it was, so that the next change is the only one
    write(water[:5])
    assert again() and len(read_frames(store)) == 5


@pytest.mark.parametrize("place", [3, 12, 20, -1000, -600, -20])
def test_one_changed_byte_of_header_or_index_is_noticed_at_opening(store, failing, place):
    content = bytearray(store.read_bytes())
    content[place] ^= 0x10
    store.write_bytes(content)
    message = failing(store)
    assert str(store) in message and any(word in message for word in ("damaged", "cut off", "is not a store"))


def test_one_changed_byte_of_a_frame_is_noticed_when_it_is_read(store):
    content = bytearray(store.read_bytes())
    content[int(Store(store).rows["offset"][6]) + 5] ^= 0x10
    store.write_bytes(content)
    opened = Store(store)
    assert opened.frame(5).num_atoms == 3 and [opened.damaged(i) for i in (5, 6, 7)] == [False, True, False]
    with pytest.raises(DataError, match=r"a.equipot: frame 6 \(the first is 0\) is damaged \(checksum\)"):
        opened.frame(6)
    result = CliRunner().invoke(app, ["data", "check", str(store)])
    assert result.exit_code == 1 and "1 of 10 frames" in result.output and "damaged" in result.output


@pytest.mark.parametrize("length", [10, 100, 2000, -64])
def test_truncated(store, failing, length):
    store.write_bytes(store.read_bytes()[:length])
    assert "cut off" in failing(store) or "not a store" in failing(store)


def test_store_with_labels_that_are_not_known(store, failing, monkeypatch):
    """Written where one more quantity is declared, here: one fewer, so that a flag has no meaning."""
    fewer = [label for label in file.stored_labels() if label.name != FORCES.name]
    monkeypatch.setattr(file, "stored_labels", lambda header: fewer)
    assert "holds labels that this version of equipot does not know" in failing(store)


def test_store_of_another_version(mixed, store, failing):
    content = store.read_bytes()
    store.write_bytes(b"EQUIPOT1" + content[8:])
    words = "another version: it begins with b'EQUIPOT1', and this equipot reads b'EQUIPOT3'"
    assert words in failing(store)
    with pytest.raises(DataError, match="another version"):
        convert([mixed], store, LABELS, EV, CUTOFF)
    assert store.read_bytes()[:8] == b"EQUIPOT1"


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


def test_a_damaged_store_is_not_called_up_to_date(mixed, tmp_path):
    output = tmp_path / "a.equipot"
    convert([mixed], output, LABELS, EV)
    content = bytearray(output.read_bytes())
    content[int(Store(output).rows["offset"][6]) + 5] ^= 0x10
    output.write_bytes(content)
    with pytest.raises(DataError, match=r"its frame 6 is damaged .* Remove it and convert again"):
        convert([mixed], output, LABELS, EV)


def test_weights_of_labels_and_virials_go_through_a_store(crystals, write, tmp_path, caplog):
    structures = crystals("Si4", "NaCl", "OH2")
    for i, atoms in enumerate(structures):
        atoms.info |= {
            "E": -1.0 - i,
            "V": -atoms.get_volume() * atoms.get_stress(),
            "config_virials_weight": 2.0,
        }
        atoms.info["config_energy_weight"] = 0 if i == 1 else 1
        atoms.calc = None
    structures[2].pbc = [True, False, True]
    labels = LabelsConfig(energy="E", forces=None, stress=None, virial="V")
    source = write(structures)
    convert([source], tmp_path / "a.equipot", labels, EV, CUTOFF)
    assert "1 of 3 frames are not periodic in all three directions" in caplog.text
    stored = LabelsConfig(forces=None)
    expected, found = read_frames(source, labels), read_frames(tmp_path / "a.equipot", stored)
    weights = [{"stress": 2.0}, {"energy": 0.0, "stress": 2.0}, {"stress": 0.0}]
    assert [frame.label_weights for frame in found] == [frame.label_weights for frame in expected] == weights
    for one, other in zip(expected, found, strict=True):
        assert one.energy == other.energy and np.array_equal(one.stress, other.stress)
    graphs = GraphDataset(found, ["H", "O", "Na", "Si", "Cl"], CUTOFF).graphs
    assert [graph.labels.stress.weight.item() for graph in graphs[:2]] == [2.0, 2.0]
    assert graphs[2].labels.stress is None and graphs[1].labels.energy is None
    unweighted = read_frames(tmp_path / "a.equipot", LabelsConfig(forces=None, weight=None))
    assert [frame.label_weights for frame in unweighted] == [{}, {"energy": 0.0}, {"stress": 0.0}]
    assert read_frames(tmp_path / "a.equipot", LabelsConfig(stress=None, forces=None))[0].stress is None
    assert "data.units.stress is kbar" in failing_units(tmp_path / "a.equipot", UnitsConfig(stress="kbar"))


def failing_units(path, units) -> str:
    with pytest.raises(DataError) as error:
        read_frames(path, units=units)
    return str(error.value)


def test_store_of_the_second_version_is_read(tmp_path):
    (tmp_path / "old.equipot").write_bytes(zlib.decompress(base64.b85decode(SECOND_VERSION)))
    molecule, crystal = read_frames(tmp_path / "old.equipot")
    assert (molecule.energy, molecule.weight, crystal.energy) == (-30.5, 0.5, -3.25)
    assert molecule.forces.tolist() == [[0, 0, 1.5], [0, 0, -1.5]] and molecule.stress is None
    assert (crystal.stress * 64).tolist() == [[1, 6, 5], [6, 2, 4], [5, 4, 3]]
    assert not molecule.label_weights and not crystal.label_weights


def test_what_nan_means_is_part_of_a_store(water, write, tmp_path):
    water[3].info["my_energy"] = np.nan
    source, output = write(water), tmp_path / "a.equipot"
    with pytest.raises(DataError, match=r"frame 3 .* 'my_energy' is nan"):
        convert([source], output, LABELS, EV)
    assert convert([source], output, LABELS, EV, missing="nan").written
    assert [frame.energy is None for frame in read_frames(output)] == [i == 3 for i in range(10)]


def test_what_a_store_has_is_not_called_unread(write, caplog, tmp_path):
    """Its labels have the names of their quantities, whatever the configuration calls them in other files."""
    caplog.set_level("INFO", logger="equipot")
    atoms = ase.Atoms("H2", [[0, 0, 0], [0, 0, 0.7]], info={"E": -1.0, "mu": np.array([0.0, 0.0, 0.1])})
    labels = LabelsConfig(energy="E", forces=None)
    convert([write([atoms])], tmp_path / "a.equipot", labels, EV)
    assert "Not in the store, as no label reads it: mu." in caplog.text
    caplog.clear()
    [frame] = read_frames(tmp_path / "a.equipot", labels)
    assert frame.energy == -1.0 and "not read" not in caplog.text


def test_no_label_of_a_store_is_lost_in_a_process_that_does_not_know_it(write, tmp_path):
    """A field is known from the store; outputs take a configuration."""
    atoms = ase.Atoms("H2", [[0, 0, 0], [0, 0, 0.7]], info={"energy": -1.0, "mu": np.ones(3)})
    atoms.info["electric_field"] = np.array([0.0, 0.0, 0.1])
    before = [dict(known) for known in (QUANTITIES, KEYS, CONTRACT)]
    for quantity in (FIELD, make_output("mu", (3,), "e*Ang", False, rank=1)):
        declare(quantity)
    labels = LabelsConfig(forces=None, electric_field="electric_field")
    frames = [atoms.copy() for _ in range(3)]
    for number, one in enumerate(frames):
        one.positions[1, 2] += 0.01 * number
    convert([write(frames)], tmp_path / "field.equipot", labels, EV)
    labels = LabelsConfig(forces=None, electric_field="electric_field", mu="mu")
    convert([tmp_path / "frames.xyz"], tmp_path / "both.equipot", labels, EV)
    for known, old in zip((QUANTITIES, KEYS, CONTRACT), before, strict=True):
        known.clear()
        known.update(old)
    with pytest.raises(DataError, match=r"field\.equipot, frame 0 .* an electric field that is not read"):
        read_frames(tmp_path / "field.equipot", LabelsConfig(forces=None))
    for command in (["convert", "--output", "again.equipot"], ["split", "--output", "sets"]):
        with pytest.raises(DataError, match=r"both\.equipot has labels of outputs, mu: .* by --config"):
            CliRunner().invoke(
                app, ["data", *command, str(tmp_path / "both.equipot")], catch_exceptions=False
            )
    sizes = {"train": "2", "validation": "1", "test": "0"}
    split_files([tmp_path / "field.equipot"], tmp_path / "sets", sizes, LabelsConfig(forces=None), EV)
    written = ase.io.read(tmp_path / "sets" / "train.xyz")
    np.testing.assert_allclose(written.info["electric_field"], [0, 0, 0.1])
