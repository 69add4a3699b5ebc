"""The kernels, compiled."""

import sys
from pathlib import Path

import pytest

from equipot.ops.build import kernels_available

sys.path.insert(0, str(Path(__file__).parent))  # tests/ is no package


@pytest.fixture(scope="session")
def kernels():
    """Compiled and loaded; tests that need them are skipped where they cannot be."""
    if not kernels_available():
        pytest.skip("the kernels are off or cannot be compiled here")
