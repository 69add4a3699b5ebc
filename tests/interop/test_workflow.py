"""What a user does with an imported model: import, info, deploy, check, fine-tune."""

import sys

import numpy as np
import pytest
import torch
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from plain_sevennet import evaluate, make

from equipot import EquipotCalculator, cli
from equipot.data import graph_from_atoms
from equipot.deploy.checkpoint import load_checkpoint
from equipot.deploy.examples import example_structures
from equipot.evaluation.run import evaluate as evaluate_files
from equipot.graph import edge_vectors

LEVELS = {"_modal_map": {"R2SCAN": 0, "PBE": 1}}
LEVELS |= {f"use_modal_{part}": True for part in ("self_inter_intro", "self_inter_outro", "output_block")}


@pytest.mark.filterwarnings("ignore:.*")
def test_workflow(equipot, tmp_path):
    model = make(**LEVELS)
    torch.save(model.checkpoint(), tmp_path / "a.pth")
    out = equipot("import", "a.pth", "--level", "PBE", "--elements", "H,O")
    assert "Wrote a-PBE.ckpt (2 elements, float32)" in out and "SHA-256" in out
    assert "levels of theory" in equipot("info", "a-PBE.ckpt")
    assert "tables of" in equipot("deploy", "a-PBE.ckpt", "--output", "a.pt")
    out = equipot("import", "a.pth", "--level", "PBE", "--replay", "7", "--output", "b.ckpt")
    assert "Wrote b_replay.xyz (7 frames)" in out
    errors = evaluate_files("b.ckpt", ["b_replay.xyz"]).comparison
    assert np.abs(errors.error("forces")).max() < 1e-5 and np.abs(errors.error("energy")).max() < 1e-6
    assert "SevenNet" in equipot("info", "a.pt")
    report = equipot("check", "a.pt")
    assert "passed" in report and "inversion" not in report  # parity is ignored

    calculator = EquipotCalculator(tmp_path / "a.pt")
    frames = example_structures(["H", "O"])
    for atoms in frames:
        graph = graph_from_atoms(atoms, ["H", "O"], 3.5)
        types = torch.tensor([1, 2])[graph.atom_types]
        energies, gradient = evaluate(model, edge_vectors(graph), graph.edge_index, types, 1)
        forces = torch.zeros(len(atoms), 3, dtype=torch.float64).index_add(0, graph.edge_index[0], gradient)
        forces.index_add_(0, graph.edge_index[1], -gradient)
        atoms.calc = calculator
        assert atoms.get_potential_energy() == pytest.approx(float(energies.sum()), rel=1e-6)
        np.testing.assert_allclose(atoms.get_forces(), forces, rtol=0, atol=1e-5)
        labels = {"energy": float(energies.sum()) + 0.1, "forces": 1.1 * forces.numpy()}
        atoms.calc = SinglePointCalculator(atoms, **labels)

    write(tmp_path / "train.xyz", frames, format="extxyz")
    (tmp_path / "fine.yaml").write_text(
        "fine_tune: {model: a-PBE.ckpt}\ndata: {train: train.xyz, validation: 2, checks: warn}\n"
        "training: {epochs: 1}\nrun: {directory: run, device: cpu}\n"
    )
    equipot("train", "fine.yaml")
    equipot(
        "train", "fine.yaml", "fine_tune.model=b.ckpt", "fine_tune.replay=b_replay.xyz", "run.directory=all"
    )
    tuned = load_checkpoint(tmp_path / "all/checkpoints/best.ckpt")
    assert set(tuned.potential.species) > {"H", "O"}
    tuned = load_checkpoint(tmp_path / "run/checkpoints/best.ckpt")
    imported = load_checkpoint(tmp_path / "a-PBE.ckpt")
    assert tuned.origin == imported.origin and imported.imported and not tuned.imported
    assert (tuned.potential.network.embedding - imported.potential.network.embedding).abs().max() > 0


@pytest.mark.filterwarnings("ignore:.*")
def test_several_levels(equipot, tmp_path):
    """Imported at once; each can be deployed, and one trained on while the other stays as it is."""
    model = make(layers=2, **LEVELS)
    torch.save(model.checkpoint(), tmp_path / "a.pth")
    assert "Wrote a.ckpt (2 elements, levels R2SCAN, PBE, float32)" in equipot(
        "import", "a.pth", "--elements", "H,O"
    )
    equipot("deploy", "a.ckpt", "--level", "R2SCAN", "--output", "a.pt")
    calculator = EquipotCalculator(tmp_path / "a.pt")
    frames = example_structures(["H", "O"])[::3]
    for atoms in frames:
        graph = graph_from_atoms(atoms, ["H", "O"], 3.5)
        types = torch.tensor([1, 2])[graph.atom_types]
        energies, _ = evaluate(model, edge_vectors(graph), graph.edge_index, types, 0)
        atoms.calc = calculator
        assert atoms.get_potential_energy() == pytest.approx(float(energies.sum()), rel=1e-6)
        labels = {"energy": atoms.get_potential_energy(), "forces": 1.1 * atoms.get_forces()}
        atoms.calc = SinglePointCalculator(atoms, **labels)
    for file, part in {"mine": frames[:2], "old": frames[1:3], "held": frames[3:]}.items():
        write(tmp_path / f"{file}.xyz", part, format="extxyz")
    (tmp_path / "fine.yaml").write_text(
        "fine_tune: {model: a.ckpt, level: PBE}\n"
        "data: {train: [{path: mine.xyz, level: mine}, {path: old.xyz, level: R2SCAN}], checks: warn,\n"
        "       validation: [{path: held.xyz, level: mine}]}\n"
        "training: {epochs: 1, learning_rate: 1.0e-6}\nrun: {directory: run, device: cpu}\n"
    )
    equipot("train", "fine.yaml")
    biases = [
        {
            name: weight
            for name, weight in load_checkpoint(file).potential.named_parameters()
            if name.endswith(".bias")
        }
        for file in (tmp_path / "a.ckpt", tmp_path / "run/checkpoints/best.ckpt")
    ]
    assert len(biases[0]) == 4
    for name, before in biases[0].items():  # R2SCAN, PBE, of which the new level is made
        assert (before[0] - before[1]).abs().max() > 0.1
        torch.testing.assert_close(biases[1][name], before[[1, 0]], rtol=0, atol=1e-4)
    assert "PBE" not in equipot("info", "run")
    equipot("evaluate", "run", "held.xyz", "--level", "mine")


def test_replay_is_of_one_level(equipot, tmp_path, monkeypatch, capfd):
    torch.save(make(layers=2, **LEVELS).checkpoint(), tmp_path / "a.pth")
    monkeypatch.setattr(sys, "argv", ["equipot", "import", "a.pth", "--replay", "3"])
    with pytest.raises(SystemExit):
        cli.main()
    assert "--replay is of one level of theory" in capfd.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["a.pth"]


def test_verify_needs_sevenn(equipot, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sevenn", None)  # which makes its import fail
    torch.save(make(layers=2).checkpoint(), tmp_path / "a.pth")
    monkeypatch.setattr(sys, "argv", ["equipot", "import", "a.pth", "--verify"])
    with pytest.raises(SystemExit):
        cli.main()
    assert not (tmp_path / "a.ckpt").exists()
