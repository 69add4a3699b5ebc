"""The plugin from the folder of `equipot lammps source`, and for the `lmp` that asks for it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from equipot.engine.build import build, checksum
from equipot.errors import EquipotError
from equipot.integrations import lammps as integration
from equipot.integrations.lammps import find_lammps, plugin_folder, write_sources

BIN = Path(sys.executable).parent
SCRIPT = "region box block 0 1 0 1 0 1\ncreate_box 1 box\npair_style equipot\nprint 'plugin works'\n"


@pytest.fixture
def lammps():
    try:
        found = find_lammps()
    except EquipotError as error:
        pytest.skip(str(error))
    if integration._program("cmake") is None:
        pytest.skip("there is no cmake")
    return found


def cmake(*arguments) -> subprocess.CompletedProcess:
    command = [integration._program("cmake"), *arguments]
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)


def run_lammps(folder: Path, path: str) -> str:
    environment = os.environ | {"LAMMPS_PLUGIN_PATH": path, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [BIN / "lmp", "-log", "none"],
        input=SCRIPT, capture_output=True, text=True, env=environment, cwd=folder, check=False,
    )  # fmt: skip
    return run.stdout + run.stderr


def test_builds_by_cmake_alone(lammps, tmp_path):
    sources, built = tmp_path / "sources", tmp_path / "build"
    write_sources(sources)
    # As LAMMPS's own sources have it, which the package lacks.
    headers = tmp_path / "src"
    headers.symlink_to(lammps.headers)
    options = [f"-DLAMMPS_SOURCE_DIR={headers}", f"-DMPI_HEADERS={lammps.mpi_headers}"]
    options += [f"-DLAMMPS_VERSION_TEXT={lammps.version_text}"]
    whole = cmake("-S", sources / "lammps", "-B", tmp_path / "whole", "-G", "Unix Makefiles", *options)
    assert whole.returncode == 0, whole.stderr
    flags = tmp_path / "whole" / "engine" / "CMakeFiles" / "equipot_once.dir" / "flags.make"
    assert checksum() in flags.read_text()  # all of the engine is there
    # Its compilation is that of tests/engine; here the one that there is.
    configured = cmake("-S", sources / "lammps", "-B", built, *options, f"-DEQUIPOT_ENGINE={build()}")
    assert configured.returncode == 0, configured.stderr
    compiled = cmake("--build", built, "--parallel", "2")
    assert compiled.returncode == 0, compiled.stdout[-3000:]
    assert "plugin works" in run_lammps(tmp_path, str(built))


def test_version_of_lammps_sources(tmp_path):
    (tmp_path / "pair.h").touch()
    (tmp_path / "mpi.h").touch()
    (tmp_path / "version.h").write_text('#define LAMMPS_VERSION "2 Apr 2025"\n#define LAMMPS_UPDATE ""\n')
    options = [f"-DLAMMPS_SOURCE_DIR={tmp_path}", f"-DMPI_HEADERS={tmp_path}", f"-DEQUIPOT_ENGINE={__file__}"]
    if integration._program("cmake") is None:
        pytest.skip("there is no cmake")
    done = cmake("-S", integration.SOURCES, "-B", tmp_path / "build", *options)
    assert done.returncode == 0, done.stderr
    assert "EQUIPOT_LAMMPS_VERSION 20250402\n" in (tmp_path / "build" / "build_info.h").read_text()
    options[0] = f"-DLAMMPS_SOURCE_DIR={tmp_path / 'build'}"
    wrong = cmake("-S", integration.SOURCES, "-B", tmp_path / "other", *options)
    assert wrong.returncode != 0 and "Expected the folder src of LAMMPS" in " ".join(wrong.stderr.split())


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path / "mine").touch()
    with pytest.raises(EquipotError, match="not empty"):
        write_sources(tmp_path)


def test_lmp_gets_the_plugin_from_its_entry_point(tmp_path, monkeypatch, caplog):
    plugin = tmp_path / "equipotplugin.so"
    monkeypatch.setattr(integration, "find_lammps", lambda: None)
    monkeypatch.setattr(integration, "build_plugin", lambda lammps: plugin)
    monkeypatch.delenv("LAMMPS_PLUGIN_PATH", raising=False)
    assert plugin_folder() == str(tmp_path)
    plugin.touch()
    monkeypatch.setenv("LAMMPS_PLUGIN_PATH", f"/nowhere:{tmp_path}")
    assert plugin_folder() == ""  # not twice
    monkeypatch.setenv("LAMMPS_PLUGIN_PATH", "/nowhere")

    def fail(lammps):
        raise integration.LammpsBuildError("There is no cmake.")

    monkeypatch.setattr(integration, "build_plugin", fail)
    assert plugin_folder() == ""
    assert "no plugin of equipot for this LAMMPS: There is no cmake." in caplog.text


def test_the_plugin_of_the_wheel_is_taken_for_its_lammps_only(tmp_path, monkeypatch):
    for name in ("engine", "lammps"):
        (tmp_path / name).mkdir()
    (tmp_path / "lammps" / integration.PLUGIN).write_text("... 22 Jul 2025 ...")
    monkeypatch.setattr(integration, "SOURCES", tmp_path / "lammps")
    monkeypatch.setattr(integration, "ENGINE", tmp_path / "engine")
    monkeypatch.setattr(integration, "build_engine", lambda: tmp_path / "engine" / "libequipot.so.1")
    monkeypatch.setenv("EQUIPOT_CACHE", str(tmp_path / "cache"))
    ours = integration.Lammps("headers", 20250722, "22 Jul 2025", "mpi", None)
    assert integration.build_plugin(ours) == tmp_path / "lammps" / integration.PLUGIN
    compiled = []
    monkeypatch.setattr(integration, "_compile", lambda *arguments: compiled.append(arguments[0]))
    other = integration.Lammps("headers", 20240829, "29 Aug 2024", "mpi", None)
    assert integration.build_plugin(other).parent.parent == tmp_path / "cache"
    wide = integration.Lammps("headers", 20250722, "22 Jul 2025", "mpi", None, "LAMMPS_BIGBIG")
    integration.build_plugin(wide)
    assert compiled == [other, wide]
