"""One library for several sets of instructions: which one runs, that all give the same, and that a processor
without AVX is given none of it."""

import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from equipot.compile import KernelBuildError
from equipot.config import AllegroConfig, NequIPConfig
from equipot.deploy.capsule import synthetic_structures
from equipot.deploy.torchscript import write_torchscript
from equipot.engine import build as engine
from equipot.errors import ConfigError
from equipot.machine import processor_flags
from equipot.models.build import build_potential

ROOT = Path(__file__).parents[2]
SETS = [name for name in engine.recipe() if name not in ("flags", "link", "once", "each")]
HERE = [
    name
    for name in SETS
    if all(flag.removeprefix("-m") in processor_flags().split() for flag in engine.recipe()[name])
]
MODELS = {
    "nequip": NequIPConfig(type="nequip", cutoff=4.0, layers=3, channels=16, l_max=2, radial_hidden=(8,)),
    "allegro": AllegroConfig(type="allegro", cutoff=4.0, channels=8, scalar_channels=16),
}
EVALUATE = """
import sys, json, numpy as np
from pathlib import Path
from equipot.engine import library
library.build = lambda: Path(sys.argv[1])
found = library.Engine(sys.argv[2]).evaluate(*(np.array(x) for x in json.load(sys.stdin)))
print(json.dumps([library.instructions(), found.forces.tolist(), found.atom_energies.tolist()]))
"""


@pytest.fixture(scope="module")
def library() -> Path:
    """The engine for all sets, as it is in a wheel."""
    if "x86_64" not in os.uname().machine:
        pytest.skip("this processor has one set of instructions only")
    return engine.library(*SETS).build()


def evaluate(library, model, name):
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(3)] * 3), axis=-1).reshape(-1, 3) * 2.0
    structure = [
        (grid + rng.uniform(-0.3, 0.3, grid.shape)).tolist(),
        (6 * np.eye(3)).tolist(),
        [True] * 3,
        [0, 1, 1] * 9,
    ]
    done = subprocess.run(
        [sys.executable, "-c", EVALUATE, str(library), str(model)],
        input=json.dumps(structure), capture_output=True, text=True, check=False,
        env=os.environ | {"EQUIPOT_INSTRUCTIONS": name, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    used, forces, energies = json.loads(done.stdout)
    return used, np.array(forces), np.array(energies)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", MODELS)
def test_all_sets_give_the_same(library, name, dtype, tmp_path):
    torch.manual_seed(0)
    config = MODELS[name].model_copy(update={"dtype": dtype})
    potential = build_potential(config, ["H", "O"], 10.0, [-1.0, -2.0], 1.0).eval()
    model = tmp_path / "model.pt"
    write_torchscript(
        potential, model, synthetic_structures(["H", "O"], 4.0), source="synthetic structures",
        model_type=name, atomic_energies=[-1.0, -2.0], weights="ema", validation={}, config="",
    )  # fmt: skip
    used, forces, energies = evaluate(library, model, "")
    assert used == HERE[-1]  # the best is chosen
    scale = np.abs(forces).max()
    for other in HERE:
        used, found, atom_energies = evaluate(library, model, other)
        assert used == other
        # Sums of some hundred numbers in another order, rounded once or twice.
        tolerance = 1e-5 if dtype == "float32" else 1e-13
        assert np.abs(found - forces).max() < tolerance * scale
        assert np.abs(atom_energies - energies).max() < tolerance * np.abs(energies).max()
        if other == "baseline" != HERE[-1]:
            assert not np.array_equal(found, forces)  # nothing is fused: it was another code that ran


def test_a_set_that_is_not_there_is_an_error(library, monkeypatch):
    script = (
        "import ctypes, sys; engine = ctypes.CDLL(sys.argv[1])\n"
        "engine.equipot_instructions.restype = engine.equipot_message.restype = ctypes.c_char_p\n"
        "print(engine.equipot_instructions(), engine.equipot_message().decode())"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, str(library)],
        env=os.environ | {"EQUIPOT_INSTRUCTIONS": "sse9"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    usable = ", ".join(HERE[::-1])
    assert run.stdout == (
        "None EQUIPOT_INSTRUCTIONS is 'sse9'; compiled for and found in this processor: " + usable + "\n"
    )
    monkeypatch.setenv("EQUIPOT_INSTRUCTIONS", "sse9")
    with pytest.raises(ConfigError, match="expected baseline, avx2, avx512, found 'sse9'"):
        engine.instructions()


def test_a_library_without_a_set_for_this_processor_says_so(library, tmp_path):
    """Which is decided by what was linked."""
    objects = tmp_path / "only.so"
    command = ["g++", "-std=gnu++20", "-shared", "-fPIC", "-fvisibility=hidden", '-DEQUIPOT_SOURCES=""']
    command += [f"-I{engine.FOLDER}/{name}" for name in engine.FOLDERS]
    subprocess.run(
        [*command, *(str(engine.FOLDER / s) for s in engine.recipe()["once"]), "-o", objects], check=True
    )
    alone = ctypes.CDLL(str(objects))
    alone.equipot_instructions.restype = alone.equipot_message.restype = ctypes.c_char_p
    if os.environ.get("EQUIPOT_INSTRUCTIONS"):
        pytest.skip("EQUIPOT_INSTRUCTIONS is set")
    assert alone.equipot_instructions() is None
    assert b"not compiled for a set of instructions that this processor has" in alone.equipot_message()


def test_what_every_processor_calls_has_no_avx(library):
    """By its disassembly: what uses AVX outside of the sets' namespaces is called from within only."""
    if shutil.which("objdump") is None:
        pytest.skip("there is no objdump")
    text = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", library], capture_output=True, text=True, check=True
    ).stdout
    # By address: copies of one function that the compiler made in several sets have one name.
    names, calls, with_avx, function = {}, {}, set(), ""
    for line in text.splitlines():
        if match := re.fullmatch(r"0*([0-9a-f]+) <(.+)>:", line):
            function, names[match[1]] = match[1], match[2]
            continue
        instruction = line.partition("\t")[2]
        if re.match(r"v(?!err|erw|mcall)", instruction):
            with_avx.add(function)
        for target in re.findall(r"\b([0-9a-f]+) <[^>+]+>", instruction):
            calls.setdefault(target, set()).add(function)
    of_a_set = {function for function in with_avx if re.search("avx2|avx512", names[function])}
    assert len(of_a_set) > 100
    for function in with_avx - of_a_set:
        callers = calls.get(function, set())
        assert callers, f"{names[function]} uses AVX, and it cannot be seen who calls it"
        without = sorted(names[caller] for caller in callers - with_avx)
        assert not without, f"{names[function]} uses AVX and is called by {without}"


def test_nothing_of_a_set_is_outside_of_its_namespace():
    """A header that knows the width of vectors, or is included with one that does, names the set."""
    folders = [engine.FOLDER / "kernels", engine.FOLDER / "csrc"]
    files = {path.name: path.read_text() for folder in folders for path in folder.glob("*.*")}
    includes = {name: set(re.findall(r'#include "(.+)"', text)) for name, text in files.items()}
    below = {"instructions.h"}
    while more := {name for name, of in includes.items() if of & below} - below:
        below |= more
    assert "evaluator.inl" in below and "api.cpp" not in below and "program.h" not in below
    for name in below - {"instructions.h"}:
        assert not re.search(r"^namespace equipot \{", files[name], re.MULTILINE), name


@pytest.fixture
def package(library, tmp_path, monkeypatch):
    """The engine's folder of an installed wheel."""
    folder = tmp_path / "engine"
    shutil.copytree(engine.FOLDER, folder)
    shutil.copy(library, folder / "libequipot.so.1")
    monkeypatch.setattr(engine, "FOLDER", folder)
    monkeypatch.setenv("CXX", "no_compiler")
    monkeypatch.setenv("EQUIPOT_CACHE", str(tmp_path / "cache"))
    return folder


def test_the_library_of_the_wheel_is_taken(package):
    assert engine.build() == package / "libequipot.so.1"


def test_a_library_from_other_sources_is_not_taken(package, caplog):
    with (package / "kernels" / "gate.h").open("a") as file:
        file.write("// changed\n")
    with pytest.raises(KernelBuildError, match="no C"):
        engine.build()
    assert "libequipot.so.1 was made from other sources and is not used" in caplog.text


def test_cmake_compiles_all_of_it_in_order(tmp_path):
    cmake = shutil.which(
        "cmake", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    )
    if cmake is None:
        pytest.skip("there is no cmake")
    subprocess.run(
        [cmake, "-S", engine.FOLDER, "-B", tmp_path, "-G", "Unix Makefiles"], check=True, capture_output=True
    )
    assert engine.checksum() in (tmp_path / "CMakeFiles/equipot_once.dir/flags.make").read_text()
    link = (tmp_path / "CMakeFiles/equipot.dir/link.txt").read_text()
    objects = re.findall(r"equipot_(\w+)\.dir/(\S+)\.o", link)
    recipe = engine.recipe()
    sets = SETS if "x86_64" in os.uname().machine else ["baseline"]
    assert objects == [
        (name, source)
        for name in ("once", *sets)
        for source in recipe.get(name if name == "once" else "each")
    ]
    assert all(flag in link for flag in recipe["link"])
    command = [cmake, "-S", engine.FOLDER, "-B", tmp_path, "-DEQUIPOT_INSTRUCTIONS=sse9"]
    unknown = subprocess.run(command, capture_output=True, text=True, check=False)
    assert unknown.returncode != 0 and "there is no 'sse9'" in unknown.stderr
