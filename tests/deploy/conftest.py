"""Stand-in potentials as deployed files."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests/ is no package
from standin import write_standin


@pytest.fixture(scope="session")
def deploy_standin(tmp_path_factory):
    """A function that deploys a stand-in potential (arguments of `make_potential`) and gives its path."""

    def deploy(**keywords):
        path = tmp_path_factory.mktemp("model") / "model.pt"
        write_standin(path, **keywords)
        return path

    return deploy


@pytest.fixture(scope="session")
def model_file(deploy_standin):
    """A float64 model of H, C, O with a cutoff of 4 Å."""
    return deploy_standin()
