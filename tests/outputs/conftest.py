"""What these tests declare is forgotten after each of them; helpers lie beside them."""

import sys
from pathlib import Path

import pytest
from ase.build import molecule

from equipot.quantities import BASIC, CONTRACT, KEYS, QUANTITIES

sys.path.insert(0, str(Path(__file__).parent))


def _as_before():
    before = [dict(known) for known in (QUANTITIES, KEYS, CONTRACT)]
    yield
    for known, old in zip((QUANTITIES, KEYS, CONTRACT), before, strict=True):
        known.clear()
        known.update(old)


@pytest.fixture(autouse=True, scope="module")
def _forget_of_module():
    assert tuple(QUANTITIES) == BASIC
    yield from _as_before()


@pytest.fixture(autouse=True)
def _forget(_forget_of_module):
    yield from _as_before()


@pytest.fixture
def ethanol():
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.1, seed=1)
    return atoms
