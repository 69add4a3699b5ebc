"""scripts/benchmark gpu: all parts on a CPU, parts that fail, the folder for a machine without network."""

import json
import shutil
import subprocess
import sys
import time
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
    part("hanging", 1, bad=hangs, after=works),
    part("wrong", 50, bad=wrong),
    part("last", 50, who=knows),
]
"""


def check(folder, *options) -> subprocess.CompletedProcess:
    command = [
        sys.executable,
        str(GPU / "main.py"),
        "--device",
        "cpu",
        "--size",
        "tiny",
        "--output",
        str(folder),
    ]
    return subprocess.run([*command, *options], capture_output=True, text=True, check=False, timeout=500)


def parts_of(folder) -> dict:
    return {part["part"]: part for part in json.loads((folder / "results.json").read_text())["parts"]}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The check itself, in its smallest size."""
    folder = tmp_path_factory.mktemp("gpu-check")
    return folder, check(folder)


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


def test_table_and_figures(whole):
    folder, done = whole
    table = (folder / "table.md").read_text()
    assert "checks right, nothing failed" in table and table in done.stdout
    assert "## Steps: evaluations and ASE, small to large" in table
    for name in ("steps", "layers", "edges"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert len(list(folder.iterdir())) <= 8  # a machine may hand back no more


def test_figures_from_a_file_brought_back(whole, tmp_path):
    shutil.copy(whole[0] / "results.json", tmp_path)
    assert check(tmp_path, "--replot", str(tmp_path / "results.json")).returncode == 0
    assert (tmp_path / "table.md").read_text() == (whole[0] / "table.md").read_text()
    assert (tmp_path / "steps.png").exists()


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
