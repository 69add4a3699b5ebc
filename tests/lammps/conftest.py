"""Real LAMMPS under real MPI, and small random models."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

# Beside this file; pytest's importlib mode does not put it on the path.
sys.path.insert(0, str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[1] / "engine"))

from emulated import HERE, compiler
from lammps_input import CUTOFF, SPECIES, Result, oxide, write_data

from equipot.compile import find_compiler
from equipot.config import AllegroConfig, NequIPConfig
from equipot.deploy.capsule import synthetic_structures
from equipot.deploy.torchscript import write_torchscript
from equipot.engine.build import FOLDER
from equipot.errors import EquipotError
from equipot.integrations.lammps import build_plugin, find_lammps
from equipot.models.build import build_potential
from equipot.ops.build import kernels_available

_NEQUIP = {"type": "nequip", "cutoff": CUTOFF, "layers": 4, "channels": 4, "radial_hidden": (8,)}
MODELS = {
    "nequip": NequIPConfig(**_NEQUIP, dtype="float64"),
    "nequip-float32": NequIPConfig(**_NEQUIP, dtype="float32"),
    "nequip-ideal": NequIPConfig(**_NEQUIP, dtype="float64"),  # hardly any interaction
    "nequip-one-layer": NequIPConfig(**_NEQUIP | {"layers": 1}, dtype="float64"),
    "allegro": AllegroConfig(type="allegro", cutoff=CUTOFF, channels=4, scalar_channels=8, dtype="float64"),
}
BIN = Path(sys.executable).parent
# MPICH's ranks that wait take the processor from those that compute, where there are fewer cores than ranks.
os.environ |= {
    f"MPIR_CVAR_CH4_PROGRESS_THROTTLE{what}": n for what, n in (("", "1"), ("_NO_PROGRESS_COUNT", "256"))
}


@pytest.fixture(scope="session")
def plugin() -> Path:
    """The folder of the plugin, built for the LAMMPS of this environment."""
    if not kernels_available():
        pytest.skip("the kernels are off or cannot be compiled here, and the plugin needs them")
    try:
        return build_plugin(find_lammps()).parent
    except EquipotError as error:
        if "No LAMMPS" in str(error) or "no cmake" in str(error):
            pytest.skip(str(error))
        raise


@pytest.fixture(scope="session")
def model_file(tmp_path_factory):
    """Deploys a random model of that name, once; with ``seed`` the member of that number of an ensemble."""
    folder, made = tmp_path_factory.mktemp("models"), set()

    def make(name: str, seed: int | None = None) -> Path:
        path = folder / f"{name}.pt" if seed is None else folder / name / f"member_{seed}.pt"
        if path not in made:
            path.parent.mkdir(exist_ok=True)
            torch.manual_seed(seed or 0)
            scale = 1e-6 if name == "nequip-ideal" else 1.0
            potential = build_potential(MODELS[name], SPECIES, 20.0, [-4.0, -1.0], scale)
            write_torchscript(
                potential, path, synthetic_structures(SPECIES, CUTOFF), source="synthetic structures",
                model_type=MODELS[name].type, atomic_energies=[-4.0, -1.0], weights="ema", validation={},
                config="",
            )  # fmt: skip
            made.add(path)
        return path

    return make


@pytest.fixture(scope="session")
def ensemble(model_file):
    """A folder of three random models of that name, as ``equipot deploy`` writes it."""

    def make(name: str) -> Path:
        members = [model_file(name, seed) for seed in range(3)]
        return members[0].parent

    return make


@pytest.fixture
def lammps(plugin, tmp_path):
    """Runs an input, on some ranks of one thread each, in a folder of its own."""

    def run(
        commands: str, ranks: int = 1, folder: Path = tmp_path, expect: int | None = 0, arguments=()
    ) -> Result:
        (folder / "in.lammps").write_text(commands)
        environment = os.environ | {"LAMMPS_PLUGIN_PATH": str(plugin), "OMP_NUM_THREADS": "1"}
        command = [BIN / "mpiexec", "-n", str(ranks), BIN / "lmp", "-in", "in.lammps", "-log", "none"]
        command += arguments
        done = subprocess.run(
            [str(word) for word in command],
            cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        output = done.stdout + done.stderr
        assert expect is None or done.returncode == expect, output[-3000:]
        return Result(done.returncode, output)

    return run


@pytest.fixture(scope="session")
def emulated_lammps(plugin, tmp_path_factory) -> dict[str, str]:
    """Variables with which LAMMPS finds an emulated GPU."""
    if find_compiler() is None:
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("emulator")
    includes = [f"-I{FOLDER}/gpu", f"-I{FOLDER}/kernels"]
    sources = [HERE / "emulator.cpp", HERE / "preload.cpp", "-ldl", "-o", folder / "preload.so"]
    subprocess.run([*compiler(), "-std=gnu++20", *includes, *sources], check=True)
    engine = next(file for file in plugin.parent.glob(f"{plugin.name}/libequipot.so*"))
    return {
        "LD_PRELOAD": str(folder / "preload.so"),
        "EMULATOR_ENGINE": str(engine),
        "EMULATOR_FOLDER": str(folder),
        "EMULATOR_COMPILER": shlex.join([*compiler(), "-std=c++17", f"-I{HERE}"]),
    }


@pytest.fixture
def with_gpu(emulated_lammps, tmp_path, monkeypatch):
    """LAMMPS has the emulated GPU, and some atoms."""
    write_data(tmp_path / "atoms.data", oxide((1, 1, 2)))
    for name, value in emulated_lammps.items():
        monkeypatch.setenv(name, value)
