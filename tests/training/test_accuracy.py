"""A training run on the data that ships: the whole path has to learn, not merely run."""

from pathlib import Path

import pytest

from equipot.config import load_config
from equipot.training.run import train

CONFIGS = Path(__file__).parents[2] / "configs"


def test_ethanol_reaches_its_accuracy(tmp_path):
    """A fifth of the quickstart's training: 60 meV/Å on frames it has not seen.

    The test set's forces are 1,050 meV/Å RMS; three random seeds gave @SEEDS@ meV/Å, a model whose forces
    have one wrong sign or whose labels are shuffled stays above 500.
    """
    config = load_config(
        CONFIGS / "molecule_nequip_small.yaml", ["training.epochs=16", f"run.directory={tmp_path / 'run'}"]
    )
    result = train(config)
    assert result.metrics["test"]["forces_mae"] < 60e-3 or pytest.fail(f"{result.metrics['test']}")
