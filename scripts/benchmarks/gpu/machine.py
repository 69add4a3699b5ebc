"""What the check runs on."""

import contextlib
import ctypes
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from equipot.machine import processor_name


def describe(device: str) -> dict:
    """Name, driver, versions and memory of the card, and of the host. Raises RuntimeError without a GPU."""
    host = {
        "host": f"{processor_name()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if device == "cpu":
        return {"device": "cpu", "threads": torch.get_num_threads(), **host}
    if not torch.cuda.is_available():
        built = "was built without CUDA" if torch.version.cuda is None else "finds no GPU"
        raise RuntimeError(f"torch {torch.__version__} {built}; --device cpu runs the check without one")
    card = torch.cuda.get_device_properties(0)
    return {
        "device": card.name,
        "compute capability": f"{card.major}.{card.minor}",
        "multiprocessors": card.multi_processor_count,
        "memory GB": round(card.total_memory / 1e9, 1),
        "free GB": round(torch.cuda.mem_get_info()[0] / 1e9, 1),
        "driver": _driver(),
        "CUDA of torch": torch.version.cuda,
        "NVRTC": _nvrtc(),
        **host,
    }


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        return done.stdout.splitlines()[0].strip()
    except (OSError, subprocess.SubprocessError, IndexError):
        return "not known (no nvidia-smi)"


def _nvrtc() -> str:
    """Version of the NVRTC that torch has loaded or brings; without loading one, which could hide a fault."""
    torch.ones(2, device="cuda")
    maps = Path("/proc/self/maps").read_text().splitlines()
    loaded = sorted({line.split()[-1] for line in maps if "libnvrtc.so" in line})
    if loaded:
        library, major, minor = ctypes.CDLL(loaded[0]), ctypes.c_int(), ctypes.c_int()
        library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
        return f"{major.value}.{minor.value}"
    for package in ("nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu13", "nvidia-cuda-nvrtc-cu12"):
        with contextlib.suppress(PackageNotFoundError):
            return f"{version(package)} ({package})"
    return "not found beside torch"
