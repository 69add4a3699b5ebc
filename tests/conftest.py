"""Outputs that a test declares are forgotten after it: their registry is the process's. Deployed files are
verified in the process that writes them, which is seconds faster than a fresh one."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

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


@pytest.fixture(autouse=True, scope="session")
def fresh_process() -> Iterator[Callable]:
    """A context in which files are verified as users have it, in a fresh process."""
    from equipot.deploy import torchscript
    from equipot.deploy.load import load_deployed

    name = "_deviations_in_fresh_process"
    real = getattr(torchscript, name)

    def here(path):
        model = load_deployed(path, device="cpu")
        again = [] if model.engine is None else replace(model, engine=None).check_capsule()
        return model.check_capsule() + again

    @contextmanager
    def fresh() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torchscript, name, real)
            yield

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torchscript, name, here)
        yield fresh


@pytest.fixture(autouse=True)
def _quiet():
    """Commands run by earlier tests, or by fixtures of the session, make the log say more."""
    logging.getLogger("equipot").setLevel(logging.NOTSET)
