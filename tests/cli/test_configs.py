"""Every file in configs/ is complete and right; the small and medium ones are trained for a few steps."""

from pathlib import Path

import pytest
from ase.io import read, write

from equipot.config import load_config

OWN_DATA = {"open_catalyst"}  # tests/cli/test_open_catalyst.py
FILES = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
CONFIGS = [path for path in FILES if path.stem not in OWN_DATA]
TRAINED = [path for path in CONFIGS if path.stem.endswith(("small", "medium"))]
EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_folder_is_complete():
    names = {path.stem for path in CONFIGS}
    for material in ("molecule", "crystal"):
        expected = {f"{material}_nequip_small", f"{material}_nequip_accurate", f"{material}_allegro"}
        assert expected <= names


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_is_valid_short_and_uses_the_shipped_data(path):
    config = load_config(path)
    for file in (*config.data.train, *(config.data.test or ())):
        assert file.is_relative_to(EXAMPLES)
        assert file.is_file()
    assert config.fine_tune is not None or config.model.type in path.stem
    content = [line for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
    assert len(content) <= 24


def test_fine_tuning_needs_a_model_and_data_alone(equipot, small_model, tmp_path):
    """A model of three elements, ten frames of one of them, without stress: all else is as it is."""
    frames = read(EXAMPLES / "02_crystal" / "train.xyz", ":10")
    for atoms in frames:
        del atoms.calc.results["stress"]
    write(tmp_path / "ten.xyz", frames, format="extxyz")
    recipe = EXAMPLES.parent / "configs" / "fine_tune.yaml"
    options = [
        f"fine_tune.model={small_model}",
        f"data.train={tmp_path / 'ten.xyz'}",
        "training.epochs=2",
    ]
    result = equipot("train", recipe, *options, "fine_tune.replay=6", f"run.directory={tmp_path / 'run'}")
    assert result.code == 0, result.err
    assert "Did it forget?" in result.out and "8 training, 2 validation" in result.out


@pytest.mark.parametrize("path", TRAINED, ids=lambda path: path.stem)
def test_config_trains(path, equipot, tmp_path):
    overrides = {
        "data.validation": 2,
        "data.train_frames": 2,
        "data.test": "null",
        "training.epochs": 2,
        "training.loss.energy": 1.0,  # whatever it changes to in later epochs
        "training.batch_size": 2,
        "run.directory": tmp_path / "run",
        "run.device": "cpu",
    }
    result = equipot("train", path, *(f"{key}={value}" for key, value in overrides.items()))
    assert result.code == 0, result.err
    assert (tmp_path / "run" / "checkpoints" / "best.ckpt").is_file()
