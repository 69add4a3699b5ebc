"""Whether equipot's engine evaluates a deployed file, and on which GPU; torch is not asked."""

import functools
import io
import logging
import os
import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from equipot.compile import KernelBuildError
from equipot.devices import may_have_gpu, nvidia_driver
from equipot.engine.library import Engine, num_gpus, why_no_gpu
from equipot.errors import ConfigError, DeviceError, ModelFileError, SimulationError

if TYPE_CHECKING:
    import torch

log = logging.getLogger("equipot")


def engine_gpu(device: "str | torch.device") -> str | None:
    """The GPU that the engine has for "auto" or this name; None: there is none.

    Raises DeviceError if there are others only.
    """
    name = str(device)
    named = re.fullmatch(r"auto|cuda(?::(\d+))?", name)
    if named is None or not may_have_gpu():
        return None
    try:
        count = num_gpus()
    except (ConfigError, KernelBuildError):
        return None  # said where the engine is to run on a CPU
    if count == 0:
        if nvidia_driver():
            _warn_of_unused_gpu(why_no_gpu())
        return None
    if int(named[1] or 0) >= count:
        raise DeviceError(f"Device '{name}' does not exist: there are {count} GPUs, counted from 0.")
    return "cuda" if name == "auto" else name


@functools.cache
def _warn_of_unused_gpu(why: str) -> None:
    """Once per process."""
    log.warning("This machine has an NVIDIA GPU, which equipot's engine cannot use: %s.", why)


def engine_of(path: Path, content: bytes, device: str) -> Engine | None:
    """The engine with a file, if it can run it on this device; if not, why is said.

    On a GPU each has a neighbor list of its own.
    """
    return _on_cpu(path, content) if device == "cpu" else _opened(path, content, device)


# Opened once: every task of a pool of processes brings the same content along.
@functools.lru_cache(maxsize=16)
def _on_cpu(path: Path, content: bytes) -> Engine | None:
    return _opened(path, content, "cpu")


def _opened(path: Path, content: bytes, device: str) -> Engine | None:
    if os.environ.get("EQUIPOT_KERNELS", "").strip().lower() == "off":
        return None
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if not any(name.endswith("/engine/program.json") for name in archive.namelist()):
            log.info("%s has no program for the engine; TorchScript runs it.", path)
            return None
    try:
        found = Engine(path, content, device)
    except (DeviceError, KernelBuildError) as error:
        log.warning("The engine cannot run %s on the device %s: %s", path, device, error)
        return None
    return found if device == "cpu" or _is_right(found, path) else None


def _is_right(engine: Engine, path: Path) -> bool:
    """Whether it reproduces the file's reference structures, by kernels that were compiled for this GPU.

    Raises DeviceError if it cannot evaluate them.
    """
    try:
        engine.check()
    except ModelFileError as error:
        log.warning("The engine is wrong on this GPU and does not run %s: %s", path, error)
        return False
    except SimulationError as error:
        # Not on to torch: after a kernel that has failed nothing works on this GPU in this process.
        raise DeviceError(
            f"The engine cannot evaluate {path} on the device {engine.device}: {error} Use the device "
            "cpu, or engine='torch' in a new process."
        ) from error
    return True
