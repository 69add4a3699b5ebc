"""Compiles a C++ library at its first use, into a cache.

A cached library is used only if its manifest says that it was made from these sources, in this way, and if
its checksum agrees; anything else is rebuilt. Torch's operators are tuned to the machine (``-march=native``),
so their place in the cache depends on the processor's features: machines of different kinds that share a home
directory each get their own. The engine's depends on the set of instructions alone (``engine/build.py``).

Environment variables
    EQUIPOT_CACHE     directory for compiled libraries; default $XDG_CACHE_HOME/equipot or ~/.cache/equipot.
    CXX               the compiler; default g++.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import platform
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from equipot.errors import EquipotError
from equipot.files import atomic_write
from equipot.machine import available_cores, available_memory

FLAGS = ["-std=gnu++20", "-fPIC", "-fvisibility=hidden"]

_MEMORY_OF_A_COMPILER = 1 << 30  # bytes; some sources include much of torch
_SECONDS_BETWEEN_LOOKS = 0.02

logger = logging.getLogger("equipot")


class KernelBuildError(EquipotError):
    """A library cannot be compiled or loaded on this machine."""


@dataclass(frozen=True)
class Library:
    """What is compiled, and what decides beside the compiler whether a compiled one fits."""

    name: str  # of the file
    what: str  # in messages
    folders: tuple[Path, ...]  # of sources and headers
    flags: tuple[str, ...] = ()  # beside FLAGS
    link: tuple[str, ...] = ()
    identity: Mapping = field(default_factory=dict)  # further facts
    units: tuple[tuple[Path, tuple[str, ...]], ...] = ()  # sources with flags of their own; empty: every .cpp

    def build(self, force: bool = False) -> Path:
        """Path of the compiled library; compiles it if there is no valid one, or if ``force``.

        Several processes may call this at once: one compiles, the others wait. Raises `KernelBuildError`.
        """
        wanted = self.wanted()
        key = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:16]
        directory = cache_directory() / key
        compiler = find_compiler()
        if not force and self._is_valid(directory, wanted, compiler):
            return directory / self.name
        if compiler is None:
            raise KernelBuildError(
                f"no C++ compiler ({shlex.join(compiler_command())}) found; install g++ 10 or newer, or set "
                "CXX"
            )
        make_private(directory)
        with locked(directory / "lock"):
            if force or not self._is_valid(directory, wanted, compiler):
                logger.info("compiling %s into %s (about a minute, once)", self.what, directory)
                start = time.monotonic()
                self.compile(directory)
                manifest = {**wanted, "compiler": compiler, "sha256": _checksum(directory / self.name)}
                with atomic_write(directory / "manifest.json") as temporary:
                    temporary.write_text(json.dumps(manifest, indent=1))
                logger.info("%s compiled in %.0f s", self.what, time.monotonic() - start)
        return directory / self.name

    def wanted(self) -> dict:
        """All that decides, beside the compiler, whether a library fits this process."""
        return {
            "sources": {path.name: _checksum(path) for path in self._files()},
            "flags": [*FLAGS, *(flag for flag in self.flags if not flag.startswith("-I"))],
            "units": [[path.name, *flags] for path, flags in self.units],
            "system": [platform.system(), platform.machine()],
            **self.identity,
        }

    def compile(self, directory: Path) -> None:
        """Compile all sources, several at a time, link, and move the library to its final name."""
        command = compiler_command()
        flags = [*FLAGS, *(f"-I{folder}" for folder in self.folders), *self.flags]
        units = self.units or tuple((path, ()) for path in self._files() if path.suffix == ".cpp")
        with tempfile.TemporaryDirectory(prefix="equipot-build-") as scratch:
            objects = [f"{scratch}/{n}.o" for n in range(len(units))]
            run_all(
                [
                    [*command, *flags, *own, "-c", str(source), "-o", output]
                    for (source, own), output in zip(units, objects, strict=True)
                ]
            )
            with atomic_write(directory / self.name) as temporary:
                run_all([[*command, "-shared", *objects, *self.link, "-o", str(temporary)]])

    def _files(self) -> list[Path]:
        return sorted(path for folder in self.folders for path in folder.iterdir() if path.is_file())

    def _is_valid(self, directory: Path, wanted: dict, compiler: str | None) -> bool:
        """Whether the directory holds the wanted library, complete, ours, and not altered since.

        Without a compiler, any compiler's work will do: libraries may be built ahead, where there is one.
        """
        library, manifest_file = directory / self.name, directory / "manifest.json"
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


def cache_directory() -> Path:
    """Where compiled kernels are kept."""
    if "EQUIPOT_CACHE" in os.environ:
        return Path(os.environ["EQUIPOT_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "equipot"


def compiler_command() -> list[str]:
    return shlex.split(os.environ.get("CXX", "")) or ["g++"]


def find_compiler() -> str | None:
    """First line of the compiler's ``--version``; None if there is none."""
    command = compiler_command()
    if shutil.which(command[0]) is None:
        return None
    result = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
    return result.stdout.splitlines()[0] if result.returncode == 0 and result.stdout else None


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


def jobs_at_once() -> int:
    """As many as there are cores, and as have room in the memory that is free; one at least."""
    memory = available_memory()
    room = available_cores() if memory is None else memory // _MEMORY_OF_A_COMPILER
    return max(1, min(available_cores(), room))


def run_all(commands: list[list[str]]) -> None:
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
