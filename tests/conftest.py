"""Outputs that a test declares are forgotten after it: their registry is the process's."""

from collections.abc import Iterator

import pytest

from equipot.quantities import BASIC, CONTRACT, KEYS, QUANTITIES


def _as_before() -> Iterator[None]:
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
