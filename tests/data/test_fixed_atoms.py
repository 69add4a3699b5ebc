"""Atoms that were held fixed: their marks through every format, store and graph; `data.fixed_atoms`."""

import ase
import ase.io
import numpy as np
import pytest
import torch
from ase.build import fcc111
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixCartesian

from equipot.config.data import DataConfig, LabelsConfig, Parsing, Source, UnitsConfig
from equipot.data.columns import columns_of
from equipot.data.convert import convert
from equipot.data.dataset import GraphDataset
from equipot.data.frames import FIXED
from equipot.data.partition import split_files
from equipot.data.quality.labels import check_forces
from equipot.data.readers import named_reading, read_frames, read_source
from equipot.errors import DataError
from equipot.graph import collate, halves

LEAVE_OUT = Parsing(fixed_atoms="leave_out")


def slab(seed: int) -> ase.Atoms:
    """Twelve copper atoms, of which four are fixed, and a hydrogen atom; tags as OC20's; made-up labels."""
    random = np.random.default_rng(seed)
    atoms = fcc111("Cu", (2, 2, 3), vacuum=6.0)
    layers = atoms.get_tags()
    atoms += ase.Atoms("H", [atoms.positions[-1] + (0, 0, 1.6)])
    atoms.set_tags([*np.where(layers == 3, 0, 1), 2])
    atoms.set_constraint(FixAtoms(np.flatnonzero(layers == 3)))
    atoms.info.clear()
    atoms.pbc = True
    atoms.rattle(0.05, seed=seed)
    forces = random.normal(size=(13, 3))
    atoms.calc = SinglePointCalculator(atoms, energy=random.normal() - 40.0, forces=forces)
    return atoms


MARKS = [FIXED] * 4 + [1] * 8 + [2]
FREE = np.array(MARKS) < FIXED


@pytest.fixture
def slabs():
    return [slab(seed) for seed in range(6)]


@pytest.mark.parametrize("name", ["a.xyz", "a.db", "a.aselmdb", "a.traj"])
def test_marks_of_files(tmp_path, slabs, name):
    path = tmp_path / name
    if name == "a.aselmdb":
        backend = pytest.importorskip("ase_db_backends.aselmdb")
        with backend.LMDBDatabase(path) as database:
            for atoms in slabs:
                database.write(atoms)
    else:
        ase.io.write(path, slabs)
    for frame, atoms in zip(read_frames(path), slabs, strict=True):
        assert frame.marks.tolist() == MARKS
        np.testing.assert_allclose(frame.forces, atoms.calc.results["forces"], atol=1e-7)


def test_partial_constraints_and_strange_tags(tmp_path, slabs):
    slabs[0].set_constraint([FixCartesian(0), FixCartesian(1, (True, True, False))])
    slabs[0].set_tags([-1] * 13)  # something else than OC20's
    slabs[1].set_constraint()
    slabs[1].set_tags(0)
    ase.io.write(tmp_path / "a.traj", slabs[:2])
    frames = read_frames(tmp_path / "a.traj")
    assert frames[0].marks.tolist() == [FIXED] + [0] * 12
    assert frames[1].marks is None


def test_stores(tmp_path, slabs):
    """A store holds the marks, whatever was said when it was made, and is used as each training says."""
    ase.io.write(tmp_path / "a.xyz", slabs)
    frames = read_frames(tmp_path / "a.xyz")
    labels, units = LabelsConfig(), UnitsConfig()
    store = tmp_path / "a.equipot"
    convert([tmp_path / "a.xyz"], store, labels, units, cutoff=3.0, workers=1, parsing=LEAVE_OUT)
    for parsing in (Parsing(), LEAVE_OUT):
        pool, _ = read_source(Source((store,), parsing=parsing))
        direct, _ = read_source(Source((tmp_path / "a.xyz",), parsing=parsing))
        assert [frame.marks.tolist() for frame in pool] == [frame.marks.tolist() for frame in frames]
        assert {frame.free_only for frame in pool} == {parsing is LEAVE_OUT}
        assert set(pool.columns.free_atoms.tolist()) == {9 if parsing is LEAVE_OUT else 13}
        for name in ("label_counts", "force_squares"):
            np.testing.assert_array_equal(getattr(pool.columns, name), getattr(direct.columns, name))
        assert pool.columns.force_rms == pytest.approx(direct.columns.force_rms, rel=1e-14)


def test_stores_without_marks_are_as_before(tmp_path, crystals):
    """Files of frames without tags and constraints can be read by earlier versions."""
    from equipot.data.store.file import Store

    ase.io.write(tmp_path / "a.xyz", crystals("Cu3", "NaCl"))
    convert([tmp_path / "a.xyz"], tmp_path / "a.equipot", LabelsConfig(), UnitsConfig(), workers=1)
    store = Store(tmp_path / "a.equipot")
    assert set(store.header["index"]) == {"rows", "composition", "label_weights"}
    assert (store.rows["flags"] < 256).all()


def test_statistics_and_labels_of_free_atoms(tmp_path, slabs):
    ase.io.write(tmp_path / "a.traj", slabs)
    every = np.array([atoms.calc.results["forces"] for atoms in slabs])
    for parsing, chosen in ((Parsing(), slice(None)), (LEAVE_OUT, FREE)):
        frames = read_frames(tmp_path / "a.traj", parsing=parsing)
        columns, forces = columns_of(frames), every[:, chosen]
        assert columns.force_rms == pytest.approx(np.sqrt((forces**2).mean()), rel=1e-12)
        assert columns.label_counts[:, :2].tolist() == [[1, forces[0].size]] * 6
        graph = collate(GraphDataset(frames, ["H", "Cu"], 3.0).graphs)
        known = torch.tensor(np.isin(np.arange(13), np.arange(13)[chosen])).repeat(6)
        assert graph.labels.forces.mask.tolist() == known.tolist()
        assert graph.labels.energy.mask.all()
        assert graph.marks.tolist() == MARKS * 6
        assert [half.marks.tolist() for half in halves(graph)] == [MARKS * 3, MARKS * 3]
    other = GraphDataset(read_frames(_write_plain(tmp_path, slabs[0])), ["H", "Cu"], 3.0).graphs
    assert collate([graph, *other]).marks.tolist() == MARKS * 6 + [0] * 13


def _write_plain(tmp_path, atoms):
    plain = atoms.copy()
    plain.set_tags(0)
    plain.set_constraint()
    plain.calc = SinglePointCalculator(plain, energy=0.0, forces=atoms.calc.results["forces"])
    ase.io.write(tmp_path / "plain.traj", plain)
    return tmp_path / "plain.traj"


def test_split_keeps_the_marks(tmp_path, slabs):
    ase.io.write(tmp_path / "a.traj", slabs)
    sizes = {"train": "4", "validation": "2", "test": "0"}
    split_files([tmp_path / "a.traj"], tmp_path / "sets", sizes, LabelsConfig(), UnitsConfig())
    for frame in read_frames(tmp_path / "sets" / "train.xyz"):
        assert frame.marks.tolist() == MARKS


def test_forces_that_constraints_made_zero(tmp_path, slabs):
    """Their sum is not that of all forces: an error, unless fixed atoms are left out."""
    for atoms in slabs:
        atoms.calc.results["forces"] -= atoms.calc.results["forces"].mean(axis=0) - 0.5
        atoms.calc.results["forces"][~FREE] = 0.0
    ase.io.write(tmp_path / "a.traj", slabs)
    found = check_forces(read_frames(tmp_path / "a.traj"))
    assert [(f.check, f.severity) for f in found] == [("net force", "error")]
    assert not check_forces(read_frames(tmp_path / "a.traj", parsing=LEAVE_OUT))


def test_configuration_and_option():
    data = DataConfig(
        train=["a.xyz", {"path": ["b.xyz"], "fixed_atoms": "use"}], fixed_atoms="leave_out", validation=1
    )
    assert [source.parsing.fixed_atoms for source in data.sources("train")] == ["leave_out", "use"]
    others = data.sources("train")[0]
    assert named_reading({}, {}, None, others=others)["parsing"].fixed_atoms == "leave_out"
    assert named_reading({}, {}, None, fixed_atoms="use", others=others)["parsing"].fixed_atoms == "use"
    with pytest.raises(DataError, match="--fixed-atoms is 'free'; expected use or leave_out"):
        named_reading({}, {}, None, fixed_atoms="free")
