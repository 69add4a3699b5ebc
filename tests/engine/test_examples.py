"""The C and Fortran programs of examples/04_engine, built as their page says."""

import re
import shutil
import subprocess
from pathlib import Path

import domains
import pytest

from equipot.engine import library as bindings
from equipot.engine.build import build

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "04_engine"
COMPILERS = {"md.c": "gcc", "md.f90": "gfortran"}


@pytest.mark.parametrize("source", COMPILERS)
def test_runs_and_keeps_its_energy(source, tmp_path):
    compiler = COMPILERS[source]
    if shutil.which(compiler) is None:
        pytest.skip(f"there is no {compiler}")
    library = build()
    command = [
        compiler,
        "-O2",
        EXAMPLE / source,
        "-o",
        tmp_path / "md",
        f"-I{ROOT}/src/equipot/engine/include",
    ]
    command += [library, f"-Wl,-rpath,{library.parent}", "-lm"]
    subprocess.run([str(word) for word in command], check=True)
    run = [str(tmp_path / "md"), str(EXAMPLE / "silicon.pt")]
    output = subprocess.run([*run, "100"], capture_output=True, text=True, check=True).stdout
    temperatures, drifts = (
        re.findall(r"temperature\s+([\d.]+)", output),
        re.findall(r"drift\s+([-+.\d]+)", output),
    )
    assert (
        500 < float(temperatures[0]) < 700 and 200 < float(temperatures[1]) < 450
    )  # half of it is potential
    assert abs(float(drifts[1])) < 0.5
    missing = subprocess.run([run[0], "no.pt"], capture_output=True, text=True, check=False)
    assert missing.returncode != 0 and "no.pt: no such file" in missing.stderr + missing.stdout


@pytest.mark.parametrize("name", ["structure", "edges", "results", "description", "domain"])
def test_structs_are_those_of_the_header(name):
    """A member that a caller does not have would be read from what lies behind its struct."""
    header = (ROOT / "src/equipot/engine/include/equipot.h").read_text()
    header = re.sub(r"/\*.*?\*/", "", header, flags=re.S)
    members = re.search(rf"typedef struct {{([^}}]*)}} equipot_{name};", header)[1]
    expected = re.findall(r"(\w+)(?:\[\d\])?\s*[,;]", members)
    ours = domains.Domain if name == "domain" else getattr(bindings, f"_{name.capitalize()}")
    assert [field[0] for field in ours._fields_] == expected
    fortran = (EXAMPLE / "md.f90").read_text()
    if found := re.search(rf"type, bind\(c\) :: equipot_{name}\n(.*?)end type", fortran, flags=re.S):
        names = re.sub(r"= c_null_ptr|= 0|\(3\)|&|.*::", "", found[1])
        assert re.findall(r"\w+", names) == expected


def test_programs_are_short():
    for source in COMPILERS:
        assert len((EXAMPLE / source).read_text().splitlines()) <= 100
