"""A way to write a YAML file and read it as a configuration."""

from pathlib import Path
from textwrap import dedent

import pytest

from equipot.config import Config, load_config


@pytest.fixture
def load(tmp_path):
    """Function (YAML text, *overrides) -> Config, through the file ``tmp_path/ethanol.yaml``."""

    def load_text(text: str, *overrides: str) -> Config:
        path: Path = tmp_path / "ethanol.yaml"
        path.write_text(dedent(text), encoding="utf-8")
        return load_config(path, overrides)

    return load_text
