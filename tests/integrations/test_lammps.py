"""Which LAMMPS the plugin is built for: found from a source tree, here a made-up one."""

import os
from pathlib import Path

import pytest

from equipot.integrations.lammps import LammpsBuildError, find_lammps


def program(path: Path, says: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)


@pytest.fixture
def tree(tmp_path, monkeypatch) -> Path:
    """Sources of LAMMPS, and an mpicxx in the path that says where its mpi.h is."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "pair.h").touch()
    (tmp_path / "src" / "version.h").write_text('#define LAMMPS_VERSION "29 Aug 2024"\n')
    (tmp_path / "mpi").mkdir()
    (tmp_path / "mpi" / "mpi.h").touch()
    program(tmp_path / "bin" / "mpicxx", f"g++ -I{tmp_path}/mpi -lmpi")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    return tmp_path


@pytest.mark.parametrize(("bits", "integers"), [(32, "LAMMPS_SMALLBIG"), (64, "LAMMPS_BIGBIG")])
def test_source_tree(tree, bits, integers):
    program(tree / "build" / "lmp", f"sizeof(tagint):   {bits}-bit")
    found = find_lammps(tree)
    assert found.headers == str(tree / "src") and found.mpi_headers == str(tree / "mpi")
    assert (found.version, found.version_text) == (20240829, "29 Aug 2024")
    assert found.executable == str(tree / "build" / "lmp")
    assert found.integers == integers


def test_without_executable(tree):
    found = find_lammps(tree)
    assert found.executable is None
    assert found.integers == "LAMMPS_SMALLBIG"


def test_no_source_tree(tmp_path):
    with pytest.raises(LammpsBuildError, match="no LAMMPS source tree"):
        find_lammps(tmp_path)
