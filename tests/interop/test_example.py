"""examples/05_pretrained, shorter: a small model of random weights, or 7net-0 where sevenn is installed."""

import importlib.util
import os
import subprocess
from pathlib import Path

import pytest
import torch
from ase.io import read
from plain_sevennet import make

from equipot.deploy.metadata import read_metadata

SCRIPT = Path(__file__).parents[2] / "examples/05_pretrained/run.sh"
INSTALLED = pytest.mark.skipif(importlib.util.find_spec("sevenn") is None, reason="sevenn is not installed")


@pytest.mark.parametrize("model", ["random", pytest.param("7net-0", marks=INSTALLED)])
def test_it_runs(tmp_path, model):
    if model == "random":
        made = make(layers=2, _type_map={8: 0, 14: 1})
        torch.save(made.checkpoint(), tmp_path / "small.pth")
        model = str(tmp_path / "small.pth")
    shorter = {
        "MODEL": model,
        "OUT": str(tmp_path / "out"),
        "STEPS": "10",
        "SUPERCELL": "2x2x2",
        "PHONONS": "--supercell 2x2x2 --no-checks --mesh 10",
        "TRAIN": "data.train_frames=4 data.validation=2 training.epochs=2 run.device=cpu fine_tune.replay=4",
    }
    # The crystal of random weights is at rest by its symmetry, but for the cell.
    shorter["PHONONS"] += " --relax" if model == "7net-0" else " --max-stress inf"
    done = subprocess.run([SCRIPT], env=os.environ | shorter, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert read_metadata(tmp_path / "out/tuned.pt").origin["code"] == "SevenNet"
    assert (tmp_path / "out/phonons_tuned/phonons.json").is_file()
    assert len(read(tmp_path / "out/md/trajectory.extxyz", ":")) > 1
