"""examples/05_pretrained, shorter: a small model of random weights, or 7net-0 where sevenn is installed.

The script runs with a function `equipot` that writes down its arguments; the commands then run in this
process, which need not import torch for each of them.
"""

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
WRITE_DOWN = {"BASH_FUNC_equipot%%": """() { printf '%s\\n' "$@" '' >> commands; }"""}
INSTALLED = pytest.mark.skipif(importlib.util.find_spec("sevenn") is None, reason="sevenn is not installed")


@pytest.mark.parametrize("model", ["random", pytest.param("7net-0", marks=INSTALLED)])
def test_it_runs(equipot, tmp_path, monkeypatch, model):
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
    environment = os.environ | shorter | WRITE_DOWN
    done = subprocess.run([SCRIPT], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    monkeypatch.chdir(tmp_path / "out")
    commands = [text.splitlines() for text in Path("commands").read_text().rstrip().split("\n\n")]
    assert len(commands) == 9
    for command in commands:
        equipot(*command)
    assert read_metadata(tmp_path / "out/tuned.pt").origin["code"] == "SevenNet"
    assert (tmp_path / "out/phonons_tuned/phonons.json").is_file()
    assert len(read(tmp_path / "out/md/trajectory.extxyz", ":")) > 1
