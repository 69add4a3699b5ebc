"""The processor, the cores and the memory at hand: the one place that asks the operating system for them."""

import contextlib
import ctypes
import os
import platform
from pathlib import Path


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory() -> int | None:
    """Bytes that are free now; None where it cannot be told."""
    values = _values("/proc/meminfo", "MemAvailable")
    return 1024 * int(values[0].split()[0]) if values else None


def keep_memory() -> None:
    """Memory that is freed stays with this process, for the rest of its life and for all that runs in it.

    Structures of more than about 2,000 atoms are evaluated up to a third faster on a CPU: the system would
    otherwise clear every page of every large array anew. Memory never falls below its peak, so a script or
    notebook has to ask for it; ``equipot md``, ``equipot evaluate`` and the LAMMPS plugin do. Does nothing
    where the C library is not glibc, or another allocator has taken its place.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-4, 0)  # M_MMAP_MAX
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: never


def processor_name() -> str:
    """The model's name where the system tells it."""
    names = _values("/proc/cpuinfo", "model name")
    return names[0] if names else platform.processor() or platform.machine()


def processor_flags() -> str:
    """The names of the instruction sets, as Linux lists them; empty elsewhere."""
    flags = _values("/proc/cpuinfo", "flags", "Features")  # x86 and ARM names
    return flags[0] if flags else ""


def processor_kinds() -> str:
    """All that tells kinds of processors apart, of every core; elsewhere the processor's name."""
    kinds = ("flags", "Features", "cpu family", "model\t", "CPU part")  # x86 and ARM names
    lines = [" ".join(line.split()) for line in _lines("/proc/cpuinfo") if line.startswith(kinds)]
    return "; ".join(sorted(set(lines))) or platform.processor()


def _values(file: str, *keys: str) -> list[str]:
    """What stands behind the colon in lines that start with one of ``keys``."""
    return [line.partition(":")[2].strip() for line in _lines(file) if line.startswith(keys)]


def _lines(file: str) -> list[str]:
    """Of a file of the system; none where it has no such file."""
    try:
        return Path(file).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
