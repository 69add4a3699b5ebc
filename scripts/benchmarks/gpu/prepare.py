"""Collects what the check needs on a machine that has Python, torch with CUDA, NumPy and g++, but no network.

The folder holds wheels, pinned as in constraints.txt and for that machine's Python, equipot's sources, and
run.sh, which installs all of it beside the folder, compiles the kernels and runs the check.
"""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from prepare_peers import PINNED, add_peers

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
LIMIT_MB = 60
# What the check imports, directly or not. Wheels are taken without what they ask for, so that nothing comes
# along unseen; whatever they do ask for is in one of these three lists, or `prepare` stops.
NEEDED = [
    *("annotated-types", "ase", "e3nn", "markdown-it-py", "matscipy", "mdurl", "opt-einsum", "opt-einsum-fx"),
    *("packaging", "pydantic", "pydantic-core", "pygments", "pyyaml", "rich", "safetensors", "scipy"),
    *("tqdm", "typing-extensions", "typing-inspection"),
]
THERE = ["numpy", "torch", "sympy", "mpmath", "jinja2", "networkx", "filelock", "fsspec", "setuptools"]
NOT_NEEDED = {
    "matplotlib": "without it there are no figures; --replot draws them elsewhere",
    "lightning": "trainings",
    "torchmetrics": "trainings",
    "typer": "the command line",
    "jinja2": "reports",
    "requests": "downloads",
}
# pip takes wheels of just these tags: glibc's versions that projects build for.
_PLATFORMS = [f"manylinux_2_{n}_x86_64" for n in (35, 34, 31, 28, 27, 24, 17, 12, 5)]
_PLATFORMS += [f"manylinux{name}_x86_64" for name in ("2014", "2010", "1")]
_MARK = "Made by `scripts/benchmark gpu --prepare`"  # in run.sh


class PrepareError(RuntimeError):
    """The folder cannot be made; the message is for the user."""


def prepare(folder: Path, python: str | None, constraints: Path, peers: bool = False) -> int:
    """Fill the folder and say what to run; the exit status."""
    python = python or f"{sys.version_info.major}.{sys.version_info.minor}"
    try:
        empty(folder)
        download(pins(constraints, NEEDED), python, folder / "wheels")
        unaccounted(folder / "wheels")
        if peers:
            pinned = pins(constraints, PINNED)
            add_peers(pinned, folder / "peers", lambda names, place: download(names, python, place))
        copy_sources(folder / "equipot")
        script = folder / "run.sh"
        script.write_text((HERE / "run.sh").read_text().replace("@PYTHON@", python))
        script.chmod(0o755)
        megabytes = weigh(folder)
    except RuntimeError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    print(f"{folder}: {megabytes:.1f} MB, for Python {python} on Linux, x86-64, with torch, NumPy and g++.")
    print("Copy the folder there, and run in it:\n")
    print("    OUT=gpu-results bash run.sh\n")
    print("Options of the check may follow. NumPy has to be 2.0 or newer.")
    return 0


def empty(folder: Path) -> None:
    """An empty folder, or one that an earlier preparation has left."""
    script = folder / "run.sh"
    if script.is_file() and _MARK in script.read_text():
        for name in ("wheels", "peers", "equipot"):
            shutil.rmtree(folder / name, ignore_errors=True)
        script.unlink()
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise PrepareError(f"{folder} is not empty, and not from an earlier --prepare. Name another folder.")
    folder.mkdir(parents=True, exist_ok=True)


def pins(constraints: Path, names: list[str]) -> list[str]:
    """``name==version`` of each."""
    lines = [line.strip() for line in constraints.read_text().splitlines()]
    pinned = {canonicalize_name(line.partition("==")[0]): line for line in lines if "==" in line}
    missing = [name for name in names if name not in pinned]
    if missing:
        raise PrepareError(f"{constraints} does not pin {', '.join(missing)}.")
    return [pinned[name] for name in names]


def download(pinned: list[str], python: str, folder: Path) -> None:
    """Wheels for that Python on Linux, x86-64."""
    platforms = [word for name in _PLATFORMS for word in ("--platform", name)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += [
        "--python-version",
        python,
        "--implementation",
        "cp",
        *platforms,
        "--dest",
        str(folder),
        *pinned,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if "ERROR" in line]
        raise PrepareError("pip could not download the wheels:\n" + "\n".join(errors or [done.stderr]))


def unaccounted(wheels: Path) -> None:
    """Raises PrepareError if a package, or equipot, asks for one that is in none of the three lists."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = {"equipot": project["dependencies"]}
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
            metadata = Parser().parsestr(archive.read(name).decode())
        asked[wheel.name] = metadata.get_all("Requires-Dist", [])
    known = {*NEEDED, *THERE, *NOT_NEEDED}
    for package, requirements in asked.items():
        for requirement in map(Requirement, requirements):
            applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            if applies and canonicalize_name(requirement.name) not in known:
                raise PrepareError(
                    f"{package} asks for {requirement}: add it to a list of {Path(__file__).name}."
                )


def copy_sources(target: Path) -> None:
    """What of the repository the check runs, in the same places."""
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("src", "scripts/benchmarks/gpu", "scripts/benchmarks/compare"):
        shutil.copytree(ROOT / name, target / name, ignore=ignored)
    for name in ("constraints.txt", "pyproject.toml", "LICENSE"):
        shutil.copy2(ROOT / name, target / name)


def weigh(folder: Path) -> float:
    """Megabytes of the whole folder. Raises PrepareError beyond the limit, with what is largest."""
    sizes = {file: file.stat().st_size / 1e6 for file in folder.rglob("*") if file.is_file()}
    total = sum(sizes.values())
    if total > LIMIT_MB:
        largest = sorted(sizes, key=sizes.get, reverse=True)[:5]
        named = ", ".join(f"{file.name} {sizes[file]:.1f} MB" for file in largest)
        raise PrepareError(f"{total:.1f} MB are more than {LIMIT_MB}. The largest: {named}.")
    return total
