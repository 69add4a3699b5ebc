"""Which device a computation runs on, and in how many pieces: the one place that asks torch for GPUs.

Torch, which takes seconds to import, is asked only where there may be a GPU.
"""

import ctypes
import functools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from equipot.errors import DeviceError

if TYPE_CHECKING:
    import torch

    from equipot.graph import AtomicGraph

T = TypeVar("T")

_MOST_EDGES = {"cpu": 2**14, "cuda": 2**18}  # evaluated at once: memory is bounded by them, not by the set

log = logging.getLogger("equipot")


def resolve_device(device: "str | torch.device") -> str:
    """Turn "auto" or a device of PyTorch into the name of one that exists here; raises DeviceError otherwise.

    "auto" is a GPU if torch has one. Where the machine has a GPU that torch cannot use, a warning says so.
    """
    name = str(device)
    if name == "cpu" or (name == "auto" and not may_have_gpu()):
        return "cpu"
    import torch

    if name == "auto":
        if num_gpus() == 0:
            _warn_of_unused_gpu()
        return "cuda" if num_gpus() else "cpu"
    try:
        target = torch.device(device)
    except RuntimeError:
        raise DeviceError(f"Unknown device '{device}'. Expected auto, cpu, cuda or cuda:INDEX.") from None
    if target.type not in ("cpu", "cuda"):
        raise DeviceError(f"Device '{device}' is not supported. Expected auto, cpu, cuda or cuda:INDEX.")
    if target.type == "cuda" and (target.index or 0) >= num_gpus():
        raise DeviceError(f"Device '{device}' does not exist: {gpus_found()}. Use device='cpu' or 'auto'.")
    return "cpu" if target.type == "cpu" else str(target)


def most_edges(device: "str | torch.device") -> int:
    """Edges to evaluate at once, unless said otherwise."""
    return _MOST_EDGES["cpu" if str(device) == "cpu" else "cuda"]


def by_halves(
    compute: "Callable[[AtomicGraph], T]",
    graph: "AtomicGraph",
    lacks: "Callable[[AtomicGraph, Exception], None]",
    fits: "Callable[[AtomicGraph], bool]" = lambda graph: True,
) -> Iterator[T]:
    """``compute`` of a graph, or of its halves, their halves and so on where memory runs out.

    Args:
        compute: must leave nothing behind when it fails.
        graph: what to compute.
        lacks: called with the graph that was too large and the error; raises if it cannot be halved.
        fits: False: halve it without a try.
    """
    import torch

    from equipot.graph import halves

    if fits(graph):
        try:
            result = compute(graph)
        except torch.OutOfMemoryError as error:
            lacks(graph, error)
        else:
            yield result
            return
        torch.cuda.empty_cache()  # outside of the handler, whose traceback keeps tensors alive
    for half in halves(graph):
        yield from by_halves(compute, half, lacks, fits)


def num_gpus() -> int:
    """How many GPUs torch can use."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def gpus_found() -> str:
    """What torch finds, for messages."""
    import torch

    built = "" if torch.version.cuda else f" (torch {torch.__version__} is built without CUDA)"
    return f"PyTorch finds {num_gpus() or 'no'} GPU{'s' * (num_gpus() > 1)} here{built}"


def may_have_gpu() -> bool:
    """Whether this machine has a driver; there may be a GPU only then."""
    if nvidia_driver() or Path("/dev/kfd").exists():
        return True
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def nvidia_driver() -> list[Path]:
    """Files by which the driver shows that this machine has an NVIDIA GPU."""
    return [*sorted(Path("/dev").glob("nvidia[0-9]*")), *Path("/usr/lib/wsl/lib").glob("libcuda.so.1")]


@functools.cache
def _warn_of_unused_gpu() -> None:
    """Once per process, if there is an NVIDIA GPU and torch has no CUDA at all.

    A torch with CUDA that finds no GPU says why itself, or the user has hidden the GPU from it.
    """
    import torch

    files = nvidia_driver()
    if files and torch.version.cuda is None:
        log.warning(
            "This machine has an NVIDIA GPU (%s), but torch %s is built without CUDA: the CPU is used. "
            "Install a torch with CUDA, or choose the device cpu.",
            files[0],
            torch.__version__,
        )
