"""Helpers lie beside these tests."""

import sys
from pathlib import Path

import pytest
from ase.build import molecule

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def ethanol():
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.1, seed=1)
    return atoms
