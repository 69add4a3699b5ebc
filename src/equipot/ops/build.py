"""The kernels as a library of torch's operators: compiled at first use (equipot/compile.py) and loaded.

Environment variables
    EQUIPOT_KERNELS   auto (default): kernels where they can be built, otherwise the reference; on: an error
                      if they cannot be built; off: always the reference.
"""

import functools
import logging
import os
import sys
from pathlib import Path

import torch

from equipot.compile import KernelBuildError, Library
from equipot.errors import ConfigError
from equipot.machine import processor_kinds

SOURCES = Path(__file__).parent / "csrc"
KERNELS = Path(__file__).parents[1] / "engine" / "kernels"  # what knows nothing of torch
GPU = Path(__file__).parents[1] / "engine" / "gpu"  # nor does this: kernels for GPUs, as text, and the driver
LIBRARY = "libequipot_ops.so"

logger = logging.getLogger("equipot")


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
    if operators_registered():  # by who else loaded the library
        return True
    try:
        torch.ops.load_library(str(build()))
    except (KernelBuildError, OSError) as error:
        if mode == "on":
            raise KernelBuildError(f"EQUIPOT_KERNELS=on, but the kernels cannot be used: {error}") from error
        logger.warning(
            "where torch runs a model, reference operators do, several times slower than the kernels: %s",
            error,
        )
        return False
    return True


def operators_registered() -> bool:
    """Whether this process has the compiled operators already."""
    return hasattr(torch.ops.equipot, "convolution_backward")


def build(force: bool = False) -> Path:
    """The compiled library's path; compiles it if there is no valid one, or if ``force``.

    Raises :class:`equipot.compile.KernelBuildError`.
    """
    return library().build(force)


def library() -> Library:
    """The operators, for this torch."""
    torch_root, abi = Path(torch.__file__).parent, torch.compiled_with_cxx11_abi()
    return Library(
        LIBRARY,
        "the kernels",
        (SOURCES, KERNELS, GPU),
        (
            # -march: the kernels' blocking depends on width and number of the vector registers.
            # -ffp-contract: multiply-adds are fused: half of the arithmetic, rounded once instead of twice.
            # avoid-fma-max-bits: in all loops, or GCC on Zen rounds sums of few rows otherwise than of many.
            *("-O3", "-DNDEBUG", "-march=native", "-ffp-contract=fast", "--param=avoid-fma-max-bits=0"),
            *("-fno-math-errno", "-fno-trapping-math", "-fopenmp"),
            f"-D_GLIBCXX_USE_CXX11_ABI={int(abi)}",
            f"-I{torch_root / 'include'}",
            f"-I{torch_root / 'include/torch/csrc/api/include'}",
        ),
        # Without an OpenMP library: torch has loaded one already, and two would compete for the cores.
        (f"-L{torch_root / 'lib'}", "-ltorch_cpu", "-lc10", "-ldl"),
        {
            "torch": [torch.__version__, torch.version.git_version, abi],
            "python": sys.implementation.cache_tag,
            "processor": processor_kinds(),
        },
    )
