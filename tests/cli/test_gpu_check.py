"""scripts/benchmark gpu: all parts on a CPU, parts that fail, the folder for a machine without network."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GPU = ROOT / "scripts" / "benchmarks" / "gpu"

PLANTED = """
import os, time
from plan import Part

def works(context):
    return [{"what": "a figure", "ms": 1.5, "known": {"figure": 7}}]

def fails(context):
    raise ValueError("this part is broken\\nsecond line")

def crashes(context):
    os.abort()

def hangs(context):
    time.sleep(600)

def wrong(context):
    return [{"what": "a comparison", "error": 0.5, "ok": False}]

def knows(context):
    return [{"what": "told", "figure": context.known["figure"], "process": os.getpid()}]

def part(name, longest, **cases):
    return Part(name, f"the part {name}", 80, lambda context: cases, longest)

PARTS = [
    part("good", 50, first=works, who=knows),
    part("failing", 50, bad=fails, after=works),
    part("crashing", 50, bad=crashes, after=knows),
    part("hanging", 8, bad=hangs, after=works),
    part("wrong", 50, bad=wrong),
    part("last", 50, who=knows),
]
"""


def check(folder, *options, python=sys.executable, env=None) -> subprocess.CompletedProcess:
    command = [python, GPU / "main.py", "--device", "cpu", "--size", "tiny", "--output", folder, *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=1900, env=env)


def prepare_module():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(GPU)
        spec = importlib.util.spec_from_file_location("prepare_gpu_check", GPU / "prepare.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


def parts_of(folder) -> dict:
    return {part["part"]: part for part in json.loads((folder / "results.json").read_text())["parts"]}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The check itself, in its smallest size, where nothing can be imported but what is brought to a machine
    without network, torch and NumPy."""
    folder, site = tmp_path_factory.mktemp("gpu-check"), tmp_path_factory.mktemp("site")
    prepare = prepare_module()
    for name in [*prepare.NEEDED, *prepare.THERE, "markupsafe"]:
        found = distribution(name)
        for top in {file.parts[0] for file in found.files if file.parts[0] not in ("..", "__pycache__")}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(found.locate_file(top)))
    python = getattr(sys, "_base_executable", sys.executable)  # of no virtual environment
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{site}", "PYTHONNOUSERSITE": "1"}
    return folder, check(
        folder, "--limit", "1920", python=python, env=environment
    )  # a busy machine takes its time


def test_all_parts_run_on_a_cpu(whole):
    folder, done = whole
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    parts = parts_of(folder)
    assert list(parts) == [
        *("ceilings", "operators", "models", "launches", "steps", "edges", "layers", "training", "peers"),
        "lammps",
    ]
    assert {part["status"] for part in parts.values()} == {"done"}
    rows = {name: [row for case in part["cases"] for row in case["rows"]] for name, part in parts.items()}
    assert all(rows.values())
    judged = [row for part in rows.values() for row in part if "ok" in row]
    assert len(judged) > 30 and all(row["ok"] for row in judged)
    assert {row["dtype"] for row in rows["operators"] if "dtype" in row} == {"float32", "float64"}
    assert all(row["µs/atom"] > 0 for row in rows["steps"])
    assert all(row["aten operators"] > 50 for row in rows["launches"])
    assert all("not installed" in row["note"] or row["peer/equipot"] > 0 for row in rows["peers"])


def test_table(whole):
    folder, done = whole
    table = (folder / "table.md").read_text()
    assert "comparisons right, nothing failed" in table and table in done.stdout
    assert "## Steps: evaluations and ASE, small to large" in table
    assert "no figures: matplotlib is not installed" in done.stdout


def test_figures_from_a_file_brought_back(whole, tmp_path):
    shutil.copy(whole[0] / "results.json", tmp_path)
    assert check(tmp_path, "--replot", tmp_path / "results.json").returncode == 0
    assert (tmp_path / "table.md").read_text() == (whole[0] / "table.md").read_text()
    for name in ("steps", "layers", "edges"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    written = {path.name for folder in (tmp_path, whole[0]) for path in folder.iterdir()}
    assert len(written) <= 8  # a machine may hand back no more


def test_parts_that_fail_crash_or_hang_leave_the_others_alone(tmp_path):
    planted = tmp_path / "planted.py"
    planted.write_text(PLANTED)
    start = time.monotonic()
    done = check(tmp_path / "out", "--parts", str(planted), "--limit", "240")
    assert time.monotonic() - start < 240
    assert done.returncode == 1
    parts = parts_of(tmp_path / "out")
    assert {name: part["status"] for name, part in parts.items()} == {
        "good": "done", "failing": "failed", "crashing": "failed", "hanging": "failed", "wrong": "failed",
        "last": "done",
    }  # fmt: skip
    cases = {name: {case["case"]: case for case in part["cases"]} for name, part in parts.items()}
    assert cases["failing"]["bad"]["error"] == "ValueError: this part is broken second line"
    assert "SIGABRT" in cases["crashing"]["bad"]["error"]
    assert "was stopped" in cases["hanging"]["bad"]["error"]
    # A worker that raised goes on; after one that crashed or hung comes another, which is told the figures.
    processes = [cases[name]["who"]["rows"][0]["process"] for name in ("good", "last")]
    processes.insert(1, cases["crashing"]["after"]["rows"][0]["process"])
    assert len(set(processes)) == 3
    assert cases["last"]["who"]["rows"][0]["figure"] == 7
    assert cases["failing"]["after"]["rows"] == [{"what": "a figure", "ms": 1.5}]
    table = (tmp_path / "out" / "table.md").read_text()
    for said in ("this part is broken", "SIGABRT", "was stopped", "WRONG: the part wrong"):
        assert said in table.partition("## the part good")[0], said


# ---- a machine without network ---------------------------------------------------------------------------


@pytest.fixture
def prepare(monkeypatch):
    """The module, whose downloads are replaced by one small wheel."""
    module = prepare_module()

    def download(pinned, python, folder):
        folder.mkdir()
        with zipfile.ZipFile(folder / "ase-3.29.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr("ase-3.29.0.dist-info/METADATA", "Name: ase\nRequires-Dist: scipy>=1.6\n")

    monkeypatch.setattr(module, "download", download)
    return module


def test_prepared_folder(prepare, tmp_path, capsys):
    folder = tmp_path / "for-the-gpu"
    for _ in range(2):  # the second time it replaces the first
        assert prepare.prepare(folder, "3.12", ROOT / "constraints.txt") == 0
    assert "OUT=gpu-results bash run.sh" in capsys.readouterr().out
    assert sorted(path.name for path in folder.iterdir()) == ["equipot", "run.sh", "wheels"]
    script = folder / "run.sh"
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    assert '"$found" != "3.12"' in script.read_text()
    for file in ("src/equipot/ops/csrc/linear.cpp", "scripts/benchmarks/gpu/main.py"):
        assert (folder / "equipot" / file).read_bytes() == (ROOT / file).read_bytes()


def test_another_python_is_refused_there(prepare, tmp_path):
    prepare.prepare(tmp_path / "folder", "3.99", ROOT / "constraints.txt")
    environment = os.environ | {"PYTHON": sys.executable}
    command = ["bash", tmp_path / "folder" / "run.sh"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "prepared for Python 3.99" in done.stderr


def test_what_is_too_large_is_named(prepare, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(prepare, "LIMIT_MB", 0.5)
    assert prepare.prepare(tmp_path / "folder", "3.12", ROOT / "constraints.txt") == 1
    assert "are more than 0.5. The largest: " in capsys.readouterr().err


def test_other_folders_are_left_alone(prepare, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert prepare.prepare(tmp_path, "3.12", ROOT / "constraints.txt") == 1
    assert "is not empty" in capsys.readouterr().err and (tmp_path / "mine.txt").read_text() == "mine"


def test_a_requirement_that_nobody_thought_of_is_named(prepare, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(prepare, "NEEDED", [name for name in prepare.NEEDED if name != "scipy"])
    assert prepare.prepare(tmp_path / "folder", "3.12", ROOT / "constraints.txt") == 1
    assert "asks for scipy" in capsys.readouterr().err


def test_what_holds_no_results_is_named(tmp_path):
    for content in ("[]", '{"machine": {}', '{"machine": {}, "parts": [1]}'):
        (tmp_path / "bad.json").write_text(content)
        done = check(tmp_path, "--replot", str(tmp_path / "bad.json"))
        assert done.returncode == 1
        assert "bad.json holds no results" in done.stderr and "Traceback" not in done.stderr
    done = check(tmp_path, "--replot", str(tmp_path / "none.json"))
    assert done.returncode == 1 and "No such file" in done.stderr and "Traceback" not in done.stderr


def test_results_of_another_run_are_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "log.txt").write_text("of another run")
    done = check(tmp_path / "out", "--only", "nothing")
    assert done.returncode == 1 and "no part nothing; there are ceilings, operators" in done.stderr
    assert (tmp_path / "out" / "log.txt").read_text() == "of another run"
    assert (tmp_path / "out-2" / "log.txt").is_file()


@pytest.mark.parametrize("limit", ["nan", "inf", "-5", "3"])
def test_limits_that_make_no_sense_are_refused(tmp_path, limit):
    done = check(tmp_path / "out", f"--limit={limit}")
    assert done.returncode == 2 and "at least 10 seconds" in done.stderr
