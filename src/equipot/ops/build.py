"""Compiles the kernels at first use and loads them.

The library is tuned to the machine (``-march=native``): the compiler then knows the width and number of the
vector registers, on which the kernels' blocking depends. So the cache is keyed by the processor's features:
machines of different kinds that share a home directory each get their own library. A cached library is loaded
only if its manifest says that it was made from these sources, with this torch, for this processor, and if its
checksum agrees; anything else is rebuilt.

Environment variables
    EQUIPOT_KERNELS   auto (default): kernels where they can be built, otherwise the reference; on: an error
                      if they cannot be built; off: always the reference.
    EQUIPOT_CACHE     directory for compiled kernels; default $XDG_CACHE_HOME/equipot or ~/.cache/equipot.
    CXX               the compiler; default g++.
"""

import contextlib
import fcntl
import functools
import hashlib
import json
import logging
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from equipot.errors import ConfigError, EquipotError
from equipot.files import atomic_write
from equipot.machine import available_cores, available_memory, processor_kinds

SOURCES = Path(__file__).parent / "csrc"
LIBRARY = "libequipot_ops.so"
# -ffp-contract=fast: multiply-adds are fused, which halves the arithmetic and rounds once instead of twice.
FLAGS = [
    *("-std=gnu++20", "-O3", "-march=native", "-fPIC", "-fopenmp", "-fvisibility=hidden", "-DNDEBUG"),
    *("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
]

_MEMORY_OF_A_COMPILER = 1 << 30  # bytes; the sources include much of torch
_SECONDS_BETWEEN_LOOKS = 0.02

logger = logging.getLogger("equipot")


class KernelBuildError(EquipotError):
    """The kernels cannot be compiled or loaded on this machine."""


@functools.cache
def kernels_available() -> bool:
    """Whether ``torch.ops.equipot`` is ready; compiles and loads it the first time. Decided once per process.

    Raises :class:`KernelBuildError` if ``EQUIPOT_KERNELS=on`` and the kernels cannot be had.
    """
    mode = os.environ.get("EQUIPOT_KERNELS", "auto").strip().lower()
    if mode not in ("auto", "on", "off"):
        raise ConfigError(f"EQUIPOT_KERNELS: expected auto, on or off, found '{mode}'")
    if mode == "off":
        logger.info("kernels are off (EQUIPOT_KERNELS=off): the slow reference operators run")
        return False
    if operators_registered():  # by the LAMMPS plugin, in this process
        return True
    try:
        torch.ops.load_library(str(build()))
    except (KernelBuildError, OSError) as error:
        if mode == "on":
            raise KernelBuildError(f"EQUIPOT_KERNELS=on, but the kernels cannot be used: {error}") from error
        logger.warning("the reference operators run, several times slower than the kernels: %s", error)
        return False
    return True


def operators_registered() -> bool:
    """Whether this process has the compiled operators already."""
    return hasattr(torch.ops.equipot, "attach_exchange")


def build(force: bool = False) -> Path:
    """The compiled library's path; compiles it if there is no valid one, or if ``force``.

    Several processes may call this at once: one compiles, the others wait. Raises :class:`KernelBuildError`.
    """
    wanted = _identity()
    key = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:16]
    directory = cache_directory() / key
    compiler = _find_compiler()
    if not force and _is_valid(directory, wanted, compiler):
        return directory / LIBRARY
    if compiler is None:
        raise KernelBuildError(
            f"no C++ compiler ({shlex.join(_compiler_command())}) found; install g++ 10 or newer, or set CXX"
        )
    make_private(directory)
    with locked(directory / "lock"):
        if force or not _is_valid(directory, wanted, compiler):
            logger.info("compiling the kernels into %s (about a minute, once)", directory)
            start = time.monotonic()
            _compile(directory)
            manifest = {**wanted, "compiler": compiler, "sha256": _checksum(directory / LIBRARY)}
            with atomic_write(directory / "manifest.json") as temporary:
                temporary.write_text(json.dumps(manifest, indent=1))
            logger.info("kernels compiled in %.0f s", time.monotonic() - start)
    return directory / LIBRARY


def cache_directory() -> Path:
    """Where compiled kernels are kept."""
    if "EQUIPOT_CACHE" in os.environ:
        return Path(os.environ["EQUIPOT_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "equipot"


def _identity() -> dict:
    """All that decides, beside the compiler, whether a library fits this process."""
    return {
        "sources": {path.name: _checksum(path) for path in sorted(SOURCES.iterdir()) if path.is_file()},
        "flags": FLAGS,
        "torch": [torch.__version__, torch.version.git_version, torch.compiled_with_cxx11_abi()],
        "python": sys.implementation.cache_tag,
        "system": [platform.system(), platform.machine()],
        "processor": processor_kinds(),
    }


def _compiler_command() -> list[str]:
    return shlex.split(os.environ.get("CXX", "")) or ["g++"]


def _find_compiler() -> str | None:
    """First line of the compiler's ``--version``; None if there is none."""
    command = _compiler_command()
    if shutil.which(command[0]) is None:
        return None
    result = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
    return result.stdout.splitlines()[0] if result.returncode == 0 and result.stdout else None


def _is_valid(directory: Path, wanted: dict, compiler: str | None) -> bool:
    """Whether the directory holds the wanted library, complete, ours, and not altered since it was compiled.

    Without a compiler, any compiler's work will do: kernels may be built ahead, where there is one.
    """
    library, manifest_file = directory / LIBRARY, directory / "manifest.json"
    try:
        manifest = json.loads(manifest_file.read_text())
        owners = {library.stat().st_uid, manifest_file.stat().st_uid}
        checksum = _checksum(library)
    except (OSError, ValueError):
        return False
    if not isinstance(manifest, dict) or not owners <= {os.getuid(), 0}:
        return False
    found_compiler, found_checksum = manifest.pop("compiler", None), manifest.pop("sha256", None)
    return manifest == wanted and found_checksum == checksum and compiler in (found_compiler, None)


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def make_private(directory: Path) -> None:
    """Create a directory only we can write to: what lies in it will be executed."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if directory.stat().st_uid != os.getuid():
            raise KernelBuildError(f"{directory} is another user's; set EQUIPOT_CACHE to one of yours")
    except OSError as error:
        raise KernelBuildError(f"cannot create {directory}: {error}; set EQUIPOT_CACHE") from error


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock; it vanishes with the process, so a killed build blocks nobody."""
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _compile(directory: Path) -> None:
    """Compile all sources, several at a time, link, and move the library to its final name."""
    command, torch_root = _compiler_command(), Path(torch.__file__).parent
    torch_flags = [
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
        f"-I{torch_root / 'include'}",
        f"-I{torch_root / 'include/torch/csrc/api/include'}",
    ]
    with tempfile.TemporaryDirectory(prefix="equipot-build-") as scratch:
        jobs = {
            f"{scratch}/{source.stem}.o": [*command, *FLAGS, *torch_flags, "-c", str(source)]
            for source in sorted(SOURCES.glob("*.cpp"))
        }
        _run_all([[*job, "-o", output] for output, job in jobs.items()])
        with atomic_write(directory / LIBRARY) as temporary:
            # Without an OpenMP library: torch has loaded one already, and two would compete for the cores.
            link = [
                "-shared",
                *jobs,
                f"-L{torch_root / 'lib'}",
                "-ltorch_cpu",
                "-lc10",
                "-ldl",
                "-o",
                str(temporary),
            ]
            _run_all([[*command, *link]])


def jobs_at_once() -> int:
    """As many as there are cores, and as have room in the memory that is free; one at least."""
    memory = available_memory()
    room = available_cores() if memory is None else memory // _MEMORY_OF_A_COMPILER
    return max(1, min(available_cores(), room))


def _run_all(commands: list[list[str]]) -> None:
    """Run commands, ``jobs_at_once`` at the same time.

    Raises :class:`KernelBuildError` with the messages of the first that fails; the others are then stopped.
    """
    waiting, running, limit = commands[::-1], [], jobs_at_once()
    with contextlib.ExitStack() as stack:
        while waiting or running:
            while waiting and len(running) < limit:
                log = stack.enter_context(tempfile.TemporaryFile("w+"))
                # Its own group of processes, for a compiler is several.
                job = subprocess.Popen(waiting.pop(), stdout=log, stderr=subprocess.STDOUT, process_group=0)
                stack.callback(_stop, job)
                running.append((job, log))
            time.sleep(_SECONDS_BETWEEN_LOOKS)
            for job, log in running:
                if job.poll():
                    log.seek(0)
                    raise KernelBuildError(
                        f"the compiler failed: {shlex.join(job.args)}\n{log.read()[:4000]}"
                    )
            running = [(job, log) for job, log in running if job.returncode is None]


def _stop(job: subprocess.Popen) -> None:
    if job.poll() is None:
        os.killpg(job.pid, signal.SIGKILL)
        job.wait()
