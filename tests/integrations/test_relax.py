"""Relaxation of many structures: minima, cells, constraints, restarts, refusals, against ASE."""

import csv
import json

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.constraints import FixAtoms, FixBondLengths, FixCartesian, FixedPlane, FixScaled
from ase.filters import UnitCellFilter
from ase.optimize import BFGS

from equipot import EquipotCalculator
from equipot.data.neighbors import neighbor_list
from equipot.deploy.load import load_deployed
from equipot.errors import ConfigError, DataError, UnknownSpeciesError
from equipot.integrations import relax, relax_batch
from equipot.integrations.model_hessian import STRAINS, model_hessian
from equipot.integrations.packed import Pack, PackedList, PackedModel
from equipot.integrations.relax import run_relax
from equipot.integrations.relax_settings import RelaxSettings
from equipot.units import GPA

TIGHT = {"force": 1e-4, "stress": 0.01}


def crystals(count=6, seed=0):
    """Distorted, near minima of the stand-in, whose bonds are not those of the elements."""
    rng = np.random.default_rng(seed)
    kinds = [
        bulk("C", "fcc", 3.0),
        bulk("C", "fcc", 3.0, cubic=True),
        bulk("CO", "cesiumchloride", 2.6) * (1, 1, 2),
    ]
    kinds += [bulk("O", "bcc", 2.6, cubic=True) * (2, 1, 1), bulk("HC", "cesiumchloride", 2.7)]
    found = []
    for number in range(count):
        atoms = kinds[number % len(kinds)].copy()
        strain = rng.normal(scale=0.02, size=(3, 3))
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
        atoms.positions += rng.normal(scale=0.05, size=atoms.positions.shape)
        found.append(atoms)
    return found


def relaxed(structures, model, output, **settings):
    """The images of the output, after every structure has converged."""
    result = run_relax(structures, model, output, RelaxSettings(**settings), device="cpu")
    assert result.converged, result.table
    return ase.io.read(output / "relaxed.extxyz", ":")


@pytest.fixture(scope="module")
def minima(model_file):
    """Of `crystals`, by ASE."""
    structures = crystals()
    for atoms in structures:
        atoms.calc = EquipotCalculator(model_file, device="cpu")
        BFGS(UnitCellFilter(atoms), logfile=None).run(fmax=5e-4, steps=500)
    return structures


@pytest.mark.parametrize("optimizer", ["lbfgs", "fire"])
def test_same_minima_as_ase(optimizer, minima, model_file, tmp_path):
    """With cells; in batches of few edges, so that structures leave and others enter."""
    structures = crystals()
    found = run_relax(
        structures, model_file, tmp_path / "out", RelaxSettings(cell=True, optimizer=optimizer, **TIGHT),
        device="cpu", max_edges=1000,
    )  # fmt: skip
    assert found.converged
    images = ase.io.read(tmp_path / "out" / "relaxed.extxyz", ":")
    for atoms, image, row in zip(minima, images, found.table, strict=True):
        assert row["energy_eV_per_atom"] == pytest.approx(atoms.get_potential_energy() / len(atoms), abs=1e-6)
        assert row["energy_change_eV_per_atom"] < 0
        assert image.get_volume() == pytest.approx(atoms.get_volume(), rel=1e-3)
        image.calc, results = atoms.calc, image.calc.results  # what the file says is what the model says
        assert image.get_potential_energy() == pytest.approx(results["energy"], abs=1e-6)
        np.testing.assert_allclose(image.get_forces(), results["forces"], atol=1e-6)
        np.testing.assert_allclose(image.get_stress(), results["stress"], atol=1e-6)


def test_molecules_and_crystals_together(model_file, tmp_path):
    """Positions alone; a single atom, and a molecule without a cell, among them."""
    structures = [molecule("H2O"), *crystals(2), Atoms("O", positions=[[0, 0, 0]])]
    images = relaxed(structures, model_file, tmp_path / "out", **TIGHT)
    for before, image in zip(structures, images, strict=True):
        np.testing.assert_array_equal(image.cell.array, before.cell.array)
        assert np.abs(image.get_forces()).max() < 1e-4
    assert images[3].get_potential_energy() == pytest.approx(-30.0)
    assert [image.info["index"] for image in images] == [0, 1, 2, 3]


def test_pressure_and_masks(model_file, tmp_path):
    """What may move has the stress that was asked for, what may not has not moved."""
    given = crystals(2)

    def strains(images):
        return [np.linalg.solve(a.cell.array, b.cell.array) for a, b in zip(given, images, strict=True)]

    for image in relaxed(given, model_file, tmp_path / "a", cell=True, pressure=5.0, **TIGHT):
        np.testing.assert_allclose(image.get_stress()[:3], -5.0 * GPA, atol=0.011 * GPA)
    images = relaxed(given, model_file, tmp_path / "b", cell=True, mask=(1, 1, 0), **TIGHT)
    for strain, image in zip(strains(images), images, strict=True):
        np.testing.assert_allclose(strain[2], [0, 0, 1], atol=1e-12)
        np.testing.assert_allclose(strain, strain.T, atol=1e-12)  # it has not turned
        assert np.abs(image.get_stress()[[0, 1, 5]]).max() < 0.011 * GPA < np.abs(image.get_stress()[2])
    images = relaxed(given, model_file, tmp_path / "c", cell=True, hydrostatic=True, pressure=1.0, **TIGHT)
    for strain, image in zip(strains(images), images, strict=True):
        np.testing.assert_allclose(strain, strain[0, 0] * np.eye(3), atol=1e-12)
        assert image.get_stress()[:3].mean() == pytest.approx(-1.0 * GPA, abs=0.011 * GPA)
    images = relaxed(given, model_file, tmp_path / "d", cell=True, constant_volume=True, **TIGHT)
    for strain, image in zip(strains(images), images, strict=True):
        assert np.linalg.det(strain) == pytest.approx(1.0, abs=1e-12)
        rest = image.get_stress() - image.get_stress()[:3].mean() * np.array([1, 1, 1, 0, 0, 0])
        assert np.abs(rest).max() < 0.011 * GPA
    images = relaxed(
        given, model_file, tmp_path / "e", cell=True, constant_volume=True, mask=(0, 1, 1), **TIGHT
    )
    for strain in strains(images):
        assert np.linalg.det(strain) == pytest.approx(1.0, abs=1e-12)
        np.testing.assert_allclose(strain[0], [1, 0, 0], atol=1e-12)


@pytest.mark.parametrize("optimizer", ["lbfgs", "fire"])
def test_gradient_is_that_of_the_enthalpy(optimizer, model_file, monkeypatch):
    """By finite differences, in a cell that is strained already."""
    model = PackedModel([load_deployed(model_file, "cpu")])
    settings = RelaxSettings(cell=True, pressure=20.0, optimizer=optimizer)
    tasks = [relax._task(n, relax.Found("a", n, atoms), model.members[0], settings)
             for n, atoms in enumerate(crystals(2))]  # fmt: skip
    batch = relax_batch.Batch(model, settings)
    batch.change([], tasks)
    start = batch.x + np.random.default_rng(1).normal(scale=0.03, size=batch.x.shape)
    seen = []

    def spy(x, energy, gradient, solve):
        seen.append((energy, gradient))
        return x

    monkeypatch.setattr(batch.optimizer, "next", spy)
    rng = np.random.default_rng(2)
    for _ in range(3):
        direction = rng.normal(size=start.shape)
        for step in (0.0, 1e-5, -1e-5):
            batch.x = start + step * direction
            batch.step()
        (_, gradient), (above, _), (below, _) = seen[-3:]
        slopes = np.add.reduceat((gradient * direction).sum(axis=1), batch.optimizer.starts)
        np.testing.assert_allclose((above - below) / 2e-5, slopes, rtol=1e-6, atol=1e-6)


def test_constraints(model_file, tmp_path):
    """They hold, forces along free directions vanish; fixed atoms keep their place in a cell that moves."""
    given = [bulk("C", "fcc", 3.0, cubic=True) for _ in range(4)]
    rng = np.random.default_rng(0)
    normal = np.array([1.0, 2.0, 2.0]) / 3.0
    for atoms, constraint in zip(
        given,
        [
            FixAtoms([0, 2]),
            FixCartesian([1], [True, False, True]),
            FixedPlane([3], normal),
            FixScaled([0], [1, 0, 0]),
        ],
        strict=True,
    ):
        atoms.positions += rng.normal(scale=0.1, size=(4, 3))
        atoms.set_constraint(constraint)
    ase.io.write(tmp_path / "in.traj", given)
    images = relaxed([tmp_path / "in.traj"], model_file, tmp_path / "a", **TIGHT)
    moved = [image.positions - atoms.positions for image, atoms in zip(images, given, strict=True)]
    assert np.abs(moved[0][[0, 2]]).max() < 1e-8 < np.abs(moved[0][1]).max()
    assert np.abs(moved[1][1, [0, 2]]).max() < 1e-8 < np.abs(moved[1][1, 1])
    assert abs(moved[2][3] @ normal) < 2e-8 < np.abs(moved[2][3]).max()
    assert abs(moved[3][0, 0]) < 1e-8 < np.abs(moved[3][0]).max()
    assert (
        np.abs(images[0].calc.results["forces"]).max() > 1e-3
    )  # where others would just follow, there are none
    for image, atoms in zip(images, given, strict=True):
        forces = image.calc.results["forces"]
        for constraint in atoms.constraints:
            constraint.adjust_forces(image, forces)
        assert np.abs(forces).max() < 1e-4
    again = relaxed(given[:1], model_file, tmp_path / "b", cell=True, **TIGHT)[0]
    fixed = given[0].get_scaled_positions()[[0, 2]] - again.get_scaled_positions()[[0, 2]]
    np.testing.assert_allclose(fixed - fixed.round(), 0.0, atol=1e-8)


def test_goes_on_after_a_kill(model_file, tmp_path, monkeypatch, caplog):
    """What had ended is not evaluated again; the line that was cut is; the files are those of one run."""
    caplog.set_level("INFO", "equipot")
    structures, settings = crystals(6), RelaxSettings(cell=True, **TIGHT)

    def run(output, **more):
        return run_relax(structures, model_file, output, settings, device="cpu", max_edges=600, **more)

    whole = run(tmp_path / "whole")
    run(tmp_path / "cut")
    journal = tmp_path / "cut" / "progress.jsonl"
    for name in ("relaxed.extxyz", "results.json", "results.csv"):
        (tmp_path / "cut" / name).unlink()
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:3]) + lines[3][:100])
    evaluated = set()
    evaluate = PackedModel.evaluate

    def spy(self, pack, keys):
        evaluated.update(keys)
        return evaluate(self, pack, keys)

    monkeypatch.setattr(PackedModel, "evaluate", spy)
    again = run(tmp_path / "cut")
    done = {json.loads(line)["number"] for line in lines[1:3]}
    assert evaluated == set(range(6)) - done
    assert "where 2 of 6 structures are done" in caplog.text
    for one, other in zip(whole.table, again.table, strict=True):
        assert other["energy_eV"] == pytest.approx(one["energy_eV"], abs=1e-9)
        assert other["steps"] == one["steps"]
    evaluated.clear()
    assert run(tmp_path / "cut").table == again.table  # nothing is left to do
    assert not evaluated
    structures[2].positions[0, 0] += 0.1
    with pytest.raises(ConfigError, match=r"another relaxation.*structures: 6, digest"):
        run(tmp_path / "cut")
    run(tmp_path / "cut", overwrite=True)
    journal.write_text('{"format": 1}\nnonsense\n')
    with pytest.raises(DataError, match=r"progress.jsonl: damaged"):
        run(tmp_path / "cut")


def test_more_steps_go_on(model_file, tmp_path):
    """From where those stand that had not converged, and count on."""
    structures = crystals(3)
    first = run_relax(structures, model_file, tmp_path, RelaxSettings(steps=2, **TIGHT), device="cpu")
    assert {row["state"] for row in first.table} >= {"unconverged"}
    again = run_relax(structures, model_file, tmp_path, RelaxSettings(steps=99, **TIGHT), device="cpu")
    assert again.converged
    for before, row in zip(first.table, again.table, strict=True):
        assert row["steps"] > 2 or before["converged"]
        change = row["energy_change_eV_per_atom"], before["energy_change_eV_per_atom"]
        assert change[0] <= change[1] + 1e-9  # of both runs


def test_signal(model_file, tmp_path, monkeypatch):
    """All that run are written down, and it ends as the signal wants."""
    step = relax_batch.Batch.step

    def signalled(self):
        import os
        import signal

        os.kill(os.getpid(), signal.SIGTERM)
        return step(self)

    monkeypatch.setattr(relax_batch.Batch, "step", signalled)
    with pytest.raises(SystemExit) as stopped:
        run_relax(crystals(2), model_file, tmp_path, RelaxSettings(**TIGHT), device="cpu")
    assert stopped.value.code == 143
    monkeypatch.setattr(relax_batch.Batch, "step", step)
    assert len((tmp_path / "progress.jsonl").read_text().splitlines()) == 3
    assert run_relax(crystals(2), model_file, tmp_path, RelaxSettings(**TIGHT), device="cpu").converged


def test_one_fails_and_the_others_go_on(model_file, tmp_path, caplog):
    """Pulled apart by a pressure that its bonds do not hold; or by results that are not finite."""
    found = run_relax(
        crystals(3), model_file, tmp_path / "a", RelaxSettings(cell=True, pressure=-500.0), device="cpu"
    )
    assert {row["state"] for row in found.table} == {"failed"}
    assert any("its volume is" in row["problem"] or "runs apart" in row["problem"] for row in found.table)
    assert "Failed: index 0 (structures, frame 0)" in caplog.text
    good = load_deployed(model_file, "cpu")

    class Broken:
        metadata, device, atom_types = good.metadata, good.device, good.atom_types

        def __call__(self, edge_vec, edge_index, types, owned, **options):
            rows = good(edge_vec, edge_index, types, owned, **options)
            rows[0][np.flatnonzero(types == 2)] = np.nan  # of oxygen
            return rows

    structures = crystals(4)
    pack = _pack(structures, good)
    found = PackedModel([Broken()]).evaluate(pack)
    right = PackedModel([good]).evaluate(pack)
    assert found.problems == dict.fromkeys((2, 3), "the model's results are not finite")
    np.testing.assert_allclose(found.energies[:2], right.energies[:2], rtol=1e-12)
    assert np.isnan(found.energies[2:]).all()


def _pack(structures, model):
    return Pack(
        np.concatenate([atoms.positions for atoms in structures]),
        np.stack([atoms.cell.array for atoms in structures]),
        np.stack([atoms.pbc for atoms in structures]),
        np.concatenate([model.atom_types(atoms.numbers) for atoms in structures]),
        np.array([len(atoms) for atoms in structures]),
    )


def test_packed_lists_are_complete(model_file):
    """However atoms and cells move and structures come and go: the edges of lists made from nothing."""
    model, rng = load_deployed(model_file, "cpu"), np.random.default_rng(0)
    structures = dict(enumerate([*crystals(5), molecule("CH3OH")]))
    packed = PackedList(4.0, 0.5)
    for step in range(80):
        if step % 20 == 0:
            keys = sorted(rng.permutation(len(structures))[: 3 + step // 20].tolist())
        for atoms in structures.values():
            atoms.positions += rng.normal(scale=0.05, size=atoms.positions.shape)
            if atoms.pbc.all():
                strain = np.eye(3) + rng.normal(scale=0.004, size=(3, 3))
                atoms.set_cell(atoms.cell.array @ strain, scale_atoms=True)
        chosen = [structures[key] for key in keys]
        edges = packed.edges(_pack(chosen, model), keys)
        first, expected = 0, []
        for atoms in chosen:
            index, shift = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, 4.0)
            vec = atoms.positions[index[1]] + shift @ atoms.cell.array - atoms.positions[index[0]]
            expected.append(np.column_stack([index.T + first, vec]))
            first += len(atoms)
        for found, right in zip(
            _sorted(np.column_stack([edges.index.T, edges.vec])),
            _sorted(np.concatenate(expected)),
            strict=True,
        ):
            np.testing.assert_allclose(found, right, atol=1e-9)
    assert packed.builds < 200  # of 360
    atoms = bulk("C", "fcc", 3.4)
    packed.edges(_pack([atoms], model))
    atoms.set_cell(0.82 * atoms.cell.array, scale_atoms=True)  # brings the fourth shell in, and moves no atom
    expected = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, 4.0)[0].shape
    assert packed.edges(_pack([atoms], model)).index.shape == expected


def _sorted(table):
    return table[np.lexsort(np.round(table, 6).T[::-1])]


def test_model_hessian():
    """It is the curvature of springs, of which the energy is summed here pair by pair."""
    atoms = crystals(2)[1]
    index, shift = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, 4.0)
    vec = atoms.positions[index[1]] + shift @ atoms.cell.array - atoms.positions[index[0]]
    radii, size = np.full(4, 1.3), 4
    hessian = model_hessian(vec, index, radii, 3.0).toarray()
    assert np.linalg.eigvalsh(hessian)[0] > 0
    length = np.linalg.norm(vec, axis=1)
    strength = np.exp(-3.0 * (length / 2.6 - 1.0))
    unit = vec / length[:, None]

    def energy(move):
        u, strain = move[:-6].reshape(size, 3), np.einsum("mab,m->ab", STRAINS, move[-6:]) / 3.0
        change = u[index[1]] - u[index[0]] + vec @ strain
        along = (change * unit).sum(axis=1)
        spring = 6.0 * np.minimum(strength, 3.0) * (strength > 0.02)
        return (
            0.25 * (spring * (0.9 * along**2 + 0.1 * (change**2).sum(axis=1))).sum() + 0.15 * (move**2).sum()
        )

    moves = np.random.default_rng(0).normal(size=(5, 3 * size + 6))
    for move in moves:
        assert 0.5 * move @ hessian @ move == pytest.approx(energy(move), rel=1e-10)


def test_output(model_file, tmp_path):
    """Table and structures say the same; what the input said is kept unless it is a label."""
    structures = crystals(2)
    structures[0].info.update(material="mp-1", energy=5.0, REF_energy=3.0)
    ase.io.write(tmp_path / "in.xyz", structures)
    found = run_relax([f"{tmp_path / 'in.xyz'}@0", tmp_path / "in.xyz"], model_file, tmp_path / "out",
                      RelaxSettings(), device="cpu")  # fmt: skip
    assert [row["frame"] for row in found.table] == [0, 0, 1]
    images = ase.io.read(tmp_path / "out" / "relaxed.extxyz", ":")
    assert images[0].info["material"] == "mp-1" and "REF_energy" not in images[0].info
    assert images[0].get_potential_energy() == pytest.approx(found.table[0]["energy_eV"])
    with (tmp_path / "out" / "results.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [float(row["energy_eV"]) for row in table] == [row["energy_eV"] for row in found.table]
    summary = json.loads((tmp_path / "out" / "results.json").read_text())
    assert summary["converged"] == 3 and summary["structures"] == found.table and summary["--fmax"] == 0.01


def test_refusals(model_file, tmp_path, monkeypatch):
    """Before anything is written, each with the structure that it is about."""

    def refused(error, match, *structures, **settings):
        with pytest.raises(error, match=match):
            run_relax(structures, model_file, tmp_path / "out", RelaxSettings(**settings), device="cpu")
        assert not (tmp_path / "out").exists()

    good = crystals(1)[0]
    twins = Atoms("C2", [[0, 0, 0], [0, 0, 0.05]], cell=[9] * 3, pbc=True)
    refused(UnknownSpeciesError, r"(?s)frame 1 .*Si", good, bulk("Si"))
    refused(DataError, r"frame 1 .*atoms 0 and 1 are 0.0500 Å apart", good, twins)
    refused(DataError, r"(?s)2 of 3 structures cannot be relaxed:.*frame 0.*frame 2", bulk("Si"), good, twins)
    lost = good.copy()
    lost.positions[0, 1] = np.nan
    refused(DataError, "'positions' is nan of atom 0", lost)
    refused(DataError, "has no atoms", Atoms())
    (tmp_path / "empty.xyz").write_text("")
    refused(DataError, "empty.xyz is empty", tmp_path / "empty.xyz")
    refused(DataError, "No structure is given")
    refused(DataError, "--cell needs structures that are periodic", molecule("H2O"), cell=True)
    bound = molecule("H2O")
    bound.set_constraint(FixBondLengths([(0, 1)]))
    refused(DataError, r"frame 0 .*FixBondLengths, which a relaxation here does not keep", bound)
    for settings, match in (
        ({"mask": (1, 1, 0)}, "--mask is about the cell"),
        ({"cell": True, "mask": (0, 0, 0)}, "not all 0"),
        ({"cell": True, "hydrostatic": True, "constant_volume": True}, "contradict each other"),
        ({"cell": True, "pressure": 1.0, "constant_volume": True}, "does nothing"),
        ({"force": 0.0}, "--fmax must be"),
        ({"optimizer": "bfgs"}, "--optimizer must be"),
        ({"steps": -1}, "--steps must be"),
        ({"cell": True, "pressure": float("nan")}, "--pressure must be"),
    ):
        refused(ConfigError, match, good, **settings)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    with pytest.raises(ConfigError, match="not empty"):
        run_relax([good], model_file, tmp_path / "full", device="cpu")


def test_names_distances_below_those_of_the_training(model_file, tmp_path, monkeypatch, caplog):
    """Of the structures as they are at the end."""
    model = load_deployed(model_file, "cpu")
    monkeypatch.setitem(model.metadata.shortest_distances, "C-C", 2.5)
    dense, loose = bulk("C", "fcc", 3.0), bulk("C", "fcc", 5.0)
    found = run_relax([loose, dense, dense], model, tmp_path, RelaxSettings(force=10.0))
    assert [bool(row["closer_than_training"]) for row in found.table] == [False, True, True]
    assert (
        "(C-C) are 2.121 Å apart; shortest in the training set: 2.500 Å"
        in found.table[1]["closer_than_training"]
    )
    assert caplog.text.count("Closer than anything the model was trained on, in 2 relaxed structures") == 1
