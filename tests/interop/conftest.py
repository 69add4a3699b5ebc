"""Helpers of these tests lie beside them."""

import sys
from pathlib import Path

import pytest

from equipot import cli

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def equipot(monkeypatch, capfd, tmp_path):
    """Run a command in ``tmp_path``, which must succeed; what it prints."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["equipot", *map(str, arguments)])
        try:
            cli.main()
        except SystemExit as stop:
            assert not stop.code, capfd.readouterr()
        return capfd.readouterr().out

    return run
