"""Deployed stand-in potentials, for what runs deployed files."""

import sys
from pathlib import Path

import pytest

# tests/ is no package, so the neighboring folder is found by its path.
sys.path.insert(0, str(Path(__file__).parents[1] / "deploy"))
from standin import write_standin


@pytest.fixture(scope="session")
def model_file(tmp_path_factory):
    """A float64 model of H, C, O with a cutoff of 4 Å."""
    path = tmp_path_factory.mktemp("model") / "model.pt"
    write_standin(path)
    return path
