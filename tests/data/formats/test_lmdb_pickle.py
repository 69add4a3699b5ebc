"""LMDB files of pickled torch_geometric Data, and pickles that attack."""

import os
import pickle
import sys
import types

import numpy as np
import pytest
import torch

from equipot.config.data import LabelsConfig, Parsing, UnitsConfig
from equipot.data import read_frames
from equipot.data.convert import convert
from equipot.data.formats import lmdb_pickle, safe_pickle
from equipot.data.frames import FIXED
from equipot.data.store.file import Store
from equipot.errors import DataError

lmdb = pytest.importorskip("lmdb")


def write(path, items, length=None):
    """As OC20's scripts do: keys "0", "1", ..., values pickled, and the number of them under "length"."""
    environment = lmdb.open(str(path), map_size=2**24, subdir=False, meminit=False, map_async=True)
    with environment.begin(write=True) as transaction:
        for i, item in enumerate(items):
            content = item if isinstance(item, bytes) else pickle.dumps(item, protocol=-1)
            transaction.put(str(i).encode(), content)
        count = len(items) if length is None else length
        transaction.put(b"length", pickle.dumps(count, protocol=-1))
    environment.sync()
    environment.close()
    return path


def s2ef(atoms, make):
    """The attributes of an OC20 S2EF structure."""
    return make(
        pos=torch.tensor(atoms.positions),
        cell=torch.tensor(atoms.cell.array).view(1, 3, 3),
        atomic_numbers=torch.tensor(atoms.numbers, dtype=torch.float32).long(),
        natoms=len(atoms),
        tags=torch.zeros(len(atoms)),
        fixed=torch.zeros(len(atoms)),
        y=float(atoms.get_potential_energy()),
        force=torch.tensor(atoms.get_forces()),
        sid=7,
        fid=np.int64(3),
    )


def test_data_of_torch_geometric(tmp_path, crystals, check_same):
    data = pytest.importorskip("torch_geometric.data").Data
    structures = crystals(*["Cu3O"] * 11)  # key "10" comes after "9"
    path = write(tmp_path / "a.lmdb", [s2ef(atoms, data) for atoms in structures])
    check_same(read_frames(path), structures, stress=False)


def stand_ins(monkeypatch) -> tuple[type, type]:
    """Empty classes that are pickled under the names of torch_geometric's."""
    made = []
    for name, module in (
        ("Data", "torch_geometric.data.data"),
        ("GlobalStorage", "torch_geometric.data.storage"),
    ):
        for path in ("torch_geometric", "torch_geometric.data", module):
            monkeypatch.setitem(sys.modules, path, types.ModuleType(path))
        made.append(type(name, (), {"__module__": module}))
        setattr(sys.modules[module], name, made[-1])
    return made[0], made[1]


@pytest.mark.parametrize("version", [1, 2])
def test_layouts_of_torch_geometric(tmp_path, crystals, check_same, monkeypatch, version):
    """Version 1 keeps attributes in Data's own dict, later ones in a storage that points back to it."""
    data_type, storage_type = stand_ins(monkeypatch)

    def make(**values):
        data = data_type()
        if version == 1:
            data.__dict__ |= {"x": None, "edge_index": None, **values}
        else:
            storage = storage_type()
            storage.__dict__ |= {"_mapping": values, "_parent": data}
            data.__dict__["_store"] = storage
        return data

    structures = crystals("Cu3", "NaCl")
    items = [s2ef(atoms, make) for atoms in structures]
    path = write(tmp_path / "a.lmdb", items)
    check_same(read_frames(path), structures, stress=False)


def test_tags_and_fixed_atoms(tmp_path, crystals):
    """As OC20 has them: floats in ``fixed``, whole numbers in ``tags``."""
    item = s2ef(crystals("Cu3")[0], dict)
    item |= {"tags": torch.tensor([0, 1, 2]), "fixed": torch.tensor([1.0, 0.0, 0.0])}
    (frame,) = read_frames(write(tmp_path / "a.lmdb", [item]))
    assert frame.marks.tolist() == [FIXED, 1, 2]
    assert frame.free is None
    (frame,) = read_frames(tmp_path / "a.lmdb", parsing=Parsing(fixed_atoms="leave_out"))
    assert frame.free.tolist() == [False, True, True]
    wrong = write(tmp_path / "b.lmdb", [{**item, "tags": torch.zeros(2)}])
    with pytest.raises(
        DataError, match=r"frame 0 \(key '0'\): tags must be one number per atom \(3\), .* \(2,\)"
    ):
        read_frames(wrong)


def test_pickles_are_read_by_several_processes(tmp_path, crystals, check_same, monkeypatch):
    monkeypatch.setattr(lmdb_pickle, "_PIECE", 3)
    structures = crystals(*["Cu3O"] * 11)
    items = [s2ef(atoms, dict) for atoms in structures]
    path = write(tmp_path / "a.lmdb", items)
    check_same(read_frames(path), structures, stress=False)
    convert([path], tmp_path / "a.equipot", LabelsConfig(), UnitsConfig(), workers=2)
    store = Store(tmp_path / "a.equipot")
    check_same([store.frame(i) for i in range(len(store))], structures, stress=False)
    bad = write(tmp_path / "b.lmdb", [*items[:4], {**items[4], "force": Attack(eval, "1")}, *items[5:]])
    with pytest.raises(DataError, match=r"b.lmdb, frame 4 \(key '4'\): the pickle asks for builtins.eval"):
        convert([bad], tmp_path / "b.equipot", LabelsConfig(), UnitsConfig(), workers=2)


def test_folder_and_dicts(tmp_path, crystals, check_same):
    structures = crystals("Cu3", "NaCl")
    (tmp_path / "s2ef").mkdir()
    write(tmp_path / "s2ef" / "data.mdb", [s2ef(atoms, dict) for atoms in structures])
    check_same(read_frames(tmp_path / "s2ef"), structures, stress=False)


def test_lmdb_of_nequip(tmp_path, crystals, check_same):
    """As NequIPLMDBDataset.save_from_iterator writes it: dicts of tensors, and "__metadata__" beside them."""
    structures = crystals("Cu3", "NaCl")
    items = [
        {
            "pos": torch.tensor(atoms.positions),
            "cell": torch.tensor(atoms.cell.array)[None],
            "pbc": torch.tensor(atoms.pbc)[None],
            "atomic_numbers": torch.tensor(atoms.numbers),
            "forces": torch.tensor(atoms.get_forces()),
            "total_energy": torch.tensor([[atoms.get_potential_energy()]], dtype=torch.float64),
        }
        for atoms in structures
    ]
    environment = lmdb.open(str(tmp_path / "a.lmdb"), map_size=2**24, subdir=False)
    with environment.begin(write=True) as transaction:
        for i, item in enumerate(items):
            transaction.put(str(i).encode(), pickle.dumps(item, protocol=-1))
        transaction.put(b"__metadata__", pickle.dumps({"num_frames": 2}, protocol=-1))
    environment.close()
    frames = read_frames(tmp_path / "a.lmdb", LabelsConfig(energy="total_energy"))
    check_same(frames, structures, stress=False)


class Attack:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("function", [os.system, eval, exec, torch.load])
def test_attack_is_refused_and_does_not_run(tmp_path, crystals, failing, function):
    target = tmp_path / "was_here"
    argument = f"touch {target}" if function is os.system else f"open({str(target)!r}, 'w')"
    good = s2ef(crystals("Cu3")[0], dict)
    path = write(tmp_path / "a.lmdb", [good, {**good, "extra": Attack(function, argument)}])
    message = failing(path)
    assert message.startswith(f"{path}, frame 1 (key '1'): the pickle asks for ") and "refused" in message
    assert not target.exists()


def test_attack_inside_a_tensor(tmp_path, crystals, failing):
    """Tensors are pickled as bytes for torch.load, which would unpickle them in turn."""
    target = tmp_path / "was_here"
    inner = pickle.dumps(Attack(eval, f"open({str(target)!r}, 'w')"), protocol=2)
    good = s2ef(crystals("Cu3")[0], dict)
    bad = {**good, "extra": Attack(torch.storage._load_from_bytes, inner)}
    assert "frame 0" in failing(write(tmp_path / "a.lmdb", [bad]))
    assert not target.exists()


def test_only_data_is_allowed():
    for module, name in safe_pickle._ALLOWED:
        assert not {"os", "subprocess", "builtins", "posix", "sys"} & {module.split(".")[0]}, (module, name)


def test_truncated_file(tmp_path, crystals, failing):
    path = write(tmp_path / "a.lmdb", [s2ef(atoms, dict) for atoms in crystals(*["Cu30"] * 100)])
    os.truncate(path, path.stat().st_size // 2)
    message = failing(path)
    assert "its header says" in message and "truncated" in message


def test_not_lmdb(tmp_path, failing):
    (tmp_path / "a.lmdb").write_bytes(b"something else" * 1000)
    assert "not an LMDB file" in failing(tmp_path / "a.lmdb")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pos": None}, "frame 0 (key '0'): no pos; found cell"),
        ({"pos": torch.zeros(2, 3)}, "pos has shape (2, 3), but there are 3 atomic_numbers"),
        (
            {"force": torch.zeros(2, 3)},
            "forces 'forces' must have shape (3, 3), one row per atom",
        ),
        ({"y": None}, "no frame has a label 'energy'"),
    ],
)
def test_wrong_content(tmp_path, crystals, failing, change, words):
    path = write(tmp_path / "a.lmdb", [{**s2ef(crystals("Cu3")[0], dict), **change}])
    assert words in failing(path)


def test_missing_frames_and_damaged_pickle(tmp_path, crystals, failing):
    good = s2ef(crystals("Cu3")[0], dict)
    assert "says it holds 3 frames, but has 1" in failing(write(tmp_path / "a.lmdb", [good], length=3))
    damaged = pickle.dumps(good, protocol=-1)[:-40]
    assert f"{tmp_path / 'b.lmdb'}, frame 1" in failing(write(tmp_path / "b.lmdb", [good, damaged]))


def test_ase_database_under_this_name(tmp_path, crystals, failing):
    backend = pytest.importorskip("ase_db_backends.aselmdb")
    with backend.LMDBDatabase(tmp_path / "a.lmdb") as database:
        database.write(crystals("Cu3")[0])
    assert "set `format: ase_db`" in failing(tmp_path / "a.lmdb")
