"""Open Catalyst's S2EF by the commands a user types: configs/open_catalyst.yaml on small slabs in LMDB."""

import csv
import json
import pickle
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase.build import add_adsorbate, fcc111
from ase.calculators.emt import EMT

from equipot.config import load_config

lmdb = pytest.importorskip("lmdb")
CONFIG = Path(__file__).parents[2] / "configs" / "open_catalyst.yaml"
OVERRIDES = (
    "model.layers=1", "model.channels=4", "model.l_max=1", "model.cutoff=4.0", "model.radial_hidden=[8]",
    "training.epochs=2", "training.batch_size=4", "training.schedule.warmup_epochs=0", "run.device=cpu",
    "run.workers=1",
)  # fmt: skip


def write_set(folder: Path, seeds: range) -> None:
    """Slabs as OC20's scripts write them; the forces that EMT gives, and constraints made zero."""
    folder.mkdir(parents=True)
    environment = lmdb.open(str(folder / "data.0000.lmdb"), map_size=2**24, subdir=False)
    with environment.begin(write=True) as transaction:
        for number, seed in enumerate(seeds):
            atoms = fcc111("Cu", (1, 2, 3), vacuum=5.0)
            add_adsorbate(atoms, "O", 1.3, "fcc")
            atoms.set_tags([0, 0, 0, 0, 1, 1, 2])
            atoms.pbc = True
            atoms.rattle(0.1, seed=seed)
            atoms.calc = EMT()
            forces, fixed = atoms.get_forces(), atoms.get_tags() == 0
            item = {
                "pos": torch.tensor(atoms.positions, dtype=torch.float32),
                "cell": torch.tensor(atoms.cell.array, dtype=torch.float32)[None],
                "atomic_numbers": torch.tensor(atoms.numbers, dtype=torch.float32),
                "natoms": 7,
                "tags": torch.tensor(atoms.get_tags()),
                "fixed": torch.tensor(fixed, dtype=torch.float32),
                "y": atoms.get_potential_energy() - 10.0,
                "force": torch.tensor(np.where(fixed[:, None], 0.0, forces), dtype=torch.float32),
                "sid": seed,
                "fid": 0,
            }
            transaction.put(str(number).encode(), pickle.dumps(item, protocol=-1))
        transaction.put(b"length", pickle.dumps(len(seeds), protocol=-1))
    environment.close()


def test_configuration():
    """As it is for the whole: one that no test can train."""
    config = load_config(CONFIG)
    assert config.data.fixed_atoms == "leave_out" and config.data.cache is not None
    assert config.model.cutoff == 6.0 and config.run.workers > 1
    assert len([line for line in CONFIG.read_text().splitlines() if line and line[0] != "#"]) <= 24


def test_trained_and_evaluated(equipot, tmp_path):
    for name, seeds in (("train", range(10)), ("val_id", range(10, 14)), ("val_ood_ads", range(14, 17))):
        write_set(tmp_path / name, seeds)
    run = tmp_path / "run"
    data = f"data.train={tmp_path}/train/*.lmdb", f"data.validation={tmp_path}/val_id/*.lmdb"
    result = equipot("train", CONFIG, *data, *OVERRIDES, f"data.cache={tmp_path}", f"run.directory={run}")
    assert result.code == 0, result.err
    assert "net force" not in result.out + result.err
    sets = [tmp_path / name / "data.0000.lmdb" for name in ("val_id", "val_ood_ads")]
    files = "--predictions", tmp_path / "p.xyz", "--output", tmp_path / "errors"
    result = equipot("evaluate", run, *sets, *files)
    assert result.code == 0, result.err
    assert "Open Catalyst S2EF" in result.out and "21 atoms" in result.out  # free ones

    frames = ase.io.read(tmp_path / "p.xyz", ":")
    assert [frame.get_tags().tolist() for frame in frames] == [[0, 0, 0, 0, 1, 1, 2]] * 7
    error = np.array([f.info["predicted_energy"] - f.info["reference_energy"] for f in frames])
    forces = np.array([(f.arrays["predicted_forces"] - f.arrays["reference_forces"])[4:] for f in frames])
    rows = json.loads((tmp_path / "errors" / "errors.json").read_text())["s2ef"]
    assert [Path(row["name"]).name for row in rows] == ["all", "val_id", "val_ood_ads"]
    for row, chosen in zip(rows, (slice(None), slice(4), slice(4, None)), strict=True):
        assert row["energy_mae"] == pytest.approx(1e3 * np.abs(error[chosen]).mean(), rel=1e-5)
        assert row["force_mae"] == pytest.approx(1e3 * np.abs(forces[chosen]).mean(), rel=1e-4)
        assert row["force_mae_by_tag"]["2"] == pytest.approx(1e3 * np.abs(forces[chosen, 2]).mean(), rel=1e-4)

    # The loss: Huber's function of the energies per atom and of the forces on free atoms.
    rows = list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))
    best = min(float(row["validation_loss"]) for row in rows)
    huber = [
        np.where(e < 1e-3, e * e / 2, 1e-3 * (e - 5e-4)) for e in map(np.abs, (error[:4] / 7, forces[:4]))
    ]
    assert best == pytest.approx(10 * huber[0].mean() + huber[1].mean(), rel=1e-4)

    result = equipot("evaluate", run, sets[0], "--fixed-atoms", "use")
    assert result.code == 0 and "28 atoms" in result.out
    result = equipot("evaluate", run, sets[0], "--fixed-atoms", "free")
    assert result.code == 1 and "expected use or leave_out" in result.err
