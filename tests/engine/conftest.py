"""An emulated GPU."""

import subprocess
import sys
from pathlib import Path

import pytest

from equipot.compile import find_compiler
from equipot.engine.build import FOLDER

sys.path.insert(0, str(Path(__file__).parent))  # tests/ is no package
from emulated import HERE, Gpu, compiler


@pytest.fixture(scope="session")
def emulator(tmp_path_factory) -> Path:
    """emulator.cpp, compiled."""
    if find_compiler() is None:
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("emulator")
    includes = [f"-I{FOLDER}/gpu", f"-I{FOLDER}/kernels"]
    source = [HERE / "emulator.cpp", "-ldl", "-o", folder / "emulator.so"]
    subprocess.run([*compiler(), "-std=gnu++20", *includes, *source], check=True)
    header = ["-std=c++17", "-x", "c++-header", HERE / "cuda_on_cpu.h", "-o", folder / "cuda_on_cpu.h.gch"]
    subprocess.run([*compiler(), *header], check=True)  # once, for all kernels
    return folder / "emulator.so"


@pytest.fixture(scope="session")
def device(emulator, tmp_path_factory) -> Gpu:
    return Gpu(emulator, tmp_path_factory.mktemp("kernels"))


@pytest.fixture
def gpu(device):
    """Models are opened on the emulated device."""
    with device:
        yield device
